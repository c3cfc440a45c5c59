//! What closing a session tells of items that go with its lease unless they are saved, and what becomes of those: on the fake and its
//! paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::{ErrorKind, Outcome, Session};
use tokio::time::{sleep, timeout};

use super::faults::{S, count, puts, session, until, until_clean};
use super::full::{AlarmAction, alarm};
use super::saved::{comes_back, saves, settles, taken};
use super::{queue, text};
use crate::support::lies;
use crate::support::requests::deletes;

/// An item was on its way back, or it was not found out yet whether it had been taken, when the session was closed: no attempt had
/// failed by then, and `close` said that all was well.
#[tokio::test(start_paused = true)]
async fn closing_tells_of_an_item_that_is_on_its_way_back() {
    for answered in [true, false] {
        let fake = FakeEtcd::start();
        // So short that `close` waits for less than an attempt takes.
        let a = Session::builder(&fake.client_for("a")).ttl(S(5)).open().await.unwrap();
        let b = session(&fake.client_for("b")).await;
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
        match answered {
            true => fake.fault(on, Do::delay_reply(S(1))),
            false => fake.fault(on, Do::lose_reply_by(LoseReply::Hang)),
        };
        let silent = fake
            .fault(On::rpc(Rpc::Txn).client("a").matching(|txn| saves(txn) || settles(txn)), Do::vanish());
        timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
        sleep(S(1)).await;
        let error = a.close().await.expect_err("the item is not back");
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown), "{answered}");
        silent.remove();
        comes_back(&fake, &other).await;
        a.close().await.expect("it is saved");
    }
}

/// The future of a dequeue was kept and not polled any more when its session was closed. The take had been applied, and the item
/// went with the lease, of which `close` knew nothing: it said that all was well.
#[tokio::test(start_paused = true)]
async fn closing_tells_of_a_take_that_is_not_polled() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::delay_reply(S(1)));
    let mut taking = Box::pin(taker.dequeue());
    tokio::select! {
        biased;
        _ = &mut taking => panic!("the answer takes longer"),
        () = fake.until(|fake| count(fake, "claims") == 1) => {}
    }
    let error = a.close().await.expect_err("the item is gone, and no caller has it");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown));
    assert_eq!(count(&fake, "items"), 0);
    drop(taking);
    comes_back(&fake, &other).await;
    a.close().await.expect("it is saved");
}

/// Two sessions were on one lease. One had an item to give back, and could not; the other was closed, and revoked the lease, with
/// which the item went: it said that all was well.
#[tokio::test(start_paused = true)]
async fn closing_tells_of_what_another_session_on_the_lease_is_to_save() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let also = Session::builder(a.client()).lease(a.lease()).open().await.unwrap();
    alarm(&fake, AlarmAction::Activate).await;
    assert_eq!(*also.close().await.expect_err("an item is unsaved").kind(), ErrorKind::NoSpace);
    alarm(&fake, AlarmAction::Deactivate).await;
    comes_back(&fake, &other).await;
    also.close().await.expect("it is saved");
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}

/// Another consumer was done with an item, and the server had compacted that, before it was found out what became of an unanswered
/// give-back, or take, of it. The lease lived, so that the item had not gone with it; and each `close` failed all the same.
#[tokio::test(start_paused = true)]
async fn closing_is_ok_after_a_compaction_while_the_lease_lives() {
    for applied in [true, false] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let on = || On::rpc(Rpc::Txn).client("a");
        let take = fake
            .fault(on().matching(puts("claims")), if applied { Do::delay_reply(S(1)) } else { Do::vanish() });
        let settling = match applied {
            true => fake.fault(on().matching(deletes), Do::lose_reply()),
            false => fake.fault(on().matching(settles), Do::vanish()),
        };
        timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
        until(&fake, |_| settling.hits() > 0).await;
        assert_eq!(text(other.dequeue().await.unwrap()), "item");
        until_clean(&fake).await;
        fake.compact(fake.revision()).unwrap();
        settling.remove();
        take.remove();
        sleep(S(30)).await;
        a.close().await.unwrap_or_else(|error| panic!("{applied}: {error}"));
        assert_eq!(count(&fake, "items"), 0, "{applied}");
    }
}

/// A third party revoked the lease that an item was bound to. A leader that was none any more said once that the lease lived, and then
/// the session was closed, or orphaned: that, or the session's own revoke, whose answer was awaited, was taken for what had ended the
/// lease, and the item for one that an operator had deleted before. It was lost, and `close` said that all was well.
#[tokio::test(start_paused = true)]
async fn a_wrong_word_of_a_leases_life_loses_no_item_of_a_closed_session() {
    let quarter = Duration::from_millis(250);
    for ended in [Ended::Closed, Ended::ClosedSlowly, Ended::Orphaned] {
        for quarters in 0..=16 {
            let fake = FakeEtcd::start();
            let a = session(&lies::renews_what_has_ended(&fake, 1)).await;
            let (taker, other) = (queue(&a, "q"), queue(&session(&fake.client_for("b")).await, "q"));
            other.enqueue("item").await.unwrap();
            let on = |rpc| On::rpc(rpc).client("default");
            fake.fault(on(Rpc::Txn).matching(puts("claims")), Do::delay_reply(S(1)));
            fake.fault(on(Rpc::Txn).matching(deletes), Do::delay(S(3)));
            timeout(quarter, taker.dequeue()).await.expect_err("the answer takes longer");
            sleep(S(1)).await;
            fake.revoke_lease(a.lease());
            assert_eq!(count(&fake, "items"), 0);
            match ended {
                Ended::Closed => {
                    sleep(quarter * quarters).await;
                    drop(a.close().await);
                }
                Ended::ClosedSlowly => {
                    // So that the revoke is sent before it is found out.
                    fake.fault(on(Rpc::Range), Do::delay(quarter * quarters));
                    fake.fault(on(Rpc::LeaseRevoke), Do::delay_reply(S(4)));
                    drop(a.close().await);
                }
                Ended::Orphaned => {
                    sleep(quarter * quarters).await;
                    a.orphan();
                }
            }
            let back = fake.until(|fake| count(fake, "items") == 1);
            timeout(S(120), back).await.unwrap_or_else(|_| panic!("{ended:?} {quarters}: it is lost"));
            comes_back(&fake, &other).await;
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Ended {
    Closed,
    /// Its reads, and the answer to its revoke, take their time.
    ClosedSlowly,
    Orphaned,
}
