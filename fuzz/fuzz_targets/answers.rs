//! Answers of any kind to the client: it neither panics nor spins, and goes on once they are honest again.
//!
//! With `cargo install cargo-fuzz` and a nightly toolchain, what is found first, what is kept second:
//!
//! ```text
//! mkdir -p fuzz/target/found
//! cargo +nightly fuzz run answers fuzz/target/found fuzz/corpus/answers -- -timeout=30 -max_len=1000
//! ```
//!
//! The test `hostile` in `tests/it` works on what is in the corpus, too, and on random answers of its own.

#![no_main]

#[path = "../../tests/it/hostile/peer.rs"]
mod peer;
#[path = "../../tests/it/hostile/work.rs"]
mod work;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The crate's own jitter is part of what must repeat.
    etcd_concurrency::fake::seed(0);
    // A panic of any task ends the process: libfuzzer-sys sees to that.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(work::replay(input));
});
