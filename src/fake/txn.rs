//! Applying writes: Put, DeleteRange and Txn, on the store and the lessor at once.
//!
//! A transaction first decides every compare, those of nested transactions too, on the state before it;
//! then it checks all operations of the branches taken; then it applies them, which cannot fail.

use bytes::Bytes;

use super::keys::KeyRange;
use super::lessor::Lessor;
use super::range;
use super::refusal::Refusal;
use super::store::{Changes, Store, Write};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
};
use crate::pb::mvccpb::KeyValue;

/// A response, and the revision that was made for it, if one was.
pub(crate) type Applied<R> = Result<(R, Option<Changes>), Refusal>;

pub(crate) fn put(store: &mut Store, lessor: &mut Lessor, request: &PutRequest) -> Applied<PutResponse> {
    check_put_applies(store, lessor, request)?;
    let mut write = Writer { write: store.write(), lessor };
    let response = write.put(request);
    Ok((response, write.write.commit()))
}

pub(crate) fn delete_range(
    store: &mut Store,
    lessor: &mut Lessor,
    request: &DeleteRangeRequest,
) -> Applied<DeleteRangeResponse> {
    let mut write = Writer { write: store.write(), lessor };
    let response = write.delete_range(request);
    Ok((response, write.write.commit()))
}

pub(crate) fn txn(store: &mut Store, lessor: &mut Lessor, request: &TxnRequest) -> Applied<TxnResponse> {
    let path = Path::decide(store, request);
    check_applies(store, lessor, request, &path)?;
    let mut write = Writer { write: store.write(), lessor };
    let mut response = write.txn(request, &path)?;
    response.header = header(write.write.revision());
    Ok((response, write.write.commit()))
}

/// Deletes the keys of a lease that ended, as one revision.
pub(crate) fn delete_keys(store: &mut Store, keys: impl IntoIterator<Item = Bytes>) -> Option<Changes> {
    let mut write = store.write();
    for key in keys {
        write.delete(&key);
    }
    write.commit()
}

/// No operation but ranges in either branch: the server answers such a transaction without a proposal.
pub(crate) fn is_read_only(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether it may put anything, in any branch.
pub(crate) fn puts(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(inner)) => puts(inner),
        _ => false,
    })
}

/// A read-only transaction that any member may answer.
pub(crate) fn is_serializable(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// Which branch each transaction takes, in the order of the tree.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    fn decide(store: &Store, request: &TxnRequest) -> Self {
        let succeeded = request.compare.iter().all(|compare| holds(store, compare));
        let nested = nested(taken(request, succeeded)).map(|inner| Self::decide(store, inner)).collect();
        Self { succeeded, nested }
    }
}

/// Writes, keeping the leases' keys in step.
struct Writer<'a> {
    write: Write<'a>,
    lessor: &'a mut Lessor,
}

impl Writer<'_> {
    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let old = self.write.get(&request.key).cloned();
        let kept = old.clone().unwrap_or_default();
        // A request's fields are slices of the buffer that it was read into, which is of kilobytes: what stays
        // is copied out of it.
        let key = if old.is_some() { kept.key } else { Bytes::copy_from_slice(&request.key) };
        let value = if request.ignore_value { kept.value } else { Bytes::copy_from_slice(&request.value) };
        let lease = if request.ignore_lease { kept.lease } else { request.lease };
        self.lessor.attach(&key, lease);
        self.write.put(key, value, lease);
        PutResponse { header: header(self.write.revision()), prev_kv: old.filter(|_| request.prev_kv) }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let found: Vec<KeyValue> = match self.write.range(&range, 0) {
            Ok(found) => found.cloned().collect(),
            // Now is never compacted and never ahead.
            Err(_) => Vec::new(),
        };
        for kv in &found {
            self.write.delete(&kv.key);
            self.lessor.detach(&kv.key);
        }
        DeleteRangeResponse {
            header: header(self.write.revision()),
            deleted: i64::try_from(found.len()).unwrap_or(i64::MAX),
            prev_kvs: if request.prev_kv { found } else { Vec::new() },
        }
    }

    fn txn(&mut self, request: &TxnRequest, path: &Path) -> Result<TxnResponse, Refusal> {
        let mut paths = path.nested.iter();
        let mut responses = Vec::new();
        for op in taken(request, path.succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(range::read_in(&self.write, range)?))
                }
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.put(put))),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.delete_range(delete)))
                }
                Some(Request::RequestTxn(inner)) => match paths.next() {
                    Some(path) => Some(Response::ResponseTxn(self.txn(inner, path)?)),
                    None => None,
                },
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        // Only the outermost response's header is filled in by the server.
        Ok(TxnResponse { header: header(0), succeeded: path.succeeded, responses })
    }
}

fn taken(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn nested(ops: &[RequestOp]) -> impl Iterator<Item = &TxnRequest> {
    ops.iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(inner)) => Some(inner),
        _ => None,
    })
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

/// What is refused because of the state: unknown leases, missing keys, revisions out of reach.
fn check_applies(store: &Store, lessor: &Lessor, request: &TxnRequest, path: &Path) -> Result<(), Refusal> {
    let mut paths = path.nested.iter();
    for op in taken(request, path.succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) => range::check_revision(store, range)?,
            Some(Request::RequestPut(put)) => check_put_applies(store, lessor, put)?,
            Some(Request::RequestTxn(inner)) => {
                if let Some(path) = paths.next() {
                    check_applies(store, lessor, inner, path)?;
                }
            }
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn check_put_applies(store: &Store, lessor: &Lessor, request: &PutRequest) -> Result<(), Refusal> {
    if request.lease != 0 && lessor.get(request.lease).is_none() {
        return Err(Refusal::LeaseNotFound);
    }
    let needs_old = request.ignore_value || request.ignore_lease;
    if needs_old && store.get(&request.key, store.revision()).is_none() {
        return Err(Refusal::KeyNotFound);
    }
    Ok(())
}

/// A compare over a range holds if it holds for every key there; over nothing, it is decided against a key
/// that has never been, except that no value compare holds then.
fn holds(store: &Store, compare: &Compare) -> bool {
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let Ok(found) = store.range(&range, 0) else { return false };
    let mut found = found.peekable();
    if found.peek().is_none() {
        return compare.target() != CompareTarget::Value && holds_for(compare, &KeyValue::default());
    }
    found.all(|kv| holds_for(compare, kv))
}

/// A target whose operand is missing, or is that of another target, is compared with zero.
fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.target_union.as_ref();
    let number = |pick: fn(&TargetUnion) -> Option<i64>| operand.and_then(pick).unwrap_or(0);
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => kv.version.cmp(&number(|union| match union {
            TargetUnion::Version(version) => Some(*version),
            _ => None,
        })),
        Ok(CompareTarget::Create) => kv.create_revision.cmp(&number(|union| match union {
            TargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Mod) => kv.mod_revision.cmp(&number(|union| match union {
            TargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        })),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&number(|union| match union {
            TargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        })),
        Ok(CompareTarget::Value) => match operand {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_ref().cmp(&[]),
        },
        // An unknown target counts as equal, an unknown result as true.
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
