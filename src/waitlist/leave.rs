//! Leaving a queue: repeated until it is settled, and looked after when nobody knows what became of a join.

use std::time::Duration;

use super::Waitlist;
use crate::error::Result;
use crate::lease::Turn;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn};

/// What is needed to leave, and held until one has left.
#[derive(Debug)]
pub(super) struct Leave {
    pub(super) list: Waitlist,
    pub(super) turn: Turn,
    /// A put of ours got no answer, and may be applied yet.
    pub(super) ambiguous: bool,
}

impl Leave {
    /// Deletes the key, of this create_revision. False if it was gone. After an error it is tried again in the
    /// background until it is settled.
    pub(super) async fn release(self, create_revision: i64) -> Result<bool> {
        let deleted = self.delete(create_revision).await;
        match &deleted {
            Ok(_) if self.ambiguous => self.list.look_again_later(),
            Ok(_) => {}
            Err(_) => {
                let cleanup = self.list.session.cleanup().clone();
                cleanup.spawn(async move {
                    let delete = || async { self.delete(create_revision).await.map(drop) };
                    self.list.until_done(delete).await;
                    if self.ambiguous {
                        self.list.look_again_later();
                    }
                    drop(self.turn);
                });
            }
        }
        deleted
    }

    async fn delete(&self, create_revision: i64) -> Result<bool> {
        let ours = Compare::create_revision(self.list.key.clone()).is(create_revision);
        let txn = Txn::new().compare(ours).success(Op::delete(self.list.key.clone()));
        let transport = self.list.session.client().transport();
        let answer =
            self.list.session.lease_handle().learn(transport.txn(txn.into(), Repeat::Harmless).await)?;
        // With an attempt of unknown fate before it, it was most likely that one which deleted the key.
        Ok(answer.value.succeeded || answer.ambiguous)
    }
}

impl Waitlist {
    /// Takes back a put of which nobody knows whether it was applied. The turn is kept until that is known.
    pub(super) fn settle(&self, turn: Turn) {
        let list = self.clone();
        self.session.cleanup().spawn(async move {
            let _turn = turn;
            list.until_done(|| list.take_back()).await;
            list.look_again_later();
        });
    }

    /// Deletes our key, of whichever incarnation, if it is there.
    async fn take_back(&self) -> Result<()> {
        let ours = Compare::lease(self.key.clone()).is(self.session.lease());
        let txn = Txn::new().compare(ours).success(Op::delete(self.key.clone()));
        self.session.client().transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
    }

    /// Repeats until it is done, or the session is lost and the lease's end will do it.
    async fn until_done<F: Future<Output = Result<()>>>(&self, mut work: impl FnMut() -> F) {
        let mut backoff = Backoff::default();
        while self.session.is_valid() {
            match self.session.lease_handle().learn(work().await) {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, key = ?self.key, "leaving a queue failed; trying again")
                }
            }
            tokio::select! {
                biased;
                _ = self.session.lost() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// A request that got no answer may be applied after everything we did about it: once the server must have given
    /// it up, our key is looked for again. This does not keep the session open.
    fn look_again_later(&self) {
        let (client, lease, key, prefix) = (
            self.session.client().clone(),
            self.session.lease_handle().clone(),
            self.key.clone(),
            self.prefix.clone(),
        );
        let cleanup = self.session.cleanup().clone();
        cleanup.spawn(async move {
            let again = async {
                tokio::time::sleep(STRAGGLER).await;
                let _turn = lease.locals().turn(&prefix).await;
                let ours = Compare::lease(key.clone()).is(lease.id());
                let txn = Txn::new().compare(ours).success(Op::delete(key.clone()));
                client.transport().txn(txn.into(), Repeat::Harmless).await
            };
            tokio::select! {
                biased;
                _ = lease.lost() => {}
                done = again => if let Err(error) = done {
                    tracing::warn!(%error, ?key, "a key of unknown fate may stay until the session's end");
                }
            }
        });
    }
}

/// Longer than a server keeps a request: 5 s and twice the election timeout, which is 1 s by default.
const STRAGGLER: Duration = Duration::from_secs(12);
