//! Many who come at once, on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RequestOp, TxnRequest, request_op::Request};
use etcd_concurrency::{ErrorKind, LostReason, Mutex, Semaphore, Session};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::requests::puts;

/// Reads the line, and puts nothing.
fn looks(txn: &TxnRequest) -> bool {
    let is_of_many = |op: &RequestOp| matches!(&op.request, Some(Request::RequestRange(range)) if !range.range_end.is_empty());
    !puts(txn) && txn.success.iter().any(is_of_many)
}

/// Ten thousand waiters sent their requests at once. The server read the whole line for each of them, answered nothing
/// else meanwhile, not even pings, and lost its connections for that.
#[tokio::test(start_paused = true)]
async fn a_crowd_joins_a_few_at_a_time() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let slow = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::delay(Duration::from_secs(1)));
    let mut crowd = JoinSet::new();
    for n in 0..1_000 {
        let mutex = Mutex::new(&session, format!("lock-{n}")).unwrap();
        crowd.spawn(async move { mutex.lock().await.unwrap().unlock().await.unwrap() });
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(slow.hits(), 256);
    // Whoever has given up makes room.
    crowd.abort_all();
    while crowd.join_next().await.is_some() {}
    sleep(Duration::from_secs(2)).await;
    assert_eq!(slow.hits(), 256, "nobody else was there any more");
    Mutex::new(&session, "lock").unwrap().lock().await.unwrap().unlock().await.unwrap();
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
}

/// A service tried a lock for 50 ms, gave up, and tried again, in two thousand tasks. What each had sent was under way
/// still when the next was sent, in the next task's turn, and the server had thousands of joins to work on at once.
#[tokio::test(start_paused = true)]
async fn those_who_give_up_leave_no_more_joins_under_way_than_are_let_in_at_once() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::hold(&hold));
    let mut crowd = JoinSet::new();
    for n in 0..2_000 {
        let session = session.clone();
        crowd.spawn(async move {
            let mutex = Mutex::new(&session, format!("lock-{n}")).unwrap();
            let semaphore = Semaphore::new(&session, format!("permits-{n}"), 1).unwrap();
            loop {
                let half = Duration::from_millis(25);
                let _ = timeout(half, mutex.lock()).await.map(drop);
                let _ = timeout(half, semaphore.acquire()).await.map(drop);
            }
        });
    }
    // Less than an attempt's time: the client gives none of them up for lost.
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(hold.held(), 256);
    }
    crowd.abort_all();
    while crowd.join_next().await.is_some() {}
    hold.release();
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
}

/// Whoever waits for others' joins has sent nothing: its session's end is told at once, and leaves nothing to wait for.
#[tokio::test(start_paused = true)]
async fn a_session_that_ends_in_the_crowd_ends_the_wait() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let (session, other) = (Session::open(&client).await.unwrap(), Session::open(&client).await.unwrap());
    let slow = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::delay(Duration::from_secs(1)));
    let mut crowd = JoinSet::new();
    for n in 0..256 {
        let mutex = Mutex::new(&session, format!("lock-{n}")).unwrap();
        crowd.spawn(async move { mutex.lock().await.unwrap().unlock().await.unwrap() });
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(slow.hits(), 256);
    let start = Instant::now();
    let waiting = Mutex::new(&other, "lock").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await.map(drop) });
    tokio::task::yield_now().await;
    other.close().await.unwrap();
    let error = waiting.await.unwrap().expect_err("the session has ended");
    assert!(matches!(error.kind(), ErrorKind::Lost(LostReason::Closed)), "{error:?}");
    assert_eq!((start.elapsed(), slow.hits()), (Duration::ZERO, 256));
    while let Some(done) = crowd.join_next().await {
        done.unwrap();
    }
}

/// Each who joined a long line read it once more as its watch had begun, since others had joined meanwhile.
#[tokio::test(start_paused = true)]
async fn a_long_line_is_not_read_again_by_each_who_joins() {
    const CROWD: usize = 200;
    let fake = FakeEtcd::start();
    let client = fake.client();
    let held = Mutex::new(&Session::open(&client).await.unwrap(), "lock").unwrap().lock().await.unwrap();
    let looks = fake.fault(On::rpc(Rpc::Txn).matching(looks), Do::delay(Duration::ZERO));
    let (mut crowd, mut sessions) = (JoinSet::new(), Vec::new());
    for _ in 0..CROWD {
        sessions.push(Session::open(&client).await.unwrap());
    }
    for session in &sessions {
        let mutex = Mutex::new(session, "lock").unwrap();
        crowd.spawn(async move {
            let guard = mutex.lock().await.unwrap();
            let token = guard.token();
            guard.unlock().await.unwrap();
            token
        });
    }
    fake.until(|fake| fake.snapshot().keys.len() == CROWD + 1).await;
    sleep(Duration::from_secs(1)).await;
    assert!(looks.hits() <= 64, "{} looks", looks.hits());
    // And nobody is left behind, or passes another.
    held.unlock().await.unwrap();
    let mut tokens = Vec::new();
    while let Some(token) = crowd.join_next().await {
        tokens.push(token.unwrap());
    }
    assert!(tokens.is_sorted() && tokens.len() == CROWD, "{tokens:?}");
}
