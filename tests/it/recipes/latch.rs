//! Count-down latches.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{Client, CountDownLatch, ErrorKind, LostReason, Op, Outcome, Session, Txn};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::world::{World, explore, keys, open, patience};
use crate::drops::{MANY, at_most, take_time};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, revoke, session};

const S: fn(u64) -> Duration = Duration::from_secs;

fn latch(session: &Session, name: &str, count: u32) -> CountDownLatch {
    CountDownLatch::new(session, name, count).expect("a good name")
}

/// Puts the key of a count-down.
fn counts(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| {
        matches!(&op.request, Some(Request::RequestPut(put)) if put.key.windows(6).any(|part| part == b"/down/"))
    })
}

on_every_backend! {
    /// A note that a user had put below `down/` opened the latch one count-down early.
    async fn a_users_key_counts_nothing_down(backend: Backend) {
        let (name, client) = (backend.key("latch"), backend.client());
        let session = session(&client).await;
        let (mine, other) = (latch(&session, &name, 2), latch(&session, &name, 2));
        for below in ["note", "1", "0123456789ABCDEF", "0123456789abcdef0"] {
            client.txn(Txn::new().success(Op::put(format!("{name}/down/{below}"), "a user's"))).await.unwrap();
        }
        assert_eq!(mine.count_down().await.unwrap(), 1);
        let waiting = tokio::spawn(async move { other.wait().await });
        for below in ["note", "1", "0123456789ABCDEF", "0123456789abcdef0"] {
            client.txn(Txn::new().success(Op::put(format!("{name}/down/{below}"), "again"))).await.unwrap();
        }
        assert_eq!(mine.count().await.unwrap(), 1);
        sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished(), "open after one of two");
        assert_eq!(mine.count_down().await.unwrap(), 0);
        timeout(LONG, waiting).await.expect("open").unwrap().unwrap();
    }

    /// count down 1, and 1 more at first; wait 1, and 1 more for who makes it; count 1; reset 2; nothing when it opens.
    async fn what_each_step_costs(backend: Backend) {
        let (name, counter, waiter) = (backend.key("latch"), RpcCounter::new(), RpcCounter::new());
        let mine = session(&backend.client_with(counter.clone())).await;
        let other = session(&backend.client_with(waiter.clone())).await;
        let (mine, other) = (latch(&mine, &name, 2), latch(&other, &name, 2));
        waiter.reset();
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { other.wait().await }
        });
        until("the wait's read", LONG, async || (waiter.unary_total() == 2).then_some(())).await;
        quiet(&waiter).await;
        counter.reset();
        assert_eq!(mine.count().await.unwrap(), 2);
        assert_eq!(counter.unary_total(), 1, "{counter}");
        assert_eq!(mine.count_down().await.unwrap(), 1);
        assert_eq!(counter.unary_total(), 3, "{counter}");
        assert!(!waiting.is_finished());
        assert_eq!(mine.count_down().await.unwrap(), 0);
        assert_eq!(counter.unary_total(), 4, "{counter}");
        waiting.await.unwrap().unwrap();
        assert_eq!(waiter.unary_total(), 2, "the events are the proof: {waiter}");
        mine.wait().await.unwrap();
        assert_eq!(counter.unary_total(), 5, "{counter}");
        // An open latch stays open, and keeps no more keys.
        assert_eq!((mine.count_down().await.unwrap(), mine.count().await.unwrap()), (0, 0));
        assert_eq!(keys(other.session().client(), &name).await, 3);
        counter.reset();
        mine.reset().await.unwrap();
        assert_eq!((counter.unary_total(), mine.count().await.unwrap()), (2, 2), "{counter}");
        assert_eq!((other.count_down().await.unwrap(), mine.count_down().await.unwrap()), (1, 0));
        other.wait().await.unwrap();
        other.reset().await.unwrap();
        assert_eq!(keys(other.session().client(), &name).await, 1);
    }

    /// Sixty-four on eight sessions: each counts for one, and it opens with the last.
    async fn each_counts_once_and_the_last_opens_it(backend: Backend) {
        let name = backend.key("latch");
        let (mut counting, mut waiting, mut sessions) = (JoinSet::new(), JoinSet::new(), Vec::new());
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for _ in 0..8 {
                let latch = latch(&session, &name, 65);
                waiting.spawn(async move { latch.wait().await });
            }
            sessions.push(session);
        }
        for session in &sessions {
            for _ in 0..8 {
                let latch = latch(session, &name, 65);
                counting.spawn(async move { latch.count_down().await.unwrap() });
            }
        }
        let mut left = counting.join_all().await;
        left.sort_unstable();
        assert_eq!(left, (1..65).collect::<Vec<_>>());
        assert!(timeout(Duration::from_millis(50), waiting.join_next()).await.is_err(), "one is missing");
        assert_eq!(latch(&sessions[0], &name, 65).count_down().await.unwrap(), 0);
        waiting.join_all().await.into_iter().for_each(|waited| waited.unwrap());
    }

    /// Each new handle put a key without a lease on a latch that was open: it grew for as long as others counted down.
    async fn an_open_latch_gains_no_keys(backend: Backend) {
        let (name, client) = (backend.key("latch"), backend.client());
        let session = session(&client).await;
        let (one, old) = (latch(&session, &name, 2), latch(&session, &name, 2));
        assert_eq!((old.count_down().await.unwrap(), one.count_down().await.unwrap()), (1, 0));
        assert_eq!(keys(&client, &name).await, 3);
        for _ in 0..5 {
            assert_eq!(latch(&session, &name, 2).count_down().await.unwrap(), 0);
        }
        assert_eq!(keys(&client, &name).await, 3);
        // A handle that knew it closed puts one, and takes it away.
        assert_eq!(old.count_down().await.unwrap(), 0);
        until("it to go", LONG, async || (keys(&client, &name).await == 3).then_some(())).await;
        one.wait().await.unwrap();
        one.reset().await.unwrap();
        assert_eq!(one.count().await.unwrap(), 2);
    }

    async fn another_count_is_told_and_changes_nothing(backend: Backend) {
        let (name, client) = (backend.key("latch"), backend.client());
        let session = session(&client).await;
        latch(&session, &name, 3).count_down().await.unwrap();
        let other = latch(&session, &name, 2);
        let mismatch = ErrorKind::Mismatch { what: "count", found: "3".into() };
        assert_eq!(*other.count_down().await.unwrap_err().kind(), mismatch);
        assert_eq!(*other.wait().await.unwrap_err().kind(), mismatch);
        assert_eq!(*other.count().await.unwrap_err().kind(), mismatch);
        assert_eq!(*other.reset().await.unwrap_err().kind(), mismatch);
        assert_eq!((latch(&session, &name, 3).count().await.unwrap(), keys(&client, &name).await), (2, 2));
        assert!(CountDownLatch::new(&session, "", 1).is_err() && CountDownLatch::new(&session, "x", 0).is_err());
    }

    /// Who waits is told of its session's end; what was counted stays counted.
    async fn a_wait_ends_with_its_session(backend: Backend) {
        let (name, client) = (backend.key("latch"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let one = latch(&a, &name, 2);
        assert_eq!(one.count_down().await.unwrap(), 1);
        let waiting = tokio::spawn({
            let one = one.clone();
            async move { one.wait().await }
        });
        revoke(&client, a.lease()).await;
        let error = timeout(S(40), waiting).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Revoked));
        assert!(one.count_down().await.unwrap_err().lost_reason().is_some());
        let two = latch(&b, &name, 2);
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.wait().await }
        });
        assert_eq!(two.count_down().await.unwrap(), 0);
        waiting.await.unwrap().unwrap();
    }

    /// A count-down that was begun counts, and once; a wait leaves no watch.
    async fn dropped_at_every_point(backend: Backend) {
        take_time(&backend);
        let session = session(&backend.client()).await;
        for polls in 0..MANY {
            let latch = latch(&session, &backend.key(&format!("latch/{polls}")), 2);
            let counted = at_most(polls, latch.count_down()).await;
            if polls > 0 {
                until("it to count", LONG, async || (latch.count().await.unwrap() == 1).then_some(())).await;
            }
            let _ = timeout(Duration::from_millis(200), at_most(polls, latch.wait())).await;
            if let Some(fake) = backend.fake() {
                fake.until(|fake| fake.watchers() == 0).await;
            }
            let reset = at_most(polls, latch.reset()).await;
            if polls > 0 {
                until("it to be reset", LONG, async || (latch.count().await.unwrap() == 2).then_some(())).await;
            }
            if let (Some(counted), Some(reset)) = (counted, reset) {
                reset.unwrap();
                return assert_eq!(counted.unwrap(), 1);
            }
        }
        panic!("never done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_counts_once() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    for (n, lost) in [LoseReply::Error, LoseReply::Hang].into_iter().enumerate() {
        let latch = latch(&session, &format!("latch{n}"), 3);
        let lose = || fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply_by(lost.clone()));
        lose();
        assert_eq!(latch.count_down().await.unwrap(), 2, "the making of it");
        fake.fault(On::rpc(Rpc::Txn).matching(counts).once(), Do::lose_reply_by(lost.clone()));
        assert_eq!(latch.count_down().await.unwrap(), 1);
        assert_eq!(latch.count().await.unwrap(), 1);
        lose();
        latch.reset().await.unwrap();
        assert_eq!(latch.count().await.unwrap(), 3);
    }
}

/// A count-down that comes late counts in its own round or in none.
#[tokio::test(start_paused = true)]
async fn what_comes_late_is_of_no_other_round() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let (mine, other) = (latch(&session, "latch", 3), latch(&session, "latch", 3));
    mine.count_down().await.unwrap();
    let late = fake.fault(On::rpc(Rpc::Txn).matching(counts).once(), Do::delay(S(9)));
    // The first attempt is given up after five seconds; the second counts.
    assert_eq!((mine.count_down().await.unwrap(), late.hits()), (1, 1));
    other.reset().await.unwrap();
    sleep(S(20)).await;
    assert_eq!(other.count().await.unwrap(), 3);
    // Reset between two attempts of one: whether it counted before, it does not know, and it does not count again.
    fake.fault(On::rpc(Rpc::Txn).matching(counts).once(), Do::lose_reply_by(LoseReply::Hang));
    let counting = tokio::spawn({
        let other = other.clone();
        async move { other.count_down().await }
    });
    fake.until(|fake| fake.snapshot().keys.len() == 2).await;
    mine.reset().await.unwrap();
    let error = counting.await.unwrap().unwrap_err();
    assert_eq!((error.outcome(), mine.count().await.unwrap()), (Outcome::Unknown, 3), "{error}");
    // A reset between two count-downs is none between two attempts: it counts in the new round.
    assert_eq!(other.count_down().await.unwrap(), 2);
    mine.reset().await.unwrap();
    assert_eq!(other.count_down().await.unwrap(), 2);
    // And where nobody can tell, that is told.
    let lost = fake.fault(On::rpc(Rpc::Txn), Do::lose_reply());
    assert_eq!(mine.count_down().await.unwrap_err().outcome(), Outcome::Unknown);
    lost.remove();
}

/// Who was let on was let on with the latch open; whoever was told that it counted did, once; and no more was counted
/// than was begun.
#[test]
fn random_schedules() {
    const COUNT: u32 = 5;
    explore(async |world: World| {
        let actors = world.actors(act);
        let begun: usize = actors.join_all().await.into_iter().sum();
        world.recorded(world.revision()).await;
        let counted = world.between(0, world.revision());
        let counted = counted.iter().filter(|event| {
            let kv = event.kv.as_ref().unwrap();
            kv.key.starts_with(b"latch/down/") && kv.create_revision > 0
        });
        assert!(counted.count() <= begun);
    });

    async fn act(world: World, actor: usize) -> usize {
        let (mut rng, client) = (world.rng(actor), world.client(actor));
        let mut session = open(&client).await;
        let mut shared = latch(&session, "latch", COUNT);
        let mut begun = 0;
        for _ in 0..12 {
            if !session.is_valid() {
                session = open(&client).await;
                shared = latch(&session, "latch", COUNT);
            }
            let (limit, from) = (patience(&mut rng), world.revision());
            match rng.u8(0..8) {
                0 => {
                    if let Ok(Ok(())) = timeout(limit, shared.reset()).await {
                        let window = (from, world.revision());
                        assert!(world.held_between(window, "latch/down/", |keys| keys.is_empty()).await);
                    }
                }
                1..=4 => {
                    begun += 1;
                    if let Ok(Ok(left)) = timeout(limit, shared.count_down()).await {
                        let window = (from, world.revision());
                        let counted = |keys: &[_]| keys.len() >= (COUNT - left) as usize;
                        assert!(world.held_between(window, "latch/down/", counted).await, "{window:?}");
                    }
                }
                _ => {
                    if let Ok(Ok(())) = timeout(limit, shared.wait()).await {
                        let window = (from, world.revision());
                        let open = |keys: &[_]| keys.len() >= COUNT as usize;
                        assert!(world.held_between(window, "latch/down/", open).await, "{window:?}");
                    }
                }
            }
            sleep(Duration::from_millis(rng.u64(0..2_000))).await;
        }
        begun
    }
}

/// A latch was deleted while the stream of one who waited for it was down, and one with a greater count made under its name.
/// After the reconnect the watch of the count-downs caught up before that of the count: the waiter was let go, though
/// neither latch had ever been open.
#[tokio::test(start_paused = true)]
async fn the_count_of_one_latch_does_not_meet_the_count_downs_of_another() {
    for seed in 0..16 {
        let fake = FakeEtcd::builder().seed(seed).shuffled_watches().start();
        let (a, b) = (open(&fake.client_for("a")).await, open(&fake.client_for("b")).await);
        let waiting = tokio::spawn({
            let latch = latch(&b, "latch", 2);
            async move { latch.wait().await }
        });
        fake.until(|fake| fake.watchers() > 0).await;
        sleep(S(1)).await;
        let down = fake.fault(On::open(Rpc::Watch).client("b"), Do::cut());
        fake.cut_streams("b");
        fake.client().txn(Txn::new().success(Op::delete_prefix("latch/"))).await.unwrap();
        let other = latch(&a, "latch", 3);
        assert_eq!((other.count_down().await.unwrap(), other.count_down().await.unwrap()), (2, 1));
        down.remove();
        let error = timeout(S(30), waiting).await.expect("in time").unwrap().expect_err("never open");
        assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{seed}: {error}");
    }
}

/// The member that serves the watch lags behind the one that was read from: what it tells of the round before says nothing
/// of this one.
#[tokio::test(start_paused = true)]
async fn a_lagging_member_neither_opens_a_latch_nor_keeps_it_shut() {
    for between in [None, Some("latch/cow"), Some("latch/down-by-law")] {
        let fake = FakeEtcd::start();
        let (a, b) = (open(&fake.client_for("a")).await, open(&fake.client_for("b")).await);
        let (counts, waits) = (latch(&a, "latch", 2), latch(&b, "latch", 2));
        counts.count_down().await.unwrap();
        fake.lag("b");
        assert_eq!(counts.count_down().await.unwrap(), 0);
        counts.reset().await.unwrap();
        assert_eq!(counts.count_down().await.unwrap(), 1);
        if let Some(between) = between {
            // A user's key, which is none of the latch's.
            fake.client().txn(Txn::new().success(Op::put(between, ""))).await.unwrap();
        }
        let waiting = tokio::spawn(async move { waits.wait().await });
        sleep(S(1)).await;
        fake.catch_up("b");
        sleep(S(10)).await;
        assert!(!waiting.is_finished(), "one is missing");
        fake.lag("b");
        assert_eq!(counts.count_down().await.unwrap(), 0);
        sleep(S(1)).await;
        fake.catch_up("b");
        timeout(S(30), waiting).await.expect("in time").unwrap().unwrap();
    }
}

/// One who was to wait had to make the latch first, and was not answered: it learned of its session's end when its request
/// had timed out.
#[tokio::test(start_paused = true)]
async fn one_who_makes_a_latch_waits_no_longer_than_its_session() {
    let fake = FakeEtcd::start();
    let client =
        Client::builder().service(fake.service_for("a")).request_timeout(S(60)).connect().await.unwrap();
    let session = Session::builder(&client).ttl(S(10)).open().await.unwrap();
    let asked = fake.fault(On::rpc(Rpc::Txn), Do::vanish());
    fake.fault(On::response(Rpc::LeaseKeepAlive), Do::vanish());
    let error = timeout(S(11), latch(&session, "latch", 2).wait()).await.expect("in time").unwrap_err();
    assert_eq!((error.lost_reason(), asked.hits()), (Some(LostReason::Expired), 1), "{error}");
}

/// A latch was open, and another client deleted its count-downs by hand, to use it once more. Who had counted down before,
/// and went on with the same handle, was told that so many were left, and never counted.
#[tokio::test(start_paused = true)]
async fn a_latch_that_is_shut_by_hand_is_counted_down_again() {
    let fake = FakeEtcd::start();
    let latch = latch(&open(&fake.client_for("a")).await, "latch", 2);
    for _ in 0..2 {
        assert_eq!(latch.count_down().await.unwrap(), 1);
        assert_eq!(latch.count_down().await.unwrap(), 0);
        // An open one stays as it is.
        assert_eq!(latch.count_down().await.unwrap(), 0);
        assert_eq!(fake.snapshot().keys.len(), 3);
        timeout(S(1), latch.wait()).await.expect("open").unwrap();
        let by_hand = Txn::new().success(Op::delete_prefix("latch/down/"));
        fake.client_for("operator").txn(by_hand).await.unwrap();
        assert_eq!(latch.count().await.unwrap(), 2);
    }
}

/// A handle that knew the latch shut counted down when it was open, and the reply was lost. The second attempt found the key of the
/// first, and left it: an open latch gained a key with each.
#[tokio::test(start_paused = true)]
async fn a_count_down_of_an_open_latch_whose_reply_is_lost_leaves_no_key() {
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let fake = FakeEtcd::start();
        let session = open(&fake.client_for("a")).await;
        let (old, other) = (latch(&session, "latch", 2), latch(&session, "latch", 2));
        assert_eq!((old.count_down().await.unwrap(), other.count_down().await.unwrap()), (1, 0));
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(counts).once(), Do::lose_reply_by(lost.clone()));
        assert_eq!((old.count_down().await.unwrap(), fault.hits()), (0, 1));
        sleep(S(10)).await;
        assert_eq!(fake.snapshot().keys.len(), 3, "{}", fake.snapshot());
        // The one that opens it stays, also where its reply is lost.
        old.reset().await.unwrap();
        assert_eq!(other.count_down().await.unwrap(), 1);
        fake.fault(On::rpc(Rpc::Txn).matching(counts).once(), Do::lose_reply_by(lost));
        assert_eq!(other.count_down().await.unwrap(), 0);
        sleep(S(10)).await;
        assert_eq!((other.count().await.unwrap(), fake.snapshot().keys.len()), (0, 3));
    }
}
