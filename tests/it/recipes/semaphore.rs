//! Never more permits than there are, in the order of asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{Client, ErrorKind, LostReason, Op, Outcome, Semaphore, Session, Stm, Txn};
use tokio::time::timeout;

use super::ask;
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::queue::{queue, quiet, revoke, session, until_queue};
use crate::support::requests::{deletes, released_unseen};

fn semaphore(session: &Session, name: &str, permits: u32) -> Semaphore {
    Semaphore::new(session, name, permits).expect("a good name")
}

on_every_backend! {
    /// The budget: one RPC in, one out, with the limit set on the way.
    async fn a_free_permit_is_one_rpc_and_one(backend: Backend) {
        let counter = RpcCounter::new();
        let session = session(&backend.client_with(counter.clone())).await;
        let semaphore = semaphore(&session, &backend.key("s"), 3);
        counter.reset();
        let one = semaphore.acquire().await.unwrap();
        let two = semaphore.acquire_many(2).await.unwrap();
        assert_eq!((counter.unary_total(), one.permits(), two.permits()), (2, 1, 2), "{counter}");
        assert_eq!(semaphore.available_permits().await.unwrap(), 0);
        one.release().await.unwrap();
        two.release().await.unwrap();
        assert_eq!((counter.unary_total(), counter.count("Txn")), (5, 5), "{counter}");
        assert_eq!(semaphore.available_permits().await.unwrap(), 3);
        assert_eq!(queue(&backend.client(), &format!("{}/queue", backend.key("s"))).await, 0);
    }

    async fn trying_takes_what_is_free_and_leaves_nothing(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let semaphore = semaphore(&session, &name, 2);
        let one = semaphore.try_acquire().await.unwrap();
        let error = semaphore.try_acquire_many(2).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        until_queue(&client, &format!("{name}/queue"), 1).await;
        let two = semaphore.try_acquire().await.unwrap();
        assert_eq!(*semaphore.try_acquire().await.unwrap_err().kind(), ErrorKind::Locked);
        drop((one, two));
        until_queue(&client, &format!("{name}/queue"), 0).await;
    }

    /// Who asks for many is not overtaken by who asks for few.
    async fn permits_are_given_in_the_order_of_asking(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let semaphore = semaphore(&session, &name, 3);
        let queue = format!("{name}/queue");
        let (a, b) = (semaphore.acquire().await.unwrap(), semaphore.acquire().await.unwrap());
        let own = || semaphore.clone();
        let many = ask(&backend, &queue, 5, { let s = own(); async move { s.acquire_many(3).await } }).await;
        let few = ask(&backend, &queue, 6, { let s = own(); async move { s.acquire().await } }).await;
        let next = ask(&backend, &queue, 8, { let s = own(); async move { s.acquire_many(2).await } }).await;
        assert!(!many.is_finished() && !few.is_finished(), "one is free, and the first in line wants three");
        a.release().await.unwrap();
        until_queue(&client, &queue, 7).await;
        assert!(!many.is_finished() && !few.is_finished());
        b.release().await.unwrap();
        let many = many.await.unwrap().unwrap();
        assert!(!few.is_finished() && !next.is_finished());
        many.release().await.unwrap();
        let (few, next) = (few.await.unwrap().unwrap(), next.await.unwrap().unwrap());
        assert!(few.token() < next.token());
        few.release().await.unwrap();
        next.release().await.unwrap();
    }

    /// One in the middle leaves, another's session is lost: those behind go on when there is room, not before.
    async fn those_behind_one_who_leaves_go_on(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let (mine, other) = (session(&client).await, session(&client).await);
        let queue = format!("{name}/queue");
        let held = semaphore(&mine, &name, 1).acquire().await.unwrap();
        let (s1, s2, s3) = (semaphore(&mine, &name, 1), semaphore(&other, &name, 1), semaphore(&mine, &name, 1));
        let leaves = ask(&backend, &queue, 2, async move { s1.acquire().await }).await;
        let lost = ask(&backend, &queue, 3, async move { s2.acquire().await }).await;
        let last = ask(&backend, &queue, 4, async move { s3.acquire().await }).await;
        leaves.abort();
        until_queue(&client, &queue, 3).await;
        revoke(&client, other.lease()).await;
        let error = lost.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Revoked), "{error}");
        assert!(!last.is_finished());
        let token = held.token();
        held.release().await.unwrap();
        let last = last.await.unwrap().unwrap();
        assert!(last.token() > token);
        // Its fence refuses what comes too late.
        client.txn(Txn::new().success(Op::delete(last.key().clone()))).await.unwrap();
        let error = last.txn().success(Op::put(backend.key("data"), "late")).commit().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Fenced);
    }

    /// The key of the second of two permits was deleted, and another had it; what was written behind the two was committed
    /// by the first alone, with a transaction as with the STM.
    async fn several_permits_are_fenced_by_all_of_them(backend: Backend) {
        let (name, data, client) = (backend.key("s"), backend.key("data"), backend.client());
        let session = session(&client).await;
        for stm in [false, true] {
            let two = semaphore(&session, &name, 2).acquire_many(2).await.unwrap();
            assert!(two.txn().success(Op::put(data.clone(), "held")).commit().await.unwrap().succeeded);
            let second = [two.key().strip_suffix(b"0").unwrap(), b"1"].concat();
            assert_eq!(client.txn(Txn::new().success(Op::delete(second))).await.unwrap().deleted(0), Some(1));
            let late = || Op::put(data.clone(), "late");
            let error = match stm {
                false => two.txn().success(late()).commit().await.map(drop).unwrap_err(),
                true => {
                    let stm = Stm::new(&client).fenced(&two);
                    let run = stm.run(|txn| {
                        let data = data.clone();
                        async move {
                            txn.put(data, "late")?;
                            Ok(())
                        }
                    });
                    run.await.map(drop).unwrap_err()
                }
            };
            assert_eq!(*error.kind(), ErrorKind::Fenced, "{error}");
            assert_eq!((two.is_valid(), two.lost().await), (false, LostReason::KeyDeleted));
            drop(two);
            until_queue(&client, &format!("{name}/queue"), 0).await;
        }
    }

    async fn who_expects_another_number_is_told(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let held = semaphore(&session, &name, 2).acquire().await.unwrap();
        for error in [
            semaphore(&session, &name, 3).acquire().await.err(),
            semaphore(&session, &name, 3).try_acquire().await.err(),
            semaphore(&session, &name, 3).available_permits().await.err(),
            semaphore(&session, &name, 3).resize(4).await.err(),
        ] {
            let found = "2".to_owned();
            assert_eq!(*error.unwrap().kind(), ErrorKind::Mismatch { what: "number of permits", found });
        }
        until_queue(&client, &format!("{name}/queue"), 1).await;
        held.release().await.unwrap();
        for (permits, wanted) in [(0, 1), (2, 0), (2, 3)] {
            let error = match Semaphore::new(&session, &name, permits) {
                Ok(semaphore) => semaphore.acquire_many(wanted).await.unwrap_err(),
                Err(error) => error,
            };
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "permits", .. }), "{error}");
        }
        until_queue(&client, &format!("{name}/queue"), 0).await;
    }

    async fn more_permits_let_in_who_waits_and_fewer_hold_back(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let semaphore = semaphore(&session, &name, 1);
        let queue = format!("{name}/queue");
        let one = semaphore.acquire().await.unwrap();
        let own = || semaphore.clone();
        let two = ask(&backend, &queue, 2, { let s = own(); async move { s.acquire().await } }).await;
        let three = ask(&backend, &queue, 3, { let s = own(); async move { s.acquire().await } }).await;
        semaphore.resize(3).await.unwrap();
        let (two, three) = (two.await.unwrap().unwrap(), three.await.unwrap().unwrap());
        semaphore.resize(2).await.unwrap();
        assert!(two.is_valid() && three.is_valid(), "who holds one keeps it");
        assert_eq!(semaphore.available_permits().await.unwrap(), 0);
        one.release().await.unwrap();
        assert_eq!(*semaphore.try_acquire().await.unwrap_err().kind(), ErrorKind::Locked);
        two.release().await.unwrap();
        until_queue(&client, &queue, 1).await;
        semaphore.try_acquire().await.unwrap().release().await.unwrap();
        three.release().await.unwrap();
        // The number that it was made with is still the one to come with.
        assert_eq!(semaphore.available_permits().await.unwrap(), 2);
    }

    /// The number of permits fell below what the first in line had asked for: it waited for ever, with all behind it.
    async fn one_who_waits_for_more_than_there_are_then_is_told(backend: Backend) {
        let (name, client) = (backend.key("s"), backend.client());
        let session = session(&client).await;
        let semaphore = semaphore(&session, &name, 3);
        let queue = format!("{name}/queue");
        let own = || semaphore.clone();
        let held = semaphore.acquire().await.unwrap();
        let all = ask(&backend, &queue, 4, { let s = own(); async move { s.acquire_many(3).await } }).await;
        let all_too = ask(&backend, &queue, 7, { let s = own(); async move { s.acquire_many(3).await } }).await;
        let one = ask(&backend, &queue, 8, { let s = own(); async move { s.acquire().await } }).await;
        semaphore.resize(2).await.unwrap();
        for told in [all, all_too] {
            let error = timeout(Duration::from_secs(30), told).await.expect("in time").unwrap().unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "permits", .. }), "{error}");
        }
        timeout(Duration::from_secs(30), one).await.expect("in time").unwrap().unwrap().release().await.unwrap();
        held.release().await.unwrap();
        until_queue(&client, &queue, 0).await;
    }

    /// All keys were made before the number was looked at.
    async fn more_than_a_server_takes_are_not_asked_for(backend: Backend) {
        let counter = RpcCounter::new();
        let session = session(&backend.client_with(counter.clone())).await;
        let semaphore = semaphore(&session, &backend.key("s"), u32::MAX);
        counter.reset();
        let error = semaphore.acquire_many(70_000).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooManyOps { .. }), "{error}");
        assert_eq!((error.outcome(), counter.unary_total()), (Outcome::NotApplied, 0), "{counter}");
    }

    /// 64 tasks over 8 sessions.
    async fn many_tasks_on_few_sessions(backend: Backend) {
        let name = backend.key("s");
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for n in 0..8 {
                let (semaphore, inside, most) = (semaphore(&session, &name, 5), inside.clone(), most.clone());
                tasks.push(tokio::spawn(async move {
                    let permits = 1 + n % 3;
                    for _ in 0..2 {
                        let permit = semaphore.acquire_many(permits).await.unwrap();
                        let now = inside.fetch_add(permit.permits(), Ordering::SeqCst) + permit.permits();
                        assert!(now <= 5, "{now} permits at once");
                        most.fetch_max(now, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(permit.permits(), Ordering::SeqCst);
                        permit.release().await.unwrap();
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) > 1, "nobody shared");
        until_queue(&backend.client(), &format!("{name}/queue"), 0).await;
    }
}

fn queued(fake: &FakeEtcd) -> usize {
    fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(b"s/queue/")).count()
}

/// A thousand wait: a release lets the next in, and makes the one behind it the first.
#[tokio::test(start_paused = true)]
async fn there_is_no_herd() {
    let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
    let holder = session(&fake.client()).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(semaphore(&holder, "s", 3).acquire().await.unwrap());
    }
    let service = tower::Layer::layer(&counter, fake.service());
    let waiters = semaphore(&session(&Client::from_service(service)).await, "s", 3);
    let (in_line, mut got) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..1_000 {
        let (semaphore, in_line) = (waiters.clone(), in_line.clone());
        tokio::spawn(async move { in_line.send(semaphore.acquire().await.unwrap()).unwrap() });
        fake.until(|fake| queued(fake) == 4 + n).await;
    }
    fake.until(|fake| fake.watchers() == 1_999).await;
    quiet(&counter).await;
    counter.reset();
    for n in 1..=20 {
        held.remove(0).release().await.unwrap();
        held.push(got.recv().await.unwrap());
        quiet(&counter).await;
        // The mark of the one that came in, and two looks of the one behind it; the releases of theirs count too.
        let releases = u64::saturating_sub(n, 3);
        assert!(counter.unary_total() <= 3 * n + releases, "after {n}: {counter}");
        assert!(got.try_recv().is_err(), "one permit for one release");
    }
}

/// Replies lost on every write.
#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_lose_nothing_else() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let semaphore = semaphore(&session, "s", 3);
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let once = || fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply_by(lost.clone()));
        once();
        let permit = semaphore.acquire_many(2).await.unwrap();
        assert_eq!(queued(&fake), 2);
        once();
        let another = semaphore.acquire().await.unwrap();
        once();
        released_unseen(permit.release().await);
        once();
        released_unseen(another.release().await);
        assert_eq!(queued(&fake), 0);
        once();
        semaphore.resize(4).await.unwrap();
        assert_eq!(semaphore.available_permits().await.unwrap(), 4);
    }
    session.close().await.unwrap();
}

/// Somebody deletes one of the predecessor's keys before the watch on it has begun. The other one stands, of the same
/// create_revision, and was taken for it: its end woke nobody.
#[tokio::test(start_paused = true)]
async fn one_of_the_predecessors_keys_is_deleted_by_hand() {
    let fake = FakeEtcd::start();
    let [a, b, c] = ["a", "b", "c"].map(|name| fake.client_for(name));
    let (a, b, c) = (session(&a).await, session(&b).await, session(&c).await);
    let [a, b, c] = [&a, &b, &c].map(|session| semaphore(session, "s", 2));
    let held = a.acquire_many(2).await.unwrap();
    let before = tokio::spawn(async move { b.acquire_many(2).await });
    fake.until(|fake| queued(fake) == 4 && fake.watchers() == 1).await;
    fake.fault(On::rpc(Rpc::Watch).client("c"), Do::delay(Duration::from_secs(1)));
    let after = tokio::spawn(async move { c.acquire().await });
    fake.until(|fake| queued(fake) == 5).await;

    // It gives up the other only later.
    fake.fault(On::rpc(Rpc::Txn).client("b"), Do::delay(Duration::from_secs(3)));
    let theirs = fake.snapshot().keys.into_iter().filter(|kv| kv.create_revision > held.token());
    let first = theirs.map(|kv| kv.key).find(|key| key.ends_with(b".0")).unwrap();
    fake.client().txn(Txn::new().success(Op::delete(first))).await.unwrap();
    assert_eq!(before.await.unwrap().unwrap_err().lost_reason(), Some(LostReason::KeyDeleted));
    fake.until(|fake| queued(fake) == 3).await;
    held.release().await.unwrap();
    // Sooner than it looks for itself.
    let permit = timeout(Duration::from_secs(30), after).await.expect("in time").unwrap().unwrap();
    assert_eq!(permit.permits(), 1);
}

/// After there are fewer permits, the youngest holder has one too many and has not been told. Who waited behind it took it
/// for one that waits, and slept for 77 s beside permits that were free.
#[tokio::test(start_paused = true)]
async fn who_waits_behind_one_too_many_comes_in_at_once() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let semaphore = semaphore(&session, "s", 3);
    let (one, two) = (semaphore.acquire().await.unwrap(), semaphore.acquire().await.unwrap());
    let stays = semaphore.acquire().await.unwrap();
    semaphore.resize(2).await.unwrap();
    let waiting = tokio::spawn({
        let semaphore = semaphore.clone();
        async move { semaphore.acquire().await }
    });
    fake.until(|fake| queued(fake) == 4 && fake.watchers() == 1).await;
    one.release().await.unwrap();
    two.release().await.unwrap();
    let came = tokio::time::timeout(std::time::Duration::from_secs(1), waiting).await;
    came.expect("at once").unwrap().unwrap().release().await.unwrap();
    assert!(stays.is_valid());
}

/// One who came while all permits were held looked a second time, and a permit had been released by then. It did not say so
/// in its key, so the next one took it for one that waits, and slept beside permits that were free.
#[tokio::test(start_paused = true)]
async fn one_that_comes_in_by_its_second_look_says_so() {
    let fake = FakeEtcd::start();
    let [a, b, c] = ["a", "b", "c"].map(|name| fake.client_for(name));
    let (a, b, c) = (session(&a).await, session(&b).await, session(&c).await);
    let [a, b, c] = [&a, &b, &c].map(|session| semaphore(session, "s", 40));
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(a.acquire().await.unwrap());
    }
    let looks =
        |txn: &TxnRequest| txn.success.iter().all(|op| matches!(op.request, Some(Request::RequestRange(_))));
    let look =
        fake.fault(On::rpc(Rpc::Txn).client("b").matching(looks).once(), Do::delay(Duration::from_secs(1)));
    let first = tokio::spawn(async move { b.acquire().await });
    fake.until(|fake| queued(fake) == 41 && look.hits() == 1).await;
    let second = tokio::spawn(async move { c.acquire().await });
    fake.until(|fake| queued(fake) == 42 && fake.watchers() == 2).await;
    for permit in held.drain(..2) {
        permit.release().await.unwrap();
    }
    let first = timeout(Duration::from_secs(5), first).await.expect("one is free").unwrap().unwrap();
    let second = timeout(Duration::from_secs(5), second).await.expect("two were free").unwrap().unwrap();
    assert!(first.token() < second.token());
}

/// While a try was given up its session's lease ended: the caller was told that others hold the permits.
#[tokio::test(start_paused = true)]
async fn a_try_in_a_session_that_is_lost_says_so() {
    let fake = FakeEtcd::start();
    let holder = session(&fake.client()).await;
    let _held = semaphore(&holder, "s", 1).acquire().await.unwrap();
    let trying = Session::builder(&fake.client_for("b")).ttl(Duration::from_secs(9)).open().await.unwrap();
    let hold = Hold::new();
    fake.fault(
        On::rpc(Rpc::Txn).client("b").matching(|txn: &TxnRequest| deletes(txn) || nested(txn)),
        Do::hold(&hold),
    );
    let tried = tokio::spawn({
        let semaphore = semaphore(&trying, "s", 1);
        async move { semaphore.try_acquire().await }
    });
    fake.until(|_| hold.held() == 1).await;
    assert!(fake.expire_lease(trying.lease()));
    let reason = trying.lost().await;
    hold.release();
    let error = tried.await.unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(reason), "{error}");
}

/// It deletes within a transaction.
fn nested(txn: &TxnRequest) -> bool {
    let inner = txn.success.iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(inner)) => Some(inner),
        _ => None,
    });
    inner.into_iter().any(deletes)
}
