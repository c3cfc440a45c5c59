//! Items that are gone when it is asked what became of them: with their session, by an operator's hand, or not at all. On the fake
//! and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::RangeRequest;
use etcd_concurrency::{ErrorKind, LostReason, Op, Queue, Session, Txn};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::faults::{S, count, puts, session, until, until_clean};
use super::saved::{comes_back, full};
use super::{queue, text};
use crate::support::requests::{deletes, is_held};

/// A dequeue of client `a` was dropped, and what is to give its item back gets no answer: the session that took it, another's queue,
/// and what keeps the answers away.
async fn on_its_way(fake: &FakeEtcd, margin: u64, unheard: Do) -> (Session, Queue, Fault) {
    let a = Session::builder(&fake.client_for("a")).ttl(S(60)).margin(S(margin)).open().await.unwrap();
    let (taker, other) = (queue(&a, "q"), queue(&session(&fake.client_for("b")).await, "q"));
    other.enqueue("item").await.unwrap();
    let on = || On::rpc(Rpc::Txn).client("a");
    fake.fault(on().matching(puts("claims")), Do::delay_reply(S(1)));
    let unheard = fake.fault(on().matching(deletes), unheard);
    timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
    sleep(S(1)).await;
    assert!(unheard.hits() > 0);
    (a, other, unheard)
}

async fn writes(fake: &FakeEtcd) {
    for _ in 0..5 {
        fake.client().txn(Txn::new().success(Op::put("other", ""))).await.unwrap();
    }
}

/// The server is away until the lease has ended.
async fn expires(fake: &FakeEtcd, a: &Session) {
    fake.partition("a");
    assert_eq!(a.lost().await, LostReason::Expired);
    until(fake, |fake| fake.leases() == 1).await;
}

async fn delete(fake: &FakeEtcd, prefixes: &[&'static str]) {
    let deletes = prefixes.iter().map(|prefix| Op::delete_prefix(*prefix));
    fake.client().txn(deletes.fold(Txn::new(), Txn::success)).await.unwrap();
}

/// An item went with its session's lease in the very next revision, which was compacted. An old server does not tell of that to a watch
/// that begins there: it was waited for, for ten minutes, and the item given up.
#[tokio::test(start_paused = true)]
async fn an_item_whose_deletion_the_server_lost_comes_back() {
    let fake = FakeEtcd::builder().loses_deletions().start();
    let (a, other, unheard) = on_its_way(&fake, 5, Do::vanish()).await;
    let taken = fake.revision();
    expires(&fake, &a).await;
    assert_eq!((count(&fake, "items"), fake.revision()), (0, taken + 1), "it went with the lease");
    fake.compact(fake.revision()).unwrap();
    unheard.remove();
    fake.heal("a");
    comes_back(&fake, &other).await;
    a.close().await.expect("it is saved");
}

/// A take was never applied, and an operator deleted its item, in the very next revision after a look at it, which was compacted:
/// that was waited for in the same way, and each `close` failed.
#[tokio::test(start_paused = true)]
async fn a_take_of_an_item_whose_deletion_the_server_lost_is_no_debt() {
    let fake = FakeEtcd::builder().loses_deletions().start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    queue(&b, "q").enqueue("item").await.unwrap();
    let taker = queue(&a, "q");
    let unheard = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::vanish());
    let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
    until(&fake, |_| unheard.hits() > 0).await;
    delete(&fake, &["q/items/"]).await;
    fake.compact(fake.revision()).unwrap();
    taking.await.unwrap();
    sleep(S(30)).await;
    a.close().await.expect("nothing is to be saved");
    assert_eq!(count(&fake, "items"), 0);
}

/// The item of an unanswered take went with the lease. The watch that was to tell of the take was not served: that was asked for once,
/// and where that failed the item was lost.
#[tokio::test(start_paused = true)]
async fn a_watch_for_an_unanswered_take_is_made_until_it_is_told() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    fake.fault(on, Do::lose_reply_by(LoseReply::Hang).after(S(1)));
    let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
    sleep(Duration::from_millis(500)).await;
    // What is next after the look is not the take.
    writes(&fake).await;
    until(&fake, |fake| count(fake, "claims") == 1).await;
    expires(&fake, &a).await;
    // For longer than a watch is waited for.
    let unserved = fake.fault(On::rpc(Rpc::Watch).client("a").times(1), Do::vanish());
    fake.heal("a");
    comes_back(&fake, &other).await;
    assert_eq!(unserved.hits(), 1);
    taking.await.unwrap();
}

/// An item was to go back, one attempt got no answer, and the next were refused, as an operator edited the rights; meanwhile the
/// history was compacted. Then the session ended, and the item went with its lease: since its events were asked for from the take on,
/// it was given up.
#[tokio::test(start_paused = true)]
async fn an_item_whose_return_is_forbidden_outlives_a_compaction() {
    for closed in [true, false] {
        let fake = FakeEtcd::start();
        let (a, other, unheard) = on_its_way(&fake, 5, Do::vanish()).await;
        let denied = Do::fail(Status::permission_denied("etcdserver: permission denied"));
        let saves = |txn: &_| deletes(txn) || puts("items")(txn) && puts("senders")(txn);
        writes(&fake).await;
        sleep(S(30)).await;
        let refused = fake.fault(On::rpc(Rpc::Txn).client("a").matching(saves), denied);
        unheard.remove();
        until(&fake, |_| refused.hits() > 1).await;
        fake.compact(fake.revision()).unwrap();
        match closed {
            true => {
                assert_eq!(*a.close().await.expect_err("it is unsaved").kind(), ErrorKind::PermissionDenied)
            }
            false => drop(fake.expire_lease(a.lease())),
        }
        until(&fake, |fake| fake.leases() == 1).await;
        assert_eq!(count(&fake, "items"), 0, "it went with the lease");
        sleep(S(30)).await;
        refused.remove();
        comes_back(&fake, &other).await;
        a.close().await.unwrap_or_else(|error| panic!("{closed}: {error}"));
    }
}

/// An item had been given back by an attempt without an answer, and stood in the queue, when its session ended, and the history was
/// compacted. It was asked for in that history: that it was forgotten was taken for a loss, and each `close` failed.
#[tokio::test(start_paused = true)]
async fn an_item_that_was_given_back_before_a_compaction_is_no_debt() {
    let fake = FakeEtcd::start();
    let (a, other, unheard) = on_its_way(&fake, 5, Do::lose_reply()).await;
    expires(&fake, &a).await;
    assert_eq!((count(&fake, "items"), count(&fake, "claims")), (1, 0), "it was given back");
    writes(&fake).await;
    fake.compact(fake.revision()).unwrap();
    unheard.remove();
    fake.heal("a");
    sleep(S(60)).await;
    a.close().await.expect("nothing is to be saved");
    comes_back(&fake, &other).await;
    sleep(S(60)).await;
    assert_eq!(count(&fake, "items"), 0, "it comes once");
}

/// It was seen that an item was deleted, and the history compacted before it was seen whether it was put among the dead letters. The
/// item was given up, as if nothing were known of it.
#[tokio::test(start_paused = true)]
async fn a_compaction_between_two_looks_loses_no_item() {
    let fake = FakeEtcd::start();
    let (a, other, unheard) = on_its_way(&fake, 5, Do::vanish()).await;
    let hold = Hold::new();
    let letters = |range: &RangeRequest| range.key.starts_with(b"q/undelivered/");
    fake.fault(On::rpc(Rpc::Range).client("a").matching(letters).once(), Do::hold(&hold));
    expires(&fake, &a).await;
    unheard.remove();
    fake.heal("a");
    is_held(&hold).await;
    writes(&fake).await;
    fake.compact(fake.revision()).unwrap();
    hold.release();
    comes_back(&fake, &other).await;
    a.close().await.expect("it is saved");
}

/// An operator deleted an item that was on its way back, with its claim. While one looked whether the lease had ended, `close` ended
/// it: that was taken for what had deleted the item, which came back.
#[tokio::test(start_paused = true)]
async fn a_deleted_item_does_not_come_back_by_its_sessions_own_revoke() {
    for quarters in 0..=14 {
        let fake = FakeEtcd::start();
        let (a, _other, _slow) = on_its_way(&fake, 5, Do::delay(S(3))).await;
        slow_reads(&fake, quarters);
        delete(&fake, &["q/claims/", "q/items/"]).await;
        // Where it is not found out in time, that is told.
        drop(a.close().await);
        sleep(S(120)).await;
        assert_eq!(count(&fake, "items"), 0, "{quarters}: {}", fake.snapshot());
        a.close().await.unwrap_or_else(|error| panic!("{quarters}: {error}"));
    }
}

/// The same where the session was lost at its deadline, of whose lease the server had a while left, and dropped.
#[tokio::test(start_paused = true)]
async fn a_deleted_item_does_not_come_back_as_its_session_is_dropped() {
    for quarters in 0..=14 {
        let fake = FakeEtcd::start();
        let (a, _other, unheard) = on_its_way(&fake, 30, Do::vanish()).await;
        unheard.remove();
        slow_reads(&fake, quarters);
        fake.partition("a");
        delete(&fake, &["q/claims/", "q/items/"]).await;
        assert_eq!(a.lost().await, LostReason::Expired);
        fake.heal("a");
        drop(a);
        sleep(S(120)).await;
        assert_eq!(count(&fake, "items"), 0, "{quarters}: {}", fake.snapshot());
    }
}

/// The looks come at all times around the revoke.
fn slow_reads(fake: &FakeEtcd, quarters: u32) {
    fake.fault(On::rpc(Rpc::Range).client("a"), Do::delay(Duration::from_millis(250) * quarters));
}

/// The same where the process stood still between two looks, for so long that the lease ran out.
#[tokio::test(start_paused = true)]
async fn a_deleted_item_does_not_come_back_by_a_standstill() {
    let fake = FakeEtcd::start();
    let (a, _other, _slow) = on_its_way(&fake, 5, Do::delay(S(3))).await;
    delete(&fake, &["q/claims/", "q/items/"]).await;
    // It is answered once, and then no more.
    sleep(S(3)).await;
    fake.partition("a");
    assert_eq!(a.lost().await, LostReason::Expired);
    until(&fake, |fake| fake.leases() == 1).await;
    fake.heal("a");
    sleep(S(120)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
}

/// The queue was used so much after a put began that a watch took longer to tell of that than a server is waited for: each watch was
/// given up in the midst of it, and another began from the start.
#[tokio::test(start_paused = true)]
async fn a_put_is_found_out_behind_a_long_history() {
    let fake = FakeEtcd::start();
    let (a, other, unheard) = on_its_way(&fake, 5, Do::vanish()).await;
    let leases = |fake: &FakeEtcd| fake.snapshot().leases.iter().map(|lease| lease.id).collect::<Vec<_>>();
    let others = leases(&fake).into_iter().find(|id| *id != a.lease()).unwrap();
    let on = || On::rpc(Rpc::Txn).client("a").matching(puts("senders"));
    let refused = fake.fault(on(), full());
    fake.expire_lease(a.lease());
    unheard.remove();
    until(&fake, |_| refused.hits() > 0).await;
    let operator = fake.client();
    for _ in 0..LONG_HISTORY {
        operator.txn(Txn::new().success(Op::put("q/senders/other", ""))).await.unwrap();
    }
    let lost = fake.fault(on(), Do::lose_reply());
    refused.remove();
    until(&fake, |fake| lost.hits() > 0 && count(fake, "items") == 1).await;
    assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
    until_clean(&fake).await;
    let slow = fake.fault(On::response(Rpc::Watch).client("a"), Do::delay(S(6)).alone());
    let put = leases(&fake).into_iter().find(|id| *id != others).expect("that of the put");
    assert!(fake.revoke_lease(put));
    lost.remove();
    sleep(S(900)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
    assert!(slow.hits() > 2, "{}", slow.hits());
    a.close().await.expect("it is found out that it was saved");
}

/// More than a server tells in two responses.
const LONG_HISTORY: usize = 2500;
