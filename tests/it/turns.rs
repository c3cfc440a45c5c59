//! Tasks that lock one name through one session have its key in turn: what a turn leaves behind, and what is passed over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{
    Client, Election, ErrorKind, Fence, LostReason, Mutex, Op, Outcome, Session, SessionState, Txn,
};
use tokio::time::{sleep, timeout};

use crate::support::backend::on_every_backend;
use crate::support::queue::LONG;
use crate::support::requests::{deletes, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

/// Holds the next delete, and refuses all later ones for good: what becomes of the first is not known then.
fn late_delete(fake: &FakeEtcd) -> (Hold, Fault) {
    let (hold, first) = (Hold::new(), AtomicBool::new(true));
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::hold(&hold));
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    let later = move |txn: &TxnRequest| deletes(txn) && !first.swap(false, Ordering::Relaxed);
    (hold, fake.fault(On::rpc(Rpc::Txn).matching(later), Do::fail(refused)))
}

/// The delete arrives, and leaves the key of this guard alone.
async fn arrives(fake: &FakeEtcd, delete: &Hold, guard: &Fence) {
    assert_eq!(delete.held(), 1);
    delete.release();
    sleep(S(30)).await;
    assert!(stands(fake, guard), "its key is gone, and it is valid: {}", guard.is_valid());
    assert!(guard.is_valid());
}

fn stands(fake: &FakeEtcd, guard: &Fence) -> bool {
    let keys = fake.snapshot().keys;
    keys.iter().any(|kv| kv.key == guard.key() && kv.create_revision == guard.token())
}

async fn delete(client: &Client, guard: &Fence) {
    client.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
}

/// A key that came late was to be deleted: the first request stayed on the way, its repeat was refused. The next task that
/// locked the name took up the key, the delete arrived, and two clients held the lock.
#[tokio::test(start_paused = true)]
async fn a_late_delete_of_a_late_key_hits_no_later_holder() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let put = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&put));
    mutex.lock().await.unwrap().unlock().await.unwrap();
    let (delete, refused) = late_delete(&fake);
    put.release();
    sleep(S(30)).await;
    refused.remove();
    let guard = mutex.lock().await.unwrap();
    arrives(&fake, &delete, &guard).await;
    guard.unlock().await.unwrap();
    assert!(fake.snapshot().keys.is_empty());
}

/// The same of the key of a guard that was dropped.
#[tokio::test(start_paused = true)]
async fn a_late_delete_of_a_dropped_guards_key_hits_no_later_holder() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let dropped = mutex.lock().await.unwrap();
    let (key, token) = (dropped.key().clone(), dropped.token());
    let (delete, refused) = late_delete(&fake);
    drop(dropped);
    sleep(S(30)).await;
    let error = Election::new(&session, "a").unwrap().resume(&key, token).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::NotLeader, "it may be deleted any time");
    // The next task is told what is in the way.
    assert_eq!(*mutex.try_lock().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    refused.remove();
    let guard = mutex.try_lock().await.unwrap();
    arrives(&fake, &delete, &guard).await;
}

/// A holder's transaction stayed on the way, and the release of its guard was refused while roles were edited. The next task
/// of the session took up the key as it stood, with the same token, so the transaction of the first passed its fence.
#[tokio::test(start_paused = true)]
async fn a_late_transaction_of_a_guard_whose_release_was_refused_is_fenced_off() {
    for unlocks in [true, false] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        let mutex = Mutex::new(&session, "a").unwrap();
        let first = mutex.lock().await.unwrap();
        let (late, token) = (Hold::new(), first.token());
        fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&late));
        let error = first.txn().success(Op::put("x", "late")).commit().await.unwrap_err();
        assert_eq!((error.outcome(), late.held()), (Outcome::Unknown, 1), "{error}");
        let refused = tonic::Status::permission_denied("etcdserver: permission denied");
        let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), Do::fail(refused));
        match unlocks {
            true => drop(first.unlock().await.unwrap_err()),
            false => drop(first),
        }
        sleep(S(30)).await;
        assert!(refused.hits() > 0);
        refused.remove();
        let next = mutex.lock().await.unwrap();
        late.release();
        sleep(S(30)).await;
        let keys = fake.snapshot().keys;
        assert!(keys.iter().all(|kv| kv.key != "x"), "it passed the fence of {next:?}");
        assert!(next.token() > token && next.is_valid());
        next.unlock().await.unwrap();
        assert!(fake.snapshot().keys.is_empty());
    }
}

/// A guard was lost and kept, and a task waited for its turn. A third task passed the lost guard over; the guard was dropped,
/// and the one that waited went on with a turn that was none any more: two tasks had guards of one key, and when one of them
/// unlocked, the other held a lock that the next client had too. Where the third did not come again, the key stayed.
#[tokio::test(start_paused = true)]
async fn a_task_that_waits_behind_a_lost_guard_has_the_turn_alone() {
    for comes_again in [true, false] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        let mutex = Mutex::new(&session, "a").unwrap();
        let lost = mutex.lock().await.unwrap();
        let waiting = tokio::spawn({
            let mutex = mutex.clone();
            async move { mutex.lock().await }
        });
        sleep(Duration::from_millis(100)).await;
        delete(&fake.client_for("operator"), &lost).await;
        assert_eq!(lost.lost().await, LostReason::KeyDeleted);
        assert_eq!(*mutex.try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        drop(lost);
        let guard = timeout(S(5), waiting).await.expect("its turn").unwrap().unwrap();
        if comes_again {
            assert_eq!(*mutex.try_lock().await.unwrap_err().kind(), ErrorKind::Locked, "two have it");
        }
        guard.unlock().await.unwrap();
        assert!(fake.snapshot().keys.is_empty(), "{}", fake.snapshot());
        mutex.try_lock().await.unwrap().unlock().await.unwrap();
    }
}

/// The same of a put that was not answered, and was taken back.
#[tokio::test(start_paused = true)]
async fn a_late_delete_of_a_put_without_an_answer_hits_no_later_holder() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::lose_reply());
    let (delete, refused) = late_delete(&fake);
    mutex.lock().await.unwrap_err();
    lost.remove();
    sleep(S(30)).await;
    refused.remove();
    let guard = mutex.lock().await.unwrap();
    arrives(&fake, &delete, &guard).await;
}

/// The same where the session expired here in between, and the client adopted its lease, which the server still had.
#[tokio::test(start_paused = true)]
async fn a_late_delete_of_a_session_that_expired_hits_no_holder_of_its_adopter() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let (delete, refused) = late_delete(&fake);
    let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    drop(guard);
    let lease = session.lease();
    assert_eq!(session.lost().await, LostReason::Expired);
    silent.remove();
    refused.remove();
    let adopter = Session::builder(&client).lease(lease).open().await.unwrap();
    let guard = Mutex::new(&adopter, "a").unwrap().lock().await.unwrap();
    arrives(&fake, &delete, &guard).await;
}

/// The same session, and a key that comes late: the adopter did not look out for it, and it stayed for as long as that lived.
#[tokio::test(start_paused = true)]
async fn what_comes_late_of_a_session_that_expired_goes() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let put = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&put));
    Mutex::new(&session, "a").unwrap().lock().await.unwrap().unlock().await.unwrap();
    let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    assert_eq!(session.lost().await, LostReason::Expired);
    silent.remove();
    let adopter = Session::builder(&client).lease(session.lease()).open().await.unwrap();
    sleep(S(600)).await;
    let before = fake.revision();
    put.release();
    let gone = fake.until(|fake| fake.revision() > before && fake.snapshot().keys.is_empty());
    timeout(S(5), gone).await.expect("taken away");
    adopter.close().await.unwrap();
    sleep(S(60)).await;
    assert_eq!(fake.watchers(), 0);
}

/// A put without an answer was taken back: the key was read, and deleted as it was found. Between the two decisions the
/// session was orphaned, and what was found was the key of another client, which had adopted the lease.
#[tokio::test(start_paused = true)]
async fn who_takes_a_put_back_takes_nothing_from_who_adopted_the_lease() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts), Do::cut());
    let reads = |txn: &TxnRequest| txn.compare.is_empty() && !puts(txn) && !deletes(txn);
    let read = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(reads).once(), Do::hold(&read));
    mutex.lock().await.unwrap_err();
    lost.remove();
    sleep(S(1)).await;
    assert_eq!(read.held(), 1, "it is looked for");
    let lease = session.orphan();
    let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
    let guard = Mutex::new(&adopter, "a").unwrap().lock().await.unwrap();
    read.release();
    sleep(S(30)).await;
    assert!(stands(&fake, &guard));
}

/// A request for a lock was on its way when its session was orphaned. The adopter, another client, had put the key itself by then;
/// the first client found it, took it for its own, and deleted it: two held the lock.
#[tokio::test(start_paused = true)]
async fn a_lock_on_its_way_when_its_lease_is_orphaned_leaves_the_adopters_own_key_alone() {
    for unanswered in [false, true] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client_for("a")).await.unwrap();
        let mutex = Mutex::new(&session, "a").unwrap();
        if unanswered {
            fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts).once(), Do::cut());
        }
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts), Do::delay(S(2)));
        let locking = tokio::spawn(async move { mutex.lock().await.map(drop) });
        sleep(Duration::from_millis(500)).await;
        let lease = session.orphan();
        let error = locking.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Orphaned));
        let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
        let guard = Mutex::new(&adopter, "a").unwrap().lock().await.unwrap();
        sleep(S(300)).await;
        assert!(stands(&fake, &guard), "unanswered: {unanswered}");
        let rival = Session::open(&fake.client_for("rival")).await.unwrap();
        let error = Mutex::new(&rival, "a").unwrap().try_lock().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        guard.unlock().await.unwrap();
    }
}

/// A lock request got no answer, and its session was orphaned. Another client adopted the lease and took the lock; the first one
/// tried to adopt the lease back, in vain. While it tried it deleted the key, as if it had the lease.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_fails_takes_no_key_of_the_one_who_has_the_lease() {
    let fake = FakeEtcd::start();
    let client = fake.client_for("a");
    let session = Session::open(&client).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).client("a"), Do::cut());
    mutex.lock().await.unwrap_err();
    let lease = session.orphan();
    let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
    let guard = Mutex::new(&adopter, "a").unwrap().lock().await.unwrap();
    let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive).client("a"), Do::vanish());
    lost.remove();
    Session::builder(&client).lease(lease).open().await.unwrap_err();
    assert!(unheard.hits() > 0);
    sleep(S(30)).await;
    assert!(stands(&fake, &guard));
    guard.unlock().await.unwrap();
}

/// A task kept its guard, whose key an operator had deleted. All others of the session waited for it for ever.
#[tokio::test(start_paused = true)]
async fn a_lost_guard_that_is_kept_is_passed_over() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let kept = mutex.lock().await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..5 {
        let mutex = mutex.clone();
        waiting.spawn(async move { (number, mutex.lock().await) });
        sleep(S(1)).await;
    }
    delete(&fake.client_for("operator"), &kept).await;
    let mut kept = vec![kept];
    for number in 0..5 {
        // Each keeps its own, and that is lost as well.
        let next = timeout(S(2), waiting.join_next()).await.expect("it is passed over").unwrap().unwrap();
        assert_eq!(next.0, number, "in the order of asking");
        let guard = next.1.unwrap();
        assert!(guard.is_valid() && kept.iter().all(|lost| !lost.is_valid()));
        delete(&fake.client_for("operator"), &guard).await;
        kept.push(guard);
    }
    // Where it is known, there is nothing to wait for.
    assert_eq!(kept[5].lost().await, LostReason::KeyDeleted);
    let guard = mutex.try_lock().await.unwrap();
    assert_eq!(*mutex.try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
    for lost in kept {
        assert_eq!(lost.unlock().await.unwrap_err().lost_reason(), Some(LostReason::KeyDeleted));
    }
    sleep(S(60)).await;
    assert!(guard.is_valid() && stands(&fake, &guard));
    guard.unlock().await.unwrap();
    sleep(S(10)).await;
    assert_eq!((fake.snapshot().keys.len(), fake.watchers()), (0, 0));
}

/// Who waits for a guard of its own process costs the server nothing while that is soon given back.
#[tokio::test(start_paused = true)]
async fn a_guard_that_is_soon_given_back_is_not_watched() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let mutex = Mutex::new(&session, "a").unwrap();
    let watches = fake.fault(On::rpc(Rpc::Watch), Do::delay(Duration::ZERO));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mutex = mutex.clone();
        tasks.spawn(async move {
            let guard = mutex.lock().await.unwrap();
            sleep(Duration::from_millis(900)).await;
            guard.unlock().await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(watches.seen(), 0);
}

on_every_backend! {
    async fn a_lost_leadership_that_is_kept_keeps_no_candidate_of_its_session(backend: Backend) {
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, backend.key("seat")).unwrap();
        let kept = election.campaign("one").await.unwrap();
        let next = tokio::spawn({
            let election = election.clone();
            async move { election.campaign("two").await }
        });
        delete(&backend.client(), &kept).await;
        let next = timeout(LONG, next).await.expect("it is passed over").unwrap().unwrap();
        assert!(next.is_valid() && !kept.is_valid() && next.token() > kept.token());
        assert_eq!(kept.lost().await, LostReason::KeyDeleted);
        next.proclaim("two, again").await.unwrap();
        drop(kept);
        next.resign().await.unwrap();
        session.close().await.unwrap();
        assert!(matches!(*session.state().borrow(), SessionState::Lost(_)));
    }
}
