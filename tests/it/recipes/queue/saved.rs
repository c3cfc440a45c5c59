//! Items that go with the lease unless they are saved, and what keeps them from that for a while: on the fake and its paused
//! clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{LeaseGrantRequest, RangeRequest, TxnRequest, request_op::Request};
use etcd_concurrency::{ErrorKind, LostReason, Queue, Session};
use tokio::time::{advance, sleep, timeout};
use tonic::Status;

use super::faults::{S, count, puts, session, until, until_clean};
use super::full::{AlarmAction, alarm};
use super::{queue, text};
use crate::support::lies;
use crate::support::requests::deletes;

/// Reads what became of a take.
pub(super) fn settles(txn: &TxnRequest) -> bool {
    txn.compare.is_empty()
        && txn.success.iter().any(|op| match &op.request {
            Some(Request::RequestRange(range)) => {
                range.range_end.is_empty() && range.key.starts_with(b"q/claims/")
            }
            _ => false,
        })
}

/// Gives back, or puts again.
pub(super) fn saves(txn: &TxnRequest) -> bool {
    deletes(txn) || puts("items")(txn) && puts("senders")(txn)
}

/// The session of client `a`, of which a take is applied and not answered; and another's queue.
pub(super) async fn taken(fake: &FakeEtcd) -> (Session, Queue, tokio::task::JoinHandle<()>) {
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    fake.fault(on, Do::lose_reply_by(LoseReply::Hang));
    let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
    until(fake, |fake| count(fake, "claims") == 1).await;
    (a, other, taking)
}

pub(super) async fn comes_back(fake: &FakeEtcd, other: &Queue) {
    until(fake, |fake| count(fake, "items") == 1 && count(fake, "claims") == 0).await;
    assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
    until_clean(fake).await;
}

/// The item of an unanswered take went with the lease. What the server remembers of it was asked for once, and where that failed
/// the item was lost.
#[tokio::test(start_paused = true)]
async fn what_became_of_an_unanswered_take_is_asked_until_it_is_told() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    fake.partition("a");
    assert_eq!(a.lost().await, LostReason::Expired);
    until(&fake, |fake| fake.leases() == 1).await;
    assert_eq!(count(&fake, "items"), 0);
    let past = |range: &RangeRequest| range.revision > 0;
    let on = On::rpc(Rpc::Range).client("a").matching(past).times(3);
    let fault = fake.fault(on, Do::fail(Status::unknown("out of order")));
    fake.heal("a");
    comes_back(&fake, &other).await;
    assert_eq!(fault.hits(), 3);
    taking.await.unwrap();
}

/// The database was full for longer than a server that is away is waited for. While space was made the server was away for a moment,
/// and the client gave the item up.
#[tokio::test(start_paused = true)]
async fn a_full_database_uses_up_no_patience() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    alarm(&fake, AlarmAction::Activate).await;
    assert_eq!(*a.close().await.expect_err("an item is unsaved").kind(), ErrorKind::NoSpace);
    sleep(S(1800)).await;
    let away = fake.fault(On::any().client("a"), Do::cut());
    sleep(S(180)).await;
    assert!(away.hits() > 0);
    away.remove();
    alarm(&fake, AlarmAction::Deactivate).await;
    sleep(S(120)).await;
    comes_back(&fake, &other).await;
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}

/// The process stood still, or its host slept, while the server was away: that was taken for time in which the server had been
/// asked, and the item given up.
#[tokio::test(start_paused = true)]
async fn a_standstill_uses_up_no_patience() {
    let fake = FakeEtcd::start();
    let (a, _other, taking) = taken(&fake).await;
    fake.partition("a");
    assert_eq!(a.lost().await, LostReason::Expired);
    sleep(S(60)).await;
    advance(S(3600)).await;
    sleep(S(60)).await;
    fake.heal("a");
    // The other's session has ended, too.
    let other = queue(&session(&fake.client_for("b")).await, "q");
    comes_back(&fake, &other).await;
    taking.await.unwrap();
}

/// Users and roles were edited, and the client had no right to the queue for some minutes: the item was given up at once.
#[tokio::test(start_paused = true)]
async fn an_item_outlasts_rights_that_are_taken_for_a_while() {
    let denied = Status::permission_denied("etcdserver: permission denied");
    let failed = Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password");
    for refusal in [denied, failed] {
        for closed in [false, true] {
            for reads in [false, true] {
                let fake = FakeEtcd::start();
                let (a, other, taking) = taken(&fake).await;
                let on = On::rpc(Rpc::Txn).client("a");
                let on = on.matching(move |txn| saves(txn) || reads && settles(txn));
                let refused = fake.fault(on, Do::fail(refusal.clone()));
                if closed {
                    a.close().await.expect_err("the item is not back");
                }
                sleep(S(400)).await;
                assert!((2..120).contains(&refused.hits()), "{}", refused.hits());
                refused.remove();
                comes_back(&fake, &other).await;
                if closed {
                    a.close().await.expect("it is saved");
                }
                taking.await.unwrap();
            }
        }
    }
}

/// A lease that has ended was answered to be alive, once: so the item was thought to be deleted by hand, and lost.
#[tokio::test(start_paused = true)]
async fn a_wrong_word_of_a_leases_life_loses_no_item() {
    let fake = FakeEtcd::start();
    let (a, b) =
        (session(&lies::renews_what_has_ended(&fake, 1)).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let on = || On::rpc(Rpc::Txn).client("default");
    fake.fault(on().matching(puts("claims")), Do::delay_reply(S(1)));
    fake.fault(on().matching(deletes), Do::delay(S(3)));
    timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
    sleep(S(1)).await;
    fake.revoke_lease(a.lease());
    assert_eq!(count(&fake, "items"), 0);
    comes_back(&fake, &other).await;
}

/// A put that is refused since the database is full.
pub(super) fn full() -> Do {
    Do::fail(Status::resource_exhausted("etcdserver: mvcc: database space exceeded"))
}

/// The item of an unanswered take went with its lease, and its put was refused, as the database was full, for longer than the
/// lease lasted that fences the put. That lease was found to be gone, though an attempt might have been applied, and so the
/// item was given up.
#[tokio::test(start_paused = true)]
async fn an_item_is_saved_though_its_put_was_refused_for_longer_than_its_lease() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let refused = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("senders")), full());
    let grants = fake.fault(On::rpc(Rpc::LeaseGrant).client("a"), Do::default());
    fake.expire_lease(a.lease());
    sleep(S(3600)).await;
    assert!((10..2000).contains(&refused.hits()), "{}", refused.hits());
    refused.remove();
    // By then it is tried once in a minute or two.
    sleep(S(150)).await;
    comes_back(&fake, &other).await;
    assert_eq!(grants.hits(), 1, "the lease of the put is renewed");
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}

/// The same where that lease is gone all the same, by an operator's hand say: the key's events tell whether an attempt was
/// applied, and an item that another consumer has had since does not come again.
#[tokio::test(start_paused = true)]
async fn an_item_is_saved_once_though_the_lease_of_its_put_is_gone() {
    for applied in [false, true] {
        for consumed in [false, true] {
            let fake = FakeEtcd::start();
            let (a, other, taking) = taken(&fake).await;
            let leases =
                |fake: &FakeEtcd| fake.snapshot().leases.iter().map(|lease| lease.id).collect::<Vec<_>>();
            let others = leases(&fake).into_iter().find(|id| *id != a.lease()).unwrap();
            let on = On::rpc(Rpc::Txn).client("a").matching(puts("senders"));
            let lost = fake.fault(on, if applied { Do::lose_reply() } else { full() });
            fake.expire_lease(a.lease());
            until(&fake, |_| lost.hits() > 0).await;
            if applied && consumed {
                assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
                until_clean(&fake).await;
            }
            let puts = leases(&fake).into_iter().find(|id| *id != others).expect("that of the put");
            assert!(fake.revoke_lease(puts));
            lost.remove();
            if !applied || !consumed {
                comes_back(&fake, &other).await;
            }
            sleep(S(1200)).await;
            assert_eq!(count(&fake, "items"), 0, "{applied} {consumed}: {}", fake.snapshot());
            a.close().await.expect("it is saved");
            taking.await.unwrap();
        }
    }
}

/// An attempt was applied, and another consumer had the item since, when the lease of the put was found to be gone. The watch that
/// was to tell of the put was served late; ten quiet seconds were taken for its word that there was none, and the item came
/// again.
#[tokio::test(start_paused = true)]
async fn a_put_that_is_told_late_is_not_made_twice() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let leases = |fake: &FakeEtcd| fake.snapshot().leases.iter().map(|lease| lease.id).collect::<Vec<_>>();
    let others = leases(&fake).into_iter().find(|id| *id != a.lease()).unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("senders")), Do::lose_reply());
    fake.expire_lease(a.lease());
    until(&fake, |_| lost.hits() > 0).await;
    assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
    until_clean(&fake).await;
    let late = fake.fault(On::response(Rpc::Watch).client("a"), Do::delay(S(25)).alone());
    let puts = leases(&fake).into_iter().find(|id| *id != others).expect("that of the put");
    assert!(fake.revoke_lease(puts));
    lost.remove();
    sleep(S(300)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
    assert!(late.hits() > 0);
    late.remove();
    sleep(S(600)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
    until_clean(&fake).await;
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}

/// Each lease of a put was gone when it was used: leases were granted, and puts sent, without a pause.
#[tokio::test(start_paused = true)]
async fn a_put_whose_lease_is_gone_each_time_pauses() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let gone = Do::fail(Status::not_found("etcdserver: requested lease not found"));
    let gone = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("senders")).times(60), gone);
    fake.expire_lease(a.lease());
    until(&fake, |_| gone.hits() > 0).await;
    sleep(S(5)).await;
    assert!(gone.hits() < 40, "{}", gone.hits());
    comes_back(&fake, &other).await;
    taking.await.unwrap();
}

/// The lease of a put was granted at a revision that no store has. Where an attempt of the put might have been applied, its past was
/// asked for from there on: a panic at the last revision that there is, and where there was none the item's own enqueue was taken for
/// that put. The item was lost.
#[tokio::test(start_paused = true)]
async fn a_lease_of_no_revision_fences_no_put() {
    for revision in [Some(i64::MAX), Some(0), Some(-1), None] {
        let fake = FakeEtcd::start();
        let granted = AtomicUsize::new(0);
        let client = lies::of_grants(&fake, move |answer| {
            // The second is that of the first put.
            if granted.fetch_add(1, Ordering::Relaxed) == 1 {
                match (revision, &mut answer.header) {
                    (Some(revision), Some(header)) => header.revision = revision,
                    _ => answer.header = None,
                }
            }
        });
        let (a, b) = (session(&client).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let on = || On::rpc(Rpc::Txn).client("default");
        let lost = fake.fault(on().matching(puts("claims")), Do::lose_reply_by(LoseReply::Hang));
        let taking = tokio::spawn(async move { drop(taker.dequeue().await.unwrap_err()) });
        until(&fake, |fake| count(fake, "claims") == 1).await;
        let refused = fake.fault(on().matching(puts("senders")), full());
        fake.expire_lease(a.lease());
        until(&fake, |_| refused.hits() > 0).await;
        for lease in fake.snapshot().leases.iter().filter(|lease| lease.id != b.lease()) {
            assert!(fake.revoke_lease(lease.id));
        }
        refused.remove();
        comes_back(&fake, &other).await;
        taking.await.unwrap();
        lost.remove();
    }
}

/// The first attempt of the grant of a put's lease lay in a member that stood still, as did that of the put. The item was put, and
/// another consumer was done with it. The member went on: the grant made the revoked lease again, and the put, which found neither
/// its slip nor the item, put that a second time.
#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_late_lets_no_item_in_twice() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let [grant, put] = [Hold::new(), Hold::new()];
    fake.fault(On::rpc(Rpc::LeaseGrant).client("a").once(), Do::hold(&grant));
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("senders")).once(), Do::hold(&put));
    fake.expire_lease(a.lease());
    comes_back(&fake, &other).await;
    until(&fake, |fake| fake.leases() == 1).await;
    assert_eq!((grant.held(), put.held()), (1, 1));
    grant.release();
    until(&fake, |fake| fake.leases() == 2).await;
    put.release();
    sleep(S(5)).await;
    assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}

/// Where the first attempt of every grant stays without an answer, an item is put again all the same, and within a bound.
#[tokio::test(start_paused = true)]
async fn an_item_is_saved_though_every_grant_leaves_one_in_doubt() {
    let fake = FakeEtcd::start();
    let (a, other, taking) = taken(&fake).await;
    let asked = std::sync::Mutex::new(std::collections::HashSet::new());
    let first = move |grant: &LeaseGrantRequest| asked.lock().unwrap().insert(grant.id);
    let grants = fake.fault(On::rpc(Rpc::LeaseGrant).client("a").matching(first), Do::vanish());
    fake.expire_lease(a.lease());
    comes_back(&fake, &other).await;
    assert_eq!(grants.hits(), 4);
    until(&fake, |fake| fake.leases() == 1).await;
    a.close().await.expect("it is saved");
    taking.await.unwrap();
}
