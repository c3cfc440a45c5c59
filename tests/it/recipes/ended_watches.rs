//! Waits whose watch breaks, or is ended for good: on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::WatchResponse;
use etcd_concurrency::{CountDownLatch, Op, Semaphore, Session, Txn};
use tokio::time::{sleep, timeout};

const S: fn(u64) -> Duration = Duration::from_secs;

/// A latch opened and was reset while the stream of one who waited was down. When it was told of both it read the keys first, and
/// passed over the opening: it waited for another round.
#[tokio::test(start_paused = true)]
async fn a_latch_that_opened_and_was_reset_while_the_stream_was_down_lets_its_waiters_go() {
    let fake = FakeEtcd::start();
    let [a, b] = ["a", "b"].map(|name| fake.client_for(name));
    let (a, b) = (Session::open(&a).await.unwrap(), Session::open(&b).await.unwrap());
    let counts = CountDownLatch::new(&a, "latch", 1).unwrap();
    let waits = CountDownLatch::new(&b, "latch", 1).unwrap();
    let waiting = tokio::spawn(async move { waits.wait().await });
    fake.until(|fake| fake.watchers() == 1).await;
    sleep(S(1)).await;
    let away = fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
    fake.cut_streams("b");
    fake.until(|fake| fake.watchers() == 0).await;
    assert_eq!(counts.count_down().await.unwrap(), 0);
    counts.reset().await.unwrap();
    away.remove();
    timeout(S(30), waiting).await.expect("it was open").unwrap().unwrap();
}

/// One who asked for a permit was told by a watch that also tells of other keys. A proxy broke the stream at each answer with one of
/// those, until the watch was ended: the waiter asked it again and again, and had neither a permit nor an error, though all
/// permits were free.
#[tokio::test(start_paused = true)]
async fn an_acquire_whose_watch_was_ended_gets_the_error() {
    let fake = FakeEtcd::start();
    let [a, b] = ["a", "b"].map(|name| fake.client_for(name));
    let (a, b) = (Session::open(&a).await.unwrap(), Session::open(&b).await.unwrap());
    let [held, asks] = [&a, &b].map(|session| Semaphore::new(session, "s", 1).unwrap());
    let held = held.acquire().await.unwrap();
    let asking = tokio::spawn(async move { asks.acquire().await });
    fake.until(|fake| fake.watchers() == 1).await;
    sleep(S(1)).await;
    let other = |told: &WatchResponse| {
        told.events.iter().any(|event| event.kv.as_ref().is_some_and(|kv| kv.key == "s/part"))
    };
    let breaks = fake.fault(On::response(Rpc::Watch).client("b").matching(other), Do::cut());
    a.client().txn(Txn::new().success(Op::put("s/part", "long"))).await.unwrap();
    sleep(S(300)).await;
    assert!(breaks.hits() > 1);
    held.release().await.unwrap();
    match timeout(S(300), asking).await.expect("a permit, or an error").unwrap() {
        Ok(permit) => permit.release().await.unwrap(),
        Err(error) => assert!(error.lost_reason().is_none(), "{error}"),
    }
}
