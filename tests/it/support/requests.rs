//! What a transaction is for, told by its operations: for faults that meet only those.

use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};

pub(crate) fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestPut(_))))
}

pub(crate) fn deletes(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| matches!(op.request, Some(Request::RequestDeleteRange(_))))
}
