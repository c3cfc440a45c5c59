//! Whether a silent stream is dead.
//!
//! Between two servers that lost each other no packet says so. A stream on which nothing comes is asked something
//! that is always answered: a watch is created and cancelled. Not a report of progress: a single slow watch on the
//! stream holds those back (etcd#20242).

use std::time::{Duration, Instant};

/// When the stream was last heard, and since when an answer is due.
#[derive(Debug)]
pub(super) struct Pulse {
    opened: Instant,
    heard: Instant,
    /// How long an answer may take.
    patience: Duration,
    /// Since when the oldest unanswered create is the next to be answered.
    waiting: Option<Instant>,
    /// This process has stood still since.
    stood_still: bool,
    /// It has since the last answer, while one was due.
    forgiven: bool,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing.
    Well,
    /// Ask something.
    Ask,
    /// Open another stream.
    Dead,
}

impl Pulse {
    /// Of a stream that is opened after so many in a row whose answers did not come in time: one that is large takes
    /// long on a slow line, and nothing is heard while it is on its way.
    pub(super) fn new(now: Instant, deaths: u32) -> Self {
        let patience = ANSWER * (1 << deaths.min(MOST_DOUBLINGS));
        Self { opened: now, heard: now, patience, waiting: None, stood_still: false, forgiven: false }
    }

    /// How long an answer may take.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// For how long something was heard.
    pub(super) fn lived(&self) -> Duration {
        self.heard - self.opened
    }

    /// Something that will be answered was sent.
    pub(super) fn asked(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// Something came, but no answer.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// An answer came. Others may be due: each has its own time, or a long queue would look like a dead stream.
    pub(super) fn answered(&mut self, now: Instant, more: bool) {
        self.heard = now;
        self.forgiven = false;
        self.waiting = more.then_some(now);
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.waiting.map_or(self.heard + SILENCE, |waiting| waiting + self.patience)
    }

    /// True for a look that comes so late that this process stood still: what came meanwhile may be unread. Once a
    /// stream, lest a process that is always late never looks.
    pub(super) fn stood_still(&mut self, due: Instant, now: Instant) -> bool {
        now > due + STALL && !std::mem::replace(&mut self.stood_still, true)
    }

    /// Looks.
    pub(super) fn beat(&mut self, now: Instant) -> Beat {
        let due = self.due();
        if now < due {
            return Beat::Well;
        }
        if self.waiting.is_none() {
            return Beat::Ask;
        }
        if now > due + STALL && !std::mem::replace(&mut self.forgiven, true) {
            // It was this process that stood still: the answer may be here, unread. Once for each answer, or a process that is
            // always late would wait for ever.
            self.waiting = Some(now);
            return Beat::Well;
        }
        Beat::Dead
    }
}

/// How long a stream may be silent before it is asked.
const SILENCE: Duration = Duration::from_secs(10);
/// How long an answer may take at first.
const ANSWER: Duration = Duration::from_secs(5);
/// At most 80 s.
const MOST_DOUBLINGS: u32 = 4;
/// A look that comes so much too late says that the clock ran on without this task.
const STALL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_asked_and_then_dead() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start, 0);
        assert_eq!(pulse.beat(start + s(9)), Beat::Well);
        assert_eq!(pulse.beat(start + s(10)), Beat::Ask);
        pulse.asked(start + s(10));
        assert_eq!(pulse.due(), start + s(15));
        assert_eq!(pulse.beat(start + s(15)), Beat::Dead);
    }

    /// A process whose looks were always late took a dead stream for one whose answer was unread, for ever.
    #[test]
    fn a_process_that_is_always_late_finds_a_dead_stream_all_the_same() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start, 0);
        pulse.asked(start);
        assert_eq!(pulse.beat(start + s(60)), Beat::Well);
        assert_eq!(pulse.beat(start + s(120)), Beat::Dead);
        pulse.answered(start + s(121), true);
        assert_eq!(pulse.beat(start + s(180)), Beat::Well, "another answer is due");
    }

    #[test]
    fn events_do_not_make_up_for_an_answer() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start, 0);
        pulse.asked(start);
        pulse.heard(start + s(4));
        assert_eq!(pulse.beat(start + s(5)), Beat::Dead);
    }

    #[test]
    fn a_long_queue_of_answers_is_no_dead_stream() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start, 0);
        for at in 0..60 {
            pulse.asked(start + s(at));
            assert_eq!(pulse.beat(start + s(at)), Beat::Well);
            pulse.answered(start + s(at), true);
        }
        pulse.answered(start + s(60), false);
        assert_eq!(pulse.due(), start + s(70));
    }

    /// Two megabytes on a line that took a minute for them were cut off after 15 s, again and again.
    #[test]
    fn after_each_death_an_answer_may_take_longer_up_to_a_bound() {
        let start = Instant::now();
        for (deaths, patience) in [(0, 5), (1, 10), (2, 20), (4, 80), (100, 80)] {
            let mut pulse = Pulse::new(start, deaths);
            pulse.asked(start);
            assert_eq!(pulse.beat(start + s(patience - 1)), Beat::Well);
            assert_eq!(pulse.beat(start + s(patience)), Beat::Dead);
        }
    }

    #[test]
    fn a_process_that_stood_still_looks_again() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start, 0);
        pulse.asked(start);
        assert_eq!(pulse.beat(start + s(60)), Beat::Well);
        assert_eq!(pulse.beat(start + s(65)), Beat::Dead);
    }
}
