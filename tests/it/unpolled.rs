//! Futures that are kept and not polled any more: the calls after them do not wait for ever.

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{Counter, Election, ErrorKind, LostReason, Membership, Outcome, Session};
use tokio::time::{sleep, timeout};

use crate::support::requests::puts;

const S: fn(u64) -> Duration = Duration::from_secs;

/// Polls a future once.
async fn begun(mut future: Pin<&mut impl Future>) {
    tokio::select! {
        biased;
        _ = future.as_mut() => panic!("answered at once"),
        () = ready(()) => {}
    }
}

/// An update had the turn among the writes of its key, and its future was kept and not polled. Each later update waited for it
/// for ever, also when the session had been lost.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_polled_holds_up_no_other_for_ever() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(6)).open().await.unwrap();
    let member = Membership::new(&session, "group").unwrap().join("a").await.unwrap();
    let leader = Election::new(&session, "seat").unwrap().campaign("a").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::delay(S(1)));
    let (mut kept, mut also) = (Box::pin(member.update("b")), Box::pin(leader.proclaim("b")));
    begun(kept.as_mut()).await;
    begun(also.as_mut()).await;
    let updated = timeout(S(25), member.update("c")).await.expect("it ends").unwrap_err();
    let proclaimed = timeout(S(25), leader.proclaim("c")).await.expect("it ends").unwrap_err();
    for error in [updated, proclaimed] {
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::NotApplied), "{error}");
    }
    // The loss of the session, which comes before that, is told.
    fake.clear_faults();
    fake.fault(On::any(), Do::vanish());
    let told = member.update("d").await.unwrap_err();
    assert_eq!(told.lost_reason(), Some(LostReason::Expired), "{told}");
    drop((kept, also));
}

/// The same with a counter, which is right without its turn.
#[tokio::test(start_paused = true)]
async fn an_addition_that_is_not_polled_holds_up_no_other_for_ever() {
    let fake = FakeEtcd::start();
    let counter = Counter::new(&fake.client(), "n").unwrap();
    assert_eq!(counter.add(1).await.unwrap(), 1);
    let slow = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::delay(S(1)));
    let mut kept = Box::pin(counter.add(10));
    begun(kept.as_mut()).await;
    sleep(S(2)).await;
    slow.remove();
    let sum = timeout(S(25), counter.add(100)).await.expect("it ends").unwrap();
    assert!(timeout(S(25), counter.compare_and_set(sum, 5)).await.expect("it ends").unwrap());
    // It was made before them, or finds that it cannot be made so any more, and is made after them.
    let (first, now) = (kept.await.unwrap(), counter.get().await.unwrap());
    assert!([(111, 11, 5), (101, 15, 15)].contains(&(sum, first, now)), "{sum}, {first}, {now}");
}
