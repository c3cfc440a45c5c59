//! What is done for a session, and ends with it.

use std::future::poll_fn;
use std::task::Poll;

use tokio::time::sleep;

use super::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat, may_pass};
use crate::txn::{Txn, TxnReply};

impl Session {
    /// Ends with the session, at once; what it has left is dropped then.
    pub(crate) async fn unless_lost<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        // The clock is read before the work goes on; what wakes it at the deadline is made when there is a wait.
        let lease = self.lease_handle();
        let at_once = poll_fn(|_| lease.lost_reason().map_or(Poll::Pending, Poll::Ready));
        tokio::select! {
            biased;
            reason = at_once => Err(reason.into()),
            done = work => done,
            reason = lease.lost() => Err(reason.into()),
        }
    }

    /// Sends a transaction. What it says of the session's own lease is taken for what it says.
    pub(crate) async fn transact(&self, txn: Txn, repeat: Repeat) -> Result<Answer<TxnReply>> {
        self.settler().transact(txn, repeat).await
    }

    /// After a read that failed in the midst of a wait: pauses, for longer each time, so that it may be made again. Gives back
    /// what no time mends.
    pub(crate) async fn outlast(&self, error: Error, backoff: &mut Backoff) -> Result<()> {
        if !self.mends(error.kind()) {
            return Err(error);
        }
        tracing::debug!(%error, "a read failed in the midst of a wait; trying again");
        sleep(backoff.next()).await;
        Ok(())
    }

    /// Whether a wait goes on after a read that failed so.
    pub(crate) fn mends(&self, kind: &ErrorKind) -> bool {
        may_pass(kind) || self.client().transport().token_passes(kind)
    }

    /// Sends a transaction that only reads.
    pub(crate) async fn read(&self, txn: Txn) -> Result<TxnReply> {
        // Boxed, so that the long waits that read now and then are small.
        Box::pin(self.transact(txn, Repeat::Read)).await.map(|answer| answer.value)
    }
}
