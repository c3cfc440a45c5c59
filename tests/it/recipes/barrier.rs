//! Barriers.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op::Request};
use etcd_concurrency::{Barrier, ErrorKind, LostReason, Op, Outcome, Session, Txn};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::world::{World, explore, keys, nothing_left, open, patience};
use crate::drops::{MANY, at_most, take_time, tasks};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, session};
use crate::support::requests::deletes;

const S: fn(u64) -> Duration = Duration::from_secs;

fn barrier(session: &Session, name: &str) -> Barrier {
    Barrier::new(session, name).expect("a good name")
}

fn writes(txn: &TxnRequest) -> bool {
    !txn.compare.is_empty()
}

fn puts_with_a_lease(txn: &TxnRequest) -> bool {
    let with_a_lease =
        |op: &RequestOp| matches!(&op.request, Some(Request::RequestPut(put)) if put.lease != 0);
    txn.success.iter().any(with_a_lease)
}

on_every_backend! {
    /// hold 2, wait 1 (and a watch), release 1 by the holder and 2 by others; nothing when it opens.
    async fn what_each_step_costs(backend: Backend) {
        let (name, counter) = (backend.key("gate"), RpcCounter::new());
        let (mine, other) = (session(&backend.client_with(counter.clone())).await, session(&backend.client()).await);
        let gate = barrier(&mine, &name);
        counter.reset();
        gate.wait().await.unwrap();
        assert_eq!(counter.unary_total(), 1, "nobody holds it: {counter}");
        gate.hold().await.unwrap();
        assert_eq!(counter.unary_total(), 3, "{counter}");
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.wait().await }
        });
        until("the wait's read", LONG, async || (counter.unary_total() == 4).then_some(())).await;
        quiet(&counter).await;
        barrier(&other, &name).release().await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(counter.unary_total(), 4, "the event is the proof: {counter}");
        gate.hold().await.unwrap();
        gate.release().await.unwrap();
        gate.release().await.unwrap();
        assert_eq!(counter.unary_total(), 8, "{counter}");
        barrier(&other, &name).hold().await.unwrap();
        gate.release().await.unwrap();
        assert_eq!(counter.unary_total(), 10, "another's hold is read first: {counter}");
        assert_eq!(keys(other.client(), &name).await, 0);
    }

    async fn one_holds_and_says_since_when(backend: Backend) {
        let name = backend.key("gate");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        barrier(&a, &name).hold().await.unwrap();
        let since = client.txn(Txn::new().success(Op::get(name.clone()))).await.unwrap().kvs(0).unwrap()[0].create_revision;
        for session in [&a, &b] {
            let error = barrier(session, &name).hold().await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Locked, Outcome::NotApplied));
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(&format!("held since revision {since}")), "{source}");
        }
        // It outlives its holder's session.
        a.close().await.unwrap();
        assert_eq!(keys(&client, &name).await, 1);
        barrier(&b, &name).release().await.unwrap();
        let error = barrier(&a, &name).hold().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
        assert!(Barrier::new(&b, "").is_err());
    }

    async fn sixty_four_wait_and_all_go_on(backend: Backend) {
        let name = backend.key("gate");
        let holder = session(&backend.client()).await;
        let mut waiting = JoinSet::new();
        let mut holds = JoinSet::new();
        let mut counters = Vec::new();
        for _ in 0..8 {
            let counter = RpcCounter::new();
            let session = session(&backend.client_with(counter.clone())).await;
            for _ in 0..8 {
                let gate = barrier(&session, &name);
                holds.spawn(async move { gate.hold().await });
            }
            counters.push((counter, session));
        }
        let held = holds.join_all().await.into_iter().filter(Result::is_ok).count();
        assert_eq!(held, 1, "of all who would hold it, one does");
        for (counter, session) in &counters {
            counter.reset();
            for _ in 0..8 {
                let gate = barrier(session, &name);
                waiting.spawn(async move { gate.wait().await });
            }
        }
        for (counter, _) in &counters {
            until("eight reads", LONG, async || (counter.unary_total() == 8).then_some(())).await;
        }
        assert!(timeout(Duration::from_millis(20), waiting.join_next()).await.is_err(), "it is held");
        barrier(&holder, &name).release().await.unwrap();
        waiting.join_all().await.into_iter().for_each(|waited| waited.unwrap());
        for (counter, _) in &counters {
            assert_eq!(counter.unary_total(), 8, "{counter}");
        }
    }

    async fn dropped_at_every_point(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("gate"), backend.client());
        let session = session(&backend.client()).await;
        let gate = barrier(&session, &name);
        gate.wait().await.unwrap();
        let usual = if backend.is_fake() { tasks() } else { 0 };
        let mut done = [false; 3];
        for polls in 0..MANY {
            // What a dropped hold leaves is taken back.
            if let Some(held) = at_most(polls, gate.hold()).await {
                held.unwrap();
                done[0] = true;
                gate.release().await.unwrap();
            }
            nothing_left(&backend, &observer, &name, usual).await;
            // What a dropped release leaves is released. On a real server a dropped hold may have come only now, and go.
            until("a hold", LONG, async || gate.hold().await.ok()).await;
            done[1] |= at_most(polls, gate.release()).await.is_some();
            if polls > 0 {
                nothing_left(&backend, &observer, &name, usual).await;
            } else {
                gate.release().await.unwrap();
            }
            done[2] |= at_most(polls, gate.wait()).await.is_some();
            nothing_left(&backend, &observer, &name, usual).await;
            if done == [true; 3] {
                return;
            }
        }
        panic!("never done: {done:?}");
    }
}

/// Go's key is the name itself: what it holds, we wait for, and what we hold it deletes.
#[tokio::test(start_paused = true)]
async fn the_key_is_the_name_and_nothing_hangs_on_it() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let gate = barrier(&session, "gate");
    gate.hold().await.unwrap();
    let snapshot = fake.snapshot();
    assert_eq!((snapshot.keys.len(), snapshot.get("gate").unwrap().lease), (1, 0));
    fake.client().txn(Txn::new().success(Op::delete("gate"))).await.unwrap();
    gate.wait().await.unwrap();
    fake.client().txn(Txn::new().success(Op::put("gate", ""))).await.unwrap();
    timeout(S(5), gate.wait()).await.expect_err("held by Go");
    gate.release().await.unwrap();
    gate.wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_settled_by_reading_back() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let gate = barrier(&session, "gate");
    for lost in [LoseReply::Error, LoseReply::Hang] {
        fake.fault(On::rpc(Rpc::Txn).matching(writes).once(), Do::lose_reply_by(lost.clone()));
        let before = fake.revision();
        gate.hold().await.unwrap();
        assert_eq!(fake.revision(), before + 2, "held once, and made to last");
        fake.fault(On::rpc(Rpc::Txn).matching(writes).once(), Do::lose_reply_by(lost));
        gate.release().await.unwrap();
        assert!(fake.snapshot().keys.is_empty());
    }
}

/// Whether it is held nobody knows: that is said, and it is not in the end, also if the request comes late.
#[tokio::test(start_paused = true)]
async fn a_hold_of_unknown_fate_is_taken_back() {
    let fake = FakeEtcd::start();
    let client = fake.client_for("a");
    let session = Session::builder(&client).ttl(S(5)).open().await.unwrap();
    let gate = barrier(&session, "gate");
    let lost = fake.fault(On::rpc(Rpc::Txn), Do::lose_reply());
    let error = gate.hold().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    timeout(S(20), fake.until(|fake| fake.snapshot().keys.is_empty())).await.unwrap();
    // What comes after the session's end is refused.
    let late = fake.fault(On::rpc(Rpc::Txn).matching(writes).once(), Do::delay(S(18)));
    let error = gate.hold().await.unwrap_err();
    assert_eq!((error.outcome(), late.hits()), (Outcome::Unknown, 1), "{error}");
    session.close().await.unwrap();
    drop((session, gate));
    let before = fake.revision();
    tokio::time::sleep(S(60)).await;
    assert_eq!(fake.revision(), before);
}

/// The session was lost while a hold was under way that had been applied, and the caller was told that it was not.
#[tokio::test(start_paused = true)]
async fn a_hold_that_the_sessions_end_cuts_short_may_have_been_made() {
    for nth in [1, 2] {
        let fake = FakeEtcd::start();
        let session = Session::builder(&fake.client_for("a")).ttl(S(3)).open().await.unwrap();
        let gate = barrier(&session, "gate");
        let writes = On::rpc(Rpc::Txn).client("a").matching(writes);
        let lost = fake.fault(writes.nth(nth), Do::lose_reply_by(LoseReply::Hang));
        let holding = tokio::spawn(async move { gate.hold().await });
        fake.until(|_| lost.hits() == 1).await;
        fake.partition("a");
        let error = holding.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        // It goes as soon as the server can be reached, or with the lease.
        fake.heal("a");
        let gone = fake.until(|fake| fake.snapshot().get("gate").is_none());
        timeout(S(120), gone).await.expect("it is taken back");
    }
}

/// A hold of unknown fate has no lease that would end it. While users and roles were edited the client had no right to take it
/// back, and it stayed for good. Without an end it is not tried.
#[tokio::test(start_paused = true)]
async fn a_hold_of_unknown_fate_outlasts_no_rights_that_are_taken_for_a_while() {
    for (minutes, gone) in [(5, true), (60, false)] {
        let fake = FakeEtcd::start();
        let session = Session::builder(&fake.client_for("a")).ttl(S(5)).open().await.unwrap();
        let gate = barrier(&session, "gate");
        // The second of its writes takes it off the lease.
        let writes = || On::rpc(Rpc::Txn).client("a").matching(writes);
        fake.fault(writes().nth(2), Do::lose_reply_by(LoseReply::Hang));
        let holding = tokio::spawn(async move { gate.hold().await });
        fake.until(|fake| fake.snapshot().get("gate").is_some_and(|kv| kv.lease == 0)).await;
        let denied = tonic::Status::permission_denied("etcdserver: permission denied");
        let refused = fake.fault(writes(), Do::fail(denied));
        holding.abort();
        tokio::time::sleep(S(60 * minutes)).await;
        assert!((10..150).contains(&refused.hits()), "{}", refused.hits());
        refused.remove();
        tokio::time::sleep(S(60)).await;
        assert_eq!(fake.snapshot().get("gate").is_none(), gone, "{minutes} minutes");
    }
}

/// A hold was given up while the answer to its first request was on its way. It was made to last in the background all the
/// same, and was to be taken back only then; its process was cut off between the two, and the barrier stayed held without
/// an owner.
#[tokio::test(start_paused = true)]
async fn a_hold_that_was_dropped_is_not_made_to_last() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(5)).open().await.unwrap();
    let gate = barrier(&session, "gate");
    let txns = || On::rpc(Rpc::Txn).client("a");
    fake.fault(txns().matching(writes).once(), Do::delay_reply(S(1)));
    fake.fault(txns().matching(deletes), Do::vanish());
    timeout(Duration::from_millis(500), gate.hold()).await.expect_err("the answer takes a second");
    assert!(fake.snapshot().get("gate").is_some(), "it was put");
    tokio::time::sleep(S(2)).await;
    assert!(fake.expire_lease(session.lease()));
    assert!(fake.snapshot().get("gate").is_none(), "it goes with the lease");
}

/// A hold was given up while it was made to last, and its session was closed: that was told to be done, the process ended,
/// and with it the request that was to take the hold back.
#[tokio::test(start_paused = true)]
async fn closing_waits_until_a_dropped_hold_is_taken_back() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(30)).open().await.unwrap();
    let gate = barrier(&session, "gate");
    let txns = || On::rpc(Rpc::Txn).client("a");
    fake.fault(txns().matching(writes).nth(2), Do::delay_reply(S(1)));
    fake.fault(txns().matching(deletes), Do::delay(S(2)));
    let holding = tokio::spawn(async move { gate.hold().await });
    fake.until(|fake| fake.snapshot().get("gate").is_some_and(|kv| kv.lease == 0)).await;
    holding.abort();
    assert!(holding.await.unwrap_err().is_cancelled());
    session.close().await.unwrap();
    assert!(fake.snapshot().get("gate").is_none(), "nothing is left to be done");
}

/// A hold was made to last, which its caller was not told of: the replies were lost, or its future was kept and not polled. It
/// was not taken back when the session was closed, and no lease's end does that. `close` said that all was well, the process
/// ended, and the barrier stayed held without an owner.
#[tokio::test(start_paused = true)]
async fn closing_tells_of_a_hold_that_is_not_taken_back() {
    for polled in [true, false] {
        let fake = FakeEtcd::start();
        let session = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
        let gate = barrier(&session, "gate");
        let writes = || On::rpc(Rpc::Txn).client("a").matching(writes);
        let lost = match polled {
            true => Do::lose_reply_by(LoseReply::Hang),
            false => Do::delay_reply(S(1)),
        };
        fake.fault(writes().nth(2), lost);
        let mut holding = Box::pin(gate.hold());
        tokio::select! {
            biased;
            _ = &mut holding => panic!("the answer takes longer"),
            () = fake.until(|fake| fake.snapshot().get("gate").is_some_and(|kv| kv.lease == 0)) => {}
        }
        let denied = tonic::Status::permission_denied("etcdserver: permission denied");
        let refused = fake.fault(writes(), Do::fail(denied));
        let expected = if polled {
            assert_eq!((&mut holding).await.unwrap_err().outcome(), Outcome::Unknown);
            ErrorKind::PermissionDenied
        } else {
            ErrorKind::Timeout
        };
        for _ in 0..2 {
            let error = session.close().await.expect_err("the barrier is held, and no caller holds it");
            assert_eq!((error.kind(), error.outcome()), (&expected, Outcome::Unknown));
            assert_eq!(fake.leases(), 0);
            assert!(fake.snapshot().get("gate").is_some());
        }
        refused.remove();
        drop(holding);
        let gone = fake.until(|fake| fake.snapshot().get("gate").is_none());
        timeout(S(60), gone).await.expect("taken back");
        session.close().await.expect("nothing is left to be done");
    }
}

/// One that was not made to last goes with the lease, whether or not the client may take it back: no reason to fail.
#[tokio::test(start_paused = true)]
async fn closing_is_ok_where_a_hold_goes_with_the_lease() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
    let gate = barrier(&session, "gate");
    let denied = tonic::Status::permission_denied("etcdserver: permission denied");
    let on = On::rpc(Rpc::Txn).client("a").matching(|txn| writes(txn) && !puts_with_a_lease(txn));
    let refused = fake.fault(on, Do::fail(denied));
    let error = gate.hold().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::PermissionDenied, Outcome::Unknown));
    assert!(fake.snapshot().get("gate").is_some_and(|kv| kv.lease == session.lease()));
    session.close().await.expect("the lease takes it along");
    assert!(refused.hits() > 0 && fake.snapshot().get("gate").is_none());
}

/// One waited at a barrier while its watch could not be opened. The barrier was released, and held by another before the
/// watch went on; what happened in between was compacted. The release that it had waited for was not told to it, and it
/// went on to wait for the other's.
#[tokio::test(start_paused = true)]
async fn one_who_waits_goes_on_after_a_release_that_it_was_not_told_of() {
    for compacted in [true, false] {
        let fake = FakeEtcd::start();
        let (a, b, w) = (
            session(&fake.client()).await,
            session(&fake.client()).await,
            session(&fake.client_for("w")).await,
        );
        let (gate, other) = (barrier(&a, "gate"), barrier(&b, "gate"));
        gate.hold().await.unwrap();
        let down = fake.fault(On::open(Rpc::Watch).client("w"), Do::fail(tonic::Status::unavailable("down")));
        if compacted {
            down.remove();
        }
        let waiting = barrier(&w, "gate");
        let mut waiting = tokio::spawn(async move { waiting.wait().await });
        // Where no watch begins, it reads within two minutes.
        timeout(S(150), &mut waiting).await.expect_err("it is held");
        if compacted {
            let down =
                fake.fault(On::open(Rpc::Watch).client("w"), Do::fail(tonic::Status::unavailable("down")));
            fake.cut_streams("w");
            gate.release().await.unwrap();
            other.hold().await.unwrap();
            fake.compact(fake.revision()).unwrap();
            down.remove();
        } else {
            gate.release().await.unwrap();
            other.hold().await.unwrap();
        }
        timeout(S(150), waiting).await.expect("it was released").unwrap().unwrap();
    }
}

/// A key that is written all the time was counted every five seconds by each who followed it, not every one to two minutes.
#[tokio::test(start_paused = true)]
async fn a_busy_key_is_counted_every_one_to_two_minutes() {
    let fake = FakeEtcd::start();
    let (a, w) = (session(&fake.client()).await, session(&fake.client_for("w")).await);
    barrier(&a, "gate").hold().await.unwrap();
    let counts = On::rpc(Rpc::Range).client("w").matching(|range: &RangeRequest| range.count_only);
    let counts = fake.fault(counts, Do::delay(Duration::ZERO));
    let waiting = barrier(&w, "gate");
    let waiting = tokio::spawn(async move { waiting.wait().await });
    for _ in 0..1200 {
        fake.client().txn(Txn::new().success(Op::put("gate", "again"))).await.unwrap();
        tokio::time::sleep(S(1)).await;
    }
    assert!(!waiting.is_finished(), "it is held");
    assert!((9..=20).contains(&counts.seen()), "{} in twenty minutes", counts.seen());
}

/// etcd#22082, for barriers: a release that is repeated, or late, must not release the next hold.
#[tokio::test(start_paused = true)]
async fn a_late_release_never_releases_a_later_hold() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (gate, other) = (barrier(&a, "gate"), barrier(&b, "gate"));
    gate.hold().await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).client("a").once(), Do::lose_reply_by(LoseReply::Hang));
    let releasing = tokio::spawn({
        let gate = gate.clone();
        async move { gate.release().await }
    });
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
    other.hold().await.unwrap();
    // Whether the other held it before or after is not to be told from the second attempt's answer.
    let error = releasing.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Locked, Outcome::Unknown), "{error}");
    assert_eq!((lost.hits(), fake.snapshot().keys.len()), (1, 1));
    other.release().await.unwrap();
    gate.hold().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").once(), Do::delay(S(9)));
    timeout(S(1), gate.release()).await.expect_err("it takes nine seconds");
    other.release().await.unwrap();
    other.hold().await.unwrap();
    tokio::time::sleep(S(30)).await;
    assert_eq!(fake.snapshot().keys.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_watch_is_no_open_barrier() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let gate = barrier(&session, "gate");
    gate.hold().await.unwrap();
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    fake.fault(On::open(Rpc::Watch), Do::fail(refused));
    let error = gate.wait().await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::PermissionDenied);
}

/// Random holders, releasers and waiters, and everything that goes wrong. Whoever went on did so with the barrier open
/// in the meantime; and what is held in the end is held by somebody who was told so.
#[test]
fn random_schedules() {
    explore(async |world: World| {
        let actors = world.actors(act);
        let held: Vec<(i64, i64)> = actors.join_all().await.into_iter().flatten().collect();
        let told = |revision: i64| held.iter().any(|(from, to)| (from + 1..=*to).contains(&revision));
        let settled =
            world.fake.until(|fake| fake.snapshot().get("gate").is_none_or(|kv| told(kv.create_revision)));
        timeout(S(900), settled).await.expect("a hold that nobody was told of is taken back");
    });

    /// Gives the revisions between which each of its holds was made.
    async fn act(world: World, actor: usize) -> Vec<(i64, i64)> {
        let (mut rng, client) = (world.rng(actor), world.client(actor));
        let mut session = open(&client).await;
        let mut held = Vec::new();
        for _ in 0..12 {
            if !session.is_valid() {
                session = open(&client).await;
            }
            let (gate, limit) = (barrier(&session, "gate"), patience(&mut rng));
            let from = world.revision();
            match rng.u8(0..4) {
                0 => {
                    if let Ok(Ok(())) = timeout(limit, gate.hold()).await {
                        held.push((from, world.revision()));
                    }
                }
                1 => {
                    if let Ok(Ok(())) = timeout(limit, gate.release()).await {
                        let window = (from, world.revision());
                        assert!(
                            world.held_between(window, "gate", |keys| keys.is_empty()).await,
                            "{window:?}"
                        );
                    }
                }
                _ => {
                    if let Ok(Ok(())) = timeout(limit, gate.wait()).await {
                        let window = (from, world.revision());
                        assert!(
                            world.held_between(window, "gate", |keys| keys.is_empty()).await,
                            "{window:?}"
                        );
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..3_000))).await;
        }
        held
    }
}
