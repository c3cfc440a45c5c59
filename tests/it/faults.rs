//! What goes wrong between a client and the server, on the fake and its paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{
    Client, DoubleBarrier, ErrorKind, LostReason, Mutex, Op, Outcome, Semaphore, Session, SessionState, Txn,
};
use tokio::time::{Instant, timeout};

use crate::support::requests::{deletes, puts};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const LOCK: &str = "lock";

async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(S(10)).open().await.unwrap()
}

fn mutex(session: &Session) -> Mutex {
    Mutex::new(session, LOCK).unwrap()
}

fn keys(fake: &FakeEtcd) -> usize {
    fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(b"lock/")).count()
}

/// An acquire whose reply is lost leaves its key behind in Go's package, and the live session keeps the orphan alive.
/// Ours is repeated, finds its own key, and takes it for what it is.
#[tokio::test(start_paused = true)]
async fn the_reply_of_an_acquire_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::lose_reply_by(lost));
        let guard = mutex(&session).lock().await.unwrap();
        assert_eq!(fault.hits(), 1);
        assert_eq!(keys(&fake), 1);
        let key = fake.snapshot().get(guard.key()).unwrap().clone();
        assert_eq!(guard.token(), key.create_revision);
        guard.txn().success(Op::put("data", "mine")).commit().await.unwrap();
        guard.unlock().await.unwrap();
        assert_eq!(keys(&fake), 0);
    }
    session.close().await.unwrap();
}

/// The same for one who asks in vain: the key that nobody heard of does not block the holder's successors.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_try_lock_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::lose_reply());
    let guard = mutex(&session).try_lock().await.unwrap();
    guard.unlock().await.unwrap();
    assert_eq!(keys(&fake), 0);
}

/// Whoever finds its key looks who stands before it. That look went on past the session's end, to its own timeout.
#[tokio::test(start_paused = true)]
async fn a_session_that_ends_ends_the_look_after_a_lost_reply() {
    ends_the_look(Rpc::Txn, 1, async |session| mutex(session).lock().await.map(drop)).await;
    let semaphore = |session: &Session| Semaphore::new(session, "semaphore", 2).unwrap();
    ends_the_look(Rpc::Txn, 1, async |session| semaphore(session).acquire().await.map(drop)).await;
    let barrier = |session: &Session| DoubleBarrier::new(session, "barrier", 2).unwrap();
    // The first put announces it.
    ends_the_look(Rpc::Range, 2, async |session| barrier(session).enter().await.map(drop)).await;
}

async fn ends_the_look(rpc: Rpc, put: u64, join: impl AsyncFnOnce(&Session) -> etcd_concurrency::Result<()>) {
    let fake = FakeEtcd::start();
    let client = Client::builder().service(fake.service()).request_timeout(S(60)).connect_lazy().unwrap();
    let session = session(&client).await;
    fake.fault(On::rpc(Rpc::Txn).matching(puts).nth(put), Do::lose_reply());
    let look = match rpc {
        Rpc::Txn => On::rpc(rpc).matching(|txn: &TxnRequest| !puts(txn) && !deletes(txn)),
        _ => On::rpc(rpc),
    };
    let look = fake.fault(look, Do::vanish());
    fake.fault(On::response(Rpc::LeaseKeepAlive), Do::vanish());
    let error = timeout(S(11), join(&session)).await.expect("at the deadline").unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
    assert!(look.hits() > 0);
}

/// Nobody can tell what became of an acquire: the caller hears that, and the key goes once the server is there again.
#[tokio::test(start_paused = true)]
async fn an_acquire_of_unknown_fate_is_taken_back() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn), Do::lose_reply());
    let error = mutex(&session).lock().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    fake.until(|fake| keys(fake) == 0).await;
    assert!(session.is_valid());
    // And the same session can have the lock.
    mutex(&session).lock().await.unwrap().unlock().await.unwrap();
}

/// What took back a key of unknown fate deleted whatever key the session had there. Given up and sent again, the first
/// request could still arrive when the next task had the lock, and took it away under its hands.
#[tokio::test(start_paused = true)]
async fn a_straggling_take_back_hits_no_later_holder() {
    let fake = FakeEtcd::start();
    let client = Client::builder().service(fake.service()).request_timeout(S(2)).connect().await.unwrap();
    let session = Session::builder(&client).ttl(S(60)).open().await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::lose_reply());
    let error = mutex(&session).lock().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    let late = fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::delay(S(3)));
    let guard = mutex(&session).lock().await.unwrap();
    // It had to be sent once more.
    assert_eq!(late.hits(), 1);
    tokio::time::sleep(S(3)).await;
    let key = fake.snapshot().get(guard.key()).map(|kv| kv.create_revision);
    assert_eq!(key, Some(guard.token()), "{}", fake.history());
    // Nor does what looks for a key that came late.
    tokio::time::sleep(S(30)).await;
    guard.unlock().await.unwrap();
}

/// A request that is applied long after everybody gave it up (it stood in a queue between members, say): the key that
/// it leaves is found and deleted.
#[tokio::test(start_paused = true)]
async fn a_straggling_acquire_leaves_no_key_for_good() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    let late = On::rpc(Rpc::Txn).matching(puts).once();
    let straggler = fake.fault(late, Do::delay(S(9)));
    // The attempt times out after half of the request timeout; another takes the lock, and it is released.
    let guard = mutex(&session).lock().await.unwrap();
    assert_eq!(straggler.hits(), 1);
    guard.unlock().await.unwrap();
    assert_eq!(keys(&fake), 0);
    let before = fake.revision();
    fake.until(|fake| fake.revision() > before).await;
    timeout(S(20), fake.until(|fake| keys(fake) == 0)).await.expect("the straggler's key is taken back");
    assert!(session.is_valid());
}

/// Somebody deleted the key of a lock whose first request was still under way. The guard was lost, so there was nothing to
/// take back, and nobody looked for what that request left: it blocked everybody until the session's end.
#[tokio::test(start_paused = true)]
async fn a_straggling_acquire_leaves_no_key_for_good_when_the_lock_was_lost_before() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::delay(S(9)));
    let guard = mutex(&session).lock().await.unwrap();
    let delete = Txn::new().success(Op::delete(guard.key().clone()));
    fake.client_for("operator").txn(delete).await.unwrap();
    assert_eq!(guard.lost().await, LostReason::KeyDeleted);
    drop(guard);
    let before = fake.revision();
    fake.until(|fake| fake.revision() > before).await;
    timeout(S(20), fake.until(|fake| keys(fake) == 0)).await.expect("the straggler's key is taken back");
    assert!(session.is_valid());
}

/// The look for such a key fell into an outage, and was never repeated: the key blocked everybody until the session's end.
#[tokio::test(start_paused = true)]
async fn an_outage_leaves_no_straggling_key_for_good() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::delay(S(9)));
    let guard = mutex(&session).lock().await.unwrap();
    guard.unlock().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn).matching(deletes), Do::cut());
    fake.until(|fake| keys(fake) == 1).await;
    fake.stop().await;
    tokio::time::sleep(S(30)).await;
    fake.restart().await.unwrap();
    assert_eq!(keys(&fake), 1);
    down.remove();
    timeout(S(20), fake.until(|fake| keys(fake) == 0)).await.expect("the straggler's key is taken back");
    assert!(session.is_valid());
}

/// etcd#22082: a release by name that is repeated deletes the next holder's key.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_release_is_lost() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let held = mutex(&a).lock().await.unwrap();
    let waiting = tokio::spawn({
        let mutex = mutex(&b);
        async move { mutex.lock().await }
    });
    fake.until(|fake| keys(fake) == 2).await;
    let lost = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).times(3), Do::lose_reply());
    // The key is gone; whose doing it was is not to be told from the last attempt's answer.
    let error = held.unlock().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Fenced, Outcome::Unknown), "{error}");
    assert_eq!(lost.hits(), 3);
    let next = waiting.await.unwrap().unwrap();
    assert!(next.is_valid());
    assert_eq!(keys(&fake), 1, "{}", fake.snapshot());
    next.txn().success(Op::put("data", "next")).commit().await.unwrap();
}

/// cilium#9855: a failed release with a live session makes a stale lock for the fleet.
#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_repeated_in_the_background() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    let guard = mutex(&session).lock().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn), Do::cut());
    let error = guard.unlock().await.unwrap_err();
    assert!(error.lost_reason().is_none(), "{error}");
    assert_eq!(keys(&fake), 1);
    down.remove();
    fake.until(|fake| keys(fake) == 0).await;
    assert!(session.is_valid());
}

/// A grant that nobody answers: an error in bounded time, and no lease once the server is there again.
#[tokio::test(start_paused = true)]
async fn a_grant_of_unknown_fate_is_revoked() {
    let fake = FakeEtcd::start();
    let lost = fake.fault(On::rpc(Rpc::LeaseGrant), Do::lose_reply());
    let before = Instant::now();
    let error = Session::builder(&fake.client()).ttl(S(3600)).open().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(before.elapsed() <= S(11), "{:?}", before.elapsed());
    lost.remove();
    timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked");
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_stream_that_is_cut_or_silent_is_opened_again() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("a")).await;
    let mut state = session.state();
    tokio::time::sleep(S(5)).await;
    fake.cut_streams("a");
    tokio::time::sleep(S(60)).await;
    assert!(session.is_valid(), "{:?}", session.lost().await);

    fake.stall_streams("a");
    state.mark_unchanged();
    timeout(S(10), state.wait_for(|state| matches!(state, SessionState::Suspended { .. })))
        .await
        .unwrap()
        .unwrap();
    timeout(S(10), state.wait_for(|state| *state == SessionState::Active)).await.unwrap().unwrap();
    tokio::time::sleep(S(60)).await;
    assert!(session.is_valid());
    assert_eq!(fake.streams(), 1);
}

/// Cut off from the server, a holder stops believing before the server lets another in.
#[tokio::test(start_paused = true)]
async fn a_partitioned_holder_is_told_before_its_rival_locks() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let held = mutex(&a).lock().await.unwrap();
    let waiting = tokio::spawn({
        let mutex = mutex(&b);
        async move { (mutex.lock().await, Instant::now()) }
    });
    fake.until(|fake| keys(fake) == 2).await;
    tokio::time::sleep(S(100)).await;
    fake.partition("a");
    assert_eq!(held.lost().await, LostReason::Expired);
    let lost = Instant::now();
    // It does not wait for the network to say no.
    let error = held.txn().success(Op::put("data", "late")).commit().await.unwrap_err();
    assert_eq!((error.lost_reason(), lost.elapsed()), (Some(LostReason::Expired), Duration::ZERO));
    let (guard, locked) = waiting.await.unwrap();
    assert!(guard.unwrap().token() > held.token());
    assert!(locked > lost, "an overlap of {:?}", lost - locked);
    // Everything on it ends, even what is still on its way.
    let error = held.unlock().await.unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::Expired));
}

/// A waiter that is cut off is told when its session's time is over, not when the network is back.
#[tokio::test(start_paused = true)]
async fn a_partitioned_waiter_is_told_at_its_deadline() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let _held = mutex(&a).lock().await.unwrap();
    let waiting = tokio::spawn({
        let mutex = mutex(&b);
        async move { mutex.lock().await }
    });
    fake.until(|fake| keys(fake) == 2).await;
    fake.partition("b");
    let error = timeout(S(11), waiting).await.expect("at the deadline").unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_stream_that_is_cut_or_silent_loses_no_release() {
    for stall in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let held = mutex(&a).lock().await.unwrap();
        let waiting = tokio::spawn({
            let mutex = mutex(&b);
            async move { mutex.lock().await }
        });
        fake.until(|fake| fake.watchers() == 1).await;
        if stall {
            fake.stall_streams("b");
        } else {
            fake.cut_streams("b");
        }
        held.unlock().await.unwrap();
        let guard = timeout(S(60), waiting).await.expect("the release is seen").unwrap().unwrap();
        assert!(guard.is_valid());
        guard.unlock().await.unwrap();
        assert_eq!(keys(&fake), 0);
    }
}

/// etcd#18089: a DELETE at the edge of a compaction. The waiter's stream breaks, its predecessor leaves, and that
/// revision is compacted before the waiter is back.
#[tokio::test(start_paused = true)]
async fn the_revision_that_a_waiter_would_resume_from_is_compacted() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let held = mutex(&a).lock().await.unwrap();
    let waiting = tokio::spawn({
        let mutex = mutex(&b);
        async move { mutex.lock().await }
    });
    fake.until(|fake| fake.watchers() == 1).await;
    let away = fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
    fake.cut_streams("b");
    held.unlock().await.unwrap();
    for n in 0..10 {
        fake.client()
            .txn(etcd_concurrency::Txn::new().success(Op::put("noise", format!("{n}"))))
            .await
            .unwrap();
    }
    fake.compact(fake.revision()).unwrap();
    away.remove();
    let guard = timeout(S(10), waiting).await.expect("the queue is read instead").unwrap().unwrap();
    assert!(guard.is_valid());
    guard.unlock().await.unwrap();
}

/// The same for a guard that watches its own key: a compaction alone is no loss, a deletion behind it is.
#[tokio::test(start_paused = true)]
async fn the_revision_that_a_guard_watches_from_is_compacted() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("a")).await;
    let guard = mutex(&session).lock().await.unwrap();
    let other = fake.client();
    for n in 0..10 {
        other.txn(etcd_concurrency::Txn::new().success(Op::put("noise", format!("{n}")))).await.unwrap();
    }
    fake.compact(fake.revision()).unwrap();
    let lost = guard.lost();
    tokio::pin!(lost);
    assert!(timeout(S(30), &mut lost).await.is_err());
    let away = fake.fault(On::open(Rpc::Watch).client("a"), Do::cut());
    fake.cut_streams("a");
    other.txn(etcd_concurrency::Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
    other.txn(etcd_concurrency::Txn::new().success(Op::put("noise", "last"))).await.unwrap();
    fake.compact(fake.revision()).unwrap();
    away.remove();
    assert_eq!(timeout(S(10), lost).await.unwrap(), LostReason::KeyDeleted);
}

/// The machine sleeps for longer than the TTL: tokio's clock stands still meanwhile, the server's does not.
#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_knows_it_at_once() {
    let (fake, slept) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)));
    let told = slept.clone();
    let builder = Client::builder().service(fake.service_for("a"));
    let client = builder.suspended_time(move || S(told.load(Ordering::SeqCst))).connect().await.unwrap();
    let session = session(&client).await;
    let guard = mutex(&session).lock().await.unwrap();
    tokio::time::sleep(S(30)).await;
    assert!(guard.is_valid());
    let lost = guard.lost();
    tokio::pin!(lost);
    assert!(timeout(MS(1), &mut lost).await.is_err());

    slept.store(15, Ordering::SeqCst);
    assert!(!guard.is_valid() && session.remaining().is_zero());
    let asked = fake.fault(On::rpc(Rpc::Txn), Do::delay(Duration::ZERO));
    let error = guard.txn().success(Op::put("data", "late")).commit().await.unwrap_err();
    assert_eq!((error.lost_reason(), asked.hits()), (Some(LostReason::Expired), 0));
    // Nobody has to ask: a second of wakefulness at most.
    assert_eq!(timeout(S(1), lost).await.unwrap(), LostReason::Expired);
}

/// A waiter sleeps through its turn: it must not come out with a guard.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_slept_through_its_deadline_gets_no_guard() {
    let (fake, slept) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)));
    let told = slept.clone();
    let builder = Client::builder().service(fake.service_for("b"));
    let sleeper = builder.suspended_time(move || S(told.load(Ordering::SeqCst))).connect().await.unwrap();
    let (a, b) = (session(&fake.client_for("a")).await, session(&sleeper).await);
    let held = mutex(&a).lock().await.unwrap();
    let waiting = tokio::spawn({
        let mutex = mutex(&b);
        async move { mutex.lock().await }
    });
    fake.until(|fake| fake.watchers() == 1).await;
    slept.store(15, Ordering::SeqCst);
    held.unlock().await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
}

/// Sixty sessions of a minute's TTL for an hour: all alive, one stream, in no time.
#[tokio::test(start_paused = true)]
async fn an_hour_of_sessions() {
    let (fake, before) = (FakeEtcd::start(), std::time::Instant::now());
    let client = fake.client();
    let mut sessions = Vec::new();
    for _ in 0..60 {
        sessions.push(Session::open(&client).await.unwrap());
    }
    tokio::time::sleep(S(3600)).await;
    assert!(sessions.iter().all(Session::is_valid));
    assert_eq!((fake.leases(), fake.streams()), (60, 1));
    drop(sessions);
    fake.until(|fake| fake.leases() == 0 && fake.streams() == 0).await;
    println!("an hour of 60 sessions took {:?}", before.elapsed());
}

/// A lease that the server lets go before its time (etcd#15247: an old leader revokes live leases).
#[tokio::test(start_paused = true)]
async fn a_lease_expired_by_the_server_too_soon_is_told() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let guard = mutex(&session).lock().await.unwrap();
    let lost = guard.lost();
    tokio::pin!(lost);
    assert!(timeout(S(1), &mut lost).await.is_err());
    let before = Instant::now();
    assert!(fake.expire_lease(session.lease()));
    assert_eq!(lost.await, LostReason::Revoked);
    assert!(before.elapsed() < MS(10), "told by its key's watch, not by the next keep-alive");
}

/// A server that says nonsense is no reason to believe anything.
#[tokio::test(start_paused = true)]
async fn refusals_of_a_grant_are_told_as_they_are() {
    let fake = FakeEtcd::start();
    let full = tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
    fake.fault(On::rpc(Rpc::LeaseGrant).once(), Do::fail(full));
    let error = Session::open(&fake.client()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::NoSpace, Outcome::Unknown));
    assert_eq!(error.rpc(), Some("Lease/LeaseGrant"));

    // Too many requests: refused before anything is proposed, so it is asked again.
    let busy = tonic::Status::resource_exhausted("etcdserver: too many requests");
    let refused = fake.fault(On::rpc(Rpc::LeaseGrant).times(3), Do::fail(busy));
    Session::open(&fake.client()).await.unwrap().close().await.unwrap();
    assert_eq!(refused.hits(), 3);
}
