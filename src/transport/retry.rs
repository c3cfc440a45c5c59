//! What may be repeated: by RPC, by error, until a deadline.
//!
//! | | not applied, may pass | unknown, may pass | anything else |
//! |---|---|---|---|
//! | [`Repeat::Read`], [`Repeat::Harmless`] | again | again | give up |
//! | [`Repeat::Never`] | again | give up | give up |

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Outcome};

/// What repeating a call can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It reads.
    Read,
    /// It writes, but twice is the same as once: a create-if-absent of one's own key, a guarded delete, a grant of
    /// a chosen id, a revoke.
    Harmless,
    /// It writes, and twice is not once: it is repeated only when it was certainly not applied.
    Never,
}

/// The life of one call.
pub(crate) struct Retry {
    repeat: Repeat,
    deadline: Instant,
    per_attempt: Duration,
    backoff: Backoff,
    ambiguous: bool,
    renewed: bool,
}

impl Retry {
    pub(crate) fn new(repeat: Repeat, now: Instant, timeout: Duration) -> Self {
        // Half of the time for one attempt leaves time for another endpoint when one is silent.
        let per_attempt = match repeat {
            Repeat::Never => timeout,
            Repeat::Read | Repeat::Harmless => timeout / 2,
        };
        let backoff = Backoff::default();
        Self { repeat, deadline: now + timeout, per_attempt, backoff, ambiguous: false, renewed: false }
    }

    pub(crate) fn attempt_deadline(&self, now: Instant) -> Instant {
        self.deadline.min(now + self.per_attempt)
    }

    /// True once an attempt ended without anybody knowing what became of it.
    pub(crate) fn ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// After a failed attempt: how long to wait before the next, or the error to give up with.
    ///
    /// `renewed` says that the error was about the token, and that the next attempt has another.
    pub(crate) fn after(&mut self, error: Error, renewed: bool, now: Instant) -> Result<Duration, Error> {
        let error = match self.repeat {
            Repeat::Read => error.with_outcome(Outcome::NotApplied),
            Repeat::Harmless | Repeat::Never => error,
        };
        self.ambiguous |= error.outcome() == Outcome::Unknown;
        // A refused token was refused before anything was applied; one new token is tried, not one a second.
        let renew = renewed && !std::mem::replace(&mut self.renewed, renewed);
        let allowed = renew
            || may_pass(error.kind())
                && (self.repeat != Repeat::Never || error.outcome() == Outcome::NotApplied);
        let pause = if renew { Duration::ZERO } else { self.backoff.next() };
        if allowed && now + pause < self.deadline {
            return Ok(pause);
        }
        // What an earlier attempt did stays unknown, whatever became of this one.
        Err(if self.ambiguous { error.with_outcome(Outcome::Unknown) } else { error })
    }
}

/// True for errors that the same request may not meet again.
///
/// The server's own DeadlineExceeded and Canceled are not among them: they are the caller's doing.
pub(crate) fn may_pass(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Connect { .. }
            | ErrorKind::Disconnected
            | ErrorKind::Timeout
            | ErrorKind::ServerTimeout
            | ErrorKind::NoLeader
            | ErrorKind::LeaderChanged
            | ErrorKind::Unavailable { .. }
            | ErrorKind::TooManyRequests
            | ErrorKind::FutureRevision
    )
}

/// Pauses that double from 25 ms to 1 s, each between half and the whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let whole = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(10)).min(LONGEST_PAUSE);
        self.attempts += 1;
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind, outcome: Outcome) -> Error {
        Error::new(kind, outcome)
    }

    fn retry(repeat: Repeat) -> (Retry, Instant) {
        let now = Instant::now();
        (Retry::new(repeat, now, Duration::from_secs(10)), now)
    }

    #[test]
    fn an_ambiguous_write_is_never_repeated() {
        let (mut retry, now) = retry(Repeat::Never);
        let end = retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, now);
        assert_eq!(end.expect_err("given up").outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_write_that_was_not_applied_is_repeated() {
        let (mut retry, now) = retry(Repeat::Never);
        retry.after(error(ErrorKind::TooManyRequests, Outcome::NotApplied), false, now).expect("again");
        assert!(!retry.ambiguous());
    }

    #[test]
    fn what_an_earlier_attempt_did_stays_unknown() {
        let (mut retry, now) = retry(Repeat::Harmless);
        retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, now).expect("again");
        let end = retry.after(error(ErrorKind::LeaseNotFound, Outcome::NotApplied), false, now);
        let end = end.expect_err("a missing lease does not come back");
        assert_eq!((end.kind(), end.outcome()), (&ErrorKind::LeaseNotFound, Outcome::Unknown));
    }

    #[test]
    fn a_failed_read_has_applied_nothing() {
        let (mut retry, now) = retry(Repeat::Read);
        let late = now + Duration::from_secs(10);
        let end = retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, late);
        assert_eq!(end.expect_err("the deadline").outcome(), Outcome::NotApplied);
    }

    #[test]
    fn a_new_token_is_tried_once() {
        let (mut retry, now) = retry(Repeat::Never);
        let refused = || error(ErrorKind::InvalidToken, Outcome::NotApplied);
        assert_eq!(retry.after(refused(), true, now).expect("again"), Duration::ZERO);
        retry.after(refused(), true, now).expect_err("not for ever");
    }

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2);
        assert!(pauses[11] <= LONGEST_PAUSE && pauses[11] >= LONGEST_PAUSE / 2);
    }
}
