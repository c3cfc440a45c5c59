//! Nothing grows without bound: after much work, tasks, memory, watches and leases are where they were.
//!
//! A hundredth of it by default. `SOAK=1 cargo test --release --test soak -- --nocapture` does all: a hundred thousand
//! lock cycles, ten thousand sessions opened and lost, a million watch events, and says what it took.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that panics has said what it had to say"
)]

use std::time::{Duration, Instant};

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, ErrorKind, Mutex, Op, Result, Session, Txn, Watch};
use tokio::runtime::Handle;
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;

/// Locks, opens or events in one go; then the server compacts, as servers do.
const ROUND: usize = 1_000;
/// What may be left over of all work: caches, and what the allocator keeps.
const SLACK: u64 = 8 << 20;
/// For what is done in the background.
const SETTLED: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn lock_cycles_leave_nothing() {
    soak("lock cycles", 100_000, async |fake, client| {
        let session = Session::open(client).await?;
        let mutex = Mutex::new(&session, "lock")?;
        let rival = Mutex::new(&Session::open(client).await?, "lock")?;
        for cycle in 0..ROUND {
            let guard = mutex.lock().await?;
            guard.txn().success(Op::put("value", "x")).commit().await?;
            if cycle % 10 == 0 {
                // With a waiter behind it, and one that gives up.
                let waiting = tokio::spawn({
                    let rival = rival.clone();
                    async move { rival.lock().await?.unlock().await }
                });
                let mut gives_up = Box::pin(rival.lock());
                let _ = timeout(Duration::from_millis(1), &mut gives_up).await;
                fake.until(|fake| fake.watchers() > 0).await;
                drop(gives_up);
                guard.unlock().await?;
                waiting.await.expect("no panic")?;
            } else {
                guard.unlock().await?;
            }
        }
        rival.session().close().await?;
        session.close().await
    })
    .await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn sessions_that_are_lost_leave_nothing() {
    soak("sessions lost", 10_000, async |fake, client| {
        for round in 0..ROUND {
            let session = Session::builder(client).ttl(Duration::from_secs(10)).open().await?;
            let guard = Mutex::new(&session, format!("lock/{round}"))?.lock().await?;
            match round % 3 {
                0 => assert!(fake.revoke_lease(session.lease())),
                1 => assert!(fake.expire_lease(session.lease())),
                // Its program forgets it: dropped with its guard.
                _ => {
                    drop((session, guard));
                    continue;
                }
            }
            guard.lost().await;
            let late = guard.txn().success(Op::put("value", "x")).commit().await;
            assert!(late.is_err_and(|error| matches!(error.kind(), ErrorKind::Lost(_))));
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn watch_events_leave_nothing() {
    soak("watch events", 1_000_000, async |_, client| {
        let mut watchers: Vec<_> = (0..10).map(|_| client.watch(Watch::prefix("key/"))).collect();
        for watcher in &mut watchers {
            watcher.created().await?;
        }
        for n in 0..ROUND / watchers.len() {
            client.txn(Txn::new().success(Op::put(format!("key/{}", n % 7), "value"))).await?;
            for watcher in &mut watchers {
                watcher.next().await?;
            }
        }
        Ok(())
    })
    .await;
}

/// Does the work, a round at a time, `count` times in all; the second half must need no more than the first.
async fn soak(what: &str, count: usize, work: impl AsyncFn(&FakeEtcd, &Client) -> Result<()>) {
    // The memory is the process's.
    static ALONE: Turn<()> = Turn::const_new(());
    let _alone = ALONE.lock().await;
    let share = if std::env::var_os("SOAK").is_some() { 1 } else { 100 };
    let rounds = (count / ROUND / share).max(2);
    let fake = FakeEtcd::builder().history_limit(100).start();
    let client = fake.client();
    let started = Instant::now();
    let mut half = None;
    for round in 0..rounds {
        work(&fake, &client).await.expect("the work");
        // What nobody keeps alive expires, what was dropped is cleaned up.
        let settled = fake.until(|fake| (fake.leases(), fake.watchers(), fake.streams()) == (0, 0, 0));
        timeout(SETTLED, settled).await.unwrap_or_else(|_| {
            panic!("{} leases, {} watchers, {} streams left", fake.leases(), fake.watchers(), fake.streams())
        });
        fake.compact(fake.revision()).expect("a revision of now");
        if round + 1 == rounds / 2 {
            half = Some((tasks().await, memory()));
        }
    }
    let ((tasks, memory), (tasks_before, memory_before)) =
        ((tasks().await, memory()), half.expect("two rounds or more"));
    println!(
        "{} {what} in {:?}: {tasks} tasks, {} KiB; half way {tasks_before} and {} KiB",
        rounds * ROUND,
        started.elapsed(),
        memory >> 10,
        memory_before >> 10
    );
    assert!(tasks <= tasks_before, "{tasks} tasks, {tasks_before} half way");
    assert!(memory <= memory_before + SLACK, "{memory} bytes, {memory_before} half way");
}

/// How many tasks there are once those that wait for nothing but their turn have had it, and timers have run out.
async fn tasks() -> usize {
    tokio::time::sleep(SETTLED).await;
    Handle::current().metrics().num_alive_tasks()
}

/// The memory of this process, in bytes; where the system does not tell, nothing is measured.
fn memory() -> u64 {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}
