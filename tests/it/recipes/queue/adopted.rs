//! Queues on a lease that was lost and adopted again: on the fake and its paused clock.

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::{ErrorKind, LostReason, Outcome, Session};

use super::faults::{S, count, puts, session, until, until_clean};
use super::{queue, text};

/// Of client `a`; the server has half of its lease's TTL left when it is lost at its deadline.
async fn lasting(fake: &FakeEtcd) -> Session {
    Session::builder(&fake.client_for("a")).ttl(S(60)).margin(S(30)).open().await.unwrap()
}

/// The session is lost behind a partition, and its client adopts the lease.
async fn adopted(fake: &FakeEtcd, lost: &Session) -> Session {
    fake.partition("a");
    assert_eq!(lost.lost().await, LostReason::Expired);
    fake.heal("a");
    Session::builder(lost.client()).lease(lost.lease()).open().await.unwrap()
}

/// A session was lost, and its client went on with the lease. The lost one was closed while a consumer of the other was about to
/// take an item: the close failed, for an item that was not its own, nor lost.
#[tokio::test(start_paused = true)]
async fn closing_a_lost_session_tells_nothing_of_its_adopters_takes() {
    let fake = FakeEtcd::start();
    let before = lasting(&fake).await;
    let adopter = adopted(&fake, &before).await;
    let other = queue(&session(&fake.client_for("b")).await, "q");
    other.enqueue("item").await.unwrap();
    let silent = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::vanish());
    let taker = queue(&adopter, "q");
    let taking = tokio::spawn({
        let taker = taker.clone();
        async move { taker.dequeue().await }
    });
    until(&fake, |_| silent.hits() > 0).await;
    before.close().await.expect("nothing of it is left");
    assert!(adopter.is_valid());
    silent.remove();
    let item = match taking.await.unwrap() {
        Ok(item) => item,
        Err(_) => taker.dequeue().await.unwrap(),
    };
    assert_eq!(text(item), "item");
    until_clean(&fake).await;
    adopter.close().await.expect("no item is left");
}

/// What the lost one itself has taken, and not given back yet, is told of also after its lease was adopted again.
#[tokio::test(start_paused = true)]
async fn closing_a_lost_session_tells_of_its_own_takes() {
    let fake = FakeEtcd::start();
    let before = lasting(&fake).await;
    let other = queue(&session(&fake.client_for("b")).await, "q");
    other.enqueue("item").await.unwrap();
    let claims = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    fake.fault(claims.once(), Do::lose_reply_by(LoseReply::Hang));
    let taker = queue(&before, "q");
    let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
    until(&fake, |fake| count(fake, "claims") == 1).await;
    let silent = fake.fault(On::rpc(Rpc::Txn).client("a"), Do::vanish());
    let adopter = adopted(&fake, &before).await;
    let error = before.close().await.expect_err("the item is not back");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown));
    silent.remove();
    until(&fake, |fake| count(fake, "items") == 1 && count(fake, "claims") == 0).await;
    before.close().await.expect("it is back");
    assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
    until_clean(&fake).await;
    taking.await.unwrap();
    adopter.close().await.expect("no item is left");
}
