//! What a lock does: on the fake and on every real version, from the same bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use etcd_concurrency::{
    Client, Compare, ErrorKind, LostReason, Membership, Mutex, MutexGuard, Op, Outcome, Session, Txn,
};
use tokio::task::JoinHandle;

use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, queue, quiet, revoke, session, until_queue};

fn mutex(session: &Session, name: &str) -> Mutex {
    Mutex::new(session, name).expect("a good name")
}

/// Asks for the lock in a task, and returns once its key stands in the queue.
async fn ask(
    observer: &Client,
    session: &Session,
    name: &str,
    place: usize,
) -> JoinHandle<etcd_concurrency::Result<MutexGuard>> {
    let mutex = mutex(session, name);
    let asking = tokio::spawn(async move { mutex.lock().await });
    until_queue(observer, name, place).await;
    asking
}

on_every_backend! {
    /// The budget: two RPCs for a lock that nobody else wants.
    async fn an_uncontended_lock_is_one_rpc_and_its_release_another(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        let session = session(&client).await;
        let mutex = mutex(&session, &backend.key("lock"));
        counter.reset();
        let guard = mutex.lock().await.unwrap();
        assert_eq!(counter.unary_total(), 1, "{counter}");
        guard.unlock().await.unwrap();
        assert_eq!((counter.unary_total(), counter.count("Txn")), (2, 2), "{counter}");
        assert_eq!(queue(&backend.client(), &backend.key("lock")).await, 0);
    }

    async fn a_try_lock_that_fails_is_one_rpc_and_leaves_nothing(backend: Backend) {
        let (name, counter) = (backend.key("lock"), RpcCounter::new());
        let (a, b) = (backend.client(), backend.client_with(counter.clone()));
        let (a, b) = (session(&a).await, session(&b).await);
        let held = mutex(&a, &name).try_lock().await.unwrap();
        counter.reset();
        let error = mutex(&b, &name).try_lock().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        assert_eq!(counter.unary_total(), 1, "{counter}");
        assert_eq!(queue(a.client(), &name).await, 1);
        // A task of the same process is told without asking the server.
        counter.reset();
        let mine = mutex(&b, &backend.key("other")).lock().await.unwrap();
        let error = mutex(&b, &backend.key("other")).try_lock().await.unwrap_err();
        assert_eq!((error.kind(), counter.unary_total()), (&ErrorKind::Locked, 1));
        mine.unlock().await.unwrap();
        held.unlock().await.unwrap();
        assert_eq!(queue(a.client(), &name).await, 0);
    }

    /// The direct successor of the holder needs no RPC after the release; the one behind it needs one.
    async fn a_hand_over_costs_at_most_one_rpc(backend: Backend) {
        let backend = backend.alone().await;
        let name = backend.key("lock");
        let (near, far) = (RpcCounter::new(), RpcCounter::new());
        let observer = backend.client();
        let (near_client, far_client) = (backend.client_with(near.clone()), backend.client_with(far.clone()));
        let (a, b, c) = (session(&observer).await, session(&near_client).await, session(&far_client).await);
        let first = mutex(&a, &name).lock().await.unwrap();
        let token = first.token();
        let second = ask(&observer, &b, &name, 2).await;
        until("the second's watch", LONG, async || (near.count("Watch") == 1).then_some(())).await;
        let third = ask(&observer, &c, &name, 3).await;
        until("the third's watch", LONG, async || (far.count("Watch") == 1).then_some(())).await;
        // A look after the watch was acknowledged, where others wrote in between, comes before the release.
        quiet(&near).await;
        quiet(&far).await;
        near.reset();
        first.unlock().await.unwrap();
        let second = second.await.unwrap().unwrap();
        assert!(second.token() > token);
        assert_eq!(near.unary_total(), 0, "the release is the proof: {near}");
        far.reset();
        second.unlock().await.unwrap();
        let third = third.await.unwrap().unwrap();
        assert_eq!(far.unary_total(), 1, "one look proves that nobody older is left: {far}");
        third.unlock().await.unwrap();
    }

    /// After a second look the header was still that of the join: a read at its revision missed what the owners before
    /// had written.
    async fn the_header_is_as_young_as_the_proof(backend: Backend) {
        let (name, data, client) = (backend.key("lock"), backend.key("data"), backend.client());
        let (a, b, c) = (session(&client).await, session(&client).await, session(&client).await);
        let first = mutex(&a, &name).lock().await.unwrap();
        let second = ask(&client, &b, &name, 2).await;
        let third = ask(&client, &c, &name, 3).await;
        first.unlock().await.unwrap();
        let second = second.await.unwrap().unwrap();
        let written = second.txn().success(Op::put(data, "1")).commit().await.unwrap().header.revision;
        second.unlock().await.unwrap();
        let third = third.await.unwrap().unwrap();
        assert!(third.header().revision > written, "{:?}, written at {written}", third.header());
    }

    async fn locks_are_handed_on_in_the_order_of_asking(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let holder = session(&client).await;
        let held = mutex(&holder, &name).lock().await.unwrap();
        let mut asking = Vec::new();
        let mut sessions = Vec::new();
        for place in 2..8 {
            let waiter = session(&client).await;
            asking.push(ask(&client, &waiter, &name, place).await);
            sessions.push(waiter);
        }
        let mut token = held.token();
        held.unlock().await.unwrap();
        for asking in asking {
            let guard = asking.await.unwrap().unwrap();
            assert!(guard.token() > token, "{} after {token}", guard.token());
            token = guard.token();
            guard.unlock().await.unwrap();
        }
        assert_eq!(queue(&client, &name).await, 0);
    }

    /// Sixty-four tasks on eight sessions: two in the same session exclude each other too (etcd#11360).
    async fn many_tasks_on_few_sessions_exclude_each_other(backend: Backend) {
        let name = backend.key("lock");
        let (inside, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for _ in 0..8 {
                let (mutex, inside, last) = (mutex(&session, &name), inside.clone(), last.clone());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..3 {
                        let guard = mutex.lock().await.unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst), "two were inside at once");
                        let before = last.swap(guard.token(), Ordering::SeqCst);
                        assert!(before < guard.token(), "{before} before {}", guard.token());
                        tokio::task::yield_now().await;
                        assert!(inside.swap(false, Ordering::SeqCst));
                        guard.unlock().await.unwrap();
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        until_queue(&backend.client(), &name, 0).await;
    }

    async fn a_guard_that_is_dropped_releases(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let session = session(&client).await;
        drop(mutex(&session, &name).lock().await.unwrap());
        until_queue(&client, &name, 0).await;
        // At once for a task that asks again: it waits for the release under way.
        let guard = mutex(&session, &name).lock().await.unwrap();
        guard.unlock().await.unwrap();
    }

    async fn a_closed_session_gives_its_locks_to_the_next(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let held = mutex(&a, &name).lock().await.unwrap();
        let next = ask(&client, &b, &name, 2).await;
        a.close().await.unwrap();
        assert_eq!(held.lost().await, LostReason::Closed);
        let next = next.await.unwrap().unwrap();
        assert!(next.token() > held.token());
        let error = held.unlock().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
        assert!(next.is_valid());
    }

    /// The guard was lost with its session; whoever held on to its fence was told, once the guard had been dropped, that
    /// it had been released.
    async fn a_fence_that_outlives_a_lost_guard_tells_why_it_was_lost(backend: Backend) {
        let session = session(&backend.client()).await;
        let group = Membership::new(&session, backend.key("group")).unwrap();
        let (guard, member) = (mutex(&session, &backend.key("lock")), group.join(""));
        let (guard, member) = (guard.lock().await.unwrap(), member.await.unwrap());
        let fences = [guard.fence().clone(), member.fence().clone()];
        session.close().await.unwrap();
        drop((guard, member));
        for fence in fences {
            assert_eq!(fence.lost().await, LostReason::Closed, "{fence:?}");
        }
    }

    async fn a_revoked_lease_is_told_and_its_writes_are_refused(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let held = mutex(&a, &name).lock().await.unwrap();
        let next = ask(&client, &b, &name, 2).await;
        revoke(&client, a.lease()).await;
        assert_eq!(held.lost().await, LostReason::Revoked);
        let next = next.await.unwrap().unwrap();
        // What the guard would send if it did not know.
        let late = Txn::new().compare(held.is_owner()).success(Op::put(backend.key("data"), "late"));
        assert!(!client.txn(late).await.unwrap().succeeded);
        let reply = next.txn().success(Op::put(backend.key("data"), "next")).commit().await.unwrap();
        assert!(reply.succeeded);
    }

    async fn a_key_deleted_by_another_is_a_lock_lost(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        client.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
        assert_eq!(guard.lost().await, LostReason::KeyDeleted);
        assert!(!guard.is_valid() && session.is_valid());
        let error = guard.txn().success(Op::put(backend.key("data"), "late")).commit().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
        drop(guard);
        // The session is as good as before.
        mutex(&session, &name).lock().await.unwrap().unlock().await.unwrap();
    }

    /// A guard that nobody told: the fence tells.
    async fn a_fenced_write_is_refused_once_the_key_is_gone(backend: Backend) {
        let (name, data) = (backend.key("lock"), backend.key("data"));
        let client = backend.client();
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        let own = guard.txn().compare(Compare::missing(data.clone())).success(Op::put(data.clone(), "1"));
        assert!(own.commit().await.unwrap().succeeded);
        let again = guard.txn().compare(Compare::missing(data.clone())).failure(Op::get(data.clone()));
        let again = again.commit().await.unwrap();
        assert!(!again.succeeded, "the compare was the user's, and did not hold");
        assert_eq!(again.kvs(0).unwrap()[0].value, "1");
        client.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
        let error = guard.txn().success(Op::put(data.clone(), "2")).commit().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Fenced);
        let read = client.txn(Txn::new().success(Op::get(data))).await.unwrap();
        assert_eq!(read.kvs(0).unwrap()[0].value, "1");
    }

    /// A fenced write that names a lease of somebody's that is gone was taken for the loss of the guard's own session.
    async fn a_missing_lease_of_anothers_is_no_loss_of_ones_own(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let guard = mutex(&session, &backend.key("lock")).lock().await.unwrap();
        let put = Op::put_with_lease(backend.key("data"), "1", 0x7777);
        let error = guard.txn().success(put).commit().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::LeaseNotFound, Outcome::NotApplied));
        assert!(guard.is_valid() && session.is_valid());
        guard.unlock().await.unwrap();
    }

    async fn a_waiter_whose_key_is_deleted_is_told(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let _held = mutex(&a, &name).lock().await.unwrap();
        let waiting = ask(&client, &b, &name, 2).await;
        let key = format!("{name}/{:x}", b.lease());
        client.txn(Txn::new().success(Op::delete(key))).await.unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
    }

    /// etcd#19597: waiters of Go's package ignore the death of their own session.
    async fn a_waiter_whose_session_ends_is_told_at_once(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let _held = mutex(&a, &name).lock().await.unwrap();
        let waiting = ask(&client, &b, &name, 2).await;
        b.close().await.unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed), "{error}");
    }

    /// The one in the middle goes: the last must not take the lock from the first.
    async fn a_waiter_in_the_middle_that_leaves_wakes_nobody_too_soon(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let (a, b, c) = (session(&client).await, session(&client).await, session(&client).await);
        let held = mutex(&a, &name).lock().await.unwrap();
        let middle = ask(&client, &b, &name, 2).await;
        let last = ask(&client, &c, &name, 3).await;
        middle.abort();
        until_queue(&client, &name, 2).await;
        assert!(!last.is_finished());
        let token = held.token();
        held.unlock().await.unwrap();
        assert!(last.await.unwrap().unwrap().token() > token);
    }

    async fn work_is_dropped_when_the_lock_is_lost(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        let (dropped, told) = tokio::sync::oneshot::channel::<()>();
        let lease = session.lease();
        let work = async move {
            let _dropped = dropped;
            revoke(&client, lease).await;
            std::future::pending::<()>().await
        };
        let error = guard.run(work).await.unwrap_err();
        assert!(error.lost_reason().is_some(), "{error}");
        told.await.expect_err("the work is gone");
    }

    async fn cooperative_work_ends_by_itself_when_told(backend: Backend) {
        let name = backend.key("lock");
        let client = backend.client();
        let session = session(&client).await;
        let guard = mutex(&session, &name).lock().await.unwrap();
        let flushed = Arc::new(AtomicBool::new(false));
        let (lease, done) = (session.lease(), flushed.clone());
        let error = guard
            .run_cooperative(|told| async move {
                revoke(&client, lease).await;
                told.cancelled().await;
                tokio::task::yield_now().await;
                done.store(true, Ordering::SeqCst);
            })
            .await
            .unwrap_err();
        assert!(error.lost_reason().is_some(), "{error}");
        assert!(flushed.load(Ordering::SeqCst), "the work was cut off");
        // And without a loss its value comes back, and the lock is free.
        let fresh = self::session(&backend.client()).await;
        let guard = mutex(&fresh, &name).lock().await.unwrap();
        assert_eq!(guard.run_cooperative(|_| async { 7 }).await.unwrap(), 7);
        assert_eq!(queue(&backend.client(), &name).await, 0);
    }

    /// A key of the name that a session's key has, put by hand and without its lease, was taken up as the session's own. No other
    /// contender counts such a key: two held the lock. Then it was put over with the session's lease, but kept its create_revision,
    /// which was older than that of the holder's key: again two held the lock.
    async fn a_key_of_our_name_without_our_lease_gives_no_lock(backend: Backend) {
        let name = backend.key("lock");
        let (session, rival) = (session(&backend.client()).await, session(&backend.client()).await);
        let key = format!("{name}/{:x}", session.lease());
        backend.client().txn(Txn::new().success(Op::put(key.clone(), "an order"))).await.unwrap();
        let guard = mutex(&rival, &name).lock().await.unwrap();
        let mutex = mutex(&session, &name);
        for tries in [true, false] {
            let error = if tries { mutex.try_lock().await } else { mutex.lock().await }.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
        let delete = Txn::new().compare(Compare::value(key.clone()).is("an order"));
        let deleted = backend.client().txn(delete.success(Op::delete(key))).await.unwrap();
        assert!(deleted.succeeded, "what another put is left alone");
        assert_eq!(*mutex.try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        guard.unlock().await.unwrap();
        mutex.try_lock().await.unwrap().unlock().await.unwrap();
    }
}
