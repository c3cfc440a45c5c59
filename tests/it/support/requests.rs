//! What a transaction is for, told by its operations: for faults that meet only those; and what is told of a release
//! that met one, or of requests that are held.

use std::time::Duration;

use etcd_concurrency::fake::Hold;
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{ErrorKind, Outcome, Result};
use tokio::time::sleep;

pub(crate) fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestPut(_))))
}

pub(crate) fn deletes(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestDeleteRange(_))))
}

/// Waits until a request, or an answer, is held. The fake tells of no such thing.
pub(crate) async fn is_held(hold: &Hold) {
    while hold.held() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// It is released; that it was ours until then cannot be told from the answer to the second attempt.
pub(crate) fn released_unseen(released: Result<()>) {
    let error = released.expect_err("the reply was lost");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Fenced, Outcome::Unknown), "{error}");
}
