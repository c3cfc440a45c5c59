//! What the server refuses by looking at a write request alone: missing keys, contradictory flags, too many
//! operations, keys written twice.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::range;
use super::refusal::Refusal;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

pub(crate) fn put(request: &PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

pub(crate) fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Refusal> {
    operations(request, max_ops)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// The largest of the three lists counts, and what it uses up is missing to nested transactions.
fn operations(request: &TxnRequest, max_ops: usize) -> Result<(), Refusal> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(count).ok_or(Refusal::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range::check(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(inner)) => operations(inner, left)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a list of operations may put, and the ranges that it may delete.
///
/// The server's rules, with their gaps: a nested transaction's puts are held against the deletes around it
/// and those of earlier siblings, not of later ones; and a delete "from this key on" (range end `\0`)
/// collides with nothing.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Writes {
    fn of(ops: &[RequestOp]) -> Result<Self, Refusal> {
        let mut all = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                all.deletes.push((delete.key.clone(), delete.range_end.clone()));
            }
        }
        for op in ops {
            let Some(Request::RequestTxn(inner)) = &op.request else { continue };
            let success = Self::of(&inner.success)?;
            let failure = Self::of(&inner.failure)?;
            // The branches exclude each other: both may put the same key.
            let before = all.puts.clone();
            for key in success.puts.union(&failure.puts) {
                if before.contains(key) {
                    return Err(Refusal::DuplicateKey);
                }
                all.put(key)?;
            }
            all.deletes.extend(success.deletes);
            all.deletes.extend(failure.deletes);
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                all.put(&put.key)?;
            }
        }
        Ok(all)
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Refusal> {
        let deleted = self.deletes.iter().any(|(start, end)| match end.as_ref() {
            [] => start == key,
            end => start <= key && key.as_ref() < end,
        });
        if deleted || !self.puts.insert(key.clone()) { Err(Refusal::DuplicateKey) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{Compare, RangeRequest};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put_op(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: bytes(key), ..Default::default() }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        let request = DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false };
        op(Request::RequestDeleteRange(request))
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { compare: vec![], success, failure }))
    }

    fn judge(success: Vec<RequestOp>) -> Result<(), Refusal> {
        txn(&TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_key_is_put_once() {
        assert_eq!(judge(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(judge(vec![put_op("a"), put_op("a")]), Err(Refusal::DuplicateKey));
        assert_eq!(judge(vec![put_op("a"), txn_op(vec![put_op("a")], vec![])]), Err(Refusal::DuplicateKey));
        let siblings = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])];
        assert_eq!(judge(siblings), Err(Refusal::DuplicateKey));
    }

    #[test]
    fn branches_of_one_transaction_may_put_the_same_key() {
        assert_eq!(judge(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        let request = TxnRequest { compare: vec![], success: vec![put_op("a")], failure: vec![put_op("a")] };
        assert_eq!(txn(&request, 128), Ok(()));
    }

    #[test]
    fn a_put_may_not_meet_a_delete() {
        assert_eq!(judge(vec![put_op("b"), delete_op("a", "c")]), Err(Refusal::DuplicateKey));
        assert_eq!(judge(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(judge(vec![put_op("a"), delete_op("a", "")]), Err(Refusal::DuplicateKey));
        assert_eq!(judge(vec![delete_op("a", "c"), delete_op("b", "d")]), Ok(()));
    }

    #[test]
    fn the_gaps_of_the_server_are_kept() {
        let from_a = vec![put_op("b"), delete_op("a", "\0")];
        assert_eq!(judge(from_a), Ok(()));
        let put_then_delete =
            vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![delete_op("a", "")], vec![])];
        assert_eq!(judge(put_then_delete), Ok(()));
        let delete_then_put =
            vec![txn_op(vec![delete_op("a", "")], vec![]), txn_op(vec![put_op("a")], vec![])];
        assert_eq!(judge(delete_then_put), Err(Refusal::DuplicateKey));
    }

    #[test]
    fn nested_operations_share_the_limit() {
        let puts = |n: usize| -> Vec<RequestOp> {
            (0..n)
                .map(|i| {
                    op(Request::RequestPut(PutRequest { key: format!("{i}").into(), ..Default::default() }))
                })
                .collect()
        };
        let request = |success| TxnRequest { compare: vec![], success, failure: vec![] };
        assert_eq!(txn(&request(puts(3)), 3), Ok(()));
        assert_eq!(txn(&request(puts(4)), 3), Err(Refusal::TooManyOps));
        assert_eq!(txn(&request(vec![txn_op(puts(2), vec![])]), 3), Ok(()));
        assert_eq!(txn(&request(vec![txn_op(puts(3), vec![])]), 3), Err(Refusal::TooManyOps));
    }

    #[test]
    fn empty_keys_and_empty_operations() {
        let compare = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
        assert_eq!(txn(&compare, 128), Err(Refusal::EmptyKey));
        assert_eq!(judge(vec![put_op("")]), Err(Refusal::EmptyKey));
        assert_eq!(judge(vec![op(Request::RequestRange(RangeRequest::default()))]), Err(Refusal::EmptyKey));
        assert_eq!(judge(vec![RequestOp { request: None }]), Err(Refusal::KeyNotFound));
    }

    #[test]
    fn contradictory_puts() {
        let base = PutRequest { key: bytes("a"), ..Default::default() };
        let value = PutRequest { ignore_value: true, value: bytes("v"), ..base.clone() };
        assert_eq!(put(&value), Err(Refusal::ValueProvided));
        let lease = PutRequest { ignore_lease: true, lease: 1, ..base };
        assert_eq!(put(&lease), Err(Refusal::LeaseProvided));
    }
}
