//! How sessions end: closed, closed again, orphaned, adopted.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{ErrorKind, LostReason, Mutex, Outcome, Session, SessionState};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const S: fn(u64) -> Duration = Duration::from_secs;

/// The revoke of a `close` failed. Called again it said Ok, with the lease alive, and no further revoke was sent: the
/// lease, and the locks on it, stayed for their TTL.
#[tokio::test(start_paused = true)]
async fn a_close_that_failed_is_not_ok_when_it_is_called_again() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(600)).open().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::cut());
    for _ in 0..3 {
        session.close().await.unwrap_err();
        assert_eq!(fake.leases(), 1);
    }
    down.remove();
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0);

    // And nobody needs to call again.
    let session = Session::builder(&fake.client()).ttl(S(600)).open().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::cut());
    session.close().await.unwrap_err();
    down.remove();
    timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked in the background");
}

/// The server was away when a session was closed that had just dropped a guard. The revoke was tried for as long as the client
/// waits for an answer. Then the close waited for as long again, for a release that waited for the lease to be adopted.
#[tokio::test(start_paused = true)]
async fn a_close_that_fails_takes_its_patience_once() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(600)).open().await.unwrap();
    let guard = Mutex::new(&session, "m").unwrap().lock().await.unwrap();
    let down = [Rpc::Txn, Rpc::LeaseRevoke].map(|rpc| fake.fault(On::rpc(rpc), Do::cut()));
    drop(guard);
    let began = Instant::now();
    session.close().await.unwrap_err();
    assert!(began.elapsed() < S(11), "{:?}", began.elapsed());
    down.iter().for_each(|down| down.remove());
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0);
}

/// A revoke was under way when the TTL had passed for which it is tried: an adoption that failed had kept it back until then.
/// `close` failed as for a revoke that was never sent, `Lost(Closed)` and NotApplied.
#[tokio::test(start_paused = true)]
async fn a_revoke_that_is_cut_off_is_told_as_unknown() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::builder(&client).ttl(S(4)).margin(S(2)).open().await.unwrap();
    fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    assert_eq!(session.lost().await, LostReason::Expired);
    let unanswered = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::vanish());
    let adopting = tokio::spawn(Session::builder(&client).lease(session.lease()).open());
    tokio::task::yield_now().await;
    let error = session.close().await.unwrap_err();
    assert!(unanswered.hits() > 0, "one was sent");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::Unknown), "{error}");
    adopting.await.unwrap().unwrap_err();
}

/// The first attempt to revoke got no answer, and the server refused the next: who closed again was told that nothing had been
/// applied, though the first may be applied at any time.
#[tokio::test(start_paused = true)]
async fn a_refused_revoke_after_one_without_an_answer_is_told_as_unknown() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(600)).open().await.unwrap();
    let unanswered = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::vanish());
    session.close().await.unwrap_err();
    unanswered.remove();
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    fake.fault(On::rpc(Rpc::LeaseRevoke), Do::fail(refused));
    let error = session.close().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::PermissionDenied, Outcome::Unknown), "{error}");
}

/// What the server refuses for good is told to each who closes, and asked anew each time.
#[tokio::test(start_paused = true)]
async fn a_refused_close_is_refused_until_it_is_allowed() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    let down = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::fail(refused));
    for calls in 1..=3 {
        timeout(S(1), session.close()).await.expect("at once").unwrap_err();
        assert_eq!(down.hits(), calls);
    }
    down.remove();
    session.close().await.unwrap();
    assert_eq!(fake.leases(), 0);
}

/// Of two who closed a session at once the second was answered before the lease was revoked: what it did next met the
/// session's own locks.
#[tokio::test(start_paused = true)]
async fn two_who_close_at_once_are_told_the_same() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    fake.fault(On::rpc(Rpc::LeaseRevoke).once(), Do::delay(S(3)));
    let close = || async {
        session.close().await.unwrap();
        assert_eq!(fake.leases(), 0);
    };
    tokio::join!(close(), close(), close());
}

/// Telling of the end waited for all borrows of the state, the caller's own included: the thread stood still for ever.
#[test]
fn a_session_may_be_ended_under_a_borrow_of_its_state() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = FakeEtcd::start();
            for orphan in [true, false] {
                let session = Session::open(&fake.client()).await.unwrap();
                let mut state = session.state();
                let (handle, borrowed) = (session.clone(), session.state());
                let borrowed = borrowed.borrow();
                match orphan {
                    true => drop(session.orphan()),
                    false => session.close().await.unwrap(),
                }
                // Keep-alives of other sessions go on meanwhile.
                Session::open(&fake.client()).await.unwrap();
                assert!(!handle.is_valid());
                drop(borrowed);
                let reason = if orphan { LostReason::Orphaned } else { LostReason::Closed };
                state.wait_for(|state| *state == SessionState::Lost(reason)).await.unwrap();
            }
        });
        done.send(()).unwrap();
    });
    ended.recv_timeout(S(30)).expect("the thread does not hang");
}

/// A session with a parent was dropped, and another had its lease. The parent's cancellation still ended the lease.
#[tokio::test(start_paused = true)]
async fn a_parent_ends_no_session_that_adopted_the_lease() {
    let fake = FakeEtcd::start();
    let (client, parent) = (fake.client(), CancellationToken::new());
    let first = Session::builder(&client).parent(parent.clone()).open().await.unwrap();
    let second = Session::builder(&client).lease(first.lease()).open().await.unwrap();
    drop(first);
    parent.cancel();
    tokio::time::sleep(S(100)).await;
    assert!(second.is_valid(), "{}", second.lost().await);
    second.close().await.unwrap();
}

/// Two tasks adopted one lease. One of them gave up, and the other was told that the lease had been orphaned.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_is_dropped_fails_no_other() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let id = Session::open(&client).await.unwrap().orphan();
    let adopt = || Session::builder(&client).lease(id).open();
    for order in [false, true] {
        fake.fault(On::response(Rpc::LeaseKeepAlive).once(), Do::delay(S(3)));
        let short = async { timeout(S(1), adopt()).await.expect_err("not answered yet") };
        let session = match order {
            true => tokio::join!(short, adopt()).1,
            false => tokio::join!(adopt(), short).0,
        };
        let session = session.unwrap();
        assert!(session.is_valid());
        // The last one to be given up leaves the lease as it was found.
        assert_eq!(session.orphan(), id);
    }
}

/// Two sessions of one client were on a lease. One gave it away, and the other was dropped or closed: it revoked the lease,
/// and the process that had adopted it lost all its locks.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_away_is_not_revoked_by_those_who_were_on_it() {
    for close in [false, true] {
        let fake = FakeEtcd::start();
        let client = fake.client_for("a");
        let first = Session::open(&client).await.unwrap();
        let second = Session::builder(&client).lease(first.lease()).open().await.unwrap();
        let adopter = Session::builder(&fake.client_for("b")).lease(first.orphan()).open().await.unwrap();
        if close {
            second.close().await.unwrap();
        }
        drop(second);
        tokio::time::sleep(S(100)).await;
        assert!(adopter.is_valid(), "{}", adopter.lost().await);
    }
}

/// A session was lost to a partition that the lease outlived, and its owner went on with another on the same lease:
/// `session = builder.lease(session.lease()).open().await?`. What that dropped revoked the lease under the new session.
#[tokio::test(start_paused = true)]
async fn a_lost_session_that_is_replaced_on_its_lease_does_not_revoke_it() {
    for close in [false, true] {
        let fake = FakeEtcd::start();
        let client = fake.client_for("a");
        let builder = Session::builder(&client).ttl(S(60)).margin(S(30));
        let mut session = builder.clone().open().await.unwrap();
        fake.partition("a");
        assert_eq!(session.lost().await, LostReason::Expired);
        fake.heal("a");
        let lost = session.clone();
        session = builder.lease(session.lease()).open().await.unwrap();
        if close {
            lost.close().await.unwrap();
        }
        drop(lost);
        tokio::time::sleep(S(100)).await;
        assert!(session.is_valid(), "{}", session.lost().await);
        session.close().await.unwrap();
        assert_eq!(fake.leases(), 0);
    }
}

/// A proxy answered the one revoke with its error page: nothing revoked the lease any more, and the locks on it stayed for
/// a day.
#[tokio::test(start_paused = true)]
async fn a_revoke_is_repeated_whatever_answered_it_once() {
    for status in [
        tonic::Status::unknown("<html>bad gateway</html>"),
        tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        tonic::Status::cancelled("by a proxy"),
    ] {
        let fake = FakeEtcd::start();
        let session = Session::builder(&fake.client()).ttl(S(86_400)).open().await.unwrap();
        fake.fault(On::rpc(Rpc::LeaseRevoke).once(), Do::fail(status.clone()));
        drop(session);
        timeout(S(5), fake.until(|fake| fake.leases() == 0)).await.expect("revoked in the background");
    }
}
