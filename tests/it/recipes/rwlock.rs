//! Readers share, writers exclude, in the order of asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::{Client, ErrorKind, LostReason, Op, RwLock, Session, Txn};
use tokio::time::{sleep, timeout};

use super::ask;
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::queue::{queue, quiet, revoke, session, until_queue};
use crate::support::requests::{puts, released_unseen};

const S: fn(u64) -> Duration = Duration::from_secs;

fn lock(session: &Session, name: &str) -> RwLock {
    RwLock::new(session, name).expect("a good name")
}

on_every_backend! {
    /// The budget: one RPC in, one out, for both.
    async fn uncontended_it_is_one_rpc_and_one(backend: Backend) {
        let counter = RpcCounter::new();
        let session = session(&backend.client_with(counter.clone())).await;
        let lock = lock(&session, &backend.key("lock"));
        counter.reset();
        let reading = lock.read().await.unwrap();
        let too = lock.read().await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
        reading.unlock().await.unwrap();
        too.unlock().await.unwrap();
        lock.write().await.unwrap().unlock().await.unwrap();
        assert_eq!((counter.unary_total(), counter.count("Txn")), (6, 6), "{counter}");
        lock.try_write().await.unwrap().unlock().await.unwrap();
        lock.try_read().await.unwrap().unlock().await.unwrap();
        assert_eq!(counter.unary_total(), 10, "{counter}");
    }

    async fn trying_leaves_nothing(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let reading = lock(&a, &name).read().await.unwrap();
        let error = lock(&b, &name).try_write().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        let too = lock(&b, &name).try_read().await.unwrap();
        assert_eq!(queue(&client, &name).await, 2);
        reading.unlock().await.unwrap();
        too.unlock().await.unwrap();
        let writing = lock(&a, &name).write().await.unwrap();
        for error in [lock(&b, &name).try_write().await.err(), lock(&b, &name).try_read().await.err()] {
            assert_eq!(*error.unwrap().kind(), ErrorKind::Locked);
        }
        assert_eq!(queue(&client, &name).await, 1);
        writing.unlock().await.unwrap();
    }

    /// Read, write, read, read, write: in this order, the two readers in the middle together.
    async fn nobody_is_overtaken(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let session = session(&client).await;
        let lock = lock(&session, &name);
        let first = lock.read().await.unwrap();
        let own = || lock.clone();
        let write_1 = ask(&backend, &name, 2, { let lock = own(); async move { lock.write().await } }).await;
        let read_1 = ask(&backend, &name, 3, { let lock = own(); async move { lock.read().await } }).await;
        let read_2 = ask(&backend, &name, 4, { let lock = own(); async move { lock.read().await } }).await;
        let write_2 = ask(&backend, &name, 5, { let lock = own(); async move { lock.write().await } }).await;
        first.unlock().await.unwrap();
        let write_1 = write_1.await.unwrap().unwrap();
        assert!(!read_1.is_finished() && !read_2.is_finished() && !write_2.is_finished());
        let token = write_1.token();
        write_1.unlock().await.unwrap();
        let (read_1, read_2) = (read_1.await.unwrap().unwrap(), read_2.await.unwrap().unwrap());
        assert!(read_1.token() > token && !write_2.is_finished());
        // The older one leaves last: the writer must not come in between.
        read_2.unlock().await.unwrap();
        until_queue(&client, &name, 2).await;
        assert!(!write_2.is_finished());
        read_1.unlock().await.unwrap();
        let write_2 = write_2.await.unwrap().unwrap();
        write_2.unlock().await.unwrap();
        assert_eq!(queue(&client, &name).await, 0);
    }

    /// Waiting costs nothing, and the turn is told by the writer's release itself.
    async fn readers_behind_one_writer_need_no_rpc(backend: Backend) {
        let backend = backend.alone().await;
        let (name, counter) = (backend.key("lock"), RpcCounter::new());
        let writing = lock(&session(&backend.client()).await, &name).write().await.unwrap();
        let readers = lock(&session(&backend.client_with(counter.clone())).await, &name);
        let mut waiting = Vec::new();
        for n in 0..10 {
            let lock = readers.clone();
            waiting.push(ask(&backend, &name, 2 + n, async move { lock.read().await }).await);
        }
        quiet(&counter).await;
        counter.reset();
        writing.unlock().await.unwrap();
        let mut guards = Vec::new();
        for waiting in waiting {
            guards.push(waiting.await.unwrap().unwrap());
        }
        assert_eq!(counter.unary_total(), 0, "{counter}");
    }

    /// A lease that is gone takes its keys along: a downgrade then said that the key was deleted.
    async fn a_downgrade_after_the_leases_end_says_so(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let writing = RwLock::new(&session, backend.key("lock")).unwrap().write().await.unwrap();
        revoke(&client, session.lease()).await;
        let error = writing.downgrade().await.unwrap_err();
        assert!(matches!(error.lost_reason(), Some(LostReason::Revoked | LostReason::LeaseGone)), "{error}");
    }

    async fn a_writer_that_downgrades_lets_readers_in_but_no_writer(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let session = session(&client).await;
        let lock = lock(&session, &name);
        let writing = lock.write().await.unwrap();
        let own = || lock.clone();
        let read = ask(&backend, &name, 2, { let lock = own(); async move { lock.read().await } }).await;
        let write = ask(&backend, &name, 3, { let lock = own(); async move { lock.write().await } }).await;
        let late = ask(&backend, &name, 4, { let lock = own(); async move { lock.read().await } }).await;
        let token = writing.token();
        let reading = writing.downgrade().await.unwrap();
        assert_eq!(reading.token(), token);
        let read = read.await.unwrap().unwrap();
        assert!(!write.is_finished() && !late.is_finished());
        // Its fence stands as before.
        assert!(reading.txn().success(Op::put(backend.key("data"), "1")).commit().await.unwrap().succeeded);
        read.unlock().await.unwrap();
        until_queue(&client, &name, 3).await;
        assert!(!write.is_finished());
        reading.unlock().await.unwrap();
        write.await.unwrap().unwrap().unlock().await.unwrap();
        late.await.unwrap().unwrap().unlock().await.unwrap();
        // One who comes while only the downgraded is there shares at once.
        let reading = lock.write().await.unwrap().downgrade().await.unwrap();
        lock.read().await.unwrap().unlock().await.unwrap();
        reading.unlock().await.unwrap();
        assert_eq!(queue(&client, &name).await, 0);
    }

    async fn a_lost_holder_makes_way_and_a_lost_waiter_leaves(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let (a, b, c) = (session(&client).await, session(&client).await, session(&client).await);
        let held = lock(&a, &name).write().await.unwrap();
        let (in_the_middle, last) = (lock(&b, &name), lock(&c, &name));
        let middle = ask(&backend, &name, 2, async move { in_the_middle.write().await }).await;
        let last = ask(&backend, &name, 3, async move { last.read().await }).await;
        revoke(&client, b.lease()).await;
        let error = middle.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Revoked), "{error}");
        assert!(!last.is_finished());
        revoke(&client, a.lease()).await;
        let last = last.await.unwrap().unwrap();
        assert_eq!(held.lost().await, LostReason::Revoked);
        let late = Txn::new().compare(held.is_owner()).success(Op::put(backend.key("data"), "late"));
        assert!(!client.txn(late).await.unwrap().succeeded);
        last.unlock().await.unwrap();
    }

    /// 64 tasks over 8 sessions: readers and writers never together.
    async fn many_tasks_on_few_sessions(backend: Backend) {
        let name = backend.key("lock");
        // Readers count up, a writer takes it far below zero.
        let inside = Arc::new(AtomicI64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for n in 0..8 {
                let (lock, inside) = (lock(&session, &name), inside.clone());
                tasks.push(tokio::spawn(async move {
                    for _ in 0..2 {
                        if n % 4 == 0 {
                            let guard = lock.write().await.unwrap();
                            assert_eq!(inside.swap(-1_000, Ordering::SeqCst), 0);
                            tokio::task::yield_now().await;
                            assert_eq!(inside.swap(0, Ordering::SeqCst), -1_000);
                            guard.unlock().await.unwrap();
                        } else {
                            let guard = lock.read().await.unwrap();
                            assert!(inside.fetch_add(1, Ordering::SeqCst) >= 0);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            guard.unlock().await.unwrap();
                        }
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        until_queue(&backend.client(), &name, 0).await;
    }

    async fn an_empty_name_is_refused(backend: Backend) {
        let session = session(&backend.client()).await;
        let error = RwLock::new(&session, "").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }), "{error}");
    }
}

/// A thousand writers wait: a release wakes the next alone.
#[tokio::test(start_paused = true)]
async fn there_is_no_herd() {
    let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
    let held = lock(&session(&fake.client()).await, "lock").write().await.unwrap();
    let service = tower::Layer::layer(&counter, fake.service());
    let waiters = lock(&session(&etcd_concurrency::Client::from_service(service)).await, "lock");
    let (in_line, mut got) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..1_000 {
        let (lock, in_line) = (waiters.clone(), in_line.clone());
        tokio::spawn(async move { in_line.send(lock.write().await.unwrap()).unwrap() });
    }
    fake.until(|fake| fake.snapshot().keys.len() == 1_001 && fake.watchers() == 1_999).await;
    quiet(&counter).await;
    counter.reset();
    held.unlock().await.unwrap();
    let mut guard = got.recv().await.unwrap();
    assert_eq!(counter.unary_total(), 0, "the first is told by the release itself: {counter}");
    for n in 1..=20 {
        guard.unlock().await.unwrap();
        guard = got.recv().await.unwrap();
        // A release, and one look by the next.
        assert_eq!(counter.unary_total(), 2 * n, "{counter}");
    }
}

/// Replies lost on every write: the acquire, the downgrade, the release.
#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_lose_nothing_else() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let lock = lock(&session, "lock");
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let once = || fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply_by(lost.clone()));
        once();
        let writing = lock.write().await.unwrap();
        assert_eq!(fake.snapshot().keys.len(), 1);
        once();
        let reading = writing.downgrade().await.unwrap();
        once();
        let another = lock.read().await.unwrap();
        once();
        released_unseen(another.unlock().await);
        once();
        released_unseen(reading.unlock().await);
        assert!(fake.snapshot().keys.is_empty());
        once();
        lock.try_read().await.unwrap().unlock().await.unwrap();
    }
}

/// A writer let readers in, and slept past its session's end while the answer was on its way: it was given a share of the
/// lock that it did not hold. And where no answer came, it waited for that past its session's end.
#[tokio::test(start_paused = true)]
async fn one_who_downgrades_past_its_sessions_end_holds_nothing() {
    for answered in [true, false] {
        let (fake, slept) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)));
        let told = slept.clone();
        let builder = Client::builder().service(fake.service_for("a")).request_timeout(S(60));
        let builder = builder.suspended_time(move || S(told.load(Ordering::SeqCst)));
        let session = Session::builder(&builder.connect().await.unwrap()).ttl(S(10)).open().await.unwrap();
        let writing = lock(&session, "lock").write().await.unwrap();
        let way = if answered { Do::delay_reply(S(1)) } else { Do::vanish() };
        let asked = fake.fault(On::rpc(Rpc::Txn).matching(puts), way);
        let downgrading = tokio::spawn(writing.downgrade());
        while asked.hits() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        slept.store(15, Ordering::SeqCst);
        let error = timeout(S(3), downgrading).await.expect("at once").unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
    }
}
