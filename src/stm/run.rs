//! What a run keeps from attempt to attempt: its limits, and what it does not know yet.

use std::time::Duration;

use tokio::time::Instant;

use super::Committed;
use super::commit::unknown;
use super::marker::Mark;
use crate::error::{Error, ErrorKind, Outcome, Result};

/// How often, and for how long, attempts are made.
pub(super) struct Limits {
    most: Option<u32>,
    end: Option<Instant>,
    pub(super) attempts: u32,
}

impl Limits {
    pub(super) fn new(most: Option<u32>, deadline: Option<Duration>) -> Result<Self> {
        if most == Some(0) {
            return Err(Error::invalid("max_attempts", "it is zero"));
        }
        // A deadline past the end of time is none.
        let end = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        Ok(Self { most, end, attempts: 0 })
    }

    /// How long to wait before the next attempt. None where there is to be none.
    pub(super) fn pause(&self) -> Option<Duration> {
        // The first time what others wrote is at hand, and they are likely to be done.
        let most = match self.attempts {
            ..=1 => Duration::ZERO,
            attempts => FIRST_PAUSE.saturating_mul(1 << (attempts - 2).min(16)).min(LONGEST_PAUSE),
        };
        let pause = most.mul_f64(fastrand::f64());
        let goes_on = self.most.is_none_or(|most| self.attempts < most)
            && self.end.is_none_or(|end| Instant::now() + pause < end);
        goes_on.then_some(pause)
    }

    /// The error that it is to make no further attempt.
    pub(super) fn conflict(&self) -> Error {
        Error::new(ErrorKind::Conflict { attempts: self.attempts }, Outcome::NotApplied)
    }
}

/// The attempts of one run that may have been committed.
pub(super) struct Run<T> {
    pub(super) mark: Option<Mark>,
    /// What their closures returned.
    values: Vec<(u32, T)>,
}

impl<T> Run<T> {
    pub(super) fn new() -> Self {
        Self { mark: None, values: Vec::new() }
    }

    /// An attempt is to be committed.
    pub(super) fn offer(&mut self, attempt: u32, value: T) {
        self.values.push((attempt, value));
    }

    /// An attempt was not committed. Unless one is in doubt, it and those before it never will be.
    pub(super) fn refused(&mut self) {
        if !self.in_doubt() {
            self.values.clear();
        }
    }

    /// An attempt was committed.
    pub(super) fn committed(&mut self, attempt: u32, revision: i64) -> Result<Committed<T>> {
        let found = self.values.iter().position(|(offered, _)| *offered == attempt);
        let forged = || Error::protocol("a marker tells of an attempt that was never made", Outcome::Applied);
        let (_, value) = self.values.swap_remove(found.ok_or_else(forged)?);
        Ok(Committed { value, revision, attempts: attempt })
    }

    /// What a run ends with, once it is certain that none of its earlier attempts was committed. Else with that: what
    /// came after it saw what it wrote.
    pub(super) async fn end<E: From<Error>>(
        mut self,
        end: Result<Committed<T>, E>,
    ) -> Result<Committed<T>, E> {
        let Some(mark) = self.mark.as_mut().filter(|mark| mark.in_doubt()) else { return end };
        match mark.settle().await {
            Ok(None) => end,
            Ok(Some((attempt, revision))) => Ok(self.committed(attempt, revision)?),
            Err(error) => Err(unknown(error).into()),
        }
    }

    fn in_doubt(&self) -> bool {
        self.mark.as_ref().is_some_and(Mark::in_doubt)
    }
}

/// Of the order of a commit, so that it makes a difference; the longest one is for a dozen rivals.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(most: Option<u32>, deadline: Option<Duration>, attempts: u32) -> Limits {
        Limits { attempts, ..Limits::new(most, deadline).expect("good limits") }
    }

    #[test]
    fn the_first_retry_comes_at_once_and_pauses_stay_short() {
        assert_eq!(limits(None, None, 1).pause(), Some(Duration::ZERO));
        for attempts in [2, 3, 20, u32::MAX] {
            let most = FIRST_PAUSE.saturating_mul(1 << (attempts - 2).min(16)).min(LONGEST_PAUSE);
            assert!(limits(None, None, attempts).pause().is_some_and(|pause| pause <= most));
        }
    }

    #[test]
    fn limits_hold() {
        assert!(Limits::new(Some(0), None).is_err());
        assert_eq!(limits(Some(1), None, 1).pause(), None);
        assert_eq!(limits(Some(2), None, 1).pause(), Some(Duration::ZERO));
        assert_eq!(limits(None, Some(Duration::ZERO), 1).pause(), None);
        assert_eq!(limits(None, Some(Duration::MAX), 1).pause(), Some(Duration::ZERO));
    }
}
