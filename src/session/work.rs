//! What is done for a session, and ends with it.

use std::future::poll_fn;
use std::task::Poll;

use super::Session;
use crate::error::Result;
use crate::transport::Answer;
use crate::transport::retry::Repeat;
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

    /// Sends a transaction that only reads.
    pub(crate) async fn read(&self, txn: Txn) -> Result<TxnReply> {
        // Boxed, so that the long waits that read now and then are small.
        Box::pin(self.transact(txn, Repeat::Read)).await.map(|answer| answer.value)
    }
}
