//! What may be repeated: by RPC, by error, until a deadline.
//!
//! | | not applied, may pass | unknown, may pass | anything else |
//! |---|---|---|---|
//! | [`Repeat::Read`], [`Repeat::Harmless`] | again | again | give up |
//! | [`Repeat::Never`] | again | give up | give up |

use std::time::Duration;

use tokio::time::{Instant, sleep};

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
    unanswered: u32,
}

impl Retry {
    pub(crate) fn new(repeat: Repeat, now: Instant, timeout: Duration) -> Self {
        // Half of the time for one attempt leaves time for another endpoint when one is silent.
        let per_attempt = match repeat {
            Repeat::Never => timeout,
            Repeat::Read | Repeat::Harmless => timeout / 2,
        };
        let backoff = Backoff::default();
        Self { repeat, deadline: now + timeout, per_attempt, backoff, unanswered: 0 }
    }

    pub(crate) fn attempt_deadline(&self, now: Instant) -> Instant {
        self.deadline.min(now + self.per_attempt)
    }

    /// True once an attempt ended without anybody knowing what became of it.
    pub(crate) fn ambiguous(&self) -> bool {
        self.unanswered > 0
    }

    /// How many attempts ended so.
    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// After a failed attempt: how long to wait before the next, or the error to give up with.
    ///
    /// `elsewhere` says that the next attempt goes to an endpoint that this call has not tried: no use in waiting.
    /// `passes` says that the next attempt has what this one was refused for the lack of.
    pub(crate) fn after(
        &mut self,
        error: Error,
        elsewhere: bool,
        passes: bool,
        now: Instant,
    ) -> Result<Duration, Error> {
        let error = match self.repeat {
            Repeat::Read => error.with_outcome(Outcome::NotApplied),
            Repeat::Harmless | Repeat::Never => error,
        };
        self.unanswered += u32::from(error.outcome() == Outcome::Unknown);
        let allowed = passes || may_pass(error.kind()) || elsewhere && is_the_members(error.kind());
        let harmless = self.repeat != Repeat::Never || error.outcome() == Outcome::NotApplied;
        let pause = if elsewhere { Duration::ZERO } else { self.backoff.next() };
        if allowed && harmless && now + pause + SHORTEST_ATTEMPT.min(self.per_attempt / 10) < self.deadline {
            return Ok(pause);
        }
        // What an earlier attempt did stays unknown, whatever became of this one.
        Err(if self.ambiguous() { error.with_outcome(Outcome::Unknown) } else { error })
    }
}

/// True where the endpoint answered, and another may answer better.
pub(crate) fn avoids_member(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::ServerTimeout | ErrorKind::NoLeader | ErrorKind::Unavailable { .. })
        || is_the_members(kind)
}

/// True for errors that no time mends, but another endpoint does: a learner serves few RPCs where a voter serves
/// all, and one endpoint of several may be another cluster's, or no etcd at all.
fn is_the_members(kind: &ErrorKind) -> bool {
    match kind {
        ErrorKind::Unsupported { message } => message.contains("not supported for learner"),
        ErrorKind::Protocol { .. } | ErrorKind::ClusterMismatch { .. } => true,
        _ => false,
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

/// True for errors that no time mends: the one list of them. What is to last, and what settles something in the
/// background, ends with them, and waits for everything else to pass: a full database, a balancer that answers nonsense,
/// a learner that is no voter yet. A token may pass or not, as [`Transport::is_final`](super::Transport::is_final) knows.
///
/// It is of the request as it is, which a lease that is gone does not come back for.
pub(crate) fn is_final(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::InvalidInput { .. }
            | ErrorKind::TooManyOps { .. }
            | ErrorKind::TooLarge
            | ErrorKind::Refused { .. }
            | ErrorKind::Unauthenticated { .. }
            | ErrorKind::PermissionDenied
            | ErrorKind::LeaseNotFound
            | ErrorKind::Lost(_)
    )
}

/// True for those of them that are of a user's rights, which operators edit: refused for good, unless it matters enough to ask
/// again later.
pub(crate) fn is_of_rights(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::Unauthenticated { .. })
}

/// How long one who is to be told of something waits before it looks for itself: long, and not all do so at once. Servers before
/// 3.4.36 and 3.5.18 can lose a deletion at the edge of a compaction, for one.
pub(crate) fn second_look() -> Duration {
    SECOND_LOOK.mul_f64(1.0 + fastrand::f64())
}

const SECOND_LOOK: Duration = Duration::from_secs(60);

/// For how long a right that the client has not is waited for, where it matters.
pub(crate) const LONGEST_REFUSED: Duration = Duration::from_secs(600);

/// How the server failed to tell what one asks of it now and then (see [`second_look`]). Counted, not timed: a process that stands
/// still between two looks has asked no server meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// Since the last answer.
    refused: u32,
    /// Since the last answer or refusal.
    unanswered: u32,
}

impl Failures {
    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn refused(&mut self) {
        (self.refused, self.unanswered) = (self.refused + 1, 0);
    }

    pub(crate) fn unanswered(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// It is asked no more.
    pub(crate) fn are_many(&self) -> bool {
        self.refused >= MOST_REFUSED || self.unanswered >= MOST_UNANSWERED
    }
}

/// For as long as [`LONGEST_REFUSED`].
const MOST_REFUSED: u32 = 8;
/// Some twelve hours: the cluster counts as gone.
const MOST_UNANSWERED: u32 = 480;

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

/// Rounds of a loop that a server which makes sense ends soon: some go on at once, and what is more pauses, for longer each
/// time, so that no server makes a client ask without end at full speed.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// How many were made in a row.
    made: u32,
    last: Instant,
    backoff: Backoff,
}

impl Rounds {
    pub(crate) fn new() -> Self {
        Self { made: 0, last: Instant::now(), backoff: Backoff::default() }
    }

    /// Before another round.
    pub(crate) async fn again(&mut self) {
        if let Some(pause) = self.pause(Instant::now()) {
            sleep(pause).await;
        }
    }

    fn pause(&mut self, now: Instant) -> Option<Duration> {
        if now.saturating_duration_since(self.last) > IN_A_ROW {
            self.made = 0;
            self.backoff.reset();
        }
        (self.made, self.last) = (self.made.saturating_add(1), now);
        (self.made > AT_ONCE).then(|| self.backoff.next())
    }
}

/// So many rounds go on at once. A server that makes sense has a reason for each.
const AT_ONCE: u32 = 16;
/// Rounds that are farther apart than this are not in a row. Longer than the longest pause.
const IN_A_ROW: Duration = Duration::from_secs(5);
/// An attempt that the deadline cuts short says less than the error before it: with less time than this, none is made.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LostReason;

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
        let end = retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, false, now);
        assert_eq!(end.expect_err("given up").outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_write_that_was_not_applied_is_repeated() {
        let (mut retry, now) = retry(Repeat::Never);
        retry
            .after(error(ErrorKind::TooManyRequests, Outcome::NotApplied), false, false, now)
            .expect("again");
        assert!(!retry.ambiguous());
    }

    #[test]
    fn what_an_earlier_attempt_did_stays_unknown() {
        let (mut retry, now) = retry(Repeat::Harmless);
        retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, false, now).expect("again");
        let end = retry.after(error(ErrorKind::LeaseNotFound, Outcome::NotApplied), false, false, now);
        let end = end.expect_err("a missing lease does not come back");
        assert_eq!((end.kind(), end.outcome()), (&ErrorKind::LeaseNotFound, Outcome::Unknown));
    }

    #[test]
    fn a_failed_read_has_applied_nothing() {
        let (mut retry, now) = retry(Repeat::Read);
        let late = now + Duration::from_secs(10);
        let end = retry.after(error(ErrorKind::Disconnected, Outcome::Unknown), false, false, late);
        assert_eq!(end.expect_err("the deadline").outcome(), Outcome::NotApplied);
    }

    #[test]
    fn another_endpoint_is_tried_at_once() {
        let (mut retry, now) = retry(Repeat::Never);
        let refused = || error(ErrorKind::Connect { endpoint: "a".into() }, Outcome::NotApplied);
        assert_eq!(retry.after(refused(), true, false, now).expect("again"), Duration::ZERO);
        assert_ne!(retry.after(refused(), false, false, now).expect("again"), Duration::ZERO);
    }

    #[test]
    fn what_a_learner_refuses_is_asked_of_another_only() {
        let message = "etcdserver: rpc not supported for learner".to_owned();
        let refused = || error(ErrorKind::Unsupported { message: message.clone() }, Outcome::NotApplied);
        let (mut retry, now) = retry(Repeat::Never);
        retry.after(refused(), true, false, now).expect("again");
        retry.after(refused(), false, false, now).expect_err("it will not become a voter");
    }

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2);
        assert!(pauses[11] <= LONGEST_PAUSE && pauses[11] >= LONGEST_PAUSE / 2);
    }
    /// Loops whose end depends on what a server says asked one that made no sense again at once, for ever.
    #[test]
    fn rounds_without_end_slow_down() {
        let (mut rounds, mut now) = (Rounds::new(), Instant::now());
        assert!((0..AT_ONCE).all(|_| rounds.pause(now).is_none()), "some are at once");
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            let pause = rounds.pause(now).expect("a pause");
            longest = longest.max(pause);
            now += pause;
        }
        assert!(longest >= LONGEST_PAUSE / 2);
        assert_eq!(rounds.pause(now + IN_A_ROW * 2), None, "it was well meanwhile");
    }

    /// There were three lists of what no time mends. By one of them a learner's refusal ended the settling of a key, by
    /// another a wrong password did not.
    #[test]
    fn what_no_time_mends_is_told_by_one_list() {
        use ErrorKind as K;
        let words = || "words".to_owned();
        let rows = [
            (K::InvalidInput { what: "key", why: words() }, true),
            (K::TooManyOps { compares: 1, success: 200, failure: 0 }, true),
            (K::TooLarge, true),
            (K::Refused { message: words() }, true),
            (K::Unauthenticated { message: words() }, true),
            (K::PermissionDenied, true),
            (K::LeaseNotFound, true),
            (K::Lost(LostReason::Expired), true),
            // A grant draws another id.
            (K::LeaseExists, false),
            // Another token may do: see `Transport::is_final`.
            (K::InvalidToken, false),
            // An operator makes space.
            (K::NoSpace, false),
            // A learner becomes a voter.
            (K::Unsupported { message: words() }, false),
            // Keys are deleted, and the answer is smaller.
            (K::AnswerTooLarge { message: words() }, false),
            // Read anew.
            (K::Compacted { revision: 7 }, false),
            (K::FutureRevision, false),
            // Another endpoint, or the same one when it is mended.
            (K::Protocol { detail: words() }, false),
            (K::ClusterMismatch { expected: 1, found: 2 }, false),
            (K::RevisionsLost { seen: 2, found: 1 }, false),
            (K::Connect { endpoint: words() }, false),
            (K::Disconnected, false),
            (K::Timeout, false),
            (K::ServerTimeout, false),
            (K::NoLeader, false),
            (K::LeaderChanged, false),
            (K::Unavailable { message: words() }, false),
            (K::TooManyRequests, false),
            (K::WatchCanceled { reason: words() }, false),
            (K::Other { code: tonic::Code::Unknown, message: words() }, false),
        ];
        for (kind, is) in rows {
            assert_eq!(is_final(&kind), is, "{kind:?}");
            assert!(!is || !may_pass(&kind), "{kind:?} both may pass and is final");
        }
    }

    /// Users and roles are edited, and the token is of an old revision of them several times in a row.
    #[test]
    fn a_token_that_is_refused_in_a_row_is_renewed_until_the_deadline() {
        let (mut retry, now) = retry(Repeat::Never);
        let refused = || error(ErrorKind::InvalidToken, Outcome::NotApplied);
        for _ in 0..5 {
            retry.after(refused(), false, true, now).expect("again");
        }
        retry.after(refused(), false, false, now).expect_err("the user's own");
        retry.after(refused(), false, true, now + Duration::from_secs(10)).expect_err("the deadline");
    }
}
