//! Watchers that start where the history was cut off: right before, at, and behind each revision in turn.

use bytes::Bytes;
use etcd_concurrency::pb::etcdserverpb::request_op::Request;
use etcd_concurrency::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest,
    WatchCreateRequest,
};

use super::generate::Profile;
use super::op::Op;
use super::run::{Difference, Pair};
use crate::support::etcd::Version;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn watchers_around_a_compaction_see_the_same() {
    // Most of the time a server is waited for that looks after watchers of the past ten times a second.
    let mut running = tokio::task::JoinSet::new();
    for version in Version::ALL {
        running.spawn(compact_all(version, version != Version::V3_6));
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no panic").unwrap_or_else(|difference| panic!("{difference}"));
    }
}

/// Compacts at one revision after the other, and watches from around each.
async fn compact_all(version: Version, physical: bool) -> Result<(), String> {
    let mut pair = Pair::start(Profile::of(2, version)).await;
    let result = watch_all(&mut pair, version, physical).await;
    result.map_err(|difference| format!("{difference}\n{}", pair.server_log()))
}

async fn watch_all(pair: &mut Pair, version: Version, physical: bool) -> Result<(), Difference> {
    for op in history() {
        pair.step(&op).await?;
    }
    let last = pair.view().revision;
    for revision in 2..=last {
        pair.step(&Op::Compact(CompactionRequest { revision, physical })).await?;
        for (stream, start_revision) in (revision - 1..=revision + 1).enumerate() {
            // It forgets the deletions of the compaction's own revision.
            if version == Version::V3_4 && start_revision == revision {
                continue;
            }
            for (watch_id, (key, range_end)) in (1..).zip([("\0", "\0"), ("a", ""), ("b", "y")]) {
                let request = WatchCreateRequest {
                    key: key.into(),
                    range_end: range_end.into(),
                    start_revision,
                    watch_id,
                    prev_kv: watch_id < 3,
                    fragment: watch_id > 1,
                    ..Default::default()
                };
                pair.step(&Op::Watch(stream, request)).await?;
            }
            pair.step(&Op::Reopen(stream)).await?;
        }
    }
    pair.end().await
}

/// Keys that come, change, go and come back, alone and together.
fn history() -> Vec<Op> {
    let txn = |requests: Vec<Request>| {
        let success = requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
        Op::Txn(TxnRequest { success, ..Default::default() })
    };
    vec![
        Op::Put(put("a", 0)),
        txn(vec![
            Request::RequestPut(put("a", 0)),
            Request::RequestPut(put("b", 0)),
            Request::RequestPut(put("c", 0)),
        ]),
        Op::Delete(delete("a", "")),
        txn(vec![Request::RequestDeleteRange(delete("a", "d")), Request::RequestPut(put("d", 0))]),
        txn(vec![Request::RequestPut(put("a", 0)), Request::RequestDeleteRange(delete("d", ""))]),
        Op::Grant(LeaseGrantRequest { id: 1, ttl: 1000 }),
        Op::Put(put("b", 1)),
        Op::Put(put("x", 1)),
        Op::Revoke(1),
        txn(vec![Request::RequestDeleteRange(delete("a", "\0")), Request::RequestPut(put("e", 0))]),
        txn(vec![Request::RequestPut(put("b", 0)), Request::RequestPut(put("c", 0))]),
        Op::Delete(delete("a", "z")),
        Op::Put(put("a", 0)),
    ]
}

fn put(key: &'static str, lease: i64) -> PutRequest {
    PutRequest { key: Bytes::from_static(key.as_bytes()), value: "v".into(), lease, ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}
