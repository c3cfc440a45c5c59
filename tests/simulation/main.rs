//! The simulation: many processes, one fake, one thread, a clock that stands still while anything can be done, and
//! everything drawn from a seed. What goes wrong is drawn, too; what must hold all the same is judged from outside.
//!
//! - `SIM_SEED=7` runs one seed alone, and prints what the fake did if it fails.
//! - `SIM_SEEDS=100000` runs so many fresh ones, on as many threads as there are processors; `SIM_SECONDS=60` as many as
//!   there is time for.
//! - `SIM_KIND=Stm` has actors of that kind alone; `SIM_FROM=1` begins with that seed; `SIM_JOBS=1` takes one thread.
//! - `SIM_WIDE=-Lag,-Orphan` leaves out what is named of `wide.rs`; `SIM_WIDE=Lag` has of that only what is named.
//! - `SIM_SHRINK=0` leaves a schedule that fails as it is.
//!
//! A seed that fails is printed, and runs again exactly as it did. What it fails without is left out: the smallest
//! schedule that was found is printed, too.
//!
//! Nothing goes wrong here that the crate does not promise to bear. A request that straggles may arrive after any time:
//! as long as its session lives, and when it has ended. A stream that is silent for good is broken by somebody, as HTTP/2's
//! pings do where there is a connection. Leases that are ended and keys that are deleted behind their owners' backs count
//! as gone from then on: nobody can know at once.
//!
//! `tests/simulation/mutate` shows that the net has no holes: it breaks the crate in the ways that are listed in
//! `mutations/`, one at a time, and counts the seeds that it takes to find out.

mod actors;
mod checks;
mod mutations;
mod nemesis;
mod plan;
mod run;
mod shrink;
mod wide;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plan::Plan;
use run::run;

/// A few seconds, optimised or not.
const SEEDS: u64 = if cfg!(debug_assertions) { 12 } else { 200 };

/// The value of an environment variable, if it is set.
fn env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} cannot be read: {value}")))
}

#[test]
fn no_schedule_breaks_a_promise() {
    if let Some(seed) = env("SIM_SEED") {
        let (told, violation) = replay(seed);
        println!("{told}");
        assert_eq!(violation, None, "SIM_SEED={seed}");
        return;
    }
    let (seeds, first) =
        (env("SIM_SEEDS").unwrap_or(SEEDS), env("SIM_FROM").unwrap_or_else(|| fastrand::u64(..)));
    let (started, longest) = (Instant::now(), env("SIM_SECONDS").map(Duration::from_secs));
    let seeds = if longest.is_some() { u64::MAX / 2 } else { seeds };
    let (next, total) = (AtomicU64::new(0), Mutex::new(Total::default()));
    std::thread::scope(|scope| {
        for _ in 0..env("SIM_JOBS").unwrap_or_else(jobs) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds || longest.is_some_and(|longest| started.elapsed() > longest) {
                        return;
                    }
                    // Seeds that are close to each other draw nothing alike.
                    let seed = first.wrapping_add(n);
                    let ran = run(&Plan::drawn(seed), 0);
                    let mut total = total.lock().expect("nobody panics with it");
                    total.add(ran.lasted, &ran.counts);
                    if let Some(violation) = ran.violation {
                        total.failed.push((seed, violation));
                        next.store(seeds, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let total = total.into_inner().expect("nobody panicked with it");
    let Total { schedules, lasted, counts, failed } = total;
    println!(
        "{schedules} schedules from SIM_FROM={first} on: {:.1} hours of virtual time in {:.1?}; {counts:?}",
        lasted.as_secs_f64() / 3600.0,
        started.elapsed()
    );
    if let Some((seed, violation)) = failed.first() {
        let told = format!("SIM_SEED={seed} replays this, the {schedules}th: {violation}");
        if env("SIM_SHRINK") == Some(0) {
            panic!("\n{told}");
        }
        let (least, runs) = shrink::shrink(&Plan::drawn(*seed));
        let still = run(&least, 0).violation.unwrap_or_default();
        panic!("\n{told}\n\nThe smallest found, of {runs}: {still}\n{least}");
    }
}

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One seed, and all that can be told of it.
fn replay(seed: u64) -> (String, Option<String>) {
    let plan = Plan::drawn(seed);
    let ran = run(&plan, usize::MAX);
    let told = format!("{plan}\n{:?} of virtual time; {:?}", ran.lasted, ran.counts);
    let Some(violation) = ran.violation else { return (told, None) };
    let (least, runs) = shrink::shrink(&plan);
    let still = run(&least, usize::MAX);
    let told = format!(
        "{told}\n{}\nThe smallest found, of {runs}, and what the fake did:\n{least}\n{:?}",
        still.history, still.violation
    );
    (told, Some(violation))
}

#[derive(Default)]
struct Total {
    schedules: u64,
    lasted: Duration,
    counts: BTreeMap<&'static str, u64>,
    failed: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, lasted: Duration, counts: &BTreeMap<&'static str, u64>) {
        self.schedules += 1;
        self.lasted += lasted;
        for (what, count) in counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
}

/// Else a seed that fails would be of no use.
#[test]
fn a_seed_replays_exactly() {
    for _ in 0..3 {
        let seed = fastrand::u64(..);
        let plan = Plan::drawn(seed);
        let (one, other) = (run(&plan, usize::MAX), run(&plan, usize::MAX));
        assert!(!one.history.is_empty());
        for (one, other) in one.history.iter().zip(other.history.iter()) {
            assert_eq!(one, other, "SIM_SEED={seed}");
        }
        assert_eq!((one.history.len(), one.counts), (other.history.len(), other.counts), "SIM_SEED={seed}");
    }
}
