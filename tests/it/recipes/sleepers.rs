//! Whoever sleeps through its session's deadline, or is cut off until then, believes nothing that it hears afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{
    Barrier, Client, CountDownLatch, DoubleBarrier, LostReason, Membership, Result, Session,
};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const S: fn(u64) -> Duration = Duration::from_secs;

async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(S(10)).open().await.unwrap()
}

/// One of each wait, and what would end it.
struct Waits {
    waiting: Vec<JoinHandle<Result<()>>>,
    gate: Barrier,
    latch: CountDownLatch,
    round: DoubleBarrier,
    group: Membership,
}

impl Waits {
    async fn start(fake: &FakeEtcd, waiter: &Session) -> Waits {
        let other = session(&fake.client_for("other")).await;
        let gate = |session| Barrier::new(session, "gate").unwrap();
        let latch = |session| CountDownLatch::new(session, "latch", 1).unwrap();
        let round = |session| DoubleBarrier::new(session, "round", 2).unwrap();
        let group = |session| Membership::new(session, "group").unwrap();
        gate(&other).hold().await.unwrap();
        let mut changes = group(waiter).changes();
        changes.next().await.unwrap();
        let (at_gate, at_latch, at_round) = (gate(waiter), latch(waiter), round(waiter));
        let waiting = vec![
            tokio::spawn(async move { at_gate.wait().await }),
            tokio::spawn(async move { at_latch.wait().await }),
            tokio::spawn(async move { at_round.enter().await.map(drop) }),
            tokio::spawn(async move { changes.next().await.map(drop) }),
        ];
        // The gate's key, the latch's and its prefix, the round's two, the group.
        fake.until(|fake| fake.watchers() == 6).await;
        sleep(Duration::from_millis(100)).await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        Waits {
            waiting,
            gate: gate(&other),
            latch: latch(&other),
            round: round(&other),
            group: group(&other),
        }
    }

    async fn end(&self) {
        self.gate.release().await.unwrap();
        self.latch.count_down().await.unwrap();
        let _ = timeout(Duration::from_millis(100), self.round.enter()).await;
        drop(self.group.join("x").await.unwrap());
    }

    async fn all_expired(self) {
        for waiting in self.waiting {
            let error = timeout(S(15), waiting).await.expect("at the deadline").unwrap().unwrap_err();
            assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_slept_believes_nothing() {
    let (fake, slept) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)));
    let told = slept.clone();
    let builder = Client::builder().service(fake.service_for("sleeper"));
    let client = builder.suspended_time(move || S(told.load(Ordering::SeqCst))).connect().await.unwrap();
    let waiter = session(&client).await;
    let waits = Waits::start(&fake, &waiter).await;
    slept.store(15, Ordering::SeqCst);
    waits.end().await;
    waits.all_expired().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_is_told_at_its_deadline() {
    let fake = FakeEtcd::start();
    let waiter = session(&fake.client_for("waiter")).await;
    let waits = Waits::start(&fake, &waiter).await;
    fake.partition("waiter");
    waits.end().await;
    waits.all_expired().await;
}
