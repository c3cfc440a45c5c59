//! Several names, all or none, and nobody waits in a circle.

use std::collections::HashSet;
use std::sync::{Arc, Mutex as Shared};

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{ErrorKind, LostReason, MultiLock, Mutex, Op, Session, Txn};

use super::ask;
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::env;
use crate::support::queue::{queue, revoke, session, until_queue};
use crate::support::requests::released_unseen;

fn locks(session: &Session, prefix: &str, names: &[usize]) -> MultiLock {
    MultiLock::new(session, names.iter().map(|name| format!("{prefix}{name}"))).expect("good names")
}

on_every_backend! {
    /// The budget: one RPC in, one out, however many they are.
    async fn ten_free_names_are_one_rpc_and_one(backend: Backend) {
        let counter = RpcCounter::new();
        let session = session(&backend.client_with(counter.clone())).await;
        let names: Vec<_> = (0..10).collect();
        let locks = locks(&session, backend.prefix(), &names);
        counter.reset();
        let guard = locks.lock().await.unwrap();
        assert_eq!(counter.unary_total(), 1, "{counter}");
        assert_eq!(guard.fences().len(), 10);
        assert!(guard.fences().iter().all(|fence| fence.token() == guard.token()));
        guard.unlock().await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
        locks.try_lock().await.unwrap().unlock().await.unwrap();
        assert_eq!(counter.unary_total(), 4, "{counter}");
    }

    async fn it_is_the_same_lock_as_a_mutex(backend: Backend) {
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let name = |n: usize| format!("{}{n}", backend.prefix());
        let held = Mutex::new(&a, name(1)).unwrap().lock().await.unwrap();
        let both = locks(&b, backend.prefix(), &[0, 1]);
        assert_eq!(*both.try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(queue(&client, &name(0)).await, 0, "all or none");
        let waiting = ask(&backend, &name(1), 2, async move { both.lock().await }).await;
        assert_eq!(*Mutex::new(&a, name(0)).unwrap().try_lock().await.unwrap_err().kind(), ErrorKind::Locked);
        let token = held.token();
        held.unlock().await.unwrap();
        let guard = waiting.await.unwrap().unwrap();
        assert!(guard.token() > token);
        let again = Mutex::new(&a, name(0)).unwrap();
        let again = ask(&backend, &name(0), 2, async move { again.lock().await }).await;
        guard.unlock().await.unwrap();
        again.await.unwrap().unwrap().unlock().await.unwrap();
    }

    /// One of the keys is deleted by somebody: the guard is lost, its transactions are refused, and the others go.
    async fn to_lose_one_is_to_lose_all(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let guard = locks(&session, backend.prefix(), &[0, 1, 2]).lock().await.unwrap();
        client.txn(Txn::new().success(Op::delete(guard.fences()[1].key().clone()))).await.unwrap();
        let error = guard.txn().success(Op::put(backend.key("data"), "late")).commit().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Fenced);
        assert_eq!(guard.lost().await, LostReason::KeyDeleted);
        assert!(!guard.is_valid());
        let error = guard.unlock().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
        for n in 0..3 {
            until_queue(&client, &format!("{}{n}", backend.prefix()), 0).await;
        }
    }

    /// One of the keys was deleted, and the server had refused a transaction for it: the guard went on being valid, and so
    /// did the fences of the other names, whose transactions were committed.
    async fn a_refusal_fells_all_fences(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let guard = locks(&session, backend.prefix(), &[0, 1, 2]).lock().await.unwrap();
        client.txn(Txn::new().success(Op::delete(guard.fences()[1].key().clone()))).await.unwrap();
        let by_another = guard.fences()[2].txn().success(Op::put(backend.key("data"), "late")).commit();
        assert_eq!(*by_another.await.unwrap_err().kind(), ErrorKind::Fenced);
        assert!(!guard.is_valid() && guard.fences().iter().all(|fence| !fence.is_valid()));
        drop(guard);
        for n in 0..3 {
            until_queue(&client, &format!("{}{n}", backend.prefix()), 0).await;
        }
    }

    /// The key of a name that it need not wait for is deleted while it waits for another.
    async fn what_is_lost_while_waiting_is_not_held_afterwards(backend: Backend) {
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let name = |n: usize| format!("{}{n}", backend.prefix());
        let held = Mutex::new(&a, name(1)).unwrap().lock().await.unwrap();
        let both = locks(&b, backend.prefix(), &[0, 1]);
        let waiting = ask(&backend, &name(1), 2, async move { both.lock().await }).await;
        client.txn(Txn::new().success(Op::delete_prefix(format!("{}/", name(0))))).await.unwrap();
        held.unlock().await.unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
        until_queue(&client, &name(1), 0).await;
    }

    async fn a_lost_session_frees_all(backend: Backend) {
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let guard = locks(&a, backend.prefix(), &[0, 1]).lock().await.unwrap();
        let next = locks(&b, backend.prefix(), &[1, 2]);
        let next = ask(&backend, &format!("{}1", backend.prefix()), 2, async move { next.lock().await }).await;
        revoke(&client, a.lease()).await;
        let next = next.await.unwrap().unwrap();
        assert_eq!(guard.lost().await, LostReason::Revoked);
        assert!(next.txn().success(Op::put(backend.key("data"), "next")).commit().await.unwrap().succeeded);
        next.unlock().await.unwrap();
    }

    /// 64 tasks over 8 sessions, each with a set of its own, in an order of its own.
    async fn overlapping_sets_never_wait_in_a_circle(backend: Backend) {
        let taken = Arc::new(Shared::new(HashSet::new()));
        let mut tasks = Vec::new();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for _ in 0..8 {
                let how_many = 1 + random.usize(0..3);
                let names = random.choose_multiple(0..6, how_many);
                let (locks, taken) = (locks(&session, backend.prefix(), &names), taken.clone());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..3 {
                        let guard = locks.lock().await.unwrap();
                        for name in &names {
                            assert!(taken.lock().unwrap().insert(*name), "{name} is held twice");
                        }
                        tokio::task::yield_now().await;
                        for name in &names {
                            taken.lock().unwrap().remove(name);
                        }
                        guard.unlock().await.unwrap();
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn names_are_checked(backend: Backend) {
        let session = session(&backend.client()).await;
        for (names, culprit) in [(vec![], "names"), (vec!["a", ""], "name"), (vec!["a", "b", "a"], "names")] {
            let error = MultiLock::new(&session, names).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what, .. } if *what == culprit), "{error}");
        }
    }
}

/// Random overlapping sets, by ten tasks: all get what they want. `MULTILOCK_SETS=n` makes them so many,
/// `MULTILOCK_SEED=x` replays a run.
#[tokio::test(start_paused = true)]
async fn many_sets_without_a_deadlock() {
    let fake = FakeEtcd::builder().history_limit(0).start();
    let mut tasks = Vec::new();
    let (sets, seed) =
        (env("MULTILOCK_SETS").unwrap_or(400), env("MULTILOCK_SEED").unwrap_or(fastrand::u64(..)));
    println!("MULTILOCK_SEED={seed}");
    for n in 0..10 {
        let session = session(&fake.client_for(&n.to_string())).await;
        let mut random = fastrand::Rng::with_seed(seed ^ n);
        tasks.push(tokio::spawn(async move {
            for _ in 0..sets / 10 {
                let how_many = 1 + random.usize(0..4);
                let mut names = random.choose_multiple(0..12, how_many);
                random.shuffle(&mut names);
                let guard = locks(&session, "", &names).lock().await.unwrap();
                tokio::task::yield_now().await;
                guard.unlock().await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(fake.snapshot().keys.is_empty());
}

/// The proof at the end of a wait was a transaction of compares alone. A member that lags answers such a one from its own
/// past: a lock that was held was told as `KeyDeleted`, though no key had been deleted.
#[tokio::test(start_paused = true)]
async fn the_proof_after_a_wait_is_not_one_members_word() {
    let fake = FakeEtcd::start();
    let compares_alone = |txn: &TxnRequest| txn.success.is_empty() && txn.failure.is_empty();
    let alone = fake.fault(On::rpc(Rpc::Txn).matching(compares_alone), Do::vanish());
    let (a, b) = (session(&fake.client()).await, session(&fake.client()).await);
    let held = locks(&a, "", &[1]).lock().await.unwrap();
    let both = locks(&b, "", &[0, 1]);
    let waiting = tokio::spawn(async move { both.lock().await });
    until_queue(&fake.client(), "1", 2).await;
    held.unlock().await.unwrap();
    waiting.await.unwrap().unwrap().unlock().await.unwrap();
    assert_eq!(alone.seen(), 0);
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_lose_nothing_else() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let locks = locks(&session, "", &[0, 1, 2]);
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let once = || fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply_by(lost.clone()));
        once();
        let guard = locks.lock().await.unwrap();
        assert_eq!(fake.snapshot().keys.len(), 3);
        once();
        released_unseen(guard.unlock().await);
        assert!(fake.snapshot().keys.is_empty());
        once();
        locks.try_lock().await.unwrap().unlock().await.unwrap();
        assert!(fake.snapshot().keys.is_empty());
    }
}

/// Below one of two names were keys of a user's, so that who stands there took a second read; the other name had been seen
/// free with the put. Before that read an operator deleted our key of the other name, and another client took the lock of
/// that name. Both held it.
#[tokio::test(start_paused = true)]
async fn a_name_that_takes_a_second_read_does_not_make_the_others_old() {
    for tries in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client()).await);
        for n in 0..3 {
            fake.client().txn(Txn::new().success(Op::put(format!("1/user/{n}"), ""))).await.unwrap();
        }
        let second_read = |txn: &TxnRequest| {
            let of =
                |op: &Option<Request>| matches!(op, Some(Request::RequestRange(range)) if range.limit > 2);
            txn.success.len() == 2 && of(&txn.success[0].request)
        };
        let held = Hold::new();
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(second_read), Do::hold(&held));
        let both = locks(&a, "", &[0, 1]);
        let taking =
            tokio::spawn(async move { if tries { both.try_lock().await } else { both.lock().await } });
        fake.until(|_| held.held() == 1).await;
        fake.client().txn(Txn::new().success(Op::delete_prefix("0/"))).await.unwrap();
        let other = Mutex::new(&b, "0").unwrap().lock().await.unwrap();
        held.release();
        let error = taking.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
        assert!(other.is_valid());
        until_queue(&fake.client(), "1", 3).await;
    }
}
