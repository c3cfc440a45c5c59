//! What is done to both servers.

use etcd_concurrency::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, TxnRequest, WatchCreateRequest,
};

use super::users::AuthOp;

/// One operation; revisions in it are absolute, so that a list of them can be replayed with gaps.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Put(PutRequest),
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    /// Granted and revoked at once: the id is of the server's making, or the TTL too short to wait.
    GrantAndRevoke(LeaseGrantRequest),
    Revoke(i64),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    /// One stream, these ids in turn.
    KeepAlive(Vec<i64>),
    HashKv(i64),
    Watch(usize, WatchCreateRequest),
    Cancel(usize, i64),
    Progress(usize),
    /// A stream ends with all its watchers, and another takes its place.
    Reopen(usize),
    /// A lease that ends by itself, after these were done.
    Expire(LeaseGrantRequest, Vec<Op>),
    /// All at once, each on a connection of its own.
    Race(Vec<Op>),
    Auth(AuthOp),
    /// By somebody else than [`RUNNER`].
    As(usize, Box<Op>),
}

/// So many watch streams are open at a time.
pub(super) const STREAMS: usize = 3;

/// So many clients there are, each with a connection of its own, and, where there are users, as one of them.
pub(super) const CLIENTS: usize = 4;

/// The client of all that is not said to be another's. As a user it may do everything.
pub(super) const RUNNER: usize = 0;
