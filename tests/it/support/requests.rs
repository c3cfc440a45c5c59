//! What a transaction is for, told by its operations: for faults that meet only those; and what is told of a release
//! that met one.

use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{ErrorKind, Outcome, Result};

pub(crate) fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestPut(_))))
}

pub(crate) fn deletes(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestDeleteRange(_))))
}

/// It is released; that it was ours until then cannot be told from the answer to the second attempt.
pub(crate) fn released_unseen(released: Result<()>) {
    let error = released.expect_err("the reply was lost");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Fenced, Outcome::Unknown), "{error}");
}
