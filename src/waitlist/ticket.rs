//! A ticket: what one acquisition puts, and takes back. Putting is settled whatever becomes of its reply; leaving is
//! repeated until it is settled.

use bytes::Bytes;

use super::place::Place;
use super::{found, unexpected};
use crate::error::{LostReason, Outcome, Result};
use crate::lease::Turn;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};

/// Keys that are put by one transaction, so of one create_revision, and go together.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(super) session: Session,
    keys: Vec<Bytes>,
    /// One's turn among the tasks that share the keys; kept until it is known that the keys are gone.
    turn: Option<Turn>,
    /// A put of ours got no answer, and may be applied yet.
    ambiguous: bool,
}

/// What [`Ticket::put`] brought back.
pub(crate) struct Joined {
    pub(crate) place: Place,
    /// The first key as it was found, where it was not created.
    pub(crate) found: Option<KeyValue>,
    /// The answers to what was to be read.
    pub(crate) reply: TxnReply,
}

impl Ticket {
    /// For keys that nobody else ever puts.
    pub(crate) fn new(session: &Session, keys: Vec<Bytes>) -> Self {
        Self { session: session.clone(), keys, turn: None, ambiguous: false }
    }

    /// For a key that tasks of this process put in turn.
    pub(super) fn in_turn(session: &Session, key: Bytes, turn: Turn) -> Self {
        Self { session: session.clone(), keys: vec![key], turn: Some(turn), ambiguous: false }
    }

    pub(crate) fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    /// Puts the keys with a value if they are not there and `only_if` holds, and reads: one transaction, that goes on in
    /// the background when the future is dropped, and is then taken back.
    ///
    /// None where `only_if` does not hold. If the keys are there, an earlier attempt put them, and they are ours.
    pub(crate) async fn put(
        self,
        only_if: Vec<Compare>,
        value: Bytes,
        reads: Vec<Op>,
    ) -> Result<Option<Joined>> {
        let session = self.session.clone();
        let putting = session.cleanup().finish(self.put_now(only_if, value, reads));
        tokio::select! {
            biased;
            reason = session.lost() => Err(reason.into()),
            joined = putting => joined,
        }
    }

    async fn put_now(
        mut self,
        only_if: Vec<Compare>,
        value: Bytes,
        reads: Vec<Op>,
    ) -> Result<Option<Joined>> {
        let mut txn = only_if.into_iter().fold(Txn::new(), Txn::compare);
        for key in &self.keys {
            txn = txn.compare(Compare::missing(key.clone()));
            txn = txn.success(Op::put_with_lease(key.clone(), value.clone(), self.session.lease()));
            txn = txn.failure(Op::get(key.clone()));
        }
        for read in reads {
            txn = txn.success(read.clone()).failure(read);
        }
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        let answer = match self.session.lease_handle().learn(answer) {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    self.settle();
                }
                return Err(error);
            }
        };
        self.ambiguous = answer.ambiguous;
        match TxnReply::try_from(answer.value).and_then(|reply| self.read_put(reply)) {
            Ok(Some((create_revision, found, reply))) => {
                let header = reply.header;
                Ok(Some(Joined { place: Place::new(self, create_revision, header), found, reply }))
            }
            nothing => {
                if self.ambiguous || nothing.is_err() {
                    self.settle();
                }
                nothing.map(|_| None)
            }
        }
    }

    /// Since when our keys are there, and the answers to what was read. None where there is no key of ours.
    fn read_put(&self, mut reply: TxnReply) -> Result<Option<(i64, Option<KeyValue>, TxnReply)>> {
        let mut there = Vec::new();
        for (index, key) in self.keys.iter().enumerate().filter(|_| !reply.succeeded) {
            match found(reply.kvs(index), "our key")? {
                [kv] if kv.key == *key => there.push(kv.clone()),
                [kv, ..] => return Err(unexpected(format!("the key {:?} for our own", kv.key))),
                [] => {}
            }
        }
        let together = there.windows(2).all(|pair| pair[0].create_revision == pair[1].create_revision);
        if !reply.succeeded && there.is_empty() {
            return Ok(None);
        }
        if !reply.succeeded && (there.len() < self.keys.len() || !together) {
            // We put all of them at once: somebody deletes them.
            return Err(LostReason::KeyDeleted.into());
        }
        let first = there.into_iter().next();
        reply.responses.drain(..self.keys.len().min(reply.responses.len()));
        let create_revision = first.as_ref().map_or(reply.header.revision, |kv| kv.create_revision);
        Ok(Some((create_revision, first, reply)))
    }

    /// Deletes the keys, of this create_revision. False if one was gone. After an error it is tried again in the
    /// background until it is settled.
    pub(super) async fn release(self, create_revision: i64) -> Result<bool> {
        let deleted = self.delete(create_revision).await;
        match &deleted {
            Ok(_) if self.ambiguous => self.look_again_later(),
            Ok(_) => {}
            Err(_) => {
                let cleanup = self.session.cleanup().clone();
                cleanup.spawn(async move {
                    self.session
                        .settle(WHAT, || async { self.delete(create_revision).await.map(drop) })
                        .await;
                    if self.ambiguous {
                        self.look_again_later();
                    }
                });
            }
        }
        deleted
    }

    async fn delete(&self, create_revision: i64) -> Result<bool> {
        let ours = |key: &Bytes| Compare::create_revision(key.clone()).is(create_revision);
        let transport = self.session.client().transport();
        let answer = transport.txn(delete_each(&self.keys, ours).into(), Repeat::Harmless).await;
        let answer = self.session.lease_handle().learn(answer)?;
        let reply = TxnReply::try_from(answer.value)?;
        let deleted =
            reply.succeeded && (0..self.keys.len()).all(|index| reply.inner_succeeded(index) != Some(false));
        // With an attempt of unknown fate before it, it was most likely that one which deleted the keys.
        Ok(deleted || answer.ambiguous)
    }

    /// Takes back a put of which nobody knows whether it was applied. The turn is kept until that is known.
    fn settle(self) {
        let cleanup = self.session.cleanup().clone();
        cleanup.spawn(async move {
            self.session.settle(WHAT, || self.take_back()).await;
            self.look_again_later();
        });
    }

    /// Deletes our keys, of whichever incarnation, if they are there.
    async fn take_back(&self) -> Result<()> {
        let txn = delete_each(&self.keys, |key| Compare::lease(key.clone()).is(self.session.lease()));
        self.session.client().transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
    }

    /// Our keys are looked for once more when no server still applies an old request. This does not keep the session
    /// open.
    fn look_again_later(&self) {
        let (client, lease) = (self.session.client().clone(), self.session.lease_handle().clone());
        let (keys, queue) = (self.keys.clone(), self.turn.as_ref().map(|turn| turn.name().clone()));
        self.session.settle_again(WHAT, async move {
            let _turn = match &queue {
                Some(name) => Some(lease.locals().turn(name).await),
                None => None,
            };
            let txn = delete_each(&keys, |key| Compare::lease(key.clone()).is(lease.id()));
            client.transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
        });
    }
}

/// Deletes each key for which the compare holds.
fn delete_each(keys: &[Bytes], compare: impl Fn(&Bytes) -> Compare) -> Txn {
    let delete = |key: &Bytes| Txn::new().compare(compare(key)).success(Op::delete(key.clone()));
    match keys {
        [key] => delete(key),
        keys => keys.iter().fold(Txn::new(), |all, key| all.success(Op::txn(delete(key)))),
    }
}

/// What is being settled, for people to read.
const WHAT: &str = "a place in a queue";
