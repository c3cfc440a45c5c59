//! How long a lease may be believed in: pure, with time as an argument.
//!
//! A moment is the time since an epoch of the caller's choice, on a clock that counts suspension too.
//!
//! The server starts a lease's TTL no earlier than the request was sent that granted or renewed it. So the lease lives
//! at least until that moment plus the TTL, and belief ends a margin before. An answer's arrival says nothing: it may
//! have been on its way for as long as the TTL itself.

use std::time::Duration;

/// A moment: the time since the epoch.
pub(crate) type Moment = Duration;

/// The clock of one lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseClock {
    ttl: Duration,
    margin: Duration,
    /// When belief ends.
    deadline: Moment,
    /// When the keep-alive is due, or with one under way, when its silence means that the stream is dead.
    due: Moment,
    /// When the unanswered keep-alive was sent on the present stream.
    sent: Option<Moment>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing before this moment.
    At(Moment),
    /// Send a keep-alive.
    KeepAlive,
    /// The keep-alive under way is overdue: the stream is dead, whatever it says of itself.
    Silent,
    /// The deadline passed.
    Expired,
}

/// What an answered keep-alive said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The deadline moved.
    Renewed,
    /// Nothing was asked: the answer belongs to a request that was given up.
    Unasked,
    /// The lease is gone, and its TTL may have run out.
    Gone,
    /// The lease is gone although its TTL cannot have run out.
    Revoked,
}

/// The margin of a lease of which nothing is known yet, where the default is wanted.
const NOT_GIVEN: Duration = Duration::MAX;
const LONGEST_MARGIN: Duration = Duration::from_secs(u64::MAX / 2);

impl LeaseClock {
    /// A lease granted for `ttl` by a request sent at `sent`.
    pub(crate) fn granted(sent: Moment, ttl: Duration, margin: Option<Duration>) -> Self {
        let margin = margin.unwrap_or_else(|| default_margin(ttl)).min(ttl / 2);
        let deadline = (sent + ttl).saturating_sub(margin);
        Self { ttl, margin, deadline, due: sent + ttl / 3, sent: None }
    }

    /// A lease of which nothing is known yet. Its keep-alive is due at once, and an answer must come in `patience`.
    pub(crate) fn unproven(now: Moment, patience: Duration, margin: Option<Duration>) -> Self {
        Self {
            ttl: Duration::ZERO,
            margin: margin.map_or(NOT_GIVEN, |margin| margin.min(LONGEST_MARGIN)),
            deadline: now + patience,
            due: now,
            sent: None,
        }
    }

    /// True once the TTL is known.
    pub(crate) fn is_proven(&self) -> bool {
        !self.ttl.is_zero()
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn deadline(&self) -> Moment {
        self.deadline
    }

    /// What is left of belief; zero once it ended.
    pub(crate) fn remaining(&self, now: Moment) -> Duration {
        self.deadline.saturating_sub(now)
    }

    /// What is to be done.
    pub(crate) fn due(&self, now: Moment) -> Due {
        if now >= self.deadline {
            Due::Expired
        } else if now < self.due {
            Due::At(self.due.min(self.deadline))
        } else if self.sent.is_some() {
            Due::Silent
        } else {
            Due::KeepAlive
        }
    }

    /// A keep-alive goes out. Call this before it is handed over, so that the moment is no later than the sending.
    pub(crate) fn on_send(&mut self, now: Moment) {
        self.sent = Some(now);
        self.due = now + self.patience(now);
    }

    /// A keep-alive was answered with this many seconds.
    pub(crate) fn on_answer(&mut self, ttl: i64, now: Moment) -> Answer {
        let Ok(seconds @ 1..) = u64::try_from(ttl) else {
            // The deadline lies a margin before the earliest moment at which the server may end the lease.
            return if now < self.deadline { Answer::Revoked } else { Answer::Gone };
        };
        let Some(sent) = self.sent.take() else { return Answer::Unasked };
        let ttl = Duration::from_secs(seconds.min(LONGEST_TTL));
        if self.is_proven() {
            self.ttl = ttl;
            self.margin = self.margin.min(ttl / 2);
            // Never back: an earlier renewal is still true.
            self.deadline = self.deadline.max((sent + ttl).saturating_sub(self.margin));
        } else {
            let margin = (self.margin != NOT_GIVEN).then_some(self.margin);
            *self = Self::granted(sent, ttl, margin);
        }
        self.due = sent + self.ttl / 3;
        Answer::Renewed
    }

    /// The answer may be on its way yet: the stream is not to be judged before this.
    pub(crate) fn wait_until(&mut self, at: Moment) {
        if self.sent.is_some() {
            self.due = self.due.max(at);
        }
    }

    /// The stream is gone: whatever was under way is asked again, on the next stream, from `at` on.
    pub(crate) fn on_break(&mut self, at: Moment) {
        if self.sent.take().is_some() {
            self.due = at;
        }
    }

    /// How long an answer may take before the stream is given up: half of what is left, so that a slow network gets the
    /// most of it and a dead stream still leaves time for another, and another.
    pub(crate) fn patience(&self, now: Moment) -> Duration {
        let longest = LONGEST_PATIENCE.max(self.ttl / 6);
        (self.remaining(now) / 2).clamp(SHORTEST_PATIENCE, longest)
    }
}

/// A twentieth of the TTL, at least 100 ms, at most 3 s: for clocks that run unevenly and timers that fire late.
pub(crate) fn default_margin(ttl: Duration) -> Duration {
    (ttl / 20).clamp(Duration::from_millis(100), Duration::from_secs(3))
}

const SHORTEST_PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// etcd's largest TTL, in seconds.
pub(crate) const LONGEST_TTL: u64 = 9_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn clock() -> LeaseClock {
        LeaseClock::granted(S(100), S(60), Some(S(3)))
    }

    #[test]
    fn belief_ends_a_margin_before_the_ttl_counted_from_the_sending() {
        assert_eq!(clock().deadline(), S(157));
        assert_eq!(clock().due(S(157)), Due::Expired);
        assert_eq!(clock().remaining(S(150)), S(7));
        assert_eq!(clock().remaining(S(200)), S(0));
    }

    #[test]
    fn a_late_answer_counts_from_when_it_was_asked() {
        // The answer took 50 s: the server may have renewed at once, so only 10 s less the margin are left.
        let mut clock = clock();
        clock.on_send(S(120));
        assert_eq!(clock.on_answer(60, S(170)), Answer::Renewed);
        assert_eq!(clock.deadline(), S(177));
    }

    #[test]
    fn a_silent_stream_is_given_up_and_asked_anew() {
        let mut clock = clock();
        assert_eq!(clock.due(S(119)), Due::At(S(120)));
        assert_eq!(clock.due(S(120)), Due::KeepAlive);
        clock.on_send(S(120));
        assert_eq!(clock.due(S(121)), Due::At(S(130)));
        assert_eq!(clock.due(S(130)), Due::Silent);
        clock.on_break(S(131));
        assert_eq!(clock.due(S(131)), Due::KeepAlive);
    }

    /// With a sixth of the TTL as patience, a network of two seconds lost every lease of ten.
    #[test]
    fn a_network_as_slow_as_a_fourth_of_the_ttl_keeps_a_lease() {
        let mut clock = LeaseClock::granted(S(0), S(12), None);
        let mut now = S(0);
        for _ in 0..100 {
            let Due::At(due) = clock.due(now) else { panic!("due too soon at {now:?}") };
            now = due;
            assert_eq!(clock.due(now), Due::KeepAlive);
            clock.on_send(now);
            now += S(3);
            assert!(matches!(clock.due(now), Due::At(_)), "given up at {now:?}");
            assert_eq!(clock.on_answer(12, now), Answer::Renewed);
        }
    }

    #[test]
    fn an_answer_to_a_request_that_was_given_up_moves_nothing() {
        let mut clock = clock();
        clock.on_send(S(120));
        clock.on_break(S(125));
        assert_eq!(clock.on_answer(60, S(126)), Answer::Unasked);
        assert_eq!(clock.deadline(), S(157));
    }

    #[test]
    fn a_lease_gone_before_its_time_was_revoked() {
        let mut clock = clock();
        clock.on_send(S(120));
        assert_eq!(clock.on_answer(0, S(121)), Answer::Revoked);
        assert_eq!(clock.on_answer(-1, S(158)), Answer::Gone);
    }

    #[test]
    fn an_adopted_lease_is_believed_in_once_it_was_renewed() {
        let mut clock = LeaseClock::unproven(S(10), S(5), None);
        assert!(!clock.is_proven());
        assert_eq!(clock.due(S(10)), Due::KeepAlive);
        clock.on_send(S(10));
        assert_eq!(clock.due(S(11)), Due::At(Duration::from_millis(12_500)));
        assert_eq!(clock.on_answer(4, S(11)), Answer::Renewed);
        assert_eq!(clock.deadline(), S(14) - default_margin(S(4)));
    }

    #[test]
    fn the_longest_margin_is_no_default() {
        let mut clock = LeaseClock::unproven(S(0), S(10), Some(Duration::MAX));
        clock.on_send(S(0));
        assert_eq!(clock.on_answer(60, S(1)), Answer::Renewed);
        assert_eq!(clock.deadline(), S(30));
    }

    /// No margin was asked for, and an adopted lease had the default one: zero stood for what was not given.
    #[test]
    fn a_margin_of_nothing_is_one_for_an_adopted_lease() {
        let mut clock = LeaseClock::unproven(S(0), S(10), Some(S(0)));
        clock.on_send(S(0));
        assert_eq!(clock.on_answer(60, S(1)), Answer::Renewed);
        assert_eq!(clock.deadline(), S(60));
    }

    #[test]
    fn the_margin_leaves_half_of_a_short_ttl() {
        assert_eq!(LeaseClock::granted(S(0), S(2), Some(S(9))).deadline(), S(1));
        assert_eq!(LeaseClock::granted(S(0), S(2), None).deadline(), MS(1900));
        let huge = LeaseClock::granted(S(0), S(LONGEST_TTL), None);
        assert_eq!(huge.deadline(), S(LONGEST_TTL - 3));
    }

    proptest! {
        /// A server that renews at some moment between sending and answer, over streams that break and answers that
        /// are lost: at no moment does the clock believe in a lease that this server has let expire.
        #[test]
        fn nobody_believes_longer_than_the_server_does(
            ttl in 2u64..30,
            steps in prop::collection::vec((0u64..4_000, 0u64..2_000, 0u64..2_000, 0u8..4), 1..60),
        ) {
            let mut now = S(10);
            let mut clock = LeaseClock::granted(now, S(ttl), None);
            let mut server_end = now + S(ttl);
            for (wait, there, back, fate) in steps {
                now += MS(wait);
                if clock.remaining(now) > Duration::ZERO {
                    prop_assert!(now < server_end, "believed at {now:?}, ended at {server_end:?}");
                }
                match clock.due(now) {
                    Due::KeepAlive => {
                        clock.on_send(now);
                        now += MS(there);
                        let renewed = now < server_end && fate != 0;
                        if renewed { server_end = now + S(ttl); }
                        now += MS(back);
                        match fate {
                            0 | 1 => clock.on_break(now),
                            _ => { clock.on_answer(if renewed { ttl as i64 } else { 0 }, now); }
                        }
                        if clock.remaining(now) > Duration::ZERO && (renewed || fate < 2) {
                            prop_assert!(now < server_end);
                        }
                    }
                    Due::Silent => clock.on_break(now),
                    Due::At(next) => prop_assert!(next > now),
                    Due::Expired => {
                        prop_assert_eq!(clock.remaining(now), Duration::ZERO);
                        break;
                    }
                }
            }
        }
    }
}
