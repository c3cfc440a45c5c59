//! How long the stream is kept.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_stream_outlives_the_last_watcher_for_a_while() {
    let (mut server, hub) = rig();
    let first = hub.watch(Watch::key("a"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    drop(first);
    assert_eq!(wire.cancelled().await, id);

    // Whoever comes in time finds it.
    tokio::time::sleep(LINGER - Duration::from_millis(1)).await;
    let mut second = hub.watch(Watch::key("b"));
    let id = wire.created(4).await;
    assert_eq!(second.created().await.expect("created"), 4);
    let dropped = Instant::now();
    drop(second);
    assert_eq!(wire.cancelled().await, id);

    wire.closed().await;
    assert_eq!(dropped.elapsed(), LINGER);
    settle().await;
    assert!(server.is_quiet());
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);

    let mut third = hub.watch(Watch::key("c"));
    let mut wire = server.accept().await;
    assert!(wire.created(5).await > id);
    assert_eq!(third.created().await.expect("created"), 5);
}

/// A stream that had one watch, which is gone.
async fn unused(server: &mut Server, hub: &Hub) -> Wire {
    let watcher = hub.watch(Watch::key("a"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    drop(watcher);
    assert_eq!(wire.cancelled().await, id);
    wire
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_uses_ends_with_the_last_handle() {
    let (mut server, hub) = rig();
    let mut wire = unused(&mut server, &hub).await;
    let (other, idle) = (hub.clone(), Instant::now());
    drop(hub);
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1, "a handle is left");
    drop(other);
    wire.closed().await;
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    assert_eq!(idle.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_while_nobody_uses_it_is_not_opened_again() {
    let (mut server, hub) = rig();
    drop(unused(&mut server, &hub).await);
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    assert!(server.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn watchers_outlive_the_handles() {
    let (mut server, hub) = rig();
    let mut watcher = hub.watch(Watch::key("a"));
    let mut wire = server.accept().await;
    let id = wire.created(1).await;
    drop(hub);
    settle().await;
    wire.events(id, 2, &[("a", 2)]);
    assert_eq!(next(&mut watcher).await, [2]);
    drop(watcher);
    wire.closed().await;
}

/// A stream that died while nobody used it is found out as soon as somebody does, and another one opened.
#[tokio::test(start_paused = true)]
async fn a_stream_that_died_unused_is_not_used_for_long() {
    let (mut server, hub) = rig();
    let watcher = hub.watch(Watch::key("a"));
    let mut dead = server.accept().await;
    dead.created(1).await;
    // Nothing was heard for so long that it is about to be asked whether it lives.
    tokio::time::sleep(Duration::from_secs(9)).await;
    drop(watcher);
    tokio::time::sleep(LINGER - Duration::from_secs(1)).await;
    let start = Instant::now();
    let mut watcher = hub.watch(Watch::key("b"));
    let mut wire = server.accept().await;
    assert!(start.elapsed() <= Duration::from_secs(6), "{:?}", start.elapsed());
    wire.created(7).await;
    assert_eq!(watcher.created().await.expect("created"), 7);
}

#[tokio::test(start_paused = true)]
async fn the_last_watcher_may_go_while_the_stream_opens_or_is_down() {
    let (mut server, hub) = rig();
    let watcher = hub.watch(Watch::key("a"));
    let door = server.ignore().await;
    drop(watcher);
    settle().await;
    drop(door);
    let watcher = hub.watch(Watch::key("a"));
    server.refuse(no_leader()).await;
    drop(watcher);
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(server.is_quiet());
}

/// A client that had watched for days had no watch for five seconds, and forgot that the server was one: a balancer's
/// nonsense then ended new watches after the time of a request.
#[tokio::test(start_paused = true)]
async fn what_has_worked_is_waited_for_also_by_later_watchers() {
    let (mut server, hub) = rig();
    let mut wire = unused(&mut server, &hub).await;
    wire.closed().await;
    settle().await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    let mut watcher = hub.watch(Watch::key("b"));
    let started = Instant::now();
    while started.elapsed() < 3 * REQUEST_TIMEOUT {
        let refused = server.refuse(tonic::Status::unimplemented("unknown service"));
        timeout(REQUEST_TIMEOUT, refused).await.expect("it is tried again");
    }
    server.accept().await.created(7).await;
    assert_eq!(watcher.created().await.expect("created"), 7);
}
