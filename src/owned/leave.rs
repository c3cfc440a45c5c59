//! Taking back what was put: repeated until it is settled, and looked after where nobody knows whether it was put.

use bytes::Bytes;

use crate::error::Result;
use crate::lease::Turn;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn};

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
            // Of whichever incarnation, if they are there.
            let take_back =
                || delete_each(&self.keys, |key| Compare::lease(key.clone()).is(self.session.lease()));
            let work = || async { self.session.transact(take_back(), Repeat::Harmless).await.map(drop) };
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
        let ours = |key: &Bytes| Compare::create_revision(key.clone()).is(create_revision);
        let answer = self.session.transact(delete_each(&self.keys, ours), Repeat::Harmless).await?;
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
const WHAT: &str = "keys of our own";
