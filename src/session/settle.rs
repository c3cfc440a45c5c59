//! Settling what nobody knows the fate of, in the background.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::cleanup::Cleanup;
use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::lease::{Debt, Lease};
use crate::transport::Answer;
use crate::transport::retry::{Backoff, LONGEST_REFUSED, Repeat, is_of_rights};
use crate::txn::{Txn, TxnReply};

/// What settles for a session in the background. It does not keep the session open: where all of its handles are gone,
/// the lease's end settles the rest.
#[derive(Clone)]
pub(crate) struct Settler(Arc<Inner>);

impl fmt::Debug for Settler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settler").field("lease", &format_args!("{:x}", self.lease().id())).finish()
    }
}

struct Inner {
    client: Client,
    lease: Arc<Lease>,
    cleanup: Cleanup,
}

impl Settler {
    pub(super) fn new(client: Client, lease: Arc<Lease>) -> Self {
        let cleanup = Cleanup::of(client.runtime().clone(), &lease);
        Self(Arc::new(Inner { client, lease, cleanup }))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.0.lease
    }

    pub(crate) fn cleanup(&self) -> &Cleanup {
        &self.0.cleanup
    }

    /// Gives a lease of this TTL back in the background, which is not the session's.
    pub(crate) fn give_back(&self, lease: i64, ttl: Duration) {
        self.client().runtime().spawn(super::builder::revoke(self.client().clone(), lease, ttl));
    }

    /// Sends a transaction. What it says of the session's own lease is taken for what it says.
    pub(crate) async fn transact(&self, txn: Txn, repeat: Repeat) -> Result<Answer<TxnReply>> {
        let about_ours = txn.names_only_lease(self.lease().id());
        let answer = match self.client().transport().txn(txn.into(), repeat).await {
            Err(error) if *error.kind() == ErrorKind::LeaseNotFound && !about_ours => {
                return Err(Box::pin(self.whose_lease(error)).await);
            }
            answer => self.lease().learn(answer)?,
        };
        let Answer { value, ambiguous, unanswered } = answer;
        Ok(Answer { value: TxnReply::try_from(value)?, ambiguous, unanswered })
    }

    /// The server found a lease missing of a transaction that names others too: the session is lost if it was its own.
    pub(crate) async fn whose_lease(&self, error: Error) -> Error {
        match self.lease().ask().await {
            Ok(Some(reason)) => Error::from(reason).with_outcome(error.outcome()).because(error),
            // It lives, or its keep-alives will tell.
            _ => error,
        }
    }

    /// Repeats work that settles something, until it is done or refused for good, or the lease's end settles it. Whether it
    /// was done.
    ///
    /// It goes on for a session that was orphaned, since another may keep the lease alive: the work must be such that it
    /// cannot hit what that one does. And for one whose deadline passed, or whose revoke was refused, if this client adopts the
    /// lease again: the server may have had it yet.
    pub(crate) async fn settle<F>(&self, what: &'static str, mut work: impl FnMut() -> F) -> bool
    where
        F: Future<Output = Result<()>>,
    {
        let mut backoff = Backoff::default();
        while self.goes_on().await {
            match work().await {
                Ok(()) => return true,
                Err(error) if error.lost_reason().is_some() => return false,
                Err(error) if self.client().transport().is_final(error.kind()) => {
                    tracing::warn!(%error, what, "the server refuses it: the lease's end will settle it");
                    return false;
                }
                Err(error) => tracing::debug!(%error, what, "not settled yet; trying again"),
            }
            let is_lost = self.lease().lost_reason().is_some();
            tokio::select! {
                biased;
                _ = self.lease().lost(), if !is_lost => {}
                () = sleep(backoff.next()) => {}
            }
        }
        false
    }

    /// As [`settle`](Self::settle), of a transaction for what no lease's end settles: whatever becomes of the session. Closing the
    /// session waits for it, for as long as its patience lasts: the process may end then. Where that must not go untold, a debt
    /// tells how it stands until the server has answered: then it is for `answered` to say what became of it, which is dropped
    /// where no answer comes.
    pub(crate) fn settle_for_good(
        &self,
        what: &'static str,
        debt: Option<Debt>,
        txn: Txn,
        answered: impl FnOnce(TxnReply, Option<Debt>) + Send + 'static,
    ) {
        let client = self.client().clone();
        let cleanup = self.cleanup().clone();
        cleanup.spawn(async move {
            let send = || async {
                let answer = client.transport().txn(txn.clone().into(), Repeat::Harmless).await?;
                TxnReply::try_from(answer.value)
            };
            let (mut backoff, mut refused) = (Backoff::default(), Duration::ZERO);
            let reply = loop {
                let error = match send().await {
                    Ok(reply) => break reply,
                    Err(error) => error,
                };
                debt.iter().for_each(|debt| debt.failed(error.kind()));
                let mut pause = backoff.next();
                if is_of_rights(error.kind()) && refused < LONGEST_REFUSED {
                    // The longer, the rarer.
                    pause = pause.max(refused / 8);
                    refused += pause;
                } else if client.transport().is_final(error.kind()) {
                    tracing::warn!(%error, what, "the server refuses it: a key may stay");
                    return;
                }
                tracing::debug!(%error, what, "not settled yet; trying again");
                sleep(pause).await;
            };
            answered(reply, debt);
        });
    }

    /// False once the lease's end settles the rest. Where it is lost here by its deadline, or closed, that is waited for, or for
    /// this client to adopt it again: nothing is sent meanwhile.
    async fn goes_on(&self) -> bool {
        match self.lease().lost_reason() {
            None | Some(LostReason::Orphaned) => true,
            // Given away by one that had adopted it again, it is as if this one had given it away.
            Some(LostReason::Expired | LostReason::Closed) => {
                self.lease().is_away() || self.lease().adopted_again().await
            }
            Some(_) => false,
        }
    }
}
