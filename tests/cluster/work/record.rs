//! How the calls on an object are told, so that a checker can judge them: see `histories.rs`.
//!
//! `call`, then the call's number, who makes it, the object, the operation and its arguments; afterwards `ok`, the number and
//! the result, or `refused` or `unknown`, and the number. What the moments are worth, `append.rs` says.

use std::fmt::Display;
use std::time::Duration;

use etcd_concurrency::{Error, Outcome};
use tokio::time::sleep;

use super::{now, tell, tell_since};

/// How many make calls at once, in each process.
pub(super) const TASKS: usize = 2;

/// Tells the calls of one task, one after the other.
pub(super) struct Recorder {
    client: usize,
    calls: u64,
}

/// A call that was made, and has not returned.
#[must_use = "it has to return"]
pub(super) struct Call(u64);

/// A time in which all use objects of the same names, which are theirs alone: so what is judged at once has a bound.
pub(super) struct Round {
    number: u128,
    nanos: u128,
}

impl Recorder {
    pub(super) fn of(process: usize, task: usize) -> Self {
        Self { client: process * TASKS + task, calls: 0 }
    }

    pub(super) fn client(&self) -> usize {
        self.client
    }

    pub(super) fn call(&mut self, object: &str, op: &str, args: &[i64]) -> Call {
        self.call_since(now(), object, op, args)
    }

    /// A call that may be told later than it was made.
    pub(super) fn call_since(&mut self, began: u128, object: &str, op: &str, args: &[i64]) -> Call {
        // As many calls as no run has.
        let id = u64::try_from(self.client + 1).expect("few") * 100_000_000 + self.calls;
        self.calls += 1;
        tell_since("call", began, &format!("{id} {} {object} {op}{}", self.client, numbers(args)));
        Call(id)
    }
}

impl Call {
    pub(super) fn ok(self, result: &[i64]) {
        tell("ok", &format!("{}{}", self.0, numbers(result)));
    }

    /// True where it is known what became of it.
    pub(super) fn failed(self, error: &Error) -> bool {
        let is_known = error.outcome() == Outcome::NotApplied;
        tell(if is_known { "refused" } else { "unknown" }, &self.0.to_string());
        is_known
    }

    /// The same of one that was given up.
    pub(super) fn given_up(self) {
        tell("unknown", &self.0.to_string());
    }
}

impl Round {
    pub(super) fn of(length: Duration) -> Self {
        let nanos = length.as_nanos();
        Self { number: now() / nanos, nanos }
    }

    pub(super) fn name(&self, object: &str) -> String {
        format!("{object}/{}", self.number)
    }

    pub(super) fn is_on(&self) -> bool {
        now() / self.nanos == self.number
    }

    pub(super) fn rest(&self) -> Duration {
        let rest = ((self.number + 1) * self.nanos).saturating_sub(now());
        Duration::from_nanos(u64::try_from(rest).expect("short"))
    }

    /// Waits for the next one: who does not know what became of a call leaves the object alone, as otherwise the orders to be
    /// looked through would grow with each such call.
    pub(super) async fn end(&self) {
        sleep(self.rest()).await;
    }
}

/// Each after a space.
fn numbers(numbers: &[impl Display]) -> String {
    numbers.iter().map(|number| format!(" {number}")).collect()
}
