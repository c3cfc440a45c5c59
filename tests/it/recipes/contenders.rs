//! Who counts in a line: contenders' keys, and no other that is below a name.

use std::time::Duration;

use etcd_concurrency::{
    Client, Election, ErrorKind, Membership, MultiLock, Mutex, Op, Queue, RwLock, Semaphore, Session, Stm,
    Txn,
};
use tokio::time::timeout;

use super::ask;
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::queue::{queue, session, until_queue};

async fn put(client: &Client, key: impl Into<bytes::Bytes>) {
    client.txn(Txn::new().success(Op::put(key, "a user's"))).await.expect("a put");
}

/// Less than a waiter's second look takes.
const SOON: Duration = Duration::from_secs(30);

fn mutex(session: &Session, name: &str) -> Mutex {
    Mutex::new(session, name).expect("a good name")
}

on_every_backend! {
    /// The README's example put `jobs/nightly/owner` below the lock `jobs/nightly`. Run twice, the second run waited for that
    /// key for ever.
    async fn a_users_key_below_a_lock_is_not_waited_for(backend: Backend) {
        let (name, counter) = (backend.key("nightly"), RpcCounter::new());
        let session = session(&backend.client_with(counter.clone())).await;
        let (mutex, election) = (mutex(&session, &name), Election::new(&session, &name).unwrap());
        for run in 0..2 {
            counter.reset();
            let guard = timeout(SOON, mutex.lock()).await.expect("in time").unwrap();
            assert_eq!(counter.unary_total(), 1, "run {run}: {counter}");
            put(session.client(), format!("{name}/owner")).await;
            guard.unlock().await.unwrap();
            let leadership = timeout(SOON, election.campaign("me")).await.expect("in time").unwrap();
            let (key, token) = (leadership.key().clone(), leadership.token());
            assert_eq!(*election.resume(key, token).await.unwrap_err().kind(), ErrorKind::Locked);
            leadership.resign().await.unwrap();
            mutex.try_lock().await.unwrap().unlock().await.unwrap();
        }
        for n in 0..3 {
            put(session.client(), format!("{name}/backup/{n}")).await;
        }
        counter.reset();
        let guard = mutex.lock().await.unwrap();
        assert_eq!(counter.unary_total(), 2, "one read more, where the youngest keys are no contenders': {counter}");
        guard.unlock().await.unwrap();
        let tried = mutex.try_lock().await.unwrap();
        assert_eq!(queue(session.client(), &name).await, 5);
        tried.unlock().await.unwrap();
    }

    /// What a guard's transaction puts below the lock's own name would keep Go's clients waiting.
    async fn a_guard_puts_nothing_below_its_own_name(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        let below = || Op::put(format!("{name}/owner"), "me");
        let nested = Op::txn(Txn::new().failure(below()));
        for refused in [guard.txn().success(below()), guard.txn().failure(below()), guard.txn().success(nested)] {
            let error = refused.commit().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
        }
        let own = Op::put_with_lease(guard.key().clone(), "busy", session.lease());
        let beside = Op::put(format!("{name}-owner"), "me");
        let fine = guard.txn().success(own).success(beside).success(Op::delete(format!("{name}/owner")));
        assert!(fine.commit().await.unwrap().succeeded);
        let writing = RwLock::new(&session, &name).unwrap().write().await.unwrap();
        let error = writing.txn().success(below()).commit().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
        let both = MultiLock::new(&session, [backend.key("x"), backend.key("y")]).unwrap().lock().await.unwrap();
        let error = both.txn().success(Op::put(backend.key("y/1"), "")).commit().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
    }

    /// The same by the STM behind a fence, which put such a key without a word.
    async fn a_fenced_run_puts_nothing_below_its_own_name(backend: Backend) {
        let (name, client, counter) = (backend.key("lock"), backend.client(), RpcCounter::new());
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        let stm = Stm::new(&backend.client_with(counter.clone())).fenced(&guard);
        let below = format!("{name}/owner");
        for how in ["put", "with a lease", "keeping the lease", "behind a read"] {
            let (below, lease, beside) = (below.clone(), session.lease(), format!("{name}-owner"));
            let run = stm.run(|txn| {
                let (below, beside) = (below.clone(), beside.clone());
                async move {
                    if how == "behind a read" {
                        txn.get(beside.clone()).await?;
                    }
                    txn.put(beside, "me")?;
                    match how {
                        "with a lease" => txn.put_with_lease(below, "me", lease),
                        "keeping the lease" => txn.put_keep_lease(below, "me"),
                        _ => txn.put(below, "me"),
                    }
                }
            });
            let error = run.await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{how}: {error}");
        }
        assert_eq!(counter.unary_total(), 1, "the read: {counter}");
        let marked = stm.clone().marker_prefix(format!("{name}/")).exactly_once(&session);
        let error = marked.run(|txn| async move { txn.put("x", "") }).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
        let fine = stm.run(|txn| {
            let (below, beside) = (below.clone(), format!("{name}-owner"));
            async move {
                txn.get(below.clone()).await?;
                txn.del(below)?;
                txn.put(beside, "me")
            }
        });
        fine.await.unwrap();
        assert_eq!(queue(&client, &name).await, 1, "the guard's key alone");
    }

    /// Contenders are found behind keys that are none, and are waited for.
    async fn a_contender_behind_users_keys_is_waited_for(backend: Backend) {
        let (name, client, counter) = (backend.key("lock"), backend.client(), RpcCounter::new());
        let (a, b) = (session(&client).await, session(&backend.client_with(counter.clone())).await);
        let held = mutex(&a, &name).lock().await.unwrap();
        put(&client, format!("{name}/owner")).await;
        counter.reset();
        assert_eq!(*mutex(&b, &name).try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(counter.unary_total(), 1, "{counter}");
        for n in 0..3 {
            put(&client, format!("{name}/backup/{n}")).await;
        }
        assert_eq!(*mutex(&b, &name).try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        let (waiting, waits) = (mutex(&b, &name), async |then: usize| until_queue(&client, &name, then).await);
        let waiting = tokio::spawn(async move { waiting.lock().await });
        waits(6).await;
        put(&client, format!("{name}/last")).await;
        held.unlock().await.unwrap();
        let guard = timeout(SOON, waiting).await.expect("in time").unwrap().unwrap();
        let third = mutex(&a, &name);
        let third = tokio::spawn(async move { third.lock().await });
        waits(7).await;
        assert!(!third.is_finished());
        guard.unlock().await.unwrap();
        timeout(SOON, third).await.expect("in time").unwrap().unwrap().unlock().await.unwrap();
    }

    /// `a` waited for the holder of `a/b`, even within one session, and a lock on both for its own key, with all others
    /// behind it.
    async fn a_name_below_another_is_another_lock(backend: Backend) {
        let (a, client) = (backend.key("a"), backend.client());
        let (one, two) = (session(&client).await, session(&client).await);
        let below = mutex(&one, &format!("{a}/b")).lock().await.unwrap();
        for session in [&one, &two] {
            let guard = timeout(SOON, mutex(session, &a).lock()).await.expect("in time").unwrap();
            guard.unlock().await.unwrap();
            mutex(session, &a).try_lock().await.unwrap().unlock().await.unwrap();
        }
        below.unlock().await.unwrap();
        for names in [["", "/b", "/c"], ["", "/", "//"]] {
            let names = names.map(|end| format!("{a}{end}"));
            let all = MultiLock::new(&one, &names).unwrap();
            let guard = timeout(SOON, all.lock()).await.expect("in time").unwrap();
            for name in &names {
                assert_eq!(*mutex(&two, name).try_lock().await.unwrap_err().kind(), ErrorKind::Locked, "{name}");
            }
            let next = mutex(&two, &names[1]);
            // Below `a/` are the keys of `a//`, too.
            let place = if names[1].ends_with('/') { 3 } else { 2 };
            let next = ask(&backend, &names[1], place, async move { next.lock().await }).await;
            guard.unlock().await.unwrap();
            timeout(SOON, next).await.expect("in time").unwrap().unwrap().unlock().await.unwrap();
            all.try_lock().await.unwrap().unlock().await.unwrap();
        }
    }

    /// A lock on the name of a queue or a semaphore was never free.
    async fn other_recipes_keys_are_not_waited_for(backend: Backend) {
        let (name, client) = (backend.key("name"), backend.client());
        let session = session(&client).await;
        let queue = Queue::new(&session, &name).unwrap();
        queue.enqueue("item").await.unwrap();
        let permit = Semaphore::new(&session, &name, 2).unwrap().acquire().await.unwrap();
        let reading = RwLock::new(&session, &name).unwrap().read().await.unwrap();
        let guard = timeout(SOON, mutex(&session, &name).lock()).await.expect("in time").unwrap();
        let tried = RwLock::new(&session, &name).unwrap().try_read().await.unwrap();
        drop((guard, permit, reading, tried));
    }

    /// Go's keys of an RWMutex are numbers; what else is there is no contender's.
    async fn readers_and_writers_are_told_from_users_keys(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let session = session(&client).await;
        let lock = RwLock::new(&session, &name).unwrap();
        for key in ["owner", "read/owner", "write/owner", "5", "write/a/5-0123456789abcdef"] {
            put(&client, format!("{name}/{key}")).await;
        }
        timeout(SOON, lock.read()).await.expect("in time").unwrap().unlock().await.unwrap();
        timeout(SOON, lock.write()).await.expect("in time").unwrap().unlock().await.unwrap();
        lock.try_write().await.unwrap().unlock().await.unwrap();
        let gos = format!("{name}/read/1732817281000000000");
        put(&client, gos.clone()).await;
        put(&client, format!("{name}/later")).await;
        assert_eq!(*lock.try_write().await.unwrap_err().kind(), ErrorKind::Locked);
        lock.try_read().await.unwrap().unlock().await.unwrap();
        let writer = lock.clone();
        let writing = ask(&backend, &name, 8, async move { writer.write().await }).await;
        client.txn(Txn::new().success(Op::delete(gos))).await.unwrap();
        timeout(SOON, writing).await.expect("in time").unwrap().unwrap().unlock().await.unwrap();
    }

    /// An order's number, a job's, a user's name: what is in hex digits alone was taken for a holder's key, and a lock on
    /// `orders` was never free.
    async fn a_users_key_that_is_called_like_a_lease_is_not_waited_for(backend: Backend) {
        for many in [false, true] {
            let (name, client, counter) = (backend.key("orders"), backend.client(), RpcCounter::new());
            let name = format!("{name}/{many}");
            let (a, b) = (session(&client).await, session(&backend.client_with(counter.clone())).await);
            let other = session(&client).await;
            put(&client, format!("{name}/1001")).await;
            let leased = Op::put_with_lease(format!("{name}/ada"), "a user's", other.lease());
            client.txn(Txn::new().success(leased)).await.unwrap();
            for n in 0..if many { 150 } else { 0 } {
                put(&client, format!("{name}/{:x}", 0x2000 + n)).await;
            }
            let (election, mutex_b) = (Election::new(&b, &name).unwrap(), mutex(&b, &name));
            assert_eq!((election.leader().await.unwrap(), election.contenders().await.unwrap()), (None, vec![]));
            let mut observer = election.observe();
            assert_eq!(timeout(SOON, observer.next()).await.expect("in time").unwrap(), None);
            counter.reset();
            let guard = timeout(SOON, mutex_b.lock()).await.expect("not for a user's key").unwrap();
            assert!(counter.unary_total() <= if many { 4 } else { 3 }, "{counter}");
            assert_eq!(*mutex(&a, &name).try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
            // A contender among them is waited for.
            let waits = mutex(&a, &name);
            let keys = queue(&client, &name).await;
            let waiting = ask(&backend, &name, keys + 1, async move { waits.lock().await }).await;
            for n in 0..if many { 3 } else { 0 } {
                put(&client, format!("{name}/{:x}", 0x3000 + n)).await;
            }
            let third = mutex(&other, &name);
            let keys = queue(&client, &name).await;
            let third = ask(&backend, &name, keys + 1, async move { third.lock().await }).await;
            guard.unlock().await.unwrap();
            let guard = timeout(SOON, waiting).await.expect("in time").unwrap().unwrap();
            assert!(!third.is_finished());
            guard.unlock().await.unwrap();
            timeout(SOON, third).await.expect("in time").unwrap().unwrap().unlock().await.unwrap();
            timeout(SOON, mutex_b.try_lock()).await.unwrap().unwrap().unlock().await.unwrap();
            let led = timeout(SOON, election.campaign("me")).await.expect("in time").unwrap();
            assert_eq!(election.leader().await.unwrap().unwrap().token, led.token());
            let many_names = MultiLock::new(&a, [&name, &format!("{name}-too")]).unwrap();
            assert_eq!(*many_names.try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
            led.resign().await.unwrap();
            timeout(SOON, many_names.lock()).await.expect("in time").unwrap().unlock().await.unwrap();
        }
    }

    /// A member's key was in the shape of a contender's: who joined a group and then campaigned under its name waited for its
    /// own member, and a lock on several names was shown as a member.
    async fn members_stand_in_no_line(backend: Backend) {
        let (name, client) = (backend.key("svc"), backend.client());
        let session = session(&client).await;
        let (group, election) = (Membership::new(&session, &name).unwrap(), Election::new(&session, &name).unwrap());
        let member = group.join("here").await.unwrap();
        assert_eq!(election.leader().await.unwrap(), None);
        let led = timeout(SOON, election.campaign("me")).await.expect("not for a member").unwrap();
        led.resign().await.unwrap();
        timeout(SOON, mutex(&session, &name).lock()).await.expect("not for a member").unwrap().unlock().await.unwrap();
        let both = MultiLock::new(&session, [&name, &format!("{name}-too")]).unwrap();
        let guard = timeout(SOON, both.try_lock()).await.expect("not for a member").unwrap();
        let peers = group.list().await.unwrap();
        assert_eq!(peers.iter().map(|peer| &peer.key).collect::<Vec<_>>(), [member.key()]);
        guard.unlock().await.unwrap();
    }

    /// A key that is nobody's permit took one for good.
    async fn a_users_key_takes_no_permit(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let semaphore = Semaphore::new(&session, &name, 1).unwrap();
        for n in 0..40 {
            put(&client, format!("{name}/queue/mine/{n}")).await;
        }
        semaphore.try_acquire().await.unwrap().release().await.unwrap();
        let held = timeout(SOON, semaphore.acquire()).await.expect("in time").unwrap();
        assert_eq!(*semaphore.try_acquire().await.unwrap_err().kind(), ErrorKind::Locked);
        let asking = semaphore.clone();
        let waiting = ask(&backend, &format!("{name}/queue"), 42, async move { asking.acquire().await }).await;
        for n in 0..3 {
            put(&client, format!("{name}/queue/{n}")).await;
        }
        held.release().await.unwrap();
        timeout(SOON, waiting).await.expect("in time").unwrap().unwrap().release().await.unwrap();
    }
}
