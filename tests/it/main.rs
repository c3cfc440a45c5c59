//! The integration tests, in one binary: it links once.
//!
//! `cargo test` runs those that need nothing but Rust; `cargo test --test it -- --ignored` those
//! that need real servers (`.ci/run servers` builds them) or Go.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that panics has said what it had to say"
)]

mod adoption;
mod clients;
mod closing;
mod clusters;
mod connect;
mod crowds;
mod descriptors;
mod differential;
mod drops;
mod election;
mod facts;
mod faults;
mod fences;
mod garbage;
mod harness;
mod hostile;
mod house;
mod keeping;
mod leases;
mod locking;
mod look_outs;
mod lost_deletions;
mod opening;
mod outages;
mod outcomes;
mod pauses;
mod recipes;
mod rivals;
mod runtimes;
mod schedule;
mod sessions;
mod stm;
mod stragglers;
mod support;
mod turns;
mod under_way;
mod unpolled;
mod vouched;
