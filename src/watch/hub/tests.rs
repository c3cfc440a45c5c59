mod breaks;
mod linger;
mod outages;

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;

use super::task::LINGER;
use super::*;
use crate::error::{ErrorKind, LostReason};
use crate::pb::etcdserverpb as pb;
use crate::watch::Events;
use crate::watch::testing::{REQUEST_TIMEOUT, Server, Wire, answer, no_leader, puts, server};

fn rig() -> (Server, Hub) {
    let (server, transport) = server();
    (server, Hub::new(transport, Handle::current()))
}

/// The revisions of the events of one delivery.
fn revisions(events: &Events) -> Vec<i64> {
    events.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision).collect()
}

async fn next(watcher: &mut Watcher) -> Vec<i64> {
    revisions(&watcher.next().await.expect("events"))
}

async fn end(watcher: &mut Watcher) -> ErrorKind {
    watcher.next().await.expect_err("an end").kind().clone()
}

/// Polls until nothing is left to do but wait for a timer or for the other side.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_target_is_acknowledged_and_events_say_which_it_is() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("a").and(Watch::prefix("b/").no_put().prev_kv()));
    let mut wire = server.accept().await;
    let (a, b) = (wire.create().await, wire.create().await);
    assert_eq!((&a.key[..], &a.range_end[..], a.start_revision, a.fragment), (&b"a"[..], &b""[..], 0, true));
    assert_eq!(
        (&b.key[..], &b.range_end[..], b.prev_kv, &b.filters[..]),
        (&b"b/"[..], &b"b0"[..], true, &[0][..])
    );
    wire.acknowledge(a.watch_id, 9);
    settle().await;
    assert!(timeout(Duration::ZERO, watcher.created()).await.is_err(), "one target of two");
    wire.acknowledge(b.watch_id, 7);
    assert_eq!(watcher.created().await.expect("created"), 9);
    assert_eq!(watcher.created().await.expect("still created"), 9);
    wire.events(b.watch_id, 12, &[("b/x", 11)]);
    let events = watcher.next().await.expect("events");
    assert_eq!((events.target, events.revision, revisions(&events)), (1, 12, vec![11]));
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_is_resumed_where_it_was() {
    let (mut server, hub) = rig();
    let mut old = hub.watch(Watch::key("old").from_revision(3));
    let mut idle = hub.watch(Watch::key("idle"));
    let mut wire = server.accept().await;
    let first = wire.created(10).await;
    wire.created(10).await;
    wire.events(first, 10, &[("old", 3), ("old", 8)]);
    assert_eq!(next(&mut old).await, [3, 8]);
    // The third is never acknowledged on the first stream.
    let mut late = hub.watch(Watch::key("late"));
    let unanswered = wire.create().await.watch_id;
    assert!(server.is_quiet(), "one stream for all");
    wire.fail(tonic::Status::unknown("broken pipe"));

    let mut wire = server.accept().await;
    let creates = [wire.create().await, wire.create().await, wire.create().await];
    assert_eq!(creates.each_ref().map(|create| create.start_revision), [9, 11, 0]);
    let ids = creates.each_ref().map(|create| create.watch_id);
    assert!(ids.iter().all(|&id| id > unanswered), "an id is never used again: {ids:?}");
    ids.iter().for_each(|&id| wire.acknowledge(id, 20));
    wire.events(ids[0], 20, &[("old", 8), ("old", 12)]);
    wire.events(ids[1], 21, &[("idle", 21)]);
    wire.events(ids[2], 22, &[("late", 22)]);
    assert_eq!(
        (next(&mut old).await, next(&mut idle).await, next(&mut late).await),
        (vec![12], vec![21], vec![22])
    );
    assert_eq!(idle.created().await.expect("created"), 10);
    assert_eq!(late.created().await.expect("created"), 20);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_break_is_resumed() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("k").from_revision(1));
    server.refuse(tonic::Status::unavailable("etcdserver: server stopped")).await;
    server.refuse(no_leader()).await;
    drop(server.ignore().await);
    for revision in 1..20 {
        let mut wire = server.accept().await;
        let create = wire.create().await;
        assert_eq!(create.start_revision, revision);
        wire.acknowledge(create.watch_id, 30);
        wire.events(create.watch_id, 30, &[("k", revision)]);
        assert_eq!(next(&mut watcher).await, [revision]);
        match revision % 4 {
            0 => drop(wire),
            1 => wire.fail(no_leader()),
            2 => wire.fail(tonic::Status::cancelled("etcdserver: watch canceled")),
            _ => wire.fail(tonic::Status::internal("h2 protocol error")),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn compaction_ends_the_watch_that_it_hit() {
    let (mut server, hub) = rig();
    let mut old = hub.watch(Watch::key("old").from_revision(3));
    let mut now = hub.watch(Watch::key("now"));
    let mut wire = server.accept().await;
    let (first, second) = (wire.created(10).await, wire.created(10).await);
    let response = answer(first, 0);
    wire.send(crate::pb::etcdserverpb::WatchResponse { canceled: true, compact_revision: 7, ..response });
    for _ in 0..3 {
        assert_eq!(end(&mut old).await, ErrorKind::Compacted { revision: 7 });
    }
    wire.events(second, 11, &[("now", 11)]);
    assert_eq!(next(&mut now).await, [11]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_end_of_one_watch() {
    let (mut server, hub) = rig();
    let mut one = hub.watch(Watch::key("one"));
    let mut refused = hub.watch(Watch::key("refused"));
    let mut other = hub.watch(Watch::key("other"));
    let mut wire = server.accept().await;
    let first = wire.created(10).await;
    wire.create().await;
    wire.refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied");
    wire.created(10).await;
    let error = refused.created().await.expect_err("refused");
    assert_eq!((error.kind(), error.rpc()), (&ErrorKind::PermissionDenied, Some("Watch/Watch")));
    // As a stream, it yields that once and is over.
    let items: Vec<_> = refused.collect().await;
    assert_eq!(items.len(), 1);
    assert_eq!(other.created().await.expect("created"), 10);
    wire.events(first, 11, &[("one", 11)]);
    assert_eq!(next(&mut one).await, [11]);
}

#[tokio::test(start_paused = true)]
async fn fragments_arrive_as_one() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::prefix("k"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    let fragment = |events: &[(&str, i64)], fragment| crate::pb::etcdserverpb::WatchResponse {
        events: puts(events),
        fragment,
        ..answer(id, 5)
    };
    wire.send(fragment(&[("k1", 2), ("k2", 3)], true));
    wire.send(fragment(&[("k3", 3), ("k1", 4)], true));
    wire.send(fragment(&[("k1", 5)], false));
    assert_eq!(next(&mut watcher).await, [2, 3, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_held_back_and_loses_nothing() {
    let (mut server, hub) = rig();
    let mut slow = hub.watch(Watch::key("slow").buffer(4));
    let mut quick = hub.watch(Watch::key("quick"));
    let mut wire = server.accept().await;
    let (id, other) = (wire.created(1).await, wire.created(1).await);
    for revision in 2..=9 {
        wire.events(id, revision, &[("slow", revision)]);
    }
    assert_eq!(wire.cancelled().await, id, "more than four wait");
    wire.events(id, 10, &[("slow", 10)]);
    wire.events(other, 11, &[("quick", 11)]);
    assert_eq!(next(&mut quick).await, [11], "the other goes on");

    let mut read = Vec::new();
    for _ in 0..3 {
        read.extend(next(&mut slow).await);
    }
    let create = wire.create().await;
    assert_eq!(create.start_revision, 7, "from the first that was not taken");
    wire.acknowledge(create.watch_id, 11);
    wire.events(id, 11, &[("slow", 8)]);
    wire.events(create.watch_id, 11, &[("slow", 7), ("slow", 8), ("slow", 9), ("slow", 10)]);
    while read.len() < 9 {
        read.extend(next(&mut slow).await);
    }
    assert_eq!(read, (2..=10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_watcher_is_cancelled_on_the_server() {
    let (mut server, hub) = rig();
    let gone = hub.watch(Watch::key("a").and_key("b"));
    let mut stays = hub.watch(Watch::key("c"));
    let mut wire = server.accept().await;
    let ids = [wire.created(1).await, wire.create().await.watch_id];
    let kept = wire.create().await.watch_id;
    drop(gone);
    assert_eq!([wire.cancelled().await, wire.cancelled().await], ids);
    // The answers that were on their way are not taken for others'.
    wire.acknowledge(ids[1], 1);
    wire.acknowledge(kept, 5);
    wire.events(ids[0], 6, &[("a", 6)]);
    assert_eq!(stays.created().await.expect("created"), 5);
    wire.events(kept, 7, &[("c", 7)]);
    assert_eq!(next(&mut stays).await, [7]);
}

#[test]
fn waiting_watchers_end_with_their_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (_server, hub) = runtime.block_on(async { rig() });
    // From outside, before the task ever ran; and once it waits.
    let mut never_ran = hub.watch(Watch::key("a"));
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    drop(runtime);
    let closed = ErrorKind::Lost(LostReason::Closed);
    assert_eq!(other.block_on(end(&mut never_ran)), closed);
    // A runtime that has shut down takes no more tasks.
    let mut too_late = hub.watch(Watch::key("a"));
    assert_eq!(other.block_on(end(&mut too_late)), closed);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (mut server, hub) = runtime.block_on(async { rig() });
    let mut waiting = hub.watch(Watch::key("a"));
    let _wire = runtime.block_on(async {
        let mut wire = server.accept().await;
        wire.created(1).await;
        waiting.created().await.expect("created");
        wire
    });
    let waiting = std::thread::spawn(move || other.block_on(end(&mut waiting)));
    runtime.shutdown_background();
    assert_eq!(waiting.join().expect("no panic"), closed);
}

/// Polls a future so many times, and drops it. Its output, if it came to that.
async fn poll_times<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..times {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn dropping_a_wait_at_any_poll_loses_nothing() {
    for times in 0..30 {
        let (mut server, hub) = rig();
        let mut watcher = hub.watch(Watch::key("k"));
        let script = tokio::spawn(async move {
            let mut wire = server.accept().await;
            let id = wire.created(1).await;
            wire.events(id, 2, &[("k", 2)]);
            wire.events(id, 3, &[("k", 3)]);
            wire.closed().await;
        });
        if let Some(created) = poll_times(times, watcher.created()).await {
            assert_eq!(created.expect("created"), 1);
        }
        let mut read = Vec::new();
        while read.len() < 2 {
            match poll_times(times, watcher.next()).await {
                Some(events) => read.extend(revisions(&events.expect("events"))),
                None => read.extend(next(&mut watcher).await),
            }
        }
        assert_eq!(read, [2, 3], "dropped after {times} polls");
        assert_eq!(watcher.created().await.expect("created"), 1);
        drop(watcher);
        script.await.expect("closed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_dropped_at_any_moment_leaves_nothing() {
    for times in 0..60 {
        let (mut server, hub) = rig();
        let mut watcher = hub.watch(Watch::key("k").and_key("l"));
        let mut stays = hub.watch(Watch::key("stays"));
        let script = tokio::spawn(async move {
            // Every watch that is there in the end, by what a server would count.
            let mut wire = server.accept().await;
            let mut live = std::collections::BTreeSet::new();
            while let Some(request) = wire.next_request().await {
                match request {
                    pb::watch_request::RequestUnion::CreateRequest(create) => {
                        live.insert(create.watch_id);
                        wire.acknowledge(create.watch_id, 1);
                        if create.key == "last" {
                            break;
                        }
                    }
                    pb::watch_request::RequestUnion::CancelRequest(cancel) => {
                        assert!(live.remove(&cancel.watch_id), "cancelled twice");
                    }
                    pb::watch_request::RequestUnion::ProgressRequest(_) => {}
                }
            }
            live.len()
        });
        poll_times(times, watcher.created()).await;
        drop(watcher);
        let mut last = hub.watch(Watch::key("last"));
        last.created().await.expect("created");
        stays.created().await.expect("created");
        assert_eq!(script.await.expect("counted"), 2, "dropped after {times} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_share_the_stream() {
    const WAITERS: i64 = 10_000;
    let (mut server, hub) = rig();
    let mut watchers: Vec<_> = (0..WAITERS)
        .map(|n| hub.watch(Watch::key(format!("own/{n}")).and_key(format!("before/{n}"))))
        .collect();
    let mut wire = server.accept().await;
    let mut ids = Vec::new();
    for _ in 0..2 * WAITERS {
        ids.push(wire.created(1).await);
    }
    for watcher in &mut watchers {
        watcher.created().await.expect("created");
    }
    wire.fail(no_leader());
    let mut wire = server.accept().await;
    for (nth, before) in ids.iter().enumerate() {
        let create = wire.create().await;
        assert_eq!(
            (create.watch_id, create.start_revision),
            (before + 2 * WAITERS, 2),
            "the same order, {nth}"
        );
        wire.acknowledge(create.watch_id, 1);
    }
    drop(watchers);
    wire.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_repeats() {
    async fn run() -> Vec<String> {
        fastrand::seed(7);
        let (mut server, hub) = rig();
        let mut log = Vec::new();
        let mut watchers: Vec<_> = (0..50).map(|n| hub.watch(Watch::key(format!("{n}")))).collect();
        for round in 0..5 {
            let mut wire = server.accept().await;
            for _ in 0..watchers.len() {
                let create = wire.create().await;
                log.push(format!("{create:?}"));
                wire.acknowledge(create.watch_id, round + 1);
                wire.events(create.watch_id, round + 10, &[("k", round + 10)]);
            }
            settle().await;
            drop(watchers.swap_remove(round as usize * 3));
            log.push(format!("{}", wire.cancelled().await));
            wire.fail(no_leader());
        }
        log
    }
    let first = run().await;
    assert_eq!(first, run().await);
}

#[test]
fn watchers_of_many_threads_come_and_go() {
    come_and_go(500, |mut wire| async move {
        while let Some(request) = wire.next_request().await {
            if let pb::watch_request::RequestUnion::CreateRequest(create) = request {
                wire.acknowledge(create.watch_id, 1);
            }
        }
    });
}

#[test]
fn watchers_of_many_threads_come_as_the_task_ends() {
    // Each stream ends after its first watch, and the task then ends with the last watcher, while others are made.
    for _ in 0..25 {
        come_and_go(1, |mut wire| async move {
            wire.created(1).await;
        });
    }
}

fn come_and_go<F>(rounds: usize, serve: fn(Wire) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (mut server, hub) = runtime.block_on(async { rig() });
    runtime.spawn(async move {
        loop {
            tokio::spawn(serve(server.accept().await));
        }
    });
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (hub, handle) = (hub.clone(), runtime.handle().clone());
            std::thread::spawn(move || {
                for _ in 0..rounds {
                    let mut watcher = hub.watch(Watch::key("k"));
                    let created = async { timeout(Duration::from_secs(30), watcher.created()).await };
                    handle.block_on(created).expect("in time").expect("created");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}
