//! Items that were put, taken or refused long before the server compacted its history: what became of them since is asked for from
//! where it is still there. On the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, LoseReply, On, Rpc};
use etcd_concurrency::{ErrorKind, LostReason, Op, Outcome, Txn};
use tokio::time::{Instant, advance, sleep, timeout};

use super::by_hand::on_its_way_back;
use super::faults::{S, count, puts, session, until, until_clean};
use super::full::{AlarmAction, alarm};
use super::saved::{comes_back, full, taken};
use super::{queue, text};
use crate::support::requests::deletes;

/// Others write, and the server forgets all before the last of that.
async fn compacts(fake: &FakeEtcd) {
    writes(fake).await;
    fake.compact(fake.revision()).unwrap();
}

async fn writes(fake: &FakeEtcd) {
    for _ in 0..5 {
        fake.client().txn(Txn::new().success(Op::put("other", ""))).await.unwrap();
    }
}

/// Takes of client `a` are applied, and not answered.
fn unanswered(fake: &FakeEtcd) -> Fault {
    let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    fake.fault(on, Do::lose_reply_by(LoseReply::Hang))
}

/// An item had waited for longer than the server keeps its history when a take of it was not answered, and its session ended. Its
/// events were asked for from when it was put: those were compacted, and it was given up, though the take and what came
/// after it was all there.
#[tokio::test(start_paused = true)]
async fn an_item_that_waited_for_long_outlives_its_takers_session() {
    for expired in [true, false] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        compacts(&fake).await;
        let lost = unanswered(&fake);
        let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
        until(&fake, |fake| count(fake, "claims") == 1).await;
        if expired {
            fake.partition("a");
            assert_eq!(a.lost().await, LostReason::Expired);
            until(&fake, |fake| fake.leases() == 1).await;
            fake.heal("a");
        } else {
            fake.revoke_lease(a.lease());
        }
        assert_eq!(count(&fake, "items"), 0);
        comes_back(&fake, &other).await;
        a.close().await.expect("it is saved");
        taking.await.unwrap();
        drop(lost);
    }
}

/// A third party deleted the claim of such a take. The item stood in the queue bound to the taker's lease, and went with it.
#[tokio::test(start_paused = true)]
async fn an_item_that_waited_for_long_outlives_its_claim() {
    for later in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        writes(&fake).await;
        if !later {
            compacts(&fake).await;
        }
        let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
        let lost = fake.fault(on, Do::lose_reply_by(LoseReply::Hang).after(S(1)));
        let taking = tokio::spawn(async move { taker.dequeue().await });
        sleep(Duration::from_millis(500)).await;
        writes(&fake).await;
        until(&fake, |fake| count(fake, "claims") == 1).await;
        if later {
            // The take is the oldest thing that is still known.
            fake.compact(fake.revision()).unwrap();
        }
        fake.client().txn(Txn::new().success(Op::delete_prefix("q/claims/"))).await.unwrap();
        assert_eq!(taking.await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
        sleep(S(30)).await;
        lost.remove();
        a.close().await.unwrap_or_else(|error| panic!("{later}: {error}"));
        assert_eq!(count(&fake, "items"), 1, "{later}: {}", fake.snapshot());
        assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
        until_clean(&fake).await;
    }
}

/// An item was to go back, the database was full, and an operator compacted the history to make space. Then the session ended,
/// and the item went with its lease: since its events were asked for from the take on, it was given up.
#[tokio::test(start_paused = true)]
async fn an_item_whose_return_is_refused_outlives_a_compaction() {
    for closed in [true, false] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let slow = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::delay_reply(S(1)));
        timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
        until(&fake, |fake| count(fake, "claims") == 1).await;
        writes(&fake).await;
        alarm(&fake, AlarmAction::Activate).await;
        sleep(S(10)).await;
        slow.remove();
        fake.compact(fake.revision()).unwrap();
        sleep(S(10)).await;
        if closed {
            assert_eq!(*a.close().await.expect_err("an item is unsaved").kind(), ErrorKind::NoSpace);
        } else {
            fake.expire_lease(a.lease());
        }
        until(&fake, |fake| fake.leases() == 1).await;
        assert_eq!(count(&fake, "items"), 0, "it went with the lease");
        sleep(S(30)).await;
        alarm(&fake, AlarmAction::Deactivate).await;
        sleep(S(150)).await;
        comes_back(&fake, &other).await;
        a.close().await.unwrap_or_else(|error| panic!("{closed}: {error}"));
    }
}

/// The put of an item that went with its session was refused for an hour, in which the server compacted its history again and again,
/// and then the lease was gone that fences the put. Whether an attempt had been applied was asked for from the lease's grant on,
/// and the item given up.
#[tokio::test(start_paused = true)]
async fn an_item_whose_put_is_refused_outlives_a_compaction() {
    for applied in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let lost = unanswered(&fake);
        let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
        until(&fake, |fake| count(fake, "claims") == 1).await;
        let leases =
            |fake: &FakeEtcd| fake.snapshot().leases.iter().map(|lease| lease.id).collect::<Vec<_>>();
        let others = leases(&fake).into_iter().find(|id| *id != a.lease()).unwrap();
        let on = On::rpc(Rpc::Txn).client("a").matching(puts("senders"));
        let refused = fake.fault(on, if applied { Do::lose_reply() } else { full() });
        fake.expire_lease(a.lease());
        until(&fake, |_| refused.hits() > 0).await;
        if applied {
            assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
            until_clean(&fake).await;
        }
        sleep(S(1800)).await;
        compacts(&fake).await;
        sleep(S(300)).await;
        if let Some(put) = leases(&fake).into_iter().find(|id| *id != others) {
            assert!(!applied, "it is found that it was put");
            assert!(fake.revoke_lease(put));
        }
        refused.remove();
        if !applied {
            comes_back(&fake, &other).await;
        }
        sleep(S(600)).await;
        assert_eq!(count(&fake, "items"), 0, "{applied}: {}", fake.snapshot());
        a.close().await.unwrap_or_else(|error| panic!("{applied}: {error}"));
        taking.await.unwrap();
        lost.remove();
    }
}

/// Another consumer was done with an item, and the server had compacted that, when the session was closed before it was found out
/// what became of an unanswered give-back of it. That it is closed was taken for its lease's end being near: one looked for
/// that for as long as `close` waits, which then failed, again and again.
#[tokio::test(start_paused = true)]
async fn closing_at_once_is_ok_after_a_compaction() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let on = || On::rpc(Rpc::Txn).client("a");
    fake.fault(on().matching(puts("claims")), Do::delay_reply(S(1)));
    let lost = fake.fault(on().matching(deletes), Do::lose_reply());
    timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
    until(&fake, |_| lost.hits() > 0).await;
    assert_eq!(text(other.dequeue().await.unwrap()), "item");
    until_clean(&fake).await;
    compacts(&fake).await;
    lost.remove();
    let begun = Instant::now();
    a.close().await.expect("nothing is to be saved");
    assert!(begun.elapsed() < S(5), "{:?}", begun.elapsed());
    sleep(S(60)).await;
    assert_eq!(count(&fake, "items"), 0);
}

/// An operator deleted an item that was on its way back, with its claim, and the session was closed. The lease's end was waited for
/// until it had come by the session's own revoke, and the item taken for one that had gone with it: it came back.
#[tokio::test(start_paused = true)]
async fn an_item_that_was_deleted_does_not_come_back_as_its_session_is_closed() {
    let (fake, a, _other) = on_its_way_back().await;
    let all = ["q/claims/", "q/items/"].map(Op::delete_prefix);
    fake.client().txn(all.into_iter().fold(Txn::new(), Txn::success)).await.unwrap();
    a.close().await.expect("nothing is to be saved");
    sleep(S(60)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
}

/// The put of an item that went with its session was refused, as the database was full, and the process stood still for longer than
/// the lease of the put lasts. A full database does not say that the lease is gone, and an operator compacts the history to make space:
/// only then was it asked whether an attempt had been applied, and the item given up.
#[tokio::test(start_paused = true)]
async fn a_full_database_and_a_standstill_lose_no_item_to_the_compaction_that_makes_space() {
    for applied in [false, true] {
        let fake = FakeEtcd::start();
        let (a, other, taking) = taken(&fake).await;
        let put = On::rpc(Rpc::Txn).client("a").matching(puts("senders"));
        let refused = fake.fault(put, if applied { Do::lose_reply() } else { full() });
        fake.expire_lease(a.lease());
        until(&fake, |_| refused.hits() > 0).await;
        if applied {
            assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
            until_clean(&fake).await;
        }
        writes(&fake).await;
        alarm(&fake, AlarmAction::Activate).await;
        refused.remove();
        advance(S(3600)).await;
        // The lease of the mark is refused meanwhile.
        sleep(S(1800)).await;
        fake.compact(fake.revision()).unwrap();
        sleep(S(300)).await;
        alarm(&fake, AlarmAction::Deactivate).await;
        let other = queue(&session(&fake.client_for("b")).await, "q");
        if !applied {
            sleep(S(150)).await;
            comes_back(&fake, &other).await;
        }
        sleep(S(900)).await;
        assert_eq!(count(&fake, "items"), 0, "{applied}: {}", fake.snapshot());
        a.close().await.unwrap_or_else(|error| panic!("{applied}: {error}"));
        taking.await.unwrap();
    }
}
