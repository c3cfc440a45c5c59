//! What a guard's fence keeps from being applied.

use std::any::Any;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{PutRequest, WatchRequest, watch_request::RequestUnion};
use etcd_concurrency::{
    Client, DoubleBarrier, Election, ErrorKind, Fence, LostReason, Membership, MultiLock, Mutex, Op, Outcome,
    Queue, RwLock, Semaphore, Session, Stm, Txn,
};
use tokio::time::timeout;

use crate::support::backend::on_every_backend;
use crate::support::queue::session;

/// What a client finds below a key.
async fn found(client: &Client, key: &str) -> usize {
    let reply = client.txn(Txn::new().success(Op::get_prefix(key.to_owned()))).await.expect("a read");
    reply.kvs(0).expect("a range").len()
}

/// Guards of all kinds, and a fence of each.
struct Everything {
    fences: Vec<(&'static str, Fence)>,
    _guards: Box<dyn Any + Send>,
}

async fn everything(session: &Session, name: impl Fn(&str) -> String) -> Everything {
    let mutex = Mutex::new(session, name("mutex")).unwrap().lock().await.unwrap();
    let reading = RwLock::new(session, name("read")).unwrap().read().await.unwrap();
    let writing = RwLock::new(session, name("write")).unwrap().write().await.unwrap();
    let permits = Semaphore::new(session, name("permits"), 3).unwrap().acquire_many(2).await.unwrap();
    let both = MultiLock::new(session, [name("one"), name("two")]).unwrap().lock().await.unwrap();
    let leading = Election::new(session, name("election")).unwrap().campaign("me").await.unwrap();
    let member = Membership::new(session, name("members")).unwrap().join("me").await.unwrap();
    let inside = DoubleBarrier::new(session, name("rounds"), 1).unwrap().enter().await.unwrap();
    let queue = Queue::new(session, name("queue")).unwrap();
    queue.enqueue("item").await.unwrap();
    let job = queue.take().await.unwrap();
    let fences: [(&str, &Fence); 9] = [
        ("mutex", &mutex),
        ("reader", &reading),
        ("writer", &writing),
        ("permits", &permits),
        ("several locks", &both.fences()[1]),
        ("leader", &leading),
        ("member", &member),
        ("participant", &inside),
        ("job", &job),
    ];
    Everything {
        fences: fences.into_iter().map(|(who, fence)| (who, fence.clone())).collect(),
        _guards: Box::new((mutex, reading, writing, permits, both, leading, member, inside, job)),
    }
}

on_every_backend! {
    /// A holder's transaction had operations for when its compares fail, and, this time, no compare. The holder's key had
    /// been deleted by another client. The server found the fence's own compares to fail, applied the holder's operations
    /// for that case, and the holder was told that nothing was applied.
    async fn a_fallen_fence_lets_no_operation_through(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let name = |of: &str| backend.key(of);
        let held = everything(&session, name).await;
        let key = name("written");
        for &(who, ref fence) in &held.fences {
            let write = || {
                let txn = fence.txn().success(Op::put(name("fine"), who));
                txn.failure(Op::put(key.clone(), who)).failure(Op::delete(name("fine")))
            };
            assert!(write().commit().await.unwrap().succeeded, "{who}");
            client.txn(Txn::new().success(Op::delete(fence.key().clone()))).await.unwrap();
            let error = write().commit().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Lost(_)), "{who}: {error}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{who}");
            assert_eq!(found(&client, &key).await, 0, "{who} wrote without its key");
            assert_eq!(found(&client, &name("fine")).await, 1, "{who} deleted without its key");
        }
    }

    /// A guard's transaction put the guard's own key without the session's lease. The holder crashed, and the key stayed for
    /// ever: the lock was never free again.
    async fn a_guards_own_key_keeps_its_lease(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let held = everything(&session, |of| backend.key(of)).await;
        let stm = Stm::new(&client);
        for &(who, ref fence) in &held.fences {
            let own = fence.key().clone();
            let detached = || Op::put(own.clone(), "busy");
            let nested = Op::txn(Txn::new().failure(detached()));
            let others = Op::put_with_lease(own.clone(), "busy", 7);
            for refused in [fence.txn().success(detached()), fence.txn().success(nested), fence.txn().success(others)] {
                let error = refused.commit().await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "lease", .. }), "{who}: {error}");
                assert_eq!(error.outcome(), Outcome::NotApplied);
            }
            let stm = stm.clone().fenced(fence);
            let error = stm.run(|txn| {
                let put = txn.put(own.clone(), "busy");
                async move { put }
            }).await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "lease", .. }), "{who}: {error}");
            let held = found(&client, std::str::from_utf8(&own).unwrap()).await;
            assert_eq!(held, 1, "{who}");
            if who == "permits" || who == "job" {
                continue; // What these keys say is read by others.
            }
            let keeps = PutRequest { key: own.clone(), value: "busy".into(), ignore_lease: true, ..Default::default() };
            assert!(fence.txn().success(Op::from(keeps)).commit().await.unwrap().succeeded, "{who}");
            let leased = Op::put_with_lease(own.clone(), "busy", session.lease());
            assert!(fence.txn().success(leased).commit().await.unwrap().succeeded, "{who}");
        }
    }

    /// The STM behind a fence put keys below the lock's own name, which Go's clients wait for.
    async fn a_fenced_run_puts_nothing_below_the_locks_name(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let session = session(&client).await;
        let guard = Mutex::new(&session, &name).unwrap().lock().await.unwrap();
        let stm = Stm::new(&client).fenced(&guard);
        let error = stm.run(|txn| {
            let put = txn.put(format!("{name}/owner"), "me");
            async move { put }
        }).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
        assert_eq!(found(&client, &format!("{name}/")).await, 1);
    }
}

/// The watch of a guard's key could not be opened, while all else went well. The key was deleted, another client held the
/// lock, and the work that the guard ran was not stopped.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_watch_never_begins_looks_for_itself() {
    let fake = FakeEtcd::start();
    fake.fault(On::open(Rpc::Watch).client("holder"), Do::cut());
    let session = session(&fake.client_for("holder")).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let key = guard.key().clone();
    let working = tokio::spawn(guard.run(std::future::pending::<()>()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!working.is_finished());
    fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(130), working).await.expect("in time").unwrap();
    assert_eq!(stopped.unwrap_err().lost_reason(), Some(LostReason::KeyDeleted));
}

/// The guard's watch had been acknowledged. Then its stream broke and could not be opened again, while all else was answered:
/// another client deleted the key, a third took the lock, and `lost()` told nothing.
#[tokio::test(start_paused = true)]
async fn a_guard_whose_stream_cannot_be_opened_again_reads_its_key() {
    let fake = FakeEtcd::start();
    let holder = session(&fake.client_for("holder")).await;
    let guard = Mutex::new(&holder, "lock").unwrap().lock().await.unwrap();
    let lost = guard.lost();
    tokio::pin!(lost);
    timeout(Duration::from_secs(600), &mut lost).await.expect_err("it is held");
    let reads = fake.history().calls(Rpc::Range).count();
    assert_eq!(reads, 0, "nothing is read while the watch stands");
    let _away = fake.fault(On::open(Rpc::Watch).client("holder"), Do::cut());
    fake.cut_streams("holder");
    timeout(Duration::from_secs(600), &mut lost).await.expect_err("it is held still");
    fake.client().txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
    let other = session(&fake.client()).await;
    let _other = Mutex::new(&other, "lock").unwrap().lock().await.unwrap();
    let told = timeout(Duration::from_secs(130), lost).await.expect("it looks once in one or two minutes");
    assert_eq!(told, LostReason::KeyDeleted);
}

/// A holder deleted its own key behind its fence, to write a result and give the lock up in one step. Its guard took the
/// revision of that for one at which the key stood, watched from there on, and was never told.
#[tokio::test(start_paused = true)]
async fn a_guard_that_deletes_its_own_key_is_told() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let give_up = |key: &[u8]| Op::delete(key.to_vec());
    for nested in [false, true] {
        let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
        let op = give_up(guard.key());
        let op = if nested { Op::txn(Txn::new().success(op)) } else { op };
        guard.txn().success(Op::put("result", "1")).success(op).commit().await.unwrap();
        assert_eq!(
            timeout(Duration::from_secs(150), guard.lost()).await.expect("told"),
            LostReason::KeyDeleted
        );
        assert!(!guard.is_valid());
    }
}

/// The key of a leader had been put long ago, and its past was compacted. The task that waited for its loss watched from the put on:
/// the server refused that, and the key had to be read before it was watched, each time.
#[tokio::test(start_paused = true)]
async fn the_past_of_a_key_is_not_asked_for() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let before = Election::new(&session, "seat").unwrap().campaign("x").await.unwrap();
    let (key, token) = (before.key().clone(), before.token());
    client.txn(Txn::new().success(Op::put("other", "0"))).await.unwrap();
    client.txn(Txn::new().success(Op::put("other", "1"))).await.unwrap();
    fake.compact(fake.revision()).unwrap();
    let adopter = Session::builder(&client).lease(session.orphan()).open().await.unwrap();
    let leadership = Election::new(&adopter, "seat").unwrap().resume(&key, token).await.unwrap();
    let waits = async |since: i64| {
        let past = move |request: &WatchRequest| match &request.request_union {
            Some(RequestUnion::CreateRequest(create)) => (1..=since).contains(&create.start_revision),
            _ => false,
        };
        let reads = fake.fault(On::rpc(Rpc::Range), Do::delay(Duration::ZERO));
        let past = fake.fault(On::rpc(Rpc::Watch).matching(past), Do::delay(Duration::ZERO));
        // All of them together are over before the key would be read anyway.
        timeout(Duration::from_secs(10), leadership.lost()).await.expect_err("it stands");
        (past.seen(), reads.seen())
    };
    assert_eq!(waits(fake.revision()).await, (0, 0), "it stood when it was taken up");
    // So it did when a transaction behind its fence was committed.
    client.txn(Txn::new().success(Op::put("other", "2"))).await.unwrap();
    leadership.txn().success(Op::put("x", "y")).commit().await.unwrap();
    fake.compact(fake.revision()).unwrap();
    assert_eq!(waits(fake.revision()).await, (0, 0));
    // And when it was read because its past was gone.
    client.txn(Txn::new().success(Op::put("other", "3"))).await.unwrap();
    client.txn(Txn::new().success(Op::put("other", "4"))).await.unwrap();
    let compacted = fake.revision();
    fake.compact(compacted).unwrap();
    assert_eq!(waits(compacted).await, (1, 1));
    assert_eq!(waits(compacted).await, (0, 0));
    client.txn(Txn::new().success(Op::delete(key))).await.unwrap();
    assert_eq!(leadership.lost().await, LostReason::KeyDeleted);
    drop(before);
}
