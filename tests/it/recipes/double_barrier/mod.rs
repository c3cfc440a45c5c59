//! Double barriers.

mod callers;
mod faults;
mod schedules;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_concurrency::{DoubleBarrier, ErrorKind, Inside, LostReason, Op, Result, Session, Txn};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::world::{keys, nothing_left};
use crate::drops::{MANY, at_most, take_time, tasks};
use crate::support::backend::{Backend, on_every_backend};
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, revoke, session};

const S: fn(u64) -> Duration = Duration::from_secs;

fn barrier(session: &Session, name: &str, count: u32) -> DoubleBarrier {
    DoubleBarrier::new(session, name, count).expect("a good name")
}

/// Enters in a task, and returns once so many are there.
async fn enter(
    backend: &Backend,
    barrier: &DoubleBarrier,
    name: &str,
    there: usize,
) -> JoinHandle<Result<Inside>> {
    let barrier = barrier.clone();
    let entering = tokio::spawn(async move { barrier.enter().await });
    let observer = backend.client();
    until("one more to be there", LONG, async || {
        (keys(&observer, &format!("{name}/waiters/")).await == there).then_some(())
    })
    .await;
    entering
}

/// So many, all inside.
async fn all_inside(barriers: &[DoubleBarrier]) -> Vec<Inside> {
    let mut entering = Vec::new();
    for barrier in barriers {
        let barrier = barrier.clone();
        entering.push(tokio::spawn(async move { barrier.enter().await }));
    }
    let mut all = Vec::new();
    for inside in entering {
        all.push(inside.await.unwrap().unwrap());
    }
    all.sort_by_key(|inside| inside.token());
    all
}

fn leave(inside: Inside) -> JoinHandle<Result<()>> {
    tokio::spawn(inside.leave())
}

on_every_backend! {
    /// enter 2; leave 2, and 3 for the one who is there longest if it has to wait for others.
    async fn what_each_step_costs(backend: Backend) {
        let name = backend.key("round");
        let (first, last) = (RpcCounter::new(), RpcCounter::new());
        let (a, b) = (session(&backend.client_with(first.clone())).await, session(&backend.client_with(last.clone())).await);
        let (a, b) = (barrier(&a, &name, 2), barrier(&b, &name, 2));
        for counter in [&first, &last] {
            counter.reset();
        }
        let waiting = enter(&backend, &a, &name, 1).await;
        until("its read", LONG, async || (first.unary_total() == 2).then_some(())).await;
        quiet(&first).await;
        let inside_b = b.enter().await.unwrap();
        let inside_a = waiting.await.unwrap().unwrap();
        assert_eq!((first.unary_total(), last.unary_total()), (2, 2), "{first}; {last}");
        let left = leave(inside_a);
        until("the first's read", LONG, async || (first.unary_total() == 4).then_some(())).await;
        quiet(&first).await;
        inside_b.leave().await.unwrap();
        left.await.unwrap().unwrap();
        assert_eq!((first.unary_total(), last.unary_total()), (5, 4), "{first}; {last}");
        assert_eq!(keys(&backend.client(), &name).await, 0);
        // Alone in the end, it need not wait.
        let (a, b) = tokio::join!(a.enter(), b.enter());
        let (a, b) = (a.unwrap(), b.unwrap());
        let (young, old) = if a.token() < b.token() { (b, a) } else { (a, b) };
        let waiting = leave(young);
        until("one to be left", LONG, async || {
            (keys(&backend.client(), &format!("{name}/waiters/")).await == 1).then_some(())
        }).await;
        quiet(&first).await;
        quiet(&last).await;
        let before = first.unary_total() + last.unary_total();
        old.leave().await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(first.unary_total() + last.unary_total() - before, 2);
        assert_eq!(keys(&backend.client(), &name).await, 0);
    }

    /// Sixty-four tasks on eight sessions, round after round: nobody is in before all are there, nor out before all
    /// have left.
    async fn all_enter_together_and_leave_together(backend: Backend) {
        const ALL: u32 = 64;
        let name = backend.key("round");
        let (came, went) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for _ in 0..8 {
                let (barrier, came, went) = (barrier(&session, &name, ALL), came.clone(), went.clone());
                all.spawn(async move {
                    for round in 1..=3 {
                        came.fetch_add(1, Ordering::SeqCst);
                        let inside = barrier.enter().await.unwrap();
                        assert_eq!(came.load(Ordering::SeqCst), round * ALL as usize);
                        went.fetch_add(1, Ordering::SeqCst);
                        inside.leave().await.unwrap();
                        assert!(went.load(Ordering::SeqCst) >= round * ALL as usize);
                    }
                });
            }
        }
        while let Some(done) = all.join_next().await {
            done.unwrap();
        }
        assert_eq!(keys(&backend.client(), &name).await, 0);
    }

    async fn one_too_many_is_told(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let session = session(&client).await;
        let pair = barrier(&session, &name, 2);
        let inside = all_inside(&[pair.clone(), pair.clone()]).await;
        let error = pair.enter().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::TooManyClients { count: 2 });
        assert_eq!(keys(&client, &format!("{name}/waiters/")).await, 2);
        drop(inside);
        until("both to leave", LONG, async || (keys(&client, &format!("{name}/waiters/")).await == 0).then_some(())).await;
        assert!(DoubleBarrier::new(&session, "", 1).is_err() && DoubleBarrier::new(&session, "x", 0).is_err());
    }

    async fn who_is_lost_while_waiting_is_not_counted(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let (a, b, c) = (session(&client).await, session(&client).await, session(&client).await);
        let lost = enter(&backend, &barrier(&a, &name, 2), &name, 1).await;
        a.close().await.unwrap();
        assert_eq!(lost.await.unwrap().unwrap_err().lost_reason(), Some(LostReason::Closed));
        let waiting = enter(&backend, &barrier(&b, &name, 2), &name, 1).await;
        assert!(!waiting.is_finished());
        let last = barrier(&c, &name, 2).enter().await.unwrap();
        let first = waiting.await.unwrap().unwrap();
        let (first, last) = tokio::join!(first.leave(), last.leave());
        first.unwrap();
        last.unwrap();
        // Thrown out by somebody, one is told.
        let waiting = enter(&backend, &barrier(&b, &name, 2), &name, 1).await;
        client.txn(Txn::new().success(Op::delete_prefix(format!("{name}/waiters/")))).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap_err().lost_reason(), Some(LostReason::KeyDeleted));
    }

    /// Whoever is lost inside has left: the one who was there longest, or another, or all.
    async fn who_is_lost_inside_has_left(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        for lost in 0..4 {
            let mut sessions = Vec::new();
            for _ in 0..3 {
                sessions.push(session(&client).await);
            }
            let barriers: Vec<_> = sessions.iter().map(|session| barrier(session, &name, 3)).collect();
            let mut inside = all_inside(&barriers).await;
            if lost == 3 {
                for session in &sessions {
                    session.close().await.unwrap();
                }
                assert_eq!(keys(&client, &name).await, 1, "nobody is there to take it away");
                continue;
            }
            let gone = inside.remove(lost);
            let left: Vec<_> = inside.into_iter().map(leave).collect();
            until("all others to leave as far as they can", LONG, async || {
                (keys(&client, &format!("{name}/waiters/")).await == if lost == 0 { 1 } else { 2 }).then_some(())
            }).await;
            revoke(&client, gone.session_lease()).await;
            for left in left {
                left.await.unwrap().unwrap();
            }
            assert!(gone.leave().await.unwrap_err().lost_reason().is_some());
            assert_eq!(keys(&client, &name).await, 0, "{lost}: the last to leave takes the ready key along");
        }
        // What they left behind is in nobody's way.
        let session = session(&client).await;
        let pair = [barrier(&session, &name, 2), barrier(&session, &name, 2)];
        for inside in all_inside(&pair).await.into_iter().map(leave).collect::<Vec<_>>() {
            inside.await.unwrap().unwrap();
        }
        assert_eq!(keys(&client, &name).await, 0);
    }

    /// All who were inside were dropped, or the one who was alone while it entered: the ready key, which has no lease, stayed.
    async fn those_who_are_dropped_leave_no_key(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let session = session(&client).await;
        let pair = [barrier(&session, &name, 2), barrier(&session, &name, 2)];
        drop(all_inside(&pair).await);
        let alone = barrier(&session, &name, 1);
        let gone = async || (keys(&client, &name).await == 0).then_some(());
        until("both to be gone", LONG, gone).await;
        for polls in 0..4 {
            let mut entering = Box::pin(alone.enter());
            let mut inside = None;
            for _ in 0..polls {
                inside = timeout(Duration::from_millis(20), &mut entering).await.ok();
                if inside.is_some() {
                    break;
                }
            }
            drop((entering, inside));
            until("it to be gone", LONG, gone).await;
        }
    }

    /// Go's would enter, and make up a round with the one who is still there.
    async fn who_comes_while_the_round_is_left_waits_for_the_next(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let session = session(&client).await;
        let pair = barrier(&session, &name, 2);
        let mut inside = all_inside(&[pair.clone(), pair.clone()]).await;
        let last = inside.pop().unwrap();
        let left = leave(last);
        until("one to leave", LONG, async || (keys(&client, &format!("{name}/waiters/")).await == 1).then_some(())).await;
        let early = tokio::spawn({
            let pair = pair.clone();
            async move { pair.enter().await }
        });
        assert!(timeout(Duration::from_millis(100), left_or(&early)).await.is_err());
        assert_eq!(keys(&client, &format!("{name}/waiters/")).await, 1);
        inside.pop().unwrap().leave().await.unwrap();
        left.await.unwrap().unwrap();
        let other = pair.enter().await.unwrap();
        let early = early.await.unwrap().unwrap();
        let (one, two) = tokio::join!(other.leave(), early.leave());
        one.unwrap();
        two.unwrap();
        assert_eq!(keys(&client, &name).await, 0);
    }

    /// A third party deleted the ready key, and one of two who were inside left: it took the other for gone, who worked on.
    async fn one_who_leaves_waits_for_the_oldest_though_the_ready_key_was_deleted(backend: Backend) {
        let (name, client) = (backend.key("b"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let (older, younger) = (barrier(&a, &name, 2), barrier(&b, &name, 2));
        let first = tokio::spawn(async move { older.enter().await });
        until("one is there", LONG, async || (keys(&client, &format!("{name}/waiters/")).await == 1).then_some(())).await;
        let (second, first) = (younger.enter().await.unwrap(), first.await.unwrap().unwrap());
        client.txn(Txn::new().success(Op::delete(format!("{name}/ready")))).await.unwrap();
        let leaving = leave(second);
        until("its key to go", LONG, async || (keys(&client, &format!("{name}/waiters/")).await == 1).then_some(())).await;
        let early = timeout(Duration::from_millis(500), first.lost()).await;
        assert!(early.is_err() && !leaving.is_finished(), "it has left while the other is inside");
        first.leave().await.unwrap();
        leaving.await.unwrap().unwrap();
    }

    /// Go's participants do not look for what an earlier round left behind: they wait, and are let in.
    async fn gos_keys_are_counted(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let (go, ours) = (session(&client).await, session(&client).await);
        client.txn(Txn::new().success(Op::put(format!("{name}/ready"), ""))).await.unwrap();
        let theirs = format!("{name}/waiters/1764025200000000000");
        client.txn(Txn::new().success(Op::put_with_lease(theirs.clone(), "", go.lease()))).await.unwrap();
        let before = client.txn(Txn::new().success(Op::get(theirs.clone()))).await.unwrap().header.revision;
        let inside = barrier(&ours, &name, 2).enter().await.unwrap();
        let ready = client.txn(Txn::new().success(Op::get(format!("{name}/ready")))).await.unwrap();
        assert!(ready.kvs(0).unwrap()[0].mod_revision > before, "what Go waits for");
        // Go's leaves last, being there longest: first the one key, then the other.
        let left = leave(inside);
        until("ours to leave", LONG, async || (keys(&client, &format!("{name}/waiters/")).await == 1).then_some(())).await;
        client.txn(Txn::new().success(Op::delete(format!("{name}/ready")))).await.unwrap();
        client.txn(Txn::new().success(Op::delete(theirs))).await.unwrap();
        left.await.unwrap().unwrap();
        assert_eq!(keys(&client, &name).await, 0);
    }

    /// An application's own key beside those of the participants counted as one: the barrier of two opened for one alone,
    /// the next was one too many, and where that key was the oldest, all who left waited for it to leave last.
    async fn keys_of_other_shapes_do_not_take_part(backend: Backend) {
        let (name, client) = (backend.key("round"), backend.client());
        let waiters = format!("{name}/waiters/");
        let session = session(&client).await;
        let pair = barrier(&session, &name, 2);
        let foreign = async |key: &str| {
            client.txn(Txn::new().success(Op::put(format!("{waiters}{key}"), "x"))).await.unwrap();
        };
        foreign("config").await;
        for round in 0..2 {
            let first = enter(&backend, &pair, &name, 2 + 2 * round).await;
            if round == 0 {
                foreign("owner").await;
                foreign("1f").await;
            }
            sleep(Duration::from_millis(200)).await;
            assert!(!first.is_finished(), "let in alone");
            let second = timeout(LONG, pair.enter()).await.expect("in time").unwrap();
            let first = first.await.unwrap().unwrap();
            let error = timeout(LONG, pair.enter()).await.expect("in time").unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::TooManyClients { count: 2 });
            let left = leave(first);
            sleep(Duration::from_millis(200)).await;
            assert!(!left.is_finished(), "let out while the other is inside");
            timeout(LONG, second.leave()).await.expect("in time").unwrap();
            timeout(LONG, left).await.expect("in time").unwrap().unwrap();
            assert_eq!((keys(&client, &waiters).await, keys(&client, &format!("{name}/ready")).await), (3, 0));
        }
        // One comes while the round is left, and waits for the next.
        let (one, two) = tokio::join!(pair.enter(), pair.enter());
        let left = leave(one.unwrap());
        until("one to leave", LONG, async || (keys(&client, &waiters).await == 4).then_some(())).await;
        let early = tokio::spawn({
            let pair = pair.clone();
            async move { pair.enter().await }
        });
        sleep(Duration::from_millis(200)).await;
        assert_eq!(keys(&client, &waiters).await, 4);
        timeout(LONG, two.unwrap().leave()).await.expect("in time").unwrap();
        left.await.unwrap().unwrap();
        let (other, early) = tokio::join!(timeout(LONG, pair.enter()), timeout(LONG, early));
        drop((other.expect("in time").unwrap(), early.expect("in time").unwrap().unwrap()));
    }

    async fn dropped_at_every_point(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("round"), backend.client());
        let session = session(&backend.client()).await;
        let (alone, pair) = (barrier(&session, &format!("{name}/alone"), 1), barrier(&session, &format!("{name}/pair"), 2));
        alone.enter().await.unwrap().leave().await.unwrap();
        let mut usual = 0;
        let mut done = [false; 4];
        for polls in 0..MANY {
            // With nobody else: it waits.
            let waited = timeout(Duration::from_millis(200), at_most(polls, pair.enter())).await;
            assert!(!matches!(waited, Ok(Some(_))));
            match at_most(polls, alone.enter()).await {
                Some(Ok(inside)) => {
                    done[0] = true;
                    done[1] |= at_most(polls, inside.leave()).await.is_some();
                }
                // On a real server, what was dropped may have come late.
                Some(Err(error)) => assert_eq!(*error.kind(), ErrorKind::TooManyClients { count: 1 }),
                None => {}
            }
            // What is left of an entry that was dropped takes up no room for long.
            let inside = until("both to enter", LONG, async || {
                let (one, two) = tokio::join!(
                    timeout(S(2), pair.enter()), timeout(S(2), pair.enter())
                );
                match (one, two) {
                    (Ok(Ok(one)), Ok(Ok(two))) => Some((one, two)),
                    _ => None,
                }
            }).await;
            let (one, two) = inside;
            let (first, second) = tokio::join!(at_most(polls, one.leave()), two.leave());
            second.unwrap();
            done[2] |= first.is_some();
            let (first, _) = tokio::join!(
                timeout(S(1), at_most(polls, pair.enter())),
                timeout(Duration::from_millis(500), pair.enter()),
            );
            done[3] |= matches!(first, Ok(Some(Ok(_))));
            drop(first);
            if backend.is_fake() && usual == 0 {
                until("quiet", LONG, async || (backend.watchers() == Some(0)).then_some(())).await;
                sleep(S(1)).await;
                usual = tasks();
            }
            for part in ["alone", "pair"] {
                nothing_left(&backend, &observer, &format!("{name}/{part}/waiters/"), usual).await;
            }
            if done == [true; 4] {
                return;
            }
        }
        panic!("never done: {done:?}");
    }
}

async fn left_or(task: &JoinHandle<Result<Inside>>) {
    while !task.is_finished() {
        sleep(Duration::from_millis(5)).await;
    }
}

trait SessionLease {
    fn session_lease(&self) -> i64;
}

impl SessionLease for Inside {
    /// It stands in the key.
    fn session_lease(&self) -> i64 {
        let key = String::from_utf8(self.key().to_vec()).unwrap();
        let own = key.rsplit('/').next().unwrap();
        i64::from_str_radix(own.split('-').next().unwrap(), 16).unwrap()
    }
}
