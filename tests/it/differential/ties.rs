//! What a real server leaves open when it sorts.
//!
//! It sorts with Go's `sort.Sort`, which keeps keys of equal rank in their order only among a dozen. Beyond
//! that, keys of one rank are put in key order here; and of those of the last rank that a limit cut off, only
//! the number is compared.

use etcd_concurrency::pb::etcdserverpb::range_request::SortTarget;
use etcd_concurrency::pb::etcdserverpb::request_op::Request;
use etcd_concurrency::pb::etcdserverpb::response_op::Response;
use etcd_concurrency::pb::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use etcd_concurrency::pb::mvccpb::KeyValue;

/// So many keys Go sorts by insertion, which is stable.
pub(super) const STABLE: i64 = 12;

pub(super) fn settle(request: &RangeRequest, response: &mut RangeResponse) {
    if response.count > STABLE {
        settle_sorted(request, response);
    }
}

/// Such a range comes in one piece, or in those that are sorted stably: where one ends says where the next begins.
pub(super) fn settle_stream(request: &RangeRequest, piece: &mut RangeResponse) {
    if piece.kvs.len() as i64 >= STABLE {
        settle_sorted(request, piece);
    }
}

fn settle_sorted(request: &RangeRequest, response: &mut RangeResponse) {
    let target = request.sort_target();
    if target == SortTarget::Key {
        return;
    }
    let rank = |kv: &KeyValue| match target {
        SortTarget::Version => (kv.version, Default::default()),
        SortTarget::Create => (kv.create_revision, Default::default()),
        SortTarget::Mod => (kv.mod_revision, Default::default()),
        SortTarget::Value => (0, kv.value.clone()),
        SortTarget::Key => (0, kv.key.clone()),
    };
    for group in response.kvs.chunk_by_mut(|one, other| rank(one) == rank(other)) {
        group.sort_by(|one, other| one.key.cmp(&other.key));
    }
    let last = response.kvs.last().map(rank).filter(|_| response.more);
    let kept = response.kvs.iter().filter(|kv| Some(rank(kv)) != last).count();
    for kv in &mut response.kvs[kept..] {
        *kv = KeyValue::default();
    }
}

pub(super) fn settle_txn(request: &TxnRequest, response: &mut TxnResponse) {
    let taken = if response.succeeded { &request.success } else { &request.failure };
    for (op, response) in taken.iter().zip(&mut response.responses) {
        match (&op.request, &mut response.response) {
            (Some(Request::RequestRange(range)), Some(Response::ResponseRange(response))) => {
                settle(range, response);
            }
            (Some(Request::RequestTxn(inner)), Some(Response::ResponseTxn(response))) => {
                settle_txn(inner, response);
            }
            _ => {}
        }
    }
}
