//! Streams that are silent, refused or away, and servers that make no sense.

use super::*;
use crate::transport::Limits;
use crate::transport::auth::Tokens;
use crate::transport::namespace::Namespace;

#[tokio::test(start_paused = true)]
async fn a_create_without_an_answer_means_a_dead_stream() {
    let (mut server, hub) = rig();
    let mut busy = hub.watch(Watch::key("busy"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    assert_eq!(busy.created().await.expect("created"), 1);
    let started = Instant::now();
    let mut deaf = hub.watch(Watch::key("deaf"));
    wire.create().await;
    // Events go on, as they do where the server no longer reads.
    for revision in 2..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.events(id, revision, &[("busy", revision)]);
        assert_eq!(next(&mut busy).await, [revision]);
    }
    let mut wire = server.accept().await;
    assert!((5..7).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(wire.create().await.start_revision, 6);
    wire.acknowledge(id + 2, 9);
    assert_eq!(wire.create().await.start_revision, 0);
    wire.acknowledge(id + 3, 9);
    assert_eq!(deaf.created().await.expect("created"), 9);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_opens_the_stream_is_left() {
    let (mut server, hub) = rig();
    let started = Instant::now();
    let mut watcher = hub.watch(Watch::key("k"));
    let door = server.ignore().await;
    let mut wire = server.accept().await;
    assert!(started.elapsed() < Duration::from_secs(6));
    drop(door);
    wire.created(3).await;
    assert_eq!(watcher.created().await.expect("created"), 3);
}

/// An overloaded server took seven seconds for its first answer, by which it opens the stream. Each client gave up after
/// five and opened another, for as long as that went on, and no watch was ever made.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_slow_to_open_the_stream_is_waited_for() {
    let (mut server, hub) = rig();
    let started = Instant::now();
    let mut watcher = hub.watch(Watch::key("k"));
    let opening = timeout(Duration::from_secs(120), server.accept_after(Duration::from_secs(7)));
    let mut wire = opening.await.expect("the second stream, or the third");
    wire.created(3).await;
    assert_eq!(watcher.created().await.expect("created"), 3);
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_asked_whether_it_lives() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::prefix("k"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    assert_eq!(watcher.created().await.expect("created"), 1);
    for _ in 0..100 {
        // Silent, but alive.
        let probe = wire.create().await;
        assert_eq!((&probe.key[..], &probe.filters[..]), (&b"k"[..], &[0, 1][..]));
        assert_eq!(wire.cancelled().await, probe.watch_id);
        wire.acknowledge(probe.watch_id, 1);
    }
    wire.events(id, 2, &[("k", 2)]);
    assert_eq!(next(&mut watcher).await, [2]);
    let silent = Instant::now();
    wire.create().await;
    wire.cancelled().await;
    // Dead.
    let mut second = server.accept().await;
    assert!((15..17).contains(&silent.elapsed().as_secs()), "{:?}", silent.elapsed());
    assert_eq!(second.create().await.start_revision, 3);
    wire.closed().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_only_those_end_that_asked_for_it() {
    let (mut server, hub) = rig();
    let mut ends = hub.watch(Watch::key("a").end_without_leader());
    let mut stays = hub.watch(Watch::key("b"));
    let mut wire = server.accept().await;
    wire.created(5).await;
    wire.created(5).await;
    assert_eq!(ends.created().await.expect("created"), 5);
    wire.fail(no_leader());
    assert_eq!(end(&mut ends).await, ErrorKind::NoLeader);

    // And so at the opening of a stream.
    let mut ends = hub.watch(Watch::key("a").end_without_leader());
    server.refuse(no_leader()).await;
    assert_eq!(end(&mut ends).await, ErrorKind::NoLeader);
    let mut wire = server.accept().await;
    let create = wire.create().await;
    assert_eq!((&create.key[..], create.start_revision), (&b"b"[..], 6));
    wire.acknowledge(create.watch_id, 6);
    wire.events(create.watch_id, 7, &[("b", 7)]);
    assert_eq!(next(&mut stays).await, [7]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_knows_no_watches_is_given_up() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("k"));
    let started = Instant::now();
    let turn_away = async {
        for attempts in 1.. {
            server.refuse(tonic::Status::unimplemented("unknown service")).await;
            assert!(attempts < 100, "a busy loop");
        }
    };
    tokio::select! {
        kind = end(&mut watcher) => assert!(matches!(kind, ErrorKind::Unsupported { .. }), "{kind:?}"),
        () = turn_away => {}
    }
    assert!((REQUEST_TIMEOUT..REQUEST_TIMEOUT * 2).contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("k"));
    let started = Instant::now();
    let mut attempts = 0;
    while started.elapsed() < Duration::from_secs(600) {
        server.refuse(tonic::Status::unavailable("etcdserver: server stopped")).await;
        attempts += 1;
    }
    assert!((600..1300).contains(&attempts), "every half to whole second: {attempts}");
    let mut wire = server.accept().await;
    wire.created(8).await;
    assert_eq!(watcher.created().await.expect("created"), 8);
    // What has worked for a while is opened again at once.
    for _ in 0..2 {
        let probe = wire.create().await;
        wire.acknowledge(probe.watch_id, 8);
        wire.cancelled().await;
    }
    settle().await;
    let broken = Instant::now();
    wire.fail(no_leader());
    server.accept().await;
    assert!(broken.elapsed() < Duration::from_millis(50), "{:?}", broken.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_events_does_not_keep_others_from_the_stream() {
    const EVENTS: i64 = 20_000;
    let (mut server, hub) = rig();
    let mut flooded = hub.watch(Watch::key("k").buffer(EVENTS as usize));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    flooded.created().await.expect("created");
    for revision in 2..EVENTS {
        wire.events(id, revision, &[("k", revision)]);
    }
    let other = hub.watch(Watch::key("other"));
    wire.create().await;
    drop(other);
    wire.cancelled().await;
    let mut arrived = 0;
    while poll_times(1, flooded.next()).await.is_some() {
        arrived += 1;
    }
    assert!(arrived < EVENTS / 2, "{arrived}");
}

#[tokio::test(start_paused = true)]
async fn ids_that_the_server_makes_up_are_no_etcd() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("k"));
    let make_up = async {
        loop {
            let mut wire = server.accept().await;
            wire.create().await;
            wire.acknowledge(0, 5);
        }
    };
    let kind = tokio::select! { kind = end(&mut watcher) => kind, never = make_up => never };
    assert!(matches!(kind, ErrorKind::Protocol { .. }), "{kind:?}");
}

/// A proxy that takes the token off every request: what no other token mends ends the watches, after the time of a request.
#[tokio::test(start_paused = true)]
async fn a_user_whom_the_server_never_sees_is_told() {
    let (mut server, bare) = server();
    let tokens = Tokens::of_user("root".into(), "secret".into(), bare.clone(), Handle::current());
    let limits = Limits { request_timeout: REQUEST_TIMEOUT, answer: 32 << 20 };
    let transport = Transport::new(bare.raw(), Some(tokens), Namespace::new(""), limits);
    let hub = Hub::new(transport, Handle::current());
    let mut watcher = hub.watch(Watch::key("k"));
    let started = Instant::now();
    let refuse = async {
        loop {
            let mut wire = server.accept().await;
            wire.create().await;
            wire.refuse("etcdserver: user name is empty");
        }
    };
    let kind = tokio::select! { kind = end(&mut watcher) => kind, never = refuse => never };
    assert!(matches!(kind, ErrorKind::Unauthenticated { .. }), "{kind:?}");
    assert!((REQUEST_TIMEOUT..REQUEST_TIMEOUT * 2).contains(&started.elapsed()), "{:?}", started.elapsed());
}
