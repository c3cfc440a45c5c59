//! Requests of any kind to the fake: it answers with a status, and goes on serving.
//!
//! With `cargo install cargo-fuzz` and a nightly toolchain, what is found first, what is kept second:
//!
//! ```text
//! mkdir -p fuzz/target/found
//! cargo +nightly fuzz run requests fuzz/target/found fuzz/corpus/requests -- -timeout=10 -max_len=2000
//! ```
//!
//! The test `garbage` in `tests/it` sends what is in the corpus, too, and random requests of its own.

#![no_main]

#[path = "../../tests/it/garbage/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // A panic of any task ends the process: libfuzzer-sys sees to that.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(wire::replay(input));
});
