//! Taking back what was put: repeated until it is settled, and looked after where nobody knows whether it was put.

use bytes::Bytes;

use crate::client::Client;
use crate::error::Result;
use crate::lease::Turn;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};

/// Keys of a session, that go together.
#[derive(Debug)]
pub(super) struct Leave {
    session: Session,
    keys: Vec<Bytes>,
    /// One's turn among the tasks that share the keys; kept until it is known that the keys are gone.
    turn: Option<Turn>,
    /// A put of ours got no answer, and may be applied yet.
    pub(super) ambiguous: bool,
}

impl Leave {
    pub(super) fn new(session: &Session, keys: Vec<Bytes>, turn: Option<Turn>) -> Self {
        Self { session: session.clone(), keys, turn, ambiguous: false }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    /// Deletes the keys, of this create_revision. False if one was gone. After an error it is tried again in the
    /// background until it is settled.
    pub(super) async fn release(self, create_revision: i64) -> Result<bool> {
        let deleted = self.delete(create_revision).await;
        match &deleted {
            Ok(_) => self.left(),
            Err(_) => self.spawn(create_revision),
        }
        deleted
    }

    /// Deletes the keys, of this create_revision, in the background: until it is settled, or the lease's end settles it.
    pub(super) fn spawn(self, create_revision: i64) {
        let cleanup = self.session.cleanup().clone();
        cleanup.spawn(async move {
            self.session.settle(WHAT, || async { self.delete(create_revision).await.map(drop) }).await;
            self.left();
        });
    }

    /// Takes back a put of which nobody knows whether it was applied. The turn is kept until that is known.
    pub(super) fn settle(self) {
        let cleanup = self.session.cleanup().clone();
        cleanup.spawn(async move {
            let work = || take_back(self.session.client(), &self.keys, self.session.lease());
            self.session.settle(WHAT, work).await;
            self.look_again();
        });
    }

    /// The keys are gone.
    pub(super) fn left(self) {
        if self.ambiguous {
            self.look_again();
        }
    }

    async fn delete(&self, create_revision: i64) -> Result<bool> {
        let ours: Vec<_> = self.keys.iter().map(|key| (key.clone(), create_revision)).collect();
        let answer = self.session.transact(delete_each(&ours), Repeat::Harmless).await?;
        let reply = answer.value;
        let deleted =
            reply.succeeded && (0..self.keys.len()).all(|index| reply.inner_succeeded(index) != Some(false));
        // With an attempt of unknown fate before it, it was most likely that one which deleted the keys.
        Ok(deleted || answer.ambiguous)
    }

    /// The keys are looked for once more when no server still applies an old request. This does not keep the session
    /// open.
    fn look_again(&self) {
        let (client, lease) = (self.session.client().clone(), self.session.lease_handle().clone());
        let (keys, queue) = (self.keys.clone(), self.turn.as_ref().map(|turn| turn.name().clone()));
        self.session.settle_again(WHAT, move || {
            let (client, lease, keys, queue) = (client.clone(), lease.clone(), keys.clone(), queue.clone());
            async move {
                let _turn = match &queue {
                    Some(name) => Some(lease.locals().turn(name).await),
                    None => None,
                };
                take_back(&client, &keys, lease.id()).await
            }
        });
    }
}

/// Deletes those keys that are there with a lease: each as it was found, since a delete may arrive when it has been
/// given up, and meet the key of the one whose turn it is by then.
async fn take_back(client: &Client, keys: &[Bytes], lease: i64) -> Result<()> {
    let read = keys.iter().fold(Txn::new(), |txn, key| txn.success(Op::get(key.clone())));
    let reply = TxnReply::try_from(client.transport().txn(read.into(), Repeat::Read).await?.value)?;
    let mut there = Vec::new();
    for index in 0..keys.len() {
        there.extend(reply.found(index)?.iter().filter(|kv| kv.lease == lease));
    }
    if there.is_empty() {
        return Ok(());
    }
    let created = |kv: &&KeyValue| (kv.key.clone(), kv.create_revision);
    let txn = delete_each(&there.iter().map(created).collect::<Vec<_>>());
    client.transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
}

/// Deletes each key that still is of its create_revision.
fn delete_each(keys: &[(Bytes, i64)]) -> Txn {
    let delete = |(key, created): &(Bytes, i64)| {
        let ours = Compare::create_revision(key.clone()).is(*created);
        Txn::new().compare(ours).success(Op::delete(key.clone()))
    };
    match keys {
        [key] => delete(key),
        keys => keys.iter().fold(Txn::new(), |all, key| all.success(Op::txn(delete(key)))),
    }
}

/// What is being settled, for people to read.
const WHAT: &str = "keys of our own";
