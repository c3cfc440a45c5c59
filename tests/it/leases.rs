//! The task that keeps leases alive, when it or its runtime stands still, dies, or is called back: on the fake.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::{Barrier, Client, ErrorKind, LostReason, Mutex, Op, Outcome, Queue, Session, Txn};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::support::count::RpcCounter;
use crate::support::lies;
use crate::support::queue::revoke;
use crate::support::requests::{deletes, puts};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// The client's runtime stood still for six seconds, and only when it went on was a lock told of that had ended after two.
#[test]
fn a_loss_is_told_at_the_deadline_while_the_clients_runtime_stands_still() {
    let fake = FakeEtcd::start();
    let mine = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = mine.block_on(async { fake.client() });
    let yours = Runtime::new().unwrap();
    yours.block_on(async {
        let session = Session::builder(&client).ttl(S(2)).open().await.unwrap();
        let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
        let fence = guard.fence().clone();
        let (stop, stopped) = mpsc::channel::<()>();
        mine.spawn(async move { stopped.recv() });
        let left = session.remaining() + MS(500);
        let lost = timeout(left, async { tokio::join!(session.lost(), fence.lost()) }).await;
        let ran = timeout(MS(500), guard.run(std::future::pending::<()>())).await;
        drop(stop);
        assert_eq!(lost.expect("in time"), (LostReason::Expired, LostReason::Expired));
        assert_eq!(ran.expect("dropped").unwrap_err().lost_reason(), Some(LostReason::Expired));
    });
}

/// A wait for a loss is no runtime's own: the timer of one that has ended is not asked any more.
#[test]
fn a_wait_for_a_loss_goes_on_on_another_runtime() {
    let fake = FakeEtcd::start();
    let [mine, first, second] = [0, 1, 2].map(|_| Runtime::new().unwrap());
    let client = mine.block_on(async { fake.client() });
    let session = mine.block_on(async { Session::builder(&client).ttl(S(2)).open().await.unwrap() });
    let mut lost = Box::pin(session.lost());
    first.block_on(async { timeout(MS(10), &mut lost).await.expect_err("it lives") });
    drop(first);
    second.block_on(async {
        timeout(MS(10), &mut lost).await.expect_err("it lives");
        fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
        let reason = timeout(S(10), lost).await.expect("it ends");
        assert_eq!(reason, LostReason::Expired);
    });
}

/// The user's function that tells of suspension panicked in the task that keeps leases alive. A session that was on its way
/// to the task stayed Active for ever.
#[test]
fn sessions_on_their_way_to_a_task_that_panics_are_lost() {
    let fake = FakeEtcd::start();
    let panics = Arc::new(AtomicBool::new(false));
    let told = panics.clone();
    let slept = move || {
        let in_task = std::thread::current().name() == Some("mine");
        assert!(!in_task || !told.load(Ordering::SeqCst), "as the test wants");
        Duration::ZERO
    };
    let mine =
        Builder::new_multi_thread().worker_threads(1).thread_name("mine").enable_all().build().unwrap();
    let client = mine.block_on(async {
        Client::builder().service(fake.service()).suspended_time(slept).connect().await.unwrap()
    });
    let yours = Runtime::new().unwrap();
    yours.block_on(async {
        let kept = Session::open(&client).await.unwrap();
        panics.store(true, Ordering::SeqCst);
        // It may be lost before it is opened.
        let queued = Session::open(&client).await;
        let lost = async {
            assert_eq!(kept.lost().await, LostReason::Closed);
            match queued {
                Ok(queued) => assert_eq!(queued.lost().await, LostReason::Closed),
                Err(error) => assert_eq!(error.lost_reason(), Some(LostReason::Closed), "{error}"),
            }
        };
        timeout(S(10), lost).await.expect("both are told");
        assert!(!kept.is_valid());
        // Another task keeps what comes after.
        panics.store(false, Ordering::SeqCst);
        assert!(Session::open(&client).await.unwrap().is_valid());
    });
}

/// The user's function that tells of suspension was called under the lease's lock: it looked at a session, and waited for
/// itself.
#[test]
fn where_suspension_is_read_a_session_may_be_looked_at() {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
            let fake = FakeEtcd::start();
            let looked_at = Arc::new(OnceLock::<Session>::new());
            let looks = looked_at.clone();
            let slept = move || match looks.get() {
                Some(session) if !session.is_valid() || session.remaining().is_zero() => S(1),
                _ => Duration::ZERO,
            };
            let builder = Client::builder().service(fake.service()).suspended_time(slept);
            let client = builder.connect().await.unwrap();
            let session = Session::builder(&client).ttl(S(9)).open().await.unwrap();
            looked_at.set(session.clone()).unwrap();
            sleep(S(60)).await;
            assert!(session.is_valid());
            let _ = Session::builder(&client).lease(session.lease()).open().await.unwrap();
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(S(60)).expect("it waits for itself, or has failed");
}

/// The process stood still while an answer came. When it went on, the lease's timer fired before the answer was read, the
/// stream was taken for dead, and the endpoint marked.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_read_yet_is_no_silence() {
    let fake = FakeEtcd::start();
    let (client, counter) = counted(&fake).await;
    let session = Session::builder(&client).ttl(S(60)).open().await.unwrap();
    let late = fake.fault(On::response(Rpc::LeaseKeepAlive).once(), Do::delay(MS(500)));
    sleep(S(20) + MS(100)).await;
    assert_eq!(late.hits(), 1);
    // The answer and what its silence means are due at once.
    stand_still(S(25));
    sleep(S(1)).await;
    assert!(session.remaining() > S(30), "{session:?}");
    sleep(S(60)).await;
    assert_eq!(counter.count("LeaseKeepAlive"), 1, "{}", fake.history());
}

/// A member forwards renewals one after the other: of those for ten thousand leases that are sent at once the last is
/// answered late. The stream that brought answer after answer was taken for silent, its endpoint marked, and all were
/// asked anew.
#[tokio::test(start_paused = true)]
async fn a_long_queue_of_renewals_is_no_silence() {
    let fake = FakeEtcd::start();
    let (client, counter) = counted(&fake).await;
    let mut sessions = Vec::new();
    for _ in 0..60 {
        sessions.push(Session::builder(&client).ttl(S(60)).open().await.unwrap());
    }
    // Each waits for the one before it: 18 s for the last.
    fake.fault(On::response(Rpc::LeaseKeepAlive).times(60), Do::delay(MS(300)));
    sleep(S(120)).await;
    assert!(sessions.iter().all(Session::is_valid));
    assert_eq!(counter.count("LeaseKeepAlive"), 1, "{}", fake.history());
}

/// A renewal that is lost among others on a stream that lives is asked again.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_others_overtake_is_asked_again() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(Session::builder(&client).ttl(S(60)).open().await.unwrap());
    }
    fake.fault(On::rpc(Rpc::LeaseKeepAlive).once(), Do::vanish());
    sleep(S(600)).await;
    assert!(sessions.iter().all(Session::is_valid), "{}", fake.history());
}

/// One of whose keep-alives nothing comes is given up, whatever else is said on the way.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_silent_is_given_up() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(10)).open().await.unwrap();
    for _ in 0..5 {
        fake.stall_streams("a");
        sleep(S(10)).await;
        assert!(session.is_valid(), "{}", fake.history());
    }
}

/// The watch of a lock's holder ended with a compaction, and the read that followed failed. From then on it waited for ever:
/// its key was deleted, another held the lock, and an hour later `lost()` had said nothing.
#[tokio::test(start_paused = true)]
async fn a_fence_that_cannot_look_looks_again() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let fence = guard.fence().clone();
    let lost = tokio::spawn(async move { fence.lost().await });
    fake.until(|fake| fake.watchers() == 1).await;
    // No watch and no read, while its key is deleted and the history compacted.
    let down = [
        fake.fault(On::open(Rpc::Watch).client("a"), Do::cut()),
        fake.fault(On::rpc(Rpc::Range).client("a"), Do::cut()),
    ];
    fake.cut_streams("a");
    let other = fake.client_for("b");
    other.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
    other.txn(Txn::new().success(Op::put("other", "1"))).await.unwrap();
    fake.compact(fake.revision()).unwrap();
    down[0].remove();
    sleep(S(60)).await;
    down[1].remove();
    let reason = timeout(S(60), lost).await.expect("it is told").unwrap();
    assert_eq!(reason, LostReason::KeyDeleted);
    assert!(session.is_valid());
}

/// A holder that may not watch was deaf to the end of its session. It may read: that is done now and then.
#[tokio::test(start_paused = true)]
async fn a_fence_that_may_not_watch_reads() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let refusal = || tonic::Status::permission_denied("etcdserver: permission denied");
    fake.fault(On::open(Rpc::Watch).client("a"), Do::fail(refusal()));
    let fence = guard.fence().clone();
    let lost = tokio::spawn(async move { fence.lost().await });
    sleep(S(3_600)).await;
    assert!(guard.is_valid());
    let history = fake.history();
    let reads = history.calls(Rpc::Range).count();
    assert!(reads <= 70, "{reads} reads in an hour");
    let other = fake.client_for("b");
    other.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
    let reason = timeout(S(150), lost).await.expect("it is told").unwrap();
    assert_eq!(reason, LostReason::KeyDeleted);
}

/// A worker acknowledged its job along with a write on a lease of another's that had ended. It was told that its own session
/// had been revoked, and lost every lock on it.
#[tokio::test(start_paused = true)]
async fn another_lease_that_is_gone_does_not_end_the_session() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let queue = Queue::new(&session, "jobs").unwrap();
    queue.enqueue("job").await.unwrap();
    let job = queue.take().await.unwrap();
    let dead = Session::open(&client).await.unwrap();
    revoke(&fake.client_for("b"), dead.lease()).await;
    let error = job.ack_with([Op::put_with_lease("result", "1", dead.lease())]).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::LeaseNotFound, "{error}");
    assert!(session.is_valid() && guard.is_valid());
    // One's own is believed in no longer once it is found to be gone.
    let again = timeout(S(60), queue.take()).await.expect("redelivered").unwrap();
    revoke(&fake.client_for("b"), session.lease()).await;
    let ended = again.ack_with([Op::put_with_lease("result", "1", dead.lease())]).await.unwrap_err();
    assert_eq!(ended.lost_reason(), Some(LostReason::Revoked), "{ended}");
    assert!(!session.is_valid());
}

async fn counted(fake: &FakeEtcd) -> (Client, RpcCounter) {
    let counter = RpcCounter::new();
    let builder = Client::builder().service(fake.service()).layer(counter.clone());
    (builder.connect().await.unwrap(), counter)
}

/// The time passes, and nobody gets to see it yet.
fn stand_still(time: Duration) {
    let advance = std::pin::pin!(tokio::time::advance(time));
    let _ = advance.poll(&mut Context::from_waker(Waker::noop()));
}

/// An operator deleted one lock's key. Whose doing it was the client asked of a member that had led, had stood still, and
/// did not know that it led no more: it knew of no lease that had been granted since. So the session was taken for
/// revoked, and its other lock with it, whose key then kept all others waiting for the TTL.
#[tokio::test(start_paused = true)]
async fn a_member_of_the_past_that_knows_no_lease_ends_no_session() {
    let fake = FakeEtcd::start();
    let client = lies::knows_no_lease(&fake);
    let session = Session::builder(&client).ttl(S(30)).open().await.unwrap();
    let a = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let b = Mutex::new(&session, "b").unwrap().lock().await.unwrap();
    client.txn(Txn::new().success(Op::delete(a.key().clone()))).await.unwrap();
    assert_eq!(a.lost().await, LostReason::KeyDeleted);
    assert!(session.is_valid() && b.is_valid());

    // An acknowledgement with an operation that names a lease which is no more.
    let jobs = Queue::new(&session, "jobs").unwrap();
    jobs.enqueue("job").await.unwrap();
    let dead = || Op::put_with_lease("data", "x", 0x00de_ad1e_a5e0_0001);
    let refused = jobs.take().await.unwrap().ack_with([dead()]).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::LeaseNotFound);
    assert!(session.is_valid() && b.is_valid());

    // One whose reply was lost, and whose claim the second attempt finds gone: by the first, as the lease stands.
    let job = jobs.take().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::lose_reply());
    job.ack().await.expect("acknowledged by the first attempt");

    // And a barrier's hold whose second step was applied and not answered, and which another has released since.
    let barrier = Barrier::new(&session, "barrier").unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts).nth(2), Do::lose_reply_by(LoseReply::Hang));
    let (held, ()) = tokio::join!(barrier.hold(), async {
        fake.until(|_| lost.hits() == 1).await;
        let release = Txn::new().success(Op::delete_prefix("barrier"));
        fake.client().txn(release).await.unwrap();
    });
    held.expect("it was held");
    assert!(session.is_valid() && b.is_valid());
    b.unlock().await.unwrap();
}

/// The same member knows of leases that have been revoked since. An acknowledgement whose reply was lost found its claim
/// gone, and was taken for done because the lease stood, by that member's word.
#[tokio::test(start_paused = true)]
async fn a_lease_stands_by_its_leaders_word_alone() {
    let fake = FakeEtcd::start();
    let client = lies::knows_all_leases(&fake);
    let session = Session::builder(&client).ttl(S(30)).open().await.unwrap();
    let jobs = Queue::new(&session, "jobs").unwrap();
    jobs.enqueue("job").await.unwrap();
    let job = jobs.take().await.unwrap();
    // Not applied, and nothing is known of that; meanwhile the lease goes, and another has the item and deletes it.
    let vanished = fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::vanish());
    let (acknowledged, ()) = tokio::join!(job.ack(), async {
        fake.until(|_| vanished.hits() == 1).await;
        // Told to all but the session.
        let keep = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::delay(S(6)));
        revoke(&fake.client(), session.lease()).await;
        fake.client().txn(Txn::new().success(Op::delete_prefix("jobs"))).await.unwrap();
        keep.remove();
    });
    let error = acknowledged.expect_err("another has had it");
    // The item stood when the claim was gone: that tells more than the lease does.
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
}
