//! What closing a session waits for, and tells, of barriers: on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, compare::TargetUnion};
use etcd_concurrency::{Barrier, ErrorKind, Outcome, Session};
use tokio::time::{sleep, timeout};

use crate::support::requests::deletes;

const S: fn(u64) -> Duration = Duration::from_secs;

fn writes(txn: &TxnRequest) -> bool {
    !txn.compare.is_empty()
}

/// A client "a" with a session and a barrier, and the same barrier of a client "b".
async fn stage() -> (FakeEtcd, Session, Barrier, Barrier) {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
    let other = Session::builder(&fake.client_for("b")).ttl(S(60)).open().await.unwrap();
    let (gate, others) = (Barrier::new(&session, "gate").unwrap(), Barrier::new(&other, "gate").unwrap());
    (fake, session, gate, others)
}

/// Releases by the client "a" of the hold that there is now.
fn releases_what_stands(fake: &FakeEtcd) -> On {
    let held = Some(TargetUnion::CreateRevision(fake.snapshot().get("gate").expect("held").create_revision));
    let of_it = move |txn: &TxnRequest| {
        deletes(txn) && txn.compare.iter().any(|compare| compare.target_union == held)
    };
    On::rpc(Rpc::Txn).client("a").matching(of_it)
}

/// Two sessions were on one lease. One was making a hold to last when the other was closed, which ended both: the hold was being taken
/// back, and the `close` did not wait for that. It failed.
#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_hold_of_another_session_on_the_lease() {
    let fake = FakeEtcd::start();
    let a = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
    let also = Session::builder(a.client()).lease(a.lease()).open().await.unwrap();
    let gate = Barrier::new(&a, "gate").unwrap();
    let txns = || On::rpc(Rpc::Txn).client("a");
    fake.fault(txns().matching(writes).nth(2), Do::delay_reply(S(1)));
    fake.fault(txns().matching(deletes), Do::delay(S(2)));
    let holding = tokio::spawn(async move { gate.hold().await });
    fake.until(|fake| fake.snapshot().get("gate").is_some_and(|kv| kv.lease == 0)).await;
    also.close().await.expect("it is taken back");
    assert!(fake.snapshot().get("gate").is_none(), "nothing is left to be done");
    assert_eq!(holding.await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
    a.close().await.expect("nothing is left to be done");
}

/// The future of a release was dropped, or kept and not polled, and its request failed: that was forgotten, `close` said that all was
/// well, the process ended, and the barrier stayed held without an owner.
#[tokio::test(start_paused = true)]
async fn closing_tells_of_a_dropped_release() {
    for (polled, denied) in [(true, true), (true, false), (false, false)] {
        let fake = FakeEtcd::start();
        let session = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
        let gate = Barrier::new(&session, "gate").unwrap();
        gate.hold().await.unwrap();
        let fails = match denied {
            true => Do::fail(tonic::Status::permission_denied("etcdserver: permission denied")),
            false => Do::vanish(),
        };
        let fails = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), fails.after(S(1)));
        let mut releasing = Box::pin(gate.release());
        timeout(Duration::from_millis(500), &mut releasing).await.expect_err("the answer takes longer");
        let kept = (!polled).then_some(releasing);
        sleep(S(2)).await;
        let error = session.close().await.expect_err("the barrier is held");
        let expected = if denied { ErrorKind::PermissionDenied } else { ErrorKind::Timeout };
        assert_eq!((error.kind(), error.outcome()), (&expected, Outcome::Unknown), "{polled}");
        assert!(fake.snapshot().get("gate").is_some());
        fails.remove();
        drop(kept);
        let gone = fake.until(|fake| fake.snapshot().get("gate").is_none());
        timeout(S(60), gone).await.expect("released");
        sleep(S(1)).await;
        session.close().await.expect("nothing is left to be done");
    }
}

/// A release that failed is told to its caller, who is there: no reason for a later `close` to fail. And what is released once it can
/// be is no later hold. One that was dropped, had no answer, and finds a later hold is told at `close`.
#[tokio::test(start_paused = true)]
async fn a_dropped_release_hits_no_later_hold() {
    let (fake, session, gate, others) = stage().await;
    gate.hold().await.unwrap();
    let fails = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::vanish());
    let error = gate.release().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown));
    timeout(Duration::from_millis(500), gate.release()).await.expect_err("no answer comes");
    others.release().await.unwrap();
    others.hold().await.unwrap();
    sleep(S(30)).await;
    fails.remove();
    sleep(S(60)).await;
    assert!(fake.snapshot().get("gate").is_some(), "{}", fake.snapshot());
    let error = gate.hold().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Locked);
    // The one that was dropped may have released what it knew of, or not: this counted as done.
    let error = session.close().await.expect_err("the barrier is held");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Locked, Outcome::Unknown));
}

/// A release was dropped that had found another's hold, and its request to delete that one failed. What went on in the background was
/// the release of the hold known before, which was long gone; or none, where none had been known. `close` said that all was well, the
/// process ended, and the barrier stayed held.
#[tokio::test(start_paused = true)]
async fn a_dropped_release_of_anothers_hold_is_owed() {
    for stale in [true, false] {
        let (fake, session, gate, others) = stage().await;
        if stale {
            gate.hold().await.unwrap();
            others.release().await.unwrap();
        }
        others.hold().await.unwrap();
        let fails = fake.fault(releases_what_stands(&fake), Do::vanish());
        timeout(Duration::from_millis(500), gate.release()).await.expect_err("no answer comes");
        sleep(S(30)).await;
        let error = session.close().await.expect_err("the barrier is held");
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown), "{stale}");
        assert!(fake.snapshot().get("gate").is_some());
        fails.remove();
        let gone = fake.until(|fake| fake.snapshot().get("gate").is_none());
        timeout(S(60), gone).await.expect("released");
        sleep(S(1)).await;
        session.close().await.expect("nothing is left to be done");
    }
}

/// A release that was dropped had no answer at first, and then found another hold: which its caller would have been told. `close` said
/// that all was well, though the barrier stood.
#[tokio::test(start_paused = true)]
async fn a_dropped_release_that_found_another_hold_is_told_at_close() {
    let (fake, session, gate, others) = stage().await;
    gate.hold().await.unwrap();
    others.release().await.unwrap();
    others.hold().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::lose_reply());
    let mut releasing = Box::pin(gate.release());
    tokio::select! {
        biased;
        _ = &mut releasing => panic!("it goes on in the background"),
        () = tokio::task::yield_now() => {}
    }
    drop(releasing);
    sleep(S(30)).await;
    assert!(fake.snapshot().get("gate").is_some());
    let error = session.close().await.expect_err("the barrier is held");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Locked, Outcome::Unknown));
}

/// The debt of a dropped release that had found another hold was paid by no later one: the caller released the barrier again, or held
/// it, and every later `close` of a session on the lease failed though nothing was left.
#[tokio::test(start_paused = true)]
async fn a_release_that_is_made_again_pays_what_a_dropped_one_owed() {
    for holds in [false, true] {
        let (fake, session, gate, others) = stage().await;
        gate.hold().await.unwrap();
        others.release().await.unwrap();
        others.hold().await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::lose_reply());
        timeout(Duration::ZERO, gate.release()).await.expect_err("it goes on in the background");
        sleep(S(30)).await;
        // Another handle: it is the barrier that is owed.
        let again = Barrier::new(&session, "gate").unwrap();
        if holds {
            others.release().await.unwrap();
            again.hold().await.unwrap();
        } else {
            again.release().await.unwrap();
            assert!(fake.snapshot().get("gate").is_none());
        }
        session.close().await.expect("the barrier was free since");
    }
}

/// A release was dropped that had found another's hold and deleted it, but the answer was lost. By the time that this was found out the
/// barrier was held again: that hold was later, as the one that was found had stood, and yet `close` told that the release was not
/// done.
#[tokio::test(start_paused = true)]
async fn a_dropped_release_of_a_hold_that_was_found_is_not_owed_by_a_later_one() {
    let (fake, session, gate, others) = stage().await;
    others.hold().await.unwrap();
    let lost = releases_what_stands(&fake);
    let lost = fake.fault(lost, Do::lose_reply_by(LoseReply::Hang));
    timeout(Duration::from_millis(500), gate.release()).await.expect_err("no answer comes");
    assert!(fake.snapshot().get("gate").is_none());
    others.hold().await.unwrap();
    sleep(S(30)).await;
    lost.remove();
    sleep(S(60)).await;
    assert!(fake.snapshot().get("gate").is_some(), "the later hold stays");
    session.close().await.expect("the release was done");
}
