//! What is done to both servers.

use etcd_concurrency::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, TxnRequest, WatchCreateRequest,
};

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
}

/// So many watch streams are open at a time.
pub(super) const STREAMS: usize = 3;
