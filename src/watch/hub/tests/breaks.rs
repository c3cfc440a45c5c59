//! Streams that one watch's answers break, and streams that break by themselves.

use std::sync::atomic::AtomicUsize;

use tower::ServiceExt;

use super::*;
use crate::transport::namespace::Namespace;
use crate::transport::{Limits, RawService};
use pb::watch_request::RequestUnion;

/// How many streams were opened, and how many requests came.
#[derive(Default)]
struct Counts {
    streams: AtomicUsize,
    requests: AtomicUsize,
}

impl Counts {
    fn get(&self) -> (usize, usize) {
        (self.streams.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

fn is_culprit(create: &pb::WatchCreateRequest) -> bool {
    // What is deaf is a probe.
    create.key == "culprit" && create.filters.len() < 2
}

/// Acknowledges everything; what follows the acknowledgement of the culprit is up to the test.
fn serve<F>(mut server: Server, then: fn(Wire, i64) -> F) -> Arc<Counts>
where
    F: Future<Output = ()> + Send + 'static,
{
    let counts = Arc::new(Counts::default());
    let counted = counts.clone();
    tokio::spawn(async move {
        loop {
            let mut wire = server.accept().await;
            counted.streams.fetch_add(1, Ordering::SeqCst);
            let counted = counted.clone();
            tokio::spawn(async move {
                while let Some(request) = wire.next_request().await {
                    counted.requests.fetch_add(1, Ordering::SeqCst);
                    let RequestUnion::CreateRequest(create) = request else { continue };
                    wire.acknowledge(create.watch_id, 1);
                    if is_culprit(&create) {
                        return then(wire, create.watch_id).await;
                    }
                }
            });
        }
    });
    counts
}

async fn created(watcher: &mut Watcher) -> Duration {
    let started = Instant::now();
    timeout(Duration::from_secs(60), watcher.created()).await.expect("in time").expect("created");
    started.elapsed()
}

/// One watch's answer broke the stream each time it came, and any acknowledgement made the client forget that: beside it
/// 100 idle watches cost 3,100 openings and 314,000 requests a minute, and watches that came later were never
/// acknowledged: a waiter released at 5 s got its lock at 92 s.
#[tokio::test(start_paused = true)]
async fn a_watch_whose_answers_break_the_stream_is_found_and_ended_and_the_others_go_on() {
    let (server, hub) = rig();
    let counts = serve(server, |wire, _| async { wire.fail(tonic::Status::internal("too much")) });
    let mut idle: Vec<_> = (0..50).map(|n| hub.watch(Watch::key(format!("{n}")))).collect();
    let mut culprit = hub.watch(Watch::key("culprit").from_revision(1));
    idle.extend((50..100).map(|n| hub.watch(Watch::key(format!("{n}")))));
    for watcher in &mut idle {
        created(watcher).await;
    }
    let mut late = hub.watch(Watch::key("late"));
    let waited = created(&mut late).await;
    assert!(waited < Duration::from_secs(2), "{waited:?}");

    let started = Instant::now();
    let error = timeout(Duration::from_secs(60), culprit.next()).await.expect("in time").expect_err("an end");
    assert!(!matches!(error.kind(), ErrorKind::Lost(_)), "{error:?}");
    tokio::time::sleep_until(started + Duration::from_secs(60)).await;
    let (streams, requests) = counts.get();
    assert!(streams < 25 && requests < 2_500, "{streams} openings and {requests} requests a minute");
    for watcher in idle.iter_mut().chain([&mut late]) {
        assert_eq!(poll_times(1, watcher.next()).await.map(drop), None, "it goes on");
    }
}

/// A proxy that cuts every stream after a while, however short, is no watch's doing.
#[tokio::test(start_paused = true)]
async fn no_watch_is_ended_for_streams_that_break_by_themselves() {
    for millis in [1, 300, 1_300, 5_000, 20_000] {
        let (mut server, hub) = rig();
        tokio::spawn(async move {
            loop {
                let mut wire = server.accept().await;
                tokio::spawn(timeout(Duration::from_millis(millis), async move {
                    while let Some(request) = wire.next_request().await {
                        let RequestUnion::CreateRequest(create) = request else { continue };
                        wire.acknowledge(create.watch_id, 1);
                    }
                }));
            }
        });
        for watchers in [1, 5] {
            let mut watchers: Vec<_> = (0..watchers).map(|n| hub.watch(Watch::key(format!("{n}")))).collect();
            tokio::time::sleep(Duration::from_secs(600)).await;
            for watcher in &mut watchers {
                created(watcher).await;
            }
        }
    }
}

/// A process that is frozen between short spells of work has its connection cut each time. On waking it looked at the
/// clock before it heard of the cut, put its only watch onto the dead stream, and ended it after five times.
#[tokio::test(start_paused = true)]
async fn no_watch_is_ended_for_streams_that_break_while_the_process_stands_still() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("a"));
    for _ in 0..40 {
        let opened = timeout(Duration::from_secs(60), server.accept()).await;
        let mut wire = opened.expect("the watch goes on");
        let serving = async {
            while let Some(request) = wire.next_request().await {
                let RequestUnion::CreateRequest(create) = request else { continue };
                wire.acknowledge(create.watch_id, 1);
            }
        };
        timeout(Duration::from_millis(100), serving).await.expect_err("it is open");
        // Of all who are woken at once by the clock's jump this test is the first.
        let hour = tokio::time::advance(Duration::from_secs(3_600));
        tokio::join!(tokio::time::sleep(Duration::from_millis(1)), hour);
        wire.fail(tonic::Status::unavailable("cut"));
    }
    assert_eq!(poll_times(1, watcher.next()).await.map(drop), None, "it goes on");
}

/// Two megabytes on a slow line: nothing is heard while they are on their way, and the stream was closed after 15 s, each
/// time.
#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_a_minute_arrives() {
    let (server, hub) = rig();
    serve(server, |mut wire, id| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        wire.events(id, 9, &[("culprit", 9)]);
        wire.closed().await;
    });
    let mut watcher = hub.watch(Watch::key("culprit").from_revision(1));
    let arrived = timeout(Duration::from_secs(600), next(&mut watcher)).await;
    assert_eq!(arrived.expect("in time"), [9]);
}

/// A user's layer that panics ends the task: those who wait are told, and who comes later is served by another.
#[tokio::test(start_paused = true)]
async fn a_task_that_panics_leaves_no_watch_waiting() {
    let (mut server, transport) = server();
    let calls = Arc::new(AtomicUsize::new(0));
    let service = transport.raw().map_request(move |request: http::Request<tonic::body::Body>| {
        assert_ne!(calls.fetch_add(1, Ordering::SeqCst), 1, "the second opening panics");
        request
    });
    let limits = Limits { request_timeout: REQUEST_TIMEOUT, answer: 32 << 20 };
    let transport = Transport::new(RawService::new(service), None, Namespace::new(""), limits);
    let hub = Hub::new(transport, Handle::current());
    let mut stands = hub.watch(Watch::key("a"));
    let mut wire = server.accept().await;
    wire.created(1).await;
    created(&mut stands).await;
    wire.fail(no_leader());
    let closed = ErrorKind::Lost(LostReason::Closed);
    assert_eq!(timeout(Duration::from_secs(60), end(&mut stands)).await.expect("in time"), closed);
    let mut later = hub.watch(Watch::key("b"));
    server.accept().await.created(2).await;
    assert_eq!(later.created().await.expect("created"), 2);
}
