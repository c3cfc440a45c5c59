//! Whoever sleeps through its session's deadline, or is cut off until then, believes nothing that it hears afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, LostReason, Result, Session};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::table::{Doing, Got, Wait};
use crate::support::count::RpcCounter;

const S: fn(u64) -> Duration = Duration::from_secs;

async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(S(10)).open().await.unwrap()
}

/// One of each wait, and what would end it.
struct Waits {
    waiting: Vec<(Wait, JoinHandle<Result<Got>>)>,
    making_way: Vec<Doing>,
}

impl Waits {
    async fn start(fake: &FakeEtcd, waiter: &Session, counter: &RpcCounter) -> Waits {
        let other = session(&fake.client_for("other")).await;
        let mut waits = Waits { waiting: Vec::new(), making_way: Vec::new() };
        for wait in Wait::ALL {
            let name = format!("{wait:?}");
            waits.making_way.push(wait.hold(&other, &name, 1).await.unwrap());
            let waiting = wait.stand(waiter, counter, &fake.client(), &name, (1, 1)).await;
            assert!(!waiting.is_finished(), "{wait:?}");
            waits.waiting.push((wait, waiting));
        }
        waits
    }

    async fn end(&mut self) {
        for making_way in self.making_way.drain(..) {
            tokio::spawn(making_way);
        }
    }

    async fn all_expired(self) {
        for (wait, waiting) in self.waiting {
            let waited = timeout(S(15), waiting).await.expect("at the deadline").unwrap();
            let error = waited.err().unwrap_or_else(|| panic!("{wait:?} believed it"));
            assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{wait:?}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_slept_believes_nothing() {
    let (fake, slept, counter) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)), RpcCounter::new());
    let told = slept.clone();
    let builder = Client::builder().service(fake.service_for("sleeper")).layer(counter.clone());
    let client = builder.suspended_time(move || S(told.load(Ordering::SeqCst))).connect().await.unwrap();
    let waiter = session(&client).await;
    let mut waits = Waits::start(&fake, &waiter, &counter).await;
    slept.store(15, Ordering::SeqCst);
    waits.end().await;
    waits.all_expired().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_is_told_at_its_deadline() {
    let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
    let client = Client::builder().service(fake.service_for("waiter")).layer(counter.clone());
    let waiter = session(&client.connect().await.unwrap()).await;
    let mut waits = Waits::start(&fake, &waiter, &counter).await;
    fake.partition("waiter");
    waits.end().await;
    waits.all_expired().await;
}
