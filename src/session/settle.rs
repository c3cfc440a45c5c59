//! Settling what nobody knows the fate of, in the background.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Session;
use crate::error::Result;
use crate::transport::retry::{Backoff, may_pass};

impl Session {
    /// Repeats work that settles something, until it is done or the session is lost: what hangs on the lease ends
    /// with it then. Whether it was done.
    pub(crate) async fn settle<F>(&self, what: &'static str, mut work: impl FnMut() -> F) -> bool
    where
        F: Future<Output = Result<()>>,
    {
        let mut backoff = Backoff::default();
        while self.is_valid() {
            match self.lease_handle().learn(work().await) {
                Ok(()) => return true,
                Err(error) => tracing::debug!(%error, what, "not settled yet; trying again"),
            }
            tokio::select! {
                biased;
                _ = self.lost() => return false,
                () = sleep(backoff.next()) => {}
            }
        }
        false
    }

    /// Does work once more when the server must have given up every request that is sent by now: one that got no
    /// answer may be applied after all that was done about it. Repeated until it is answered. Does not keep the session
    /// open.
    pub(crate) fn settle_again<F>(&self, what: &'static str, mut work: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let lease = self.lease_handle().clone();
        self.cleanup().spawn(async move {
            let again = async {
                sleep(STRAGGLER).await;
                let mut backoff = Backoff::default();
                while let Err(error) = work().await {
                    if !may_pass(error.kind()) {
                        tracing::warn!(%error, what, "a key of unknown fate may stay until the session's end");
                        return;
                    }
                    sleep(backoff.next()).await;
                }
            };
            tokio::select! {
                biased;
                _ = lease.lost() => {}
                () = again => {}
            }
        });
    }

    /// As [`settle`](Self::settle), for what no lease's end settles: whatever becomes of the session, for up to ten
    /// minutes. Where a request of unknown fate may be `straggling`, the work is done once more after it.
    pub(crate) fn settle_for_good<F>(
        &self,
        what: &'static str,
        straggling: bool,
        mut work: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        // Not among the session's own tasks: closing it is not to wait for this.
        self.client().runtime().spawn(async move {
            let start = Instant::now();
            let rounds = [start, start + STRAGGLER];
            for from in &rounds[..if straggling { 2 } else { 1 }] {
                sleep_until(*from).await;
                let mut backoff = Backoff::default();
                while let Err(error) = work().await {
                    if start.elapsed() > LONGEST_SETTLE {
                        tracing::warn!(%error, what, "given up: a key of unknown fate may stay");
                        return;
                    }
                    tracing::debug!(%error, what, "not settled yet; trying again");
                    sleep(backoff.next()).await;
                }
            }
        });
    }
}

/// Longer than a server keeps a request: 5 s and twice the election timeout, which is 1 s by default.
pub(crate) const STRAGGLER: Duration = Duration::from_secs(12);
const LONGEST_SETTLE: Duration = Duration::from_secs(600);
