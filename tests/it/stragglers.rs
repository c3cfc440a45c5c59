//! Requests that are applied long after all had given them up, as those are that lie in the socket of a member that
//! stands still; and what is to be taken back when a session is closed, dropped or orphaned meanwhile.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{
    Barrier, DoubleBarrier, Election, ErrorKind, LostReason, Membership, MultiLock, Mutex, Op, Outcome,
    Result, RwLock, Semaphore, Session, Txn,
};
use tokio::time::{sleep, timeout};

use crate::support::requests::{deletes, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

/// The keys that hang on leases.
fn leased(fake: &FakeEtcd) -> usize {
    fake.snapshot().keys.iter().filter(|kv| kv.lease != 0).count()
}

/// Holds the next put until it is released.
fn straggler(fake: &FakeEtcd) -> Hold {
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&hold));
    hold
}

/// Somebody takes and releases something, whose first request arrives an hour later.
async fn an_hour_late(take: impl AsyncFnOnce(&Session) -> Result<()>) {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = straggler(&fake);
    take(&session).await.unwrap();
    assert_eq!(hold.held(), 1);
    sleep(S(30)).await;
    assert_eq!(leased(&fake), 0);
    let calls = [Rpc::Txn, Rpc::Range].map(|rpc| fake.fault(On::rpc(rpc), Do::delay(Duration::ZERO)));
    sleep(S(3600)).await;
    assert_eq!(calls.map(|calls| calls.seen()), [0, 0], "nothing happens, so nothing is asked");
    let before = fake.revision();
    hold.release();
    timeout(S(5), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
        .await
        .expect("taken away");
    assert!(session.is_valid());
    // Nothing more can come of it.
    sleep(S(600)).await;
    assert_eq!(leased(&fake), 0);
    assert!(fake.revision() <= before + 3, "put, and each of two keys deleted");
    session.close().await.unwrap();
    assert_eq!(fake.watchers(), 0);
}

/// The session looked for such a key once, twelve seconds later, "since no server applies it after that". A member that
/// stood still for twenty applied it: a lock that no client held and none could take while the session lived.
#[tokio::test(start_paused = true)]
async fn no_key_stays_of_a_request_that_arrives_an_hour_late() {
    an_hour_late(async |session| Mutex::new(session, "a")?.lock().await?.unlock().await).await;
    an_hour_late(async |session| Mutex::new(session, "a")?.try_lock().await?.unlock().await).await;
    an_hour_late(async |session| RwLock::new(session, "a")?.read().await?.unlock().await).await;
    an_hour_late(async |session| RwLock::new(session, "a")?.write().await?.unlock().await).await;
    an_hour_late(async |session| MultiLock::new(session, ["a", "b"])?.lock().await?.unlock().await).await;
    an_hour_late(async |session| Semaphore::new(session, "a", 3)?.acquire_many(2).await?.release().await)
        .await;
    an_hour_late(async |session| Membership::new(session, "a")?.join("x").await?.leave().await).await;
    an_hour_late(async |session| Election::new(session, "a")?.campaign("x").await?.resign().await).await;
    an_hour_late(async |session| Barrier::new(session, "a")?.hold().await.or(Ok(()))).await;
}

/// The participants of a double barrier put two keys; it is the first of them that may come late.
#[tokio::test(start_paused = true)]
async fn no_participant_comes_of_a_request_that_arrives_an_hour_late() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = straggler(&fake);
    DoubleBarrier::new(&session, "a", 1).unwrap().enter().await.unwrap().leave().await.unwrap();
    sleep(S(3600)).await;
    let before = fake.revision();
    hold.release();
    timeout(S(5), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
        .await
        .expect("taken away");
}

/// A guard that is lost and kept is no owner: what comes late of its put is taken away all the same.
#[tokio::test(start_paused = true)]
async fn a_lost_guard_that_is_kept_keeps_no_straggler() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = straggler(&fake);
    let guard = RwLock::new(&session, "a").unwrap().write().await.unwrap();
    let delete = Txn::new().success(Op::delete(guard.key().clone()));
    fake.client_for("operator").txn(delete).await.unwrap();
    assert_eq!(guard.lost().await, LostReason::KeyDeleted);
    sleep(S(60)).await;
    let before = fake.revision();
    hold.release();
    timeout(S(5), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
        .await
        .expect("taken away");
    drop(guard);
}

/// Where keys are put in turn, what took a late key away waited for the turn, which the lost guard had for as long as it was kept: the
/// lock was held by no task, and could be taken by none. The user need not ask for the loss.
#[tokio::test(start_paused = true)]
async fn a_lost_mutex_guard_that_is_kept_keeps_no_straggler() {
    for asks in [true, false] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        let hold = straggler(&fake);
        let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
        let delete = Txn::new().success(Op::delete(guard.key().clone()));
        fake.client_for("operator").txn(delete).await.unwrap();
        if asks {
            assert_eq!(guard.lost().await, LostReason::KeyDeleted);
        }
        sleep(S(60)).await;
        // Other tasks of the session are busy with another lock.
        let busy = tokio::spawn({
            let other = Mutex::new(&session, "b").unwrap();
            async move {
                loop {
                    other.lock().await.unwrap().unlock().await.unwrap();
                    sleep(Duration::from_millis(500)).await;
                }
            }
        });
        let stands = |fake: &FakeEtcd| fake.snapshot().keys.iter().any(|kv| kv.key.starts_with(b"a/"));
        assert_eq!(hold.held(), 1);
        hold.release();
        sleep(S(5)).await;
        assert!(hold.held() == 0 && !stands(&fake), "it is applied, and taken away: {}", fake.snapshot());
        assert!(!guard.is_valid());
        busy.abort();
        drop(guard);
        let guard = Mutex::new(&session, "a").unwrap().try_lock().await.expect("it is free");
        sleep(S(60)).await;
        assert!(guard.is_valid());
    }
}

/// What looks out for a late key sees all puts of the session: it hits none that has an owner, costs no RPC, and keeps no
/// task from its turn.
#[tokio::test(start_paused = true)]
async fn who_looks_out_for_a_late_key_is_in_no_way() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let hold = straggler(&fake);
    mutex.lock().await.unwrap().unlock().await.unwrap();
    assert_eq!(hold.held(), 1);
    let calls = [Rpc::Txn, Rpc::Range].map(|rpc| fake.fault(On::rpc(rpc), Do::delay(Duration::ZERO)));
    for _ in 0..50 {
        mutex.lock().await.unwrap().unlock().await.unwrap();
        let guard = mutex.try_lock().await.expect("nobody has it");
        sleep(S(1)).await;
        assert!(guard.is_valid());
        guard.unlock().await.unwrap();
    }
    assert_eq!(calls.map(|calls| calls.seen()), [200, 0]);
    // It comes while a task holds the lock, and is refused; another comes while none does.
    let guard = mutex.lock().await.unwrap();
    hold.release();
    sleep(S(60)).await;
    assert!(guard.is_valid() && leased(&fake) == 1);
    guard.unlock().await.unwrap();
    let hold = straggler(&fake);
    mutex.lock().await.unwrap().unlock().await.unwrap();
    hold.release();
    timeout(S(5), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
    // Who comes for the lock when the key is there has it, or comes after it is gone.
    let hold = straggler(&fake);
    mutex.lock().await.unwrap().unlock().await.unwrap();
    hold.release();
    let guard = mutex.lock().await.unwrap();
    sleep(S(60)).await;
    assert!(guard.is_valid());
    guard.txn().success(Op::put("x", "1")).commit().await.unwrap();
}

/// The history in between is compacted while the streams are broken: what was missed is read.
#[tokio::test(start_paused = true)]
async fn a_compaction_is_outlived_by_who_looks_out() {
    for drawn in [false, true] {
        let fake = FakeEtcd::start();
        let client = fake.client_for("a");
        let session = Session::open(&client).await.unwrap();
        let hold = straggler(&fake);
        match drawn {
            true => RwLock::new(&session, "a").unwrap().write().await.unwrap().unlock().await.unwrap(),
            false => Mutex::new(&session, "a").unwrap().lock().await.unwrap().unlock().await.unwrap(),
        }
        sleep(S(60)).await;
        let down = fake.fault(On::open(Rpc::Watch), Do::cut());
        fake.cut_streams("a");
        hold.release();
        fake.until(|fake| leased(fake) == 1).await;
        fake.client_for("b").txn(Txn::new().success(Op::put("other", "1"))).await.unwrap();
        fake.compact(fake.revision()).unwrap();
        down.remove();
        timeout(S(60), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
        assert!(session.is_valid());
    }
}

/// A barrier's hold had no lease, so that nothing ever refused it: given up, it came after the session's end, and all
/// waited for a holder that did not know of it.
#[tokio::test(start_paused = true)]
async fn a_hold_that_comes_after_its_sessions_end_is_refused() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = straggler(&fake);
    let error = Barrier::new(&session, "gate").unwrap().hold().await.unwrap_err();
    assert_eq!((error.outcome(), hold.held()), (Outcome::Unknown, 1), "{error}");
    session.close().await.unwrap();
    let before = fake.revision();
    hold.release();
    sleep(S(60)).await;
    assert_eq!(fake.revision(), before);
}

/// A hold that was made, and was to last without its lease, when it was given up: it goes, whatever comes late.
#[tokio::test(start_paused = true)]
async fn a_hold_that_is_given_up_half_way_does_not_last() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).nth(2), Do::hold(&hold));
    timeout(S(1), Barrier::new(&session, "gate").unwrap().hold()).await.expect_err("half way");
    let lasting = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::cut());
    sleep(S(30)).await;
    lasting.remove();
    assert!(fake.snapshot().keys.is_empty());
    session.close().await.unwrap();
    hold.release();
    sleep(S(60)).await;
    assert!(fake.snapshot().keys.is_empty());
}

/// A guard was dropped, and its session orphaned before the key was deleted: the key stayed for as long as the adopter
/// lived.
#[tokio::test(start_paused = true)]
async fn what_was_dropped_before_the_session_was_orphaned_goes() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::cut());
    drop(guard);
    let lease = session.orphan();
    let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
    sleep(S(60)).await;
    down.remove();
    timeout(S(5), fake.until(|fake| leased(fake) == 0)).await.expect("released");
    assert!(adopter.is_valid());
}

/// A session was orphaned while a lock was on its way, or stood in line: the key stayed in the line for as long as the
/// adopter lived.
#[tokio::test(start_paused = true)]
async fn what_was_under_way_when_the_session_was_orphaned_goes() {
    for waits in [false, true] {
        let fake = FakeEtcd::start();
        let rival = Session::open(&fake.client_for("rival")).await.unwrap();
        let held = Mutex::new(&rival, "a").unwrap().lock().await.unwrap();
        let session = Session::open(&fake.client_for("a")).await.unwrap();
        let late = if waits { Duration::ZERO } else { S(2) };
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts), Do::delay(late));
        let locking = tokio::spawn({
            let mutex = Mutex::new(&session, "a").unwrap();
            async move { mutex.lock().await }
        });
        sleep(S(1)).await;
        let lease = session.orphan();
        let error = locking.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Orphaned), "{error}");
        let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
        sleep(S(10)).await;
        assert_eq!(leased(&fake), 1, "the rival's alone");
        held.unlock().await.unwrap();
        assert!(adopter.is_valid());
    }
}

/// The same of a request that arrives long after the adoption, where the key is one that the adopter never puts.
#[tokio::test(start_paused = true)]
async fn a_straggler_of_an_orphaned_session_goes() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let hold = straggler(&fake);
    RwLock::new(&session, "a").unwrap().write().await.unwrap().unlock().await.unwrap();
    let lease = session.orphan();
    let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
    sleep(S(3600)).await;
    let before = fake.revision();
    hold.release();
    timeout(S(5), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
        .await
        .expect("taken away");
    adopter.close().await.unwrap();
    timeout(S(300), fake.until(|fake| fake.watchers() == 0))
        .await
        .expect("the lease is gone: nothing can come");
}

/// The server refused the release of a guard for good. It was sent again for ever, and kept its dropped session, and the
/// lock, alive.
#[tokio::test(start_paused = true)]
async fn a_release_that_is_refused_for_good_keeps_no_session() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), Do::fail(refused));
    drop(guard);
    sleep(S(600)).await;
    // By the release, by what looks out for a key that has no owner, and by that again every minute or two: rights that are
    // edited are refused for a moment, and a key that stays keeps all others waiting for as long as the session lives.
    assert!((2..=12).contains(&refused.hits()), "{}: what is refused is repeated seldom", refused.hits());
    drop(session);
    timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked");
    // Both at once.
    let session = Session::open(&fake.client()).await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    drop((guard, session));
    timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked");
}

/// Keys that cannot be deleted at once are deleted one by one.
#[tokio::test(start_paused = true)]
async fn what_is_too_much_at_once_is_released_one_by_one() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let guard = MultiLock::new(&session, ["a", "b", "c"]).unwrap().lock().await.unwrap();
    let at_once = |txn: &TxnRequest| !puts(txn) && txn.success.len() > 1;
    let refused = tonic::Status::invalid_argument("etcdserver: too many operations in txn request");
    let refused = fake.fault(On::rpc(Rpc::Txn).matching(at_once), Do::fail(refused));
    guard.unlock().await.unwrap();
    assert_eq!((refused.hits(), leased(&fake)), (1, 0));
}

/// An operator had broken the lock. The release found no key, its reply was lost, and so the next attempt's answer was
/// taken for its success.
#[tokio::test(start_paused = true)]
async fn an_unlock_that_cannot_tell_says_so() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let delete = Txn::new().success(Op::delete(guard.key().clone()));
    fake.client_for("operator").txn(delete).await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::lose_reply());
    let error = guard.unlock().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Fenced, Outcome::Unknown), "{error}");

    // Where the key stood when it was asked again, there is no question.
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::cut());
    guard.unlock().await.unwrap();
}

/// A barrier that its holder's release found held by another: the reply was lost, and the next attempt took the other's
/// hold for a later one. It said Ok, released nothing, and all waited.
#[tokio::test(start_paused = true)]
async fn a_release_of_a_barrier_that_released_nothing_is_no_success() {
    let fake = FakeEtcd::start();
    let (a, b) = (Session::open(&fake.client()).await.unwrap(), Session::open(&fake.client()).await.unwrap());
    let (gate, other) = (Barrier::new(&a, "gate").unwrap(), Barrier::new(&b, "gate").unwrap());
    gate.hold().await.unwrap();
    other.release().await.unwrap();
    other.hold().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::lose_reply());
    let error = gate.release().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Locked, Outcome::Unknown), "{error}");
    gate.release().await.unwrap();
    assert!(fake.snapshot().keys.is_empty());
}
