//! Three real etcd members, processes that work on them, and all that can happen to both: see
//! `docs/safety.md`.
//!
//! `CLUSTER_SECONDS=n` gives each fault so many seconds, `CLUSTER_FAULT=KillMember,Compact` wants no others,
//! `CLUSTER_STOP=20-60` lets members and clients stand still for so many seconds instead of a few, `CLUSTER_SEED=x` draws
//! the same again, `CLUSTER_LOGS=folder` keeps what the processes told.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that panics has said what it had to say"
)]

mod check;
mod fault;
mod histories;
mod lag;
mod net;
mod order;
mod stragglers;
#[allow(unused_imports, unused_macros, reason = "a kit: not every tool is in use at every time")]
#[path = "../it/support/mod.rs"]
mod support;
mod work;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_concurrency::{Client, Op, Txn};
use fastrand::Rng;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::support::etcd::Version;
use crate::support::{env, part, poll};
use crate::work::{ACCOUNTS, GO, OURS, START, account};
use crate::world::World;

/// Within which each worker gets on once all is well again.
const RECOVERY: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it; and Go"]
async fn nothing_breaks_a_promise_on_etcd_3_7() {
    if part::is_played() {
        return work::part().await;
    }
    all_faults(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it; and Go"]
async fn nothing_breaks_a_promise_on_etcd_3_5() {
    all_faults(Version::V3_5).await;
}

async fn all_faults(version: Version) {
    let seconds = Duration::from_secs(env("CLUSTER_SECONDS").unwrap_or(5));
    let stops = fault::Stops::told();
    let seed = env("CLUSTER_SEED").unwrap_or_else(|| fastrand::u64(..) >> 16);
    println!("etcd {version}, CLUSTER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = World::start(version, 3).await;
    let client = Client::connect(world.endpoints()).await.unwrap();
    let put = |txn: Txn, n| txn.success(Op::put(account(n), START.to_string()));
    client.txn((0..ACCOUNTS).fold(Txn::new(), put)).await.unwrap();
    // Two of each.
    let kinds = || OURS.iter().chain([&GO]).copied();
    for kind in kinds().chain(kinds()) {
        world.work(kind).await;
    }
    all_get_on(&world, now()).await;

    let mut times = Vec::new();
    let wanted = std::env::var("CLUSTER_FAULT").ok();
    for fault in Fault::ALL {
        let is_it = |wanted: &String| wanted.split(',').any(|wanted| wanted == format!("{fault:?}"));
        if !wanted.as_ref().is_none_or(is_it) {
            continue;
        }
        let (from, end) = (now(), Instant::now() + seconds);
        while Instant::now() < end {
            fault.strike(&world, &stops, &mut rng).await;
            world.assert_all_work();
        }
        times.push((fault, from, now()));
    }
    // Who was cut off or stood still comes back by itself.
    all_get_on(&world, now()).await;
    for worker in &world.workers {
        worker.process.kill();
    }
    if let Some(folder) = std::env::var_os("CLUSTER_LOGS") {
        for (number, worker) in world.workers.iter().enumerate() {
            let file = std::path::Path::new(&folder).join(format!("{}-{number}", worker.kind));
            std::fs::write(file, worker.process.output()).unwrap();
        }
    }

    let terms = check::terms(&world, &["lock", GO]);
    report(&world, &times, &terms);
    let leaders = check::terms(&world, &["election"]);
    for terms in [&terms, &leaders] {
        let overlap = check::overlap(terms, 0, u128::MAX);
        assert_eq!(overlap.ours, Duration::ZERO, "of one of ours that believed too long");
    }
    let client = Client::connect(world.endpoints()).await.unwrap();
    check::fenced(&client, "lock", &terms).await;
    check::fenced(&client, "election", &leaders).await;
    check::bank(&world, &client).await;
    check::queue(&world, &client).await;
    order::of_appends(&world, &client).await;
    histories::are_linearizable(&world, &client).await;
}

/// Waits until each worker has got on since a moment.
async fn all_get_on(world: &World, since: u128) {
    for kind in OURS.iter().chain([&GO]) {
        poll::until(&format!("each {kind} gets on"), RECOVERY, async || {
            let has_got_on = |lines: &Vec<String>| {
                lines.iter().rev().filter_map(|line| check::moment(line)).any(|at| at > since)
            };
            world.told_lately(kind).iter().all(has_got_on).then_some(())
        })
        .await;
    }
}

fn report(world: &World, times: &[(Fault, u128, u128)], terms: &[check::Term]) {
    println!("fault, seconds: how much was done, and the longest standstill; the longest overlap of holders");
    for (fault, from, to) in times {
        let seconds = (to - from) / 1_000_000_000;
        print!("{fault:?} {seconds}:");
        for kind in OURS.iter().chain([&GO]) {
            let (done, standstill) = check::standstill(world, kind, *from, *to);
            print!(" {kind} {done} {standstill:.1?};");
        }
        let overlap = check::overlap(terms, *from, *to);
        println!(" overlap of ours {:?}, of Go's {:.1?}", overlap.ours, overlap.go);
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}
