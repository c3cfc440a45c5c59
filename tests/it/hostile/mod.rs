//! Whatever the server answers, the client neither panics nor spins, and goes on once the server is honest again.
//!
//! `HOSTILE_SEED=x` replays a run, `HOSTILE_RUNS=n` draws so many.

mod peer;
mod work;

use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;

use crate::support::env;

#[tokio::test(start_paused = true)]
async fn nothing_that_the_server_answers_confuses_the_client() {
    let (first, runs) = match env::<u64>("HOSTILE_SEED") {
        Some(seed) => (seed, 1),
        None => (fastrand::u64(..) >> 16, env("HOSTILE_RUNS").unwrap_or(30)),
    };
    for seed in first..first + runs {
        // For one that never ends.
        println!("HOSTILE_SEED={seed}");
        let _told = Told(seed);
        etcd_concurrency::fake::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let length = rng.usize(1..600);
        let mut script: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        // From the one that lies now and then to the one that mostly does.
        let honesty = rng.u8(0..200);
        script.iter_mut().filter(|_| rng.u8(..) < honesty).for_each(|byte| *byte = 0);
        without_a_panic(work::replay(&script)).await;
    }
}

/// Says the seed after all that a panic has to say, of which a log may keep the end alone.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("HOSTILE_SEED={} replays this", self.0);
        }
    }
}

/// What the fuzz target found worth keeping.
#[tokio::test(start_paused = true)]
async fn nor_does_anything_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/answers");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        without_a_panic(work::replay(&std::fs::read(&path).expect("a file"))).await;
        inputs += 1;
    }
    assert!(inputs > 10, "only {inputs} inputs");
}

/// Fails when anything panics on this thread meanwhile: the runtime keeps a task's panic to itself.
async fn without_a_panic(work: impl Future<Output = ()>) {
    thread_local! {
        static PANICKED: AtomicBool = const { AtomicBool::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A thread that is ending has it no more, and runs no test.
            let _ = PANICKED.try_with(|panicked| panicked.store(true, Ordering::Relaxed));
            before(info);
        }));
    });
    work.await;
    assert!(!PANICKED.with(|panicked| panicked.load(Ordering::Relaxed)), "a task has panicked");
}
