//! How sessions come by their leases when something goes wrong, on the fake.

use std::time::Duration;

use etcd_concurrency::fake::{self, Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::LeaseGrantRequest;
use etcd_concurrency::{Client, ErrorKind, LostReason, Mutex, Session};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::requests::puts;

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

async fn open(client: &Client) -> Session {
    Session::builder(client).ttl(S(10)).open().await.unwrap()
}

/// Two processes drew the same id, as forked workers did that shared a generator's state. The second's grant was cut off,
/// its repetition heard that the lease exists, and took it for its own: both held the lock.
#[tokio::test(start_paused = true)]
async fn the_lease_of_another_process_is_never_taken_for_ones_own() {
    let fake = FakeEtcd::start();
    fake::seed(7);
    let first = open(&fake.client_for("a")).await;
    let held = Mutex::new(&first, "lock").unwrap().try_lock().await.unwrap();
    for lost in [Do::cut(), Do::vanish()] {
        fake::seed(7);
        fake.fault(On::rpc(Rpc::LeaseGrant).client("b").once(), lost);
        let second = open(&fake.client_for("b")).await;
        assert_ne!(second.lease(), first.lease());
        let error = Mutex::new(&second, "lock").unwrap().try_lock().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        second.close().await.unwrap();
    }
    sleep(S(60)).await;
    assert!(held.is_valid() && fake.leases() == 1, "the first's lease is left alone");
}

/// Of eight forked workers four were told for ever that their lease exists already: four ids were tried.
#[tokio::test(start_paused = true)]
async fn a_few_ids_that_are_taken_do_not_end_an_open() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    fake::seed(7);
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(open(&client).await);
    }
    fake::seed(7);
    sessions.push(open(&client).await);
    assert_eq!(fake.leases(), 9);
}

/// Nothing proves that a lease is ours which exists after a grant without an answer: it is left to its TTL.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_grant_is_lost() {
    let fake = FakeEtcd::start();
    for lost in [LoseReply::Error, LoseReply::Hang] {
        fake.fault(On::rpc(Rpc::LeaseGrant).once(), Do::lose_reply_by(lost));
        let session = open(&fake.client()).await;
        assert_eq!(fake.leases(), 2, "the one in doubt, and the session's");
        let believed = session.remaining();
        let real = fake.snapshot().lease(session.lease()).unwrap().remaining;
        assert!(believed < real, "{believed:?} of {real:?}: counted from its own sending");
        sleep(S(10)).await;
        assert_eq!(fake.leases(), 1, "the one in doubt has ended");
        session.close().await.unwrap();
        assert_eq!(fake.leases(), 0);
    }
}

/// The first attempt of a grant lay in a member that stood still, as did one of a lock's put, and the session was closed. The
/// member went on: the grant made the revoked lease again, and the put came through: for a whole TTL the lock was held, by a key
/// without an owner.
#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_after_the_close_lets_no_late_put_in() {
    let fake = FakeEtcd::start();
    let [grant, put] = [Hold::new(), Hold::new()];
    fake.fault(On::rpc(Rpc::LeaseGrant).client("a").once(), Do::hold(&grant));
    let grants = fake.fault(On::rpc(Rpc::LeaseGrant).client("a"), Do::delay(Duration::ZERO));
    // Nor does the revoke of the lease in doubt get through at once.
    fake.fault(On::rpc(Rpc::LeaseRevoke).client("a").once(), Do::vanish());
    let revokes = fake.fault(On::rpc(Rpc::LeaseRevoke).client("a"), Do::delay(Duration::ZERO));
    let session = open(&fake.client_for("a")).await;
    sleep(S(8)).await;
    assert_eq!((fake.leases(), session.is_valid()), (1, true), "the session's alone");
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts).once(), Do::hold(&put));
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    guard.unlock().await.unwrap();
    session.close().await.unwrap();
    assert_eq!((grant.held(), put.held(), fake.leases()), (1, 1, 0));
    let closed = fake.revision();
    grant.release();
    sleep(S(1)).await;
    put.release();
    sleep(S(1)).await;
    assert_eq!((fake.revision(), fake.leases()), (closed, 1), "an empty lease");
    sleep(S(10)).await;
    assert_eq!(fake.leases(), 0);
    assert_eq!((grants.seen(), revokes.seen()), (3, 3), "one grant more, and one revoke with its repetition");
}

/// Where the first attempt of every grant stays without an answer a session is opened all the same, within a bound.
#[tokio::test(start_paused = true)]
async fn an_open_whose_every_grant_leaves_one_in_doubt_ends() {
    for (lost, most) in [(Do::vanish(), 2), (Do::cut(), 4)] {
        let fake = FakeEtcd::start();
        let asked = std::sync::Mutex::new(std::collections::HashSet::new());
        let first = move |grant: &LeaseGrantRequest| asked.lock().unwrap().insert(grant.id);
        let grants = fake.fault(On::rpc(Rpc::LeaseGrant).matching(first), lost);
        let start = Instant::now();
        let session = open(&fake.client()).await;
        assert!(start.elapsed() <= S(11), "{:?}", start.elapsed());
        assert_eq!(grants.hits(), most);
        sleep(S(1)).await;
        assert_eq!((fake.leases(), session.is_valid()), (1, true));
    }
}

/// The repetition of a grant was answered, and the attempt before it could come yet, so another lease was asked for: that was
/// refused, or not answered either, and the open failed, after up to twice the request timeout, as the lease that it had was
/// given back already.
#[tokio::test(start_paused = true)]
async fn a_lease_in_doubt_is_used_where_no_other_is_to_be_had() {
    let full = || tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
    let refused = || tonic::Status::permission_denied("etcdserver: permission denied");
    for trouble in [Do::vanish(), Do::cut(), Do::fail(full()), Do::fail(refused())] {
        for ttl in [10, 60] {
            let fake = FakeEtcd::start();
            fake.fault(On::rpc(Rpc::LeaseGrant).once(), Do::vanish());
            let first = std::sync::Mutex::new(None);
            let others =
                move |grant: &LeaseGrantRequest| *first.lock().unwrap().get_or_insert(grant.id) != grant.id;
            let others = fake.fault(On::rpc(Rpc::LeaseGrant).matching(others), trouble.clone());
            let start = Instant::now();
            let session = Session::builder(&fake.client()).ttl(S(ttl)).open().await.unwrap();
            assert!(start.elapsed() <= S(10) + MS(10), "{:?}", start.elapsed());
            assert!(others.hits() > 0 && session.is_valid());
            let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
            sleep(S(ttl * 3)).await;
            assert!(session.is_valid() && guard.is_valid() && fake.leases() == 1);
            session.close().await.unwrap();
            assert_eq!(fake.leases(), 0);
        }
    }
}

/// Adopting a lease that this very client keeps alive waited for as long as no keep-alive was answered: 4,700 s.
#[tokio::test(start_paused = true)]
async fn an_adoption_of_a_lease_that_is_kept_already_ends_in_time() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::builder(&client).ttl(S(7_200)).open().await.unwrap();
    let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    // Renewed after a third of the TTL, given up a sixth later.
    sleep(S(4_000)).await;
    let start = Instant::now();
    let error = Session::builder(&client).lease(session.lease()).open().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() <= S(11), "{:?}", start.elapsed());
    assert!(session.is_valid());
    silent.remove();
    let second = Session::builder(&client).lease(session.lease()).open().await.unwrap();
    drop(session);
    sleep(S(7_200)).await;
    assert!(second.is_valid() && fake.leases() == 1);
}

/// Two adopted a lease at once. One was dropped before it was proven, and took the other along.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_is_dropped_does_not_fail_another() {
    let fake = FakeEtcd::start();
    let lease = open(&fake.client_for("before")).await.orphan();
    let client = fake.client();
    fake.fault(On::rpc(Rpc::LeaseKeepAlive).once(), Do::delay(S(2)));
    let adopt = || Session::builder(&client).lease(lease).open();
    let (first, second) = (tokio::spawn(adopt()), tokio::spawn(adopt()));
    sleep(S(1)).await;
    first.abort();
    let second = second.await.unwrap().unwrap();
    sleep(S(60)).await;
    assert!(second.is_valid() && fake.leases() == 1);
}

/// A parent that was cancelled while a session was being opened closed it only when the server had answered.
#[tokio::test(start_paused = true)]
async fn a_cancelled_parent_stops_an_open_under_way() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let lease = open(&fake.client_for("before")).await.orphan();
    fake.fault(On::rpc(Rpc::LeaseGrant).once(), Do::lose_reply_by(LoseReply::Hang));
    fake.fault(On::rpc(Rpc::LeaseKeepAlive).once(), Do::vanish());
    for builder in [Session::builder(&client).ttl(S(10)), Session::builder(&client).lease(lease)] {
        let parent = CancellationToken::new();
        let opening = tokio::spawn(builder.parent(parent.clone()).open());
        sleep(S(1)).await;
        parent.cancel();
        let opened = timeout(MS(10), opening).await.expect("at once").unwrap();
        assert_eq!(opened.unwrap_err().lost_reason(), Some(LostReason::Closed));
    }
    timeout(S(60), fake.until(|fake| fake.leases() == 0)).await.expect("no lease is left");
}

/// A session over a service of one's own was opened after the client's runtime had ended. It was Ok and valid, nobody kept
/// it alive, and it never ended: the lock that it held was another's ten seconds later.
#[test]
fn a_client_whose_runtime_has_ended_has_no_sessions() {
    let fake = FakeEtcd::start();
    let (first, other) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let client = first.block_on(async { fake.client() });
    let (session, guard, fence) = first.block_on(async {
        let session = open(&client).await;
        let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
        let fence = guard.fence().clone();
        (session, guard, fence)
    });
    let mut state = session.state();
    {
        // Whoever ends the runtime may be looking.
        let _held = state.borrow();
        drop(first);
    }
    assert!(!session.is_valid() && !fence.is_valid());
    other.block_on(async {
        let lost = async {
            assert_eq!(session.lost().await, LostReason::Closed);
            let reason = guard.run(std::future::pending::<()>()).await.unwrap_err().lost_reason();
            assert_eq!(reason, Some(LostReason::Closed));
            state.wait_for(|state| matches!(state, etcd_concurrency::SessionState::Lost(_))).await.unwrap();
            let adopted = Session::builder(&client).lease(session.lease()).open().await.unwrap_err();
            assert_eq!(adopted.lost_reason(), Some(LostReason::Closed), "{adopted}");
            let opened = Session::open(&client).await.unwrap_err();
            assert_eq!(opened.lost_reason(), Some(LostReason::Closed), "{opened}");
        };
        timeout(S(10), lost).await.expect("at once");
        // The first's own, which there was no background to revoke in.
        assert!(fake.leases() <= 1, "{}", fake.leases());
    });
}
