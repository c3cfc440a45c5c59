//! One schedule, to copy: CONTRIBUTING.md says how one is found.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::{Mutex, Session};
use tokio::time::sleep;

use crate::support::requests::puts;

/// What went wrong, in the past tense: who did what, what was lost, and what the user saw. Here: a lock was asked for, the member stood
/// still, another answered; it was released. An hour later the first member applied what it had: the lock had a key that no task
/// held.
#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_an_hour_late_keeps_no_lock() {
    let fake = FakeEtcd::start();
    let a = Session::open(&fake.client_for("a")).await.unwrap();
    let b = Session::open(&fake.client_for("b")).await.unwrap();
    let member = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts).once(), Do::hold(&member));
    Mutex::new(&a, "m").unwrap().lock().await.unwrap().unlock().await.unwrap();
    Mutex::new(&b, "m").unwrap().lock().await.unwrap().unlock().await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    let before = fake.revision();
    member.release();
    fake.until(|fake| fake.revision() > before && fake.snapshot().keys.is_empty()).await;
    Mutex::new(&b, "m").unwrap().try_lock().await.expect("it is free").unlock().await.unwrap();
}
