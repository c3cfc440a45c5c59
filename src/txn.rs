//! Transactions, built without a client.

mod ranges;
mod reply;
mod sound;
mod vouched;

use bytes::Bytes;

use crate::key::prefix_range;
use crate::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
pub(crate) use ranges::{by_age, by_youth, count, revision};
pub use reply::TxnReply;
pub(crate) use sound::unexpected;
pub(crate) use vouched::is_vouched;

/// A transaction: if all compares hold, the success operations are applied, otherwise the failure operations.
///
/// One transaction is one revision. The server refuses more than `--max-txn-ops` (128 by default) compares or
/// operations, and two writes of one key.
///
/// ```
/// use etcd_concurrency::{Compare, Op, Txn};
/// let move_in = Txn::new()
///     .compare(Compare::missing("room/7"))
///     .success(Op::put("room/7", "ada"))
///     .failure(Op::get("room/7"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    compare: Vec<Compare>,
    success: Vec<Op>,
    failure: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a compare.
    pub fn compare(mut self, compare: Compare) -> Self {
        self.compare.push(compare);
        self
    }

    /// Adds an operation for when all compares hold.
    pub fn success(mut self, op: Op) -> Self {
        self.success.push(op);
        self
    }

    /// Adds an operation for when a compare does not hold.
    pub fn failure(mut self, op: Op) -> Self {
        self.failure.push(op);
        self
    }

    /// True where a lease that is not found can only be this one: it is named, and no other is.
    pub(crate) fn names_only_lease(&self, lease: i64) -> bool {
        let names = |put: &pb::PutRequest| put.lease != 0;
        self.puts_any(&names).is_some() && self.puts_any(&|put| names(put) && put.lease != lease).is_none()
    }

    /// A put that it may make for which this holds.
    pub(crate) fn puts_any(&self, is: &impl Fn(&pb::PutRequest) -> bool) -> Option<&pb::PutRequest> {
        self.find(&|op| match op {
            Request::RequestPut(put) => is(put).then_some(put),
            _ => None,
        })
    }

    /// True where it may delete something.
    pub(crate) fn may_delete(&self) -> bool {
        self.find(&|op| matches!(op, Request::RequestDeleteRange(_)).then_some(())).is_some()
    }

    /// What is found first in an operation that it may do, those of transactions within it included.
    fn find<'a, T>(&'a self, look: &impl Fn(&'a Request) -> Option<T>) -> Option<T> {
        fn within<'a, T>(op: &'a Request, look: &impl Fn(&'a Request) -> Option<T>) -> Option<T> {
            match op {
                Request::RequestTxn(txn) => {
                    let mut inner = txn.success.iter().chain(&txn.failure);
                    inner.find_map(|op| within(op.request.as_ref()?, look))
                }
                _ => look(op),
            }
        }
        self.success.iter().chain(&self.failure).find_map(|Op(op)| within(op, look))
    }

    /// True if the failure operations can never be reached.
    pub(crate) fn is_unconditional(&self) -> bool {
        self.compare.is_empty()
    }

    /// The same without operations for when a compare does not hold.
    pub(crate) fn without_failure(mut self) -> Self {
        self.failure.clear();
        self
    }
}

impl From<Txn> for pb::TxnRequest {
    fn from(txn: Txn) -> Self {
        let ops = |ops: Vec<Op>| ops.into_iter().map(|Op(op)| pb::RequestOp { request: Some(op) }).collect();
        Self {
            compare: txn.compare.into_iter().map(|Compare(compare)| compare).collect(),
            success: ops(txn.success),
            failure: ops(txn.failure),
        }
    }
}

/// What a transaction compares.
///
/// ```
/// # use etcd_concurrency::{Compare, Op, Txn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let bump = |from: &'static str, to: &'static str| {
///     Txn::new().compare(Compare::value("counter").is(from)).success(Op::put("counter", to))
/// };
/// client.txn(Txn::new().success(Op::put("counter", "1"))).await?;
/// assert!(client.txn(bump("1", "2")).await?.succeeded);
/// assert!(!client.txn(bump("1", "2")).await?.succeeded);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Compare(pb::Compare);

impl Compare {
    /// The key does not exist.
    pub fn missing(key: impl Into<Bytes>) -> Self {
        Self::create_revision(key).is(0)
    }

    /// The key exists.
    pub fn exists(key: impl Into<Bytes>) -> Self {
        Self::create_revision(key).greater_than(0)
    }

    /// No key starts with this prefix; there is no key at all, for an empty one.
    pub fn none_with_prefix(prefix: impl Into<Bytes>) -> Self {
        Self::missing(prefix).with_prefix()
    }

    /// The revision that created the key; 0 for a missing one.
    pub fn create_revision(key: impl Into<Bytes>) -> CompareOn<i64> {
        CompareOn::new(key, CompareTarget::Create, TargetUnion::CreateRevision)
    }

    /// The revision that last wrote the key; 0 for a missing one.
    pub fn mod_revision(key: impl Into<Bytes>) -> CompareOn<i64> {
        CompareOn::new(key, CompareTarget::Mod, TargetUnion::ModRevision)
    }

    /// How often the key was written since it was created; 0 for a missing one.
    pub fn version(key: impl Into<Bytes>) -> CompareOn<i64> {
        CompareOn::new(key, CompareTarget::Version, TargetUnion::Version)
    }

    /// The key's lease; 0 for none, or for a missing key.
    pub fn lease(key: impl Into<Bytes>) -> CompareOn<i64> {
        CompareOn::new(key, CompareTarget::Lease, TargetUnion::Lease)
    }

    /// The key's value. Never holds for a missing key.
    pub fn value(key: impl Into<Bytes>) -> CompareOn<Bytes> {
        CompareOn::new(key, CompareTarget::Value, TargetUnion::Value)
    }
}

impl Compare {
    /// The same of every key that starts with this one. Where there is none, it is compared as one missing key.
    pub(crate) fn with_prefix(mut self) -> Self {
        (self.0.key, self.0.range_end) = prefix_range(self.0.key);
        self
    }
}

impl Compare {
    /// The same of every key from this one up to, without, `end`. Where there is none, it is compared as one missing key.
    pub(crate) fn up_to(mut self, end: impl Into<Bytes>) -> Self {
        self.0.range_end = end.into();
        self
    }
}

impl From<pb::Compare> for Compare {
    fn from(compare: pb::Compare) -> Self {
        Self(compare)
    }
}

/// Half of a [`Compare`]: with what is it compared?
#[derive(Debug, Clone)]
#[must_use = "say what it is compared with"]
pub struct CompareOn<T> {
    key: Bytes,
    target: CompareTarget,
    union: fn(T) -> TargetUnion,
}

impl<T> CompareOn<T> {
    fn new(key: impl Into<Bytes>, target: CompareTarget, union: fn(T) -> TargetUnion) -> Self {
        Self { key: key.into(), target, union }
    }

    /// It is this.
    pub fn is(self, than: impl Into<T>) -> Compare {
        self.with(CompareResult::Equal, than)
    }

    /// It is anything but this.
    pub fn is_not(self, than: impl Into<T>) -> Compare {
        self.with(CompareResult::NotEqual, than)
    }

    /// It is greater; values compare byte by byte.
    pub fn greater_than(self, than: impl Into<T>) -> Compare {
        self.with(CompareResult::Greater, than)
    }

    /// It is less; values compare byte by byte.
    pub fn less_than(self, than: impl Into<T>) -> Compare {
        self.with(CompareResult::Less, than)
    }

    fn with(self, result: CompareResult, than: impl Into<T>) -> Compare {
        Compare(pb::Compare {
            result: result.into(),
            target: self.target.into(),
            key: self.key,
            range_end: Bytes::new(),
            target_union: Some((self.union)(than.into())),
        })
    }
}

/// An operation of a transaction.
///
/// For options that have no method here, an `Op` is made from the wire's own requests ([`crate::pb`]).
///
/// ```
/// # use etcd_concurrency::Op;
/// use etcd_concurrency::pb::etcdserverpb::RangeRequest;
/// let count = RangeRequest { key: "jobs/".into(), range_end: "jobs0".into(), count_only: true, ..Default::default() };
/// let ops = [Op::put("jobs/1", "sweep"), Op::from(count)];
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Op(Request);

impl Op {
    /// Writes a key. It keeps no lease: see [`put_with_lease`](Self::put_with_lease).
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::put_with_lease(key, value, 0)
    }

    /// The key, if it is a put.
    pub(crate) fn put_key(&self) -> Option<&Bytes> {
        match &self.0 {
            Request::RequestPut(put) => Some(&put.key),
            _ => None,
        }
    }

    /// What it deletes, if it is a delete: as a read that counts what is there of it.
    pub(crate) fn count_deleted(&self) -> Option<pb::RangeRequest> {
        let Request::RequestDeleteRange(delete) = &self.0 else { return None };
        let (key, range_end) = (delete.key.clone(), delete.range_end.clone());
        Some(pb::RangeRequest { key, range_end, count_only: true, ..Default::default() })
    }

    /// True for a read.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.0, Request::RequestRange(_))
    }

    /// Writes a key that goes with the lease.
    pub fn put_with_lease(key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> Self {
        let (key, value) = (key.into(), value.into());
        pb::PutRequest { key, value, lease, ..Default::default() }.into()
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        pb::DeleteRangeRequest { key: key.into(), ..Default::default() }.into()
    }

    /// Deletes all keys that start with the prefix; all keys for an empty one.
    pub fn delete_prefix(prefix: impl Into<Bytes>) -> Self {
        let (key, range_end) = prefix_range(prefix.into());
        pb::DeleteRangeRequest { key, range_end, prev_kv: false }.into()
    }

    /// Reads a key.
    pub fn get(key: impl Into<Bytes>) -> Self {
        pb::RangeRequest { key: key.into(), ..Default::default() }.into()
    }

    /// Reads all keys that start with the prefix; all keys for an empty one.
    pub fn get_prefix(prefix: impl Into<Bytes>) -> Self {
        let (key, range_end) = prefix_range(prefix.into());
        pb::RangeRequest { key, range_end, ..Default::default() }.into()
    }

    /// A transaction within the transaction. Its compares see the state from before the outer one.
    pub fn txn(txn: Txn) -> Self {
        Self(Request::RequestTxn(txn.into()))
    }
}

impl From<pb::RangeRequest> for Op {
    fn from(request: pb::RangeRequest) -> Self {
        Self(Request::RequestRange(request))
    }
}

impl From<pb::PutRequest> for Op {
    fn from(request: pb::PutRequest) -> Self {
        Self(Request::RequestPut(request))
    }
}

impl From<pb::DeleteRangeRequest> for Op {
    fn from(request: pb::DeleteRangeRequest) -> Self {
        Self(Request::RequestDeleteRange(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_knows_whose_lease_may_be_missing() {
        let put = |lease| Txn::new().success(Op::put_with_lease("a", "1", lease));
        assert!(put(7).names_only_lease(7));
        assert!(!put(8).names_only_lease(7) && !put(0).names_only_lease(7));
        assert!(!put(7).failure(Op::txn(put(8))).names_only_lease(7));
        assert!(put(7).failure(Op::txn(put(7))).names_only_lease(7));
    }

    #[test]
    fn a_transaction_is_what_it_says() {
        let txn = Txn::new()
            .compare(Compare::value("a").is("1"))
            .compare(Compare::none_with_prefix("locks/"))
            .success(Op::put_with_lease("b", "2", 7))
            .failure(Op::get_prefix("c/"));
        let request = pb::TxnRequest::from(txn);
        assert_eq!(request.compare[0].target_union, Some(TargetUnion::Value("1".into())));
        assert_eq!(&request.compare[1].range_end[..], b"locks0");
        assert_eq!(request.compare[1].target_union, Some(TargetUnion::CreateRevision(0)));
        assert!(matches!(&request.success[0].request, Some(Request::RequestPut(put)) if put.lease == 7));
        assert!(matches!(&request.failure[0].request, Some(Request::RequestRange(r)) if r.range_end == "c0"));
    }
}
