//! The fake against the real server: random operations, the same on both, compared field by field.
//!
//! `cargo test --test it -- --ignored differential` draws fresh seeds and prints them. By environment:
//! `DIFFERENTIAL_SEED=x` replays one seed, `DIFFERENTIAL_SEEDS=n` runs so many, `DIFFERENTIAL_OPS=n` makes each
//! so long (500), and `DIFFERENTIAL_VERSION=3.5` compares with another version, leaving out what is known to differ.
//! What differs is cut down to the operations that it takes (unless `DIFFERENTIAL_NO_SHRINK` is set), and
//! printed with its seed.
//!
//! Not compared are the ids of cluster, member and term, ids of leases that the server made up, and the order of a
//! lease's keys and of keys that sort alike (see [`ties`]); remaining TTLs may differ by two seconds; and of a watcher that catches up with the past,
//! not in how many responses (see [`compare`]).

mod compacted;
mod compare;
mod generate;
mod op;
mod race;
mod run;
mod side;
mod stream;
mod ties;
mod token;
mod users;

use std::time::Instant;

use self::generate::{Generator, Profile};
use self::op::Op;
use self::run::{Difference, Pair};
use crate::support::env;
use crate::support::etcd::Version;

/// So many seeds are under way at once: most of the time they wait for a server to catch a watcher up.
const AT_ONCE: usize = 3;

/// So many runs are spent on finding out which operations a difference takes.
const SHRINKS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn the_fake_answers_as_the_real_server_does() {
    let ops = env("DIFFERENTIAL_OPS").unwrap_or(500);
    let seeds: Vec<u64> = match env("DIFFERENTIAL_SEED") {
        Some(seed) => vec![seed],
        None => fresh(env("DIFFERENTIAL_SEEDS").unwrap_or(10)),
    };
    hold(version(), &seeds, ops).await;
}

/// What is known to differ is not drawn; all else has to be the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn and_as_older_ones_do_but_for_what_is_known() {
    for version in [Version::V3_6, Version::V3_5, Version::V3_4] {
        hold(version, &fresh(5), 300).await;
    }
}

fn fresh(seeds: usize) -> Vec<u64> {
    (0..seeds).map(|_| fastrand::u64(..) >> 16).collect()
}

/// Runs them all, and fails if any shows a difference.
async fn hold(version: Version, seeds: &[u64], ops: usize) {
    println!("{} seeds of {ops} operations on etcd {version}: {seeds:?}", seeds.len());
    let started = Instant::now();
    let mut waiting = seeds.iter().copied();
    let mut running = tokio::task::JoinSet::new();
    let mut failures = Vec::new();
    loop {
        while running.len() < AT_ONCE {
            let Some(seed) = waiting.next() else { break };
            running.spawn(async move { (seed, run(seed, version, ops).await) });
        }
        let Some(ended) = running.join_next().await else { break };
        let (seed, result) = ended.expect("no panic");
        if let Err(failure) = result {
            println!("seed {seed}: {failure}");
            failures.push(seed);
        }
    }
    println!("{} operations in {:.1?}", seeds.len() * ops, started.elapsed());
    assert!(failures.is_empty(), "differences from {version} with the seeds {failures:?}, printed above");
}

/// One seed; the error is the difference, cut down.
async fn run(seed: u64, version: Version, length: usize) -> Result<(), String> {
    let profile = Profile::of(seed, version);
    let mut generator = Generator::new(seed, profile);
    let mut pair = Pair::start(profile).await;
    let mut ops = Vec::new();
    let mut result = Ok(());
    while ops.len() < length && result.is_ok() && !pair.is_late {
        let op = generator.next(pair.view());
        ops.push(op.clone());
        result = pair.step(&op).await;
    }
    if result.is_ok() {
        result = pair.end().await;
    }
    if pair.is_late {
        println!("seed {seed}: ended after {} operations, since the machine was too slow", ops.len());
        return Ok(());
    }
    let Err(difference) = result else { return Ok(()) };
    let log = pair.server_log();
    drop(pair);
    if std::env::var_os("DIFFERENTIAL_NO_SHRINK").is_some() {
        return Err(format!("{profile:?}, operation {}\n{}", ops.len(), cut(&difference.to_string())));
    }
    let (ops, difference) = shrink(profile, ops, difference).await;
    let ops: Vec<String> = ops.iter().map(|op| cut(&format!("{op:?}"))).collect();
    let ops = ops.join("\n  ");
    Err(format!("{profile:?}\n  {ops}\n{difference}\n{log}"))
}

/// Leaves out what the difference does not take: half of it, then a quarter, and so on.
async fn shrink(profile: Profile, mut ops: Vec<Op>, mut difference: Difference) -> (Vec<Op>, Difference) {
    let mut size = ops.len() / 2;
    let mut runs = 0;
    while size > 0 {
        let mut start = 0;
        while start < ops.len() && runs < SHRINKS {
            runs += 1;
            let end = (start + size).min(ops.len());
            let fewer: Vec<Op> = ops[..start].iter().chain(&ops[end..]).cloned().collect();
            match replay(profile, &fewer).await {
                Err(still) => (ops, difference) = (fewer, still),
                Ok(()) => start = end,
            }
        }
        size /= 2;
    }
    (ops, difference)
}

async fn replay(profile: Profile, ops: &[Op]) -> Result<(), Difference> {
    let mut pair = Pair::start(profile).await;
    for op in ops {
        pair.step(op).await?;
    }
    pair.end().await
}

/// Leaves out what would fill screens: of a character many times over, all but a few; and the defaults.
fn cut(text: &str) -> String {
    let mut short = String::new();
    let mut last = ('\0', 0);
    for char in text.chars() {
        last = if last.0 == char { (char, last.1 + 1) } else { (char, 1) };
        if last.1 <= 10 {
            short.push(char);
        }
    }
    for default in ["cluster_id: 0, member_id: 0, ", ", raft_term: 0"] {
        short = short.replace(default, "");
    }
    let start: String = short.chars().take(LONGEST).collect();
    if start.len() < short.len() { format!("{start}…") } else { start }
}

const LONGEST: usize = 6000;

fn version() -> Version {
    let wanted = std::env::var("DIFFERENTIAL_VERSION").unwrap_or_else(|_| "3.7".into());
    let known = Version::ALL.into_iter().find(|version| version.to_string() == wanted);
    known.unwrap_or_else(|| panic!("no such version: {wanted}"))
}
