//! Holders that are cut off or stopped: what they believe, and what a rival can take meanwhile.

use std::time::Duration;

use etcd_concurrency::{Client, Compare, LostReason, Mutex, Op, Session, SessionState, Txn};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::etcd::{Etcd, Version};
use crate::support::part;
use crate::support::proxy::Proxy;

const TTL: Duration = Duration::from_secs(2);

async fn session(endpoint: impl Into<String>) -> Session {
    let client = Client::connect(endpoint.into()).await.expect("a client");
    Session::builder(&client).ttl(TTL).open().await.expect("a session")
}

/// Fifty holders whose connection stalls right after a keep-alive: each is told of its loss before its rival, on a
/// healthy connection, gets the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_stalled_holder_stops_believing_before_a_rival_can_lock() {
    let etcd = Etcd::start(Version::V3_7).await;
    let (mut gaps, mut tries) = (Vec::new(), JoinSet::new());
    for round in 0..50 {
        if tries.len() == 10 {
            gaps.push(tries.join_next().await.expect("one is there").expect("no overlap"));
        }
        tries.spawn(stall_once(etcd.endpoint().to_owned(), format!("stalled/{round}")));
    }
    while let Some(gap) = tries.join_next().await {
        gaps.push(gap.expect("no overlap"));
    }
    gaps.sort();
    println!("from loss to the rival's lock, 50 tries: least {:?}, median {:?}", gaps[0], gaps[25]);
}

/// How long after the holder's loss the rival got the lock.
async fn stall_once(endpoint: String, name: String) -> Duration {
    let proxy = Proxy::start(&endpoint).await;
    let holder = session(proxy.endpoint()).await;
    let guard = Mutex::new(&holder, &name).expect("a name").lock().await.expect("the lock");
    let rival = session(endpoint).await;
    let waiting = tokio::spawn(async move {
        let guard = Mutex::new(&rival, &name).expect("a name").lock().await.expect("the lock");
        (Instant::now(), guard, rival)
    });
    // Right after a keep-alive: what is left has just jumped up.
    let before = holder.remaining();
    tokio::time::timeout(TTL, async {
        while holder.remaining() <= before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("a keep-alive");
    proxy.stall();

    let reason = guard.lost().await;
    let lost = Instant::now();
    assert_eq!(reason, LostReason::Expired);
    assert!(!guard.is_valid());
    let error = guard.txn().success(Op::put("late", "")).commit().await.expect_err("it is lost");
    assert_eq!(error.lost_reason(), Some(LostReason::Expired));
    let (locked, theirs, _rival) = waiting.await.expect("no panic");
    assert!(theirs.token() > guard.token());
    assert!(lost <= locked, "both believed for {:?}", lost - locked);
    locked - lost
}

/// The state tells of trouble before the deadline, and of its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_stall_shorter_than_the_ttl_is_survived_and_told() {
    let etcd = Etcd::start(Version::V3_7).await;
    let proxy = Proxy::start(etcd.endpoint()).await;
    let client = Client::connect(proxy.endpoint()).await.unwrap();
    let holder = Session::builder(&client).ttl(Duration::from_secs(9)).open().await.unwrap();
    let mut state = holder.state();
    assert_eq!(*state.borrow_and_update(), SessionState::Active);
    proxy.stall();
    state.wait_for(|state| matches!(state, SessionState::Suspended { .. })).await.unwrap();
    assert!(holder.is_valid());
    proxy.resume();
    state.wait_for(|state| *state == SessionState::Active).await.unwrap();
    assert!(holder.is_valid());
}

/// A holder's process is stopped (SIGSTOP) for longer than its TTL. The first thing it sees on waking is the loss, and
/// a write that it sends all the same is refused by the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_stopped_holder_sees_its_loss_first() {
    const NAME: &str = "pauses::a_stopped_holder_sees_its_loss_first";
    if part::is_played() {
        return hold_until_lost().await;
    }
    let etcd = Etcd::start(Version::V3_7).await;
    let holder = part::play(NAME, &[("HOLDER_ENDPOINT", etcd.endpoint())]);
    part::line(&holder, "wrote 5").await;
    holder.pause();

    let rival = session(etcd.endpoint()).await;
    let guard = Mutex::new(&rival, "stopped/lock").unwrap().lock().await.unwrap();
    let fenced = guard.txn().success(Op::put("stopped/data", "rival")).commit().await.unwrap();
    assert!(fenced.succeeded);
    let last = holder.output().lines().filter(|line| line.starts_with("wrote")).count();
    holder.resume();

    part::line(&holder, "done").await;
    let output = holder.output();
    let lines: Vec<&str> = output.lines().skip_while(|line| !line.starts_with("wrote")).skip(last).collect();
    assert_eq!(lines[..3], ["lost valid=false", "guard refused", "server refused"], "{output}");
    let read = rival.client().txn(Txn::new().success(Op::get("stopped/data"))).await.unwrap();
    assert_eq!(read.kvs(0).unwrap()[0].value, "rival");
}

/// The part of the process that is stopped: writes behind its fence until the lock is lost.
async fn hold_until_lost() {
    let endpoint = std::env::var("HOLDER_ENDPOINT").expect("given by the test");
    let session = session(endpoint).await;
    let guard = Mutex::new(&session, "stopped/lock").unwrap().lock().await.unwrap();
    let mut every = tokio::time::interval(Duration::from_millis(20));
    for n in 0.. {
        tokio::select! {
            biased;
            _ = guard.lost() => break,
            _ = every.tick() => {}
        }
        match guard.txn().success(Op::put("stopped/data", format!("{n}"))).commit().await {
            Ok(_) => println!("wrote {n}"),
            Err(error) if error.lost_reason().is_some() => break,
            Err(error) => println!("failed {error}"),
        }
    }
    println!("lost valid={}", guard.is_valid());
    let late = guard.txn().success(Op::put("stopped/data", "late")).commit().await;
    println!("guard {}", if late.is_err() { "refused" } else { "wrote" });
    // What a write that was under way would have done.
    let sent = Txn::new().compare(guard.is_owner()).success(Op::put("stopped/data", "late"));
    let sent = session.client().txn(sent.compare(Compare::exists("stopped/data"))).await.unwrap();
    println!("server {}", if sent.succeeded { "wrote" } else { "refused" });
    println!("done");
}
