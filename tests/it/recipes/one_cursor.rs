//! What a turn is taken on: facts of one revision, in whatever order the server's watches tell them.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::WatchResponse;
use etcd_concurrency::pb::mvccpb::event::EventType;
use etcd_concurrency::{Client, Election, LostReason, Mutex, Op, Result, RwLock, Semaphore, Session, Txn};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ask;
use crate::support::backend::on_every_backend;
use crate::support::queue::{queue, session, until_queue};

/// Less than a waiter's second look takes.
const SOON: Duration = Duration::from_secs(30);

/// Waits for a lock of this kind, and gives the token.
async fn take(kind: &str, session: &Session, name: &str) -> Result<i64> {
    Ok(match kind {
        "mutex" => kept(Mutex::new(session, name)?.lock().await?),
        "election" => kept(Election::new(session, name)?.campaign("me").await?),
        "reader" => kept(RwLock::new(session, name)?.read().await?),
        "writer" => kept(RwLock::new(session, name)?.write().await?),
        _ => kept(Semaphore::new(session, name, 1)?.acquire().await?),
    })
}

/// It stays until its session ends.
fn kept<G: std::ops::Deref<Target = etcd_concurrency::Fence>>(guard: G) -> i64 {
    let token = guard.token();
    std::mem::forget(guard);
    token
}

const KINDS: [&str; 5] = ["mutex", "election", "reader", "writer", "permit"];

/// Holds it with one session, and waits for it with another.
async fn held_and_waited_for(
    kind: &'static str,
    name: &str,
    (a, b): (&Session, &Session),
    observer: &Client,
) -> JoinHandle<Result<i64>> {
    let holds = if kind == "reader" { "writer" } else { kind };
    take(holds, a, name).await.unwrap();
    let line = if kind == "permit" { format!("{name}/queue") } else { name.to_owned() };
    let (b, name) = (b.clone(), name.to_owned());
    let waiting = tokio::spawn(async move { take(kind, &b, &name).await });
    until_queue(observer, &line, 2).await;
    waiting
}

/// Strikes what tells of the end of any of these keys, and of nothing else.
fn ends_of(keys: Vec<bytes::Bytes>) -> On {
    On::response(Rpc::Watch).client("b").matching(move |told: &WatchResponse| {
        let is_end = |event: &etcd_concurrency::pb::mvccpb::Event| {
            event.r#type() == EventType::Delete && event.kv.as_ref().is_some_and(|kv| keys.contains(&kv.key))
        };
        !told.events.is_empty() && told.events.iter().all(is_end)
    })
}

fn keys_of(fake: &FakeEtcd, session: &Session) -> Vec<bytes::Bytes> {
    fake.snapshot().keys.into_iter().filter(|kv| kv.lease == session.lease()).map(|kv| kv.key).collect()
}

on_every_backend! {
    /// `etcdctl del --prefix m/` took the holder's and the waiter's key at once. The waiter was told of the holder's first,
    /// and had a lock from then on whose key was gone: the next one had it, too.
    async fn two_keys_that_go_in_one_revision_hand_nothing_on(backend: Backend) {
        let client = backend.client();
        for kind in KINDS {
            let name = backend.key(kind);
            let (a, b) = (session(&client).await, session(&backend.client()).await);
            let waiting = held_and_waited_for(kind, &name, (&a, &b), &client).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            client.txn(Txn::new().success(Op::delete_prefix(format!("{name}/")))).await.unwrap();
            let error = timeout(SOON, waiting).await.expect("in time").unwrap().unwrap_err();
            assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{kind}: {error}");
            assert_eq!(queue(&client, &name).await, 0, "{kind}");
        }
    }
}

/// The same with the watch on the waiter's own key served late, as a slow watcher is that became a victim.
#[tokio::test(start_paused = true)]
async fn a_late_watch_on_ones_own_key_hands_nothing_on() {
    for kind in KINDS {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
        let waiting = held_and_waited_for(kind, kind, (&a, &b), &fake.client()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let late = Hold::new();
        fake.fault(ends_of(keys_of(&fake, &b)), Do::hold(&late).alone());
        fake.client().txn(Txn::new().success(Op::delete_prefix(format!("{kind}/")))).await.unwrap();
        let error = timeout(SOON, waiting).await.expect("in time").unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{kind}: {error}");
    }
}

/// The waiter's key was deleted while its stream was down, and the holder left a second later. After the reconnect each
/// watch caught up by itself, the holder's key's first: the waiter was handed a lock that the next one held.
#[tokio::test(start_paused = true)]
async fn after_a_reconnect_the_order_of_the_watches_hands_nothing_on() {
    for kind in KINDS {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
        let waiting = held_and_waited_for(kind, kind, (&a, &b), &fake.client()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (theirs, own) = (keys_of(&fake, &a), keys_of(&fake, &b));
        let down = fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
        fake.cut_streams("b");
        let late = Hold::new();
        fake.fault(ends_of(own.clone()), Do::hold(&late).alone());
        for key in own.into_iter().chain(theirs) {
            fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        down.remove();
        let error = timeout(SOON, waiting).await.expect("in time").unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{kind}: {error}");
    }
}

/// A member that lagged tells what was missed in several answers, each with the revision that it has by then. A guard said
/// that it was proven to be held at that revision; up to there its watch had yet to tell what had become of its key.
#[tokio::test(start_paused = true)]
async fn a_turn_is_proven_for_the_revision_of_the_release_and_not_for_a_later_one() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
    let held = Mutex::new(&a, "m").unwrap().lock().await.unwrap();
    let permit = Semaphore::new(&a, "s", 1).unwrap().acquire().await.unwrap();
    fake.lag("b");
    let waiting = tokio::spawn(async move {
        let (mutex, semaphore) = (Mutex::new(&b, "m").unwrap(), Semaphore::new(&b, "s", 1).unwrap());
        let (guard, permit) = tokio::join!(mutex.lock(), semaphore.acquire());
        [guard.unwrap().header().revision, permit.unwrap().header().revision]
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    held.unlock().await.unwrap();
    permit.release().await.unwrap();
    let released = fake.revision();
    for _ in 0..5 {
        fake.client().txn(Txn::new().success(Op::put("other", "x"))).await.unwrap();
    }
    fake.catch_up("b");
    let proven = timeout(SOON, waiting).await.expect("in time").unwrap();
    assert!(proven.iter().all(|proven| *proven <= released), "{proven:?}, released by {released}");
}

/// A waiter counted down by one watch and knew of the limit by another: it was told of a release, and not yet of the
/// `resize` before it, and three permits were out with a limit of two.
#[tokio::test(start_paused = true)]
async fn a_late_word_of_the_limit_lets_no_permit_too_many_out() {
    for reconnect in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
        let semaphore = |session| Semaphore::new(session, "s", 3).unwrap();
        let one = semaphore(&a).acquire().await.unwrap();
        let two = semaphore(&a).acquire_many(2).await.unwrap();
        let waits = semaphore(&b);
        let waiting = tokio::spawn(async move { waits.acquire().await });
        until_queue(&fake.client(), "s/queue", 4).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let late = Hold::new();
        let of_the_limit = On::response(Rpc::Watch).client("b").matching(|told: &WatchResponse| {
            let is_limit = |kv: &etcd_concurrency::pb::mvccpb::KeyValue| kv.key == "s/limit";
            !told.events.is_empty() && told.events.iter().all(|event| event.kv.as_ref().is_some_and(is_limit))
        });
        let down = fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
        if reconnect {
            fake.cut_streams("b");
        }
        fake.fault(of_the_limit, Do::hold(&late).alone());
        semaphore(&a).resize(2).await.unwrap();
        one.release().await.unwrap();
        down.remove();
        tokio::time::sleep(SOON).await;
        assert!(!waiting.is_finished(), "three permits with a limit of two");
        late.release();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "three permits with a limit of two");
        two.release().await.unwrap();
        timeout(SOON, waiting).await.expect("in time").unwrap().unwrap().release().await.unwrap();
    }
}

/// So many gave up between the holder's key and the waiter's that the waiter no longer listens to all of them: it gets the
/// lock all the same, and not with its own key gone.
#[tokio::test(start_paused = true)]
async fn much_that_happens_in_between_changes_nothing() {
    for own_too in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
        let waiting = held_and_waited_for("mutex", "m", (&a, &b), &fake.client()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut keys = [keys_of(&fake, &a), keys_of(&fake, &b)].concat();
        keys.sort();
        let client = fake.client();
        for n in 0..200 {
            let between = [&keys[0][..], format!("{n}").as_bytes()].concat();
            client.txn(Txn::new().success(Op::put(between.clone(), ""))).await.unwrap();
            client.txn(Txn::new().success(Op::delete(between))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let late = Hold::new();
        fake.fault(ends_of(keys_of(&fake, &b)), Do::hold(&late).alone());
        let gone = if own_too { "m/".into() } else { keys_of(&fake, &a)[0].clone() };
        client.txn(Txn::new().success(Op::delete_prefix(gone))).await.unwrap();
        let taken = timeout(SOON, waiting).await.expect("in time").unwrap();
        assert_eq!(taken.is_ok(), !own_too, "{taken:?}");
    }
}

on_every_backend! {
    /// Of several in a line each gets its turn, whoever of them gives up.
    async fn those_who_give_up_in_the_middle_hold_nobody_up(backend: Backend) {
        let (name, client) = (backend.key("lock"), backend.client());
        let holder = session(&client).await;
        let held = Mutex::new(&holder, &name).unwrap().lock().await.unwrap();
        let (mut waiting, mut sessions) = (Vec::new(), Vec::new());
        for n in 0..6 {
            let session = session(&client).await;
            let mutex = Mutex::new(&session, &name).unwrap();
            waiting.push(ask(&backend, &name, 2 + n, async move { mutex.lock().await }).await);
            sessions.push(session);
        }
        for n in [4, 2, 0] {
            waiting.remove(n).abort();
        }
        until_queue(&client, &name, 4).await;
        held.unlock().await.unwrap();
        for waiting in waiting {
            timeout(SOON, waiting).await.expect("in time").unwrap().unwrap().unlock().await.unwrap();
        }
    }
}
