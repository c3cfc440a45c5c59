//! A lease that was lost here, and whose it is from then on: one's who adopts it again, or the revoke's.

use std::pin::Pin;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, Hold, On, Rpc};
use etcd_concurrency::{Client, Election, ErrorKind, LostReason, Mutex, Op, Result, RwLock, Session};
use tokio::time::{sleep, timeout};

use crate::support::requests::{is_held, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

fn refused() -> Do {
    Do::fail(tonic::Status::permission_denied("etcdserver: permission denied"))
}

/// A session of whose lease the server has half of the TTL left when it is lost at its deadline.
async fn open(client: &Client, ttl: Duration) -> Session {
    Session::builder(client).ttl(ttl).margin(ttl / 2).open().await.unwrap()
}

/// Such a session that is lost, and what keeps its keep-alives from being answered.
async fn lost(fake: &FakeEtcd, client: &Client) -> (Session, Fault) {
    let session = open(client, S(600)).await;
    let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    assert_eq!(session.lost().await, LostReason::Expired);
    (session, unheard)
}

/// The revoke of a session that was dropped was on its way when the same client adopted its lease. The server applied the
/// revoke later, and ended the lease under a session that was valid.
#[tokio::test(start_paused = true)]
async fn a_lease_whose_revoke_is_on_its_way_is_not_adopted() {
    let (fake, late) = (FakeEtcd::start(), Hold::new());
    let client = fake.client();
    let (session, unheard) = lost(&fake, &client).await;
    let lease = session.lease();
    let held = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::hold(&late));
    drop(session);
    is_held(&late).await;
    unheard.remove();
    let error = Session::builder(&client).lease(lease).open().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::LeaseNotFound, "{error}");
    held.remove();
    late.release();
    timeout(S(60), fake.until(|fake| fake.leases() == 0)).await.expect("it is revoked");
}

/// Where the server refused the revoke, or it was not sent yet, the lease is there to be adopted, and is revoked no more.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_not_revoked_is_adopted() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let (session, unheard) = lost(&fake, &client).await;
    let lease = session.lease();
    close_refused(&fake, &session).await;
    unheard.remove();
    let adopted = Session::builder(&client).lease(lease).open().await.unwrap();
    session.close().await.unwrap();
    drop(session);
    sleep(S(60)).await;
    assert!(adopted.is_valid() && fake.leases() == 1);
    adopted.close().await.unwrap();
    assert_eq!(fake.leases(), 0);
}

/// An adoption was under way when the session that had been on the lease was closed. It kept the lease from being revoked,
/// failed, and the lease stayed, which `close` had said to be gone.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_fails_keeps_no_lease_from_being_revoked() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let (session, _unheard) = lost(&fake, &client).await;
    let adopting = tokio::spawn(Session::builder(&client).lease(session.lease()).open());
    tokio::task::yield_now().await;
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0, "it is gone when that is said");
    adopting.await.unwrap().unwrap_err();
}

/// Closes a session whose revoke the server refuses.
async fn close_refused(fake: &FakeEtcd, session: &Session) {
    let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused());
    session.close().await.unwrap_err();
    refuses.remove();
}

/// A session whose close was refused, and an adoption of its lease that a keep-alive has proven, and that is no session yet: its
/// future was not polled since.
async fn proven(
    fake: &FakeEtcd,
    client: &Client,
) -> (Session, Pin<Box<dyn Future<Output = Result<Session>>>>) {
    let session = open(client, S(600)).await;
    close_refused(fake, &session).await;
    sleep(S(60)).await;
    let mut adopting = Box::pin(Session::builder(client).lease(session.lease()).open());
    tokio::select! {
        biased;
        _ = &mut adopting => panic!("no keep-alive was answered yet"),
        () = std::future::ready(()) => {}
    }
    fake.until(|fake| fake.snapshot().leases[0].remaining > S(590)).await;
    sleep(S(1)).await;
    (session, adopting)
}

/// An adoption was proven, and its future dropped before that was a session. It counted as one that has the lease: the session
/// that had been on the lease was closed, which said Ok, and nothing revoked the lease.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_was_proven_and_dropped_keeps_no_lease_from_being_revoked() {
    let fake = FakeEtcd::start();
    let (session, adopting) = proven(&fake, &fake.client()).await;
    drop(adopting);
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0, "it is gone when that is said");
}

/// Such an adoption whose future is kept, and not polled, keeps no `close` waiting for the lease's whole TTL: the lease is
/// the adopter's.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_is_not_polled_keeps_the_lease() {
    let fake = FakeEtcd::start();
    let (session, adopting) = proven(&fake, &fake.client()).await;
    timeout(S(25), session.close()).await.expect("in time").unwrap();
    let adopted = adopting.await.unwrap();
    drop(session);
    sleep(S(60)).await;
    assert!(adopted.is_valid() && fake.leases() == 1);
    adopted.close().await.unwrap();
    assert_eq!(fake.leases(), 0);
}

/// Where such a future is dropped after that, no session came of it: `close` had told that all was well, and for as long as the TTL
/// lasted the lease stood, whoever closed the session again.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_is_dropped_unpolled_after_a_close_leaves_the_lease_to_be_revoked() {
    let fake = FakeEtcd::start();
    let (session, adopting) = proven(&fake, &fake.client()).await;
    timeout(S(25), session.close()).await.expect("in time").unwrap();
    assert_eq!(fake.leases(), 1, "it is kept alive for the adopter");
    drop(adopting);
    timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked");
    session.close().await.unwrap();
}

/// Another adoption followed, of which nothing was known yet: the next `close` took that for the one that had been proven, and said at
/// once that all was well.
#[tokio::test(start_paused = true)]
async fn a_close_beside_an_adoption_that_follows_a_dropped_one_waits_for_it() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let (session, adopting) = proven(&fake, &client).await;
    timeout(S(25), session.close()).await.expect("in time").unwrap();
    drop(adopting);
    fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    let other = tokio::spawn(Session::builder(&client).lease(session.lease()).open());
    sleep(S(1)).await;
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0, "it is gone when that is said");
    other.await.unwrap().unwrap_err();
}

/// A revoke lay in the socket of a member that stood still, and was sent again, which the server refused for good. That ended
/// the revoking, and that one may be applied at any time was forgotten with the session: the client adopted the lease beside it.
#[tokio::test(start_paused = true)]
async fn a_revoke_of_unknown_fate_keeps_this_client_from_adopting_after_a_refusal() {
    let (fake, late) = (FakeEtcd::start(), Hold::new());
    let client = fake.client();
    let (session, unheard) = lost(&fake, &client).await;
    let lease = session.lease();
    let held = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::hold(&late));
    drop(session);
    sleep(S(5)).await;
    held.remove();
    let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused());
    while refuses.hits() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(S(1)).await;
    unheard.remove();
    let error = Session::builder(&client).lease(lease).open().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::LeaseNotFound, "{error}");
    late.release();
    timeout(S(60), fake.until(|fake| fake.leases() == 0)).await.expect("it is revoked");
}

/// A guard was dropped while its key could not be deleted; then its session was lost, and dropped too. The client adopted the
/// lease again, and the key stayed for as long as that lived, held by no guard.
#[tokio::test(start_paused = true)]
async fn a_key_that_was_given_up_goes_after_an_adoption() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = open(&client, S(600)).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let reading = RwLock::new(&session, "files").unwrap().read().await.unwrap();
    let down = [Rpc::Txn, Rpc::LeaseRevoke].map(|rpc| fake.fault(On::rpc(rpc), Do::cut()));
    let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    drop((guard, reading));
    assert_eq!(session.lost().await, LostReason::Expired);
    let [down, revokes] = down;
    revokes.remove();
    let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused());
    let lease = session.lease();
    drop(session);
    while refuses.hits() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    // The deletes that are under way come to their end.
    sleep(S(30)).await;
    unheard.remove();
    let adopted = Session::builder(&client).lease(lease).open().await.unwrap();
    down.remove();
    let gone = fake.until(|fake| fake.snapshot().keys.is_empty());
    assert!(timeout(S(200), gone).await.is_ok(), "{}", fake.snapshot());
    assert!(adopted.is_valid());
    let guard = Mutex::new(&adopted, "lock").unwrap().lock().await.unwrap();
    guard.unlock().await.unwrap();
}

/// The session, of client `a`, is lost behind a partition, which heals.
async fn loses(fake: &FakeEtcd, session: &Session) {
    fake.partition("a");
    assert_eq!(session.lost().await, LostReason::Expired);
    fake.heal("a");
}

/// The lease was adopted again and given away: the lost session, dropped after that, revoked it under its new owner.
#[tokio::test(start_paused = true)]
async fn a_lost_session_does_not_revoke_what_its_adopter_gave_away() {
    let fake = FakeEtcd::start();
    let session = open(&fake.client_for("a"), S(60)).await;
    loses(&fake, &session).await;
    let again = Session::builder(session.client()).lease(session.lease()).open().await.unwrap();
    let adopter = Session::builder(&fake.client_for("b")).lease(again.orphan()).open().await.unwrap();
    drop(session);
    sleep(S(100)).await;
    assert!(adopter.is_valid(), "{}", adopter.lost().await);
}

/// A guard was kept over the loss of its session, and dropped before or after the client had adopted the lease: its key stayed
/// for as long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_around_an_adoption_leaves_no_key() {
    for (in_turn, late) in [(true, true), (true, false), (false, true), (false, false)] {
        let fake = FakeEtcd::start();
        let session = open(&fake.client_for("a"), S(60)).await;
        let (mutex, lock) = (Mutex::new(&session, "m").unwrap(), RwLock::new(&session, "m").unwrap());
        let mut guards = (None, None);
        match in_turn {
            true => guards.0 = Some(mutex.lock().await.unwrap()),
            false => guards.1 = Some(lock.write().await.unwrap()),
        }
        loses(&fake, &session).await;
        if !late {
            guards = (None, None);
        }
        let adopter = Session::builder(session.client()).lease(session.lease()).open().await.unwrap();
        drop(guards);
        let gone = fake.until(|fake| fake.snapshot().keys.iter().all(|kv| kv.lease == 0));
        timeout(S(5), gone).await.expect("taken away");
        assert!(adopter.is_valid());
    }
}

/// The same for a lock that had been asked for twice, as the first attempt got no answer.
#[tokio::test(start_paused = true)]
async fn a_guard_of_an_unanswered_ask_that_is_dropped_around_an_adoption_leaves_no_key() {
    for (in_turn, late) in [(true, true), (true, false), (false, true), (false, false)] {
        let fake = FakeEtcd::start();
        let session = open(&fake.client_for("a"), S(60)).await;
        let (mutex, lock) = (Mutex::new(&session, "m").unwrap(), RwLock::new(&session, "m").unwrap());
        fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::vanish());
        let mut guards = (None, None);
        match in_turn {
            true => guards.0 = Some(mutex.lock().await.unwrap()),
            false => guards.1 = Some(lock.write().await.unwrap()),
        }
        loses(&fake, &session).await;
        if !late {
            guards = (None, None);
        }
        let adopter = Session::builder(session.client()).lease(session.lease()).open().await.unwrap();
        drop(guards);
        let gone = fake.until(|fake| fake.snapshot().keys.iter().all(|kv| kv.lease == 0));
        timeout(S(5), gone).await.unwrap_or_else(|_| panic!("{in_turn}, {late}: {}", fake.snapshot()));
        assert!(adopter.is_valid());
    }
}

/// The adopter had taken up the key before the guard of the lost session was dropped: it is left alone.
#[tokio::test(start_paused = true)]
async fn what_the_adopter_has_taken_up_is_left_alone() {
    let fake = FakeEtcd::start();
    let session = open(&fake.client_for("a"), S(60)).await;
    let before = Mutex::new(&session, "m").unwrap().lock().await.unwrap();
    loses(&fake, &session).await;
    let adopter = Session::builder(session.client()).lease(session.lease()).open().await.unwrap();
    let mutex = Mutex::new(&adopter, "m").unwrap();
    let guard = mutex.lock().await.unwrap();
    assert_eq!(guard.token(), before.token());
    drop(before);
    sleep(S(60)).await;
    guard.txn().success(Op::put("x", "y")).commit().await.unwrap();
    guard.unlock().await.unwrap();
    let guard = mutex.lock().await.unwrap();
    sleep(S(60)).await;
    guard.unlock().await.unwrap();
}

/// A key could not be deleted before its session was lost. The revoke of the dropped session was on its way for a second, then
/// the server refused it: what was to delete the key had ended by then, so it stayed for as long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn a_key_given_up_while_a_revoke_is_refused_goes_after_an_adoption() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = open(&client, S(600)).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let reading = RwLock::new(&session, "files").unwrap().read().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn), Do::cut());
    let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    drop((guard, reading));
    assert_eq!(session.lost().await, LostReason::Expired);
    // The deletes that are under way come to their end.
    sleep(S(30)).await;
    let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused().after(S(1)));
    let lease = session.lease();
    drop(session);
    sleep(S(5)).await;
    assert_eq!(refuses.hits(), 1);
    unheard.remove();
    down.remove();
    let adopted = Session::builder(&client).lease(lease).open().await.unwrap();
    let gone = fake.until(|fake| fake.snapshot().keys.is_empty());
    assert!(timeout(S(5), gone).await.is_ok(), "{}", fake.snapshot());
    assert!(adopted.is_valid());
}

/// A session was closed, and the server refused the revoke. A guard of it was dropped, a release of it could not be made, or a
/// task had waited for a lock: the key stayed for as long as the one lived that adopted the lease.
#[tokio::test(start_paused = true)]
async fn a_guard_dropped_after_a_close_that_was_refused_leaves_no_key_to_the_adopter() {
    for late in [false, true] {
        let fake = FakeEtcd::start();
        let rival = Session::open(&fake.client_for("rival")).await.unwrap();
        let held = Mutex::new(&rival, "w").unwrap().lock().await.unwrap();
        let client = fake.client_for("a");
        let session = Session::open(&client).await.unwrap();
        let mutex = Mutex::new(&session, "m").unwrap().lock().await.unwrap();
        let writing = RwLock::new(&session, "m").unwrap().write().await.unwrap();
        let released = Mutex::new(&session, "r").unwrap().lock().await.unwrap();
        let waiting = tokio::spawn({
            let mutex = Mutex::new(&session, "w").unwrap();
            async move { mutex.lock().await.map(drop) }
        });
        sleep(S(1)).await;
        let down = fake.fault(On::rpc(Rpc::Txn).client("a"), Do::cut());
        let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused());
        drop(released);
        session.close().await.unwrap_err();
        waiting.await.unwrap().unwrap_err();
        refuses.remove();
        down.remove();
        let mut guards = Some((mutex, writing));
        if !late {
            guards = None;
        }
        let adopter = Session::builder(&client).lease(session.lease()).open().await.unwrap();
        drop(guards);
        let lease = adopter.lease();
        let gone = fake.until(|fake| fake.snapshot().keys.iter().all(|kv| kv.lease != lease));
        assert!(timeout(S(20), gone).await.is_ok(), "late: {late}; {}", fake.snapshot());
        assert!(adopter.is_valid() && held.is_valid());
    }
}

/// The same, where the adopter had unlocked and locked again before the guard of before was dropped.
#[tokio::test(start_paused = true)]
async fn what_an_adopter_has_locked_anew_is_left_to_the_next() {
    let fake = FakeEtcd::start();
    let session = open(&fake.client_for("a"), S(60)).await;
    let client = session.client().clone();
    let before = Election::new(&session, "seat").unwrap().campaign("x").await.unwrap();
    loses(&fake, &session).await;
    let second = Session::builder(&client).lease(session.lease()).open().await.unwrap();
    let seat = Election::new(&second, "seat").unwrap();
    seat.resume(before.key(), before.token()).await.unwrap().resign().await.unwrap();
    let kept = seat.campaign("y").await.unwrap();
    let (key, token) = (kept.key().clone(), kept.token());
    drop(before);
    sleep(S(1)).await;
    let third = Session::builder(&client).lease(second.orphan()).open().await.unwrap();
    sleep(S(60)).await;
    let leadership = Election::new(&third, "seat").unwrap().resume(&key, token).await.expect("it stands");
    drop(kept);
    leadership.resign().await.unwrap();
    assert!(fake.snapshot().keys.is_empty());
}

/// A leader's session was lost, and its lease adopted by the same client, which went on leading. The leadership of before was
/// dropped then, and its key remembered as one that has no owner: when that session was orphaned for the next adopter, the key
/// was deleted.
#[tokio::test(start_paused = true)]
async fn what_an_adopter_has_taken_up_is_left_to_the_next() {
    let fake = FakeEtcd::start();
    let session = open(&fake.client_for("a"), S(60)).await;
    let client = session.client().clone();
    let before = Election::new(&session, "seat").unwrap().campaign("x").await.unwrap();
    let (key, token) = (before.key().clone(), before.token());
    loses(&fake, &session).await;
    let second = Session::builder(&client).lease(session.lease()).open().await.unwrap();
    let kept = Election::new(&second, "seat").unwrap().resume(&key, token).await.unwrap();
    drop(before);
    sleep(S(1)).await;
    assert!(kept.is_valid());
    let third = Session::builder(&client).lease(second.orphan()).open().await.unwrap();
    sleep(S(60)).await;
    let leadership = Election::new(&third, "seat").unwrap().resume(&key, token).await.expect("it stands");
    drop(kept);
    sleep(S(60)).await;
    leadership.proclaim("y").await.unwrap();
    leadership.resign().await.unwrap();
    assert!(fake.snapshot().keys.is_empty());
}

/// A key could not be deleted before its session was lost, nor the lease revoked. A new leader kept the lease for another TTL, and
/// the client adopted it in that time: what was to delete the key had ended after the first, so it stayed for as long as the
/// adopter lived.
#[tokio::test(start_paused = true)]
async fn a_lease_that_a_new_leader_keeps_longer_leaves_no_key_to_the_adopter() {
    for given_up in [true, false] {
        let fake = FakeEtcd::start();
        let client = fake.client();
        let session = open(&client, S(600)).await;
        let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
        let reading = RwLock::new(&session, "files").unwrap().read().await.unwrap();
        let down = fake.fault(On::rpc(Rpc::Txn), Do::cut());
        let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
        let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), refused());
        let mut guards = Some((guard, reading));
        if given_up {
            drop(guards.take());
        }
        assert_eq!(session.lost().await, LostReason::Expired);
        let looks = fake.fault(On::rpc(Rpc::LeaseTimeToLive), Do::default());
        drop(guards);
        let lease = session.lease();
        drop(session);
        sleep(S(250)).await;
        fake.leader_loss(Duration::ZERO);
        // Longer than a TTL after the loss.
        sleep(S(500)).await;
        assert!((1..10).contains(&looks.hits()), "one asks for all: {}", looks.hits());
        unheard.remove();
        down.remove();
        refuses.remove();
        let adopted = Session::builder(&client).lease(lease).open().await.unwrap();
        let gone = fake.until(|fake| fake.snapshot().keys.is_empty());
        assert!(timeout(S(20), gone).await.is_ok(), "{given_up}: {}", fake.snapshot());
        assert!(adopted.is_valid());
    }
}

/// Where no session adopts the lease, those who wait for that end with it.
#[tokio::test(start_paused = true)]
async fn a_lease_that_has_ended_is_asked_for_no_more() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = open(&client, S(60)).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let reading = RwLock::new(&session, "files").unwrap().read().await.unwrap();
    let unheard = fake.fault(On::rpc(Rpc::LeaseKeepAlive).times(20), Do::vanish());
    assert_eq!(session.lost().await, LostReason::Expired);
    drop((guard, reading));
    let looks = fake.fault(On::rpc(Rpc::LeaseTimeToLive), Do::default());
    sleep(S(300)).await;
    unheard.remove();
    let asked = looks.hits();
    assert!((1..4).contains(&asked), "{asked}");
    sleep(S(3600)).await;
    assert_eq!(looks.hits(), asked);
    assert_eq!(fake.leases(), 0);
}

/// The user was deleted, and the server refused to say whether a lost session's lease was gone: it was asked for ever.
#[tokio::test(start_paused = true)]
async fn a_lost_session_of_a_user_that_is_gone_leaves_no_task() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = open(&client, S(60)).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let reading = RwLock::new(&session, "files").unwrap().read().await.unwrap();
    let refuses = fake.fault(On::any(), refused());
    session.lost().await;
    drop((guard, reading));
    sleep(S(1200)).await;
    let asked = refuses.hits();
    sleep(S(3600)).await;
    assert_eq!(refuses.hits(), asked);
}
