//! Which endpoint a request goes to. Pure: the clock is an argument, in milliseconds.
//!
//! Requests rotate among the endpoints that are not marked. A mark lasts 500 ms, then twice as long each time, up
//! to 10 s; once nothing went wrong for 20 s it starts over. An endpoint whose *connection* was in trouble does not
//! get a request back when its time is over: somebody is told to look after it first, so that no request pays for
//! finding out that it is still dead. An endpoint that left a request without an answer, and whose connection turned out
//! to be sound, gets requests back when its time is over, not before: what answers on the connection may be a proxy, or
//! a server whose store is stuck.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What was wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It could not be reached, or said nothing.
    Line,
    /// It answered, but could not serve: no leader, stopping, a learner.
    Member,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) index: usize,
    /// An endpoint whose time is over and whose connection nobody looks after yet: the caller does it now.
    pub(super) check: Option<usize>,
}

pub(super) struct Marks {
    next: AtomicUsize,
    members: Box<[Mark]>,
}

#[derive(Default)]
struct Mark {
    /// 0, or the time until which it is marked, shifted left by one, with the lowest bit set for [`Trouble::Line`].
    until: AtomicU64,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    in_a_row: u32,
    last: u64,
    /// Until when the last failure marked it.
    until: u64,
}

const FIRST: u64 = 500;
const LONGEST: u64 = 10_000;
const FORGOTTEN: u64 = 20_000;
/// How long one look after a connection may take before another is allowed.
const CHECK: u64 = 10_000;

impl Marks {
    /// Starts anywhere, so that the clients of one program, or of a fleet, do not all begin with the same endpoint.
    pub(super) fn new(members: usize, start: usize) -> Self {
        Self { next: AtomicUsize::new(start), members: (0..members).map(|_| Mark::default()).collect() }
    }

    /// The next endpoint: unmarked before marked, then not yet `tried` before tried (a bit each), then by rotation.
    ///
    /// `now` is asked only where there is a mark.
    pub(super) fn pick(&self, tried: u64, now: impl Fn() -> u64) -> Pick {
        let count = self.members.len();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        // Unmarked and tried, marked and untried, marked and tried: the first found of each.
        let (mut again, mut marked, mut worst) = (None, None, None);
        let mut due = None;
        for index in (0..count).map(|offset| (start % count + offset) % count) {
            let untried = !is_tried(tried, index);
            match self.members[index].state(&now) {
                State::Free if untried => return Pick { index, check: self.claim(due, &now) },
                State::Free => again = again.or(Some(index)),
                State::Due | State::Marked if untried => marked = marked.or(Some(index)),
                State::Due | State::Marked => worst = worst.or(Some(index)),
            }
            if due.is_none() && self.members[index].state(&now) == State::Due {
                due = Some(index);
            }
        }
        // With nobody free, the request itself is the look that a due endpoint needs.
        let check = if again.is_some() { self.claim(due, &now) } else { None };
        Pick { index: again.or(marked).or(worst).unwrap_or(0), check }
    }

    /// True where an unmarked endpoint is left that was not `tried`.
    pub(super) fn elsewhere(&self, tried: u64, now: impl Fn() -> u64) -> bool {
        let free = |index: usize| self.members[index].state(&now) == State::Free;
        (0..self.members.len()).any(|index| !is_tried(tried, index) && free(index))
    }

    /// Marks an endpoint. One that is marked already stays so for no longer: many calls fail of one cause. True where it
    /// was not.
    pub(super) fn fail(&self, index: usize, trouble: Trouble, now: u64) -> bool {
        let mark = &self.members[index];
        let line = u64::from(trouble == Trouble::Line);
        let mut history = mark.history.lock().unwrap_or_else(PoisonError::into_inner);
        if mark.until.load(Ordering::Acquire) >> 1 > now {
            mark.until.fetch_or(line, Ordering::AcqRel);
            return false;
        }
        if now.saturating_sub(history.last) > FORGOTTEN {
            history.in_a_row = 0;
        }
        let pause = (FIRST << history.in_a_row.min(10)).min(LONGEST);
        history.in_a_row += 1;
        history.last = now;
        history.until = now + pause;
        mark.until.store(history.until << 1 | line, Ordering::Release);
        true
    }

    /// A look after an endpoint's connection found it dead: marks it anew.
    pub(super) fn still_dead(&self, index: usize, now: u64) {
        self.members[index].until.store(0, Ordering::Release);
        self.fail(index, Trouble::Line, now);
    }

    /// An endpoint's connection was found to be sound after a request had got no answer on it: it stays marked for the
    /// time that this failure takes, as one that cannot serve, and needs no look after its connection then.
    pub(super) fn sound(&self, index: usize) {
        let mark = &self.members[index];
        let history = mark.history.lock().unwrap_or_else(PoisonError::into_inner);
        mark.until.store(history.until << 1, Ordering::Release);
    }

    /// The endpoint answered: its connection is sound. Says nothing of whether the member can serve.
    pub(super) fn answered(&self, index: usize) {
        let mark = &self.members[index].until;
        let state = mark.load(Ordering::Relaxed);
        if state & 1 == 1 {
            // Lost to whoever marks it anew in this moment.
            let _ = mark.compare_exchange(state, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn claim(&self, due: Option<usize>, now: impl Fn() -> u64) -> Option<usize> {
        due.filter(|index| {
            let mark = &self.members[*index].until;
            let state = mark.load(Ordering::Acquire);
            let claimed = (now() + CHECK) << 1 | 1;
            state != 0
                && state >> 1 <= now()
                && mark.compare_exchange(state, claimed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }
}

#[derive(PartialEq, Eq)]
enum State {
    Free,
    Marked,
    /// Marked for its connection, and the time is over.
    Due,
}

impl Mark {
    fn state(&self, now: impl Fn() -> u64) -> State {
        match self.until.load(Ordering::Acquire) {
            0 => State::Free,
            marked if marked >> 1 > now() => State::Marked,
            line if line & 1 == 1 => State::Due,
            _ => State::Free,
        }
    }
}

/// The bit of an endpoint in `tried`. Those past the 64th count as tried: they are found by rotation alone.
pub(super) fn bit(index: usize) -> u64 {
    1_u64.checked_shl(index.try_into().unwrap_or(u32::MAX)).unwrap_or(0)
}

fn is_tried(tried: u64, index: usize) -> bool {
    index >= 64 || tried & bit(index) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(marks: &Marks, now: u64, count: usize) -> Vec<usize> {
        (0..count).map(|_| marks.pick(0, || now).index).collect()
    }

    #[test]
    fn requests_rotate() {
        assert_eq!(picks(&Marks::new(3, 1), 0, 6), [1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn without_a_mark_the_clock_is_not_read() {
        Marks::new(3, 0).pick(0, || unreachable!("no mark, no clock"));
    }

    #[test]
    fn a_marked_endpoint_is_avoided_until_its_time_is_over() {
        let marks = Marks::new(3, 0);
        marks.fail(1, Trouble::Member, 0);
        assert!(!picks(&marks, FIRST - 1, 6).contains(&1));
        assert!(picks(&marks, FIRST, 6).contains(&1));
    }

    #[test]
    fn marks_double_and_are_forgotten() {
        let marks = Marks::new(1, 0);
        let length = |now| {
            marks.fail(0, Trouble::Member, now);
            (marks.members[0].until.load(Ordering::Relaxed) >> 1) - now
        };
        let mut now = 0;
        let lengths: Vec<_> = (0..7)
            .map(|_| {
                let length = length(now);
                now += length;
                length
            })
            .collect();
        assert_eq!(lengths, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(length(now + FORGOTTEN + 1), FIRST);
    }

    #[test]
    fn many_calls_that_fail_at_once_are_one_failure() {
        let marks = Marks::new(1, 0);
        assert_eq!((0..100).filter(|_| marks.fail(0, Trouble::Line, 0)).count(), 1);
        assert_eq!(marks.members[0].until.load(Ordering::Relaxed) >> 1, FIRST);
    }

    #[test]
    fn an_endpoint_with_a_dead_connection_is_looked_after_by_one_and_gets_no_request() {
        let marks = Marks::new(3, 0);
        marks.fail(1, Trouble::Line, 0);
        let checks: Vec<_> = (0..9).filter_map(|_| marks.pick(0, || FIRST).check).collect();
        assert_eq!(checks, [1]);
        assert!(!picks(&marks, FIRST, 9).contains(&1));
        marks.answered(1);
        assert!(picks(&marks, FIRST, 3).contains(&1));
    }

    #[test]
    fn an_endpoint_found_dead_again_is_marked_for_longer() {
        let marks = Marks::new(2, 0);
        marks.fail(1, Trouble::Line, 0);
        assert_eq!((0..2).find_map(|_| marks.pick(0, || FIRST).check), Some(1));
        marks.still_dead(1, FIRST);
        assert_eq!((0..4).find_map(|_| marks.pick(0, || FIRST + 999).check), None);
        assert_eq!((0..4).find_map(|_| marks.pick(0, || FIRST + 1000).check), Some(1));
    }

    #[test]
    fn an_answer_does_not_say_that_the_member_can_serve() {
        let marks = Marks::new(2, 0);
        marks.fail(1, Trouble::Member, 0);
        marks.answered(1);
        assert_eq!(picks(&marks, 0, 4), [0; 4]);
    }

    /// A claim for a look after the connection lasts longer than the mark did.
    #[test]
    fn an_endpoint_with_a_sound_connection_stays_marked_for_the_failures_time_and_no_longer() {
        let marks = Marks::new(2, 0);
        marks.fail(1, Trouble::Line, 0);
        marks.sound(1);
        marks.answered(1);
        assert!(!picks(&marks, FIRST - 1, 4).contains(&1));
        assert!(picks(&marks, FIRST, 4).contains(&1));
        marks.fail(1, Trouble::Line, FIRST);
        assert_eq!((0..2).find_map(|_| marks.pick(0, || 3 * FIRST).check), Some(1));
        marks.sound(1);
        assert!(picks(&marks, 3 * FIRST, 4).contains(&1));
    }

    #[test]
    fn when_all_are_marked_all_are_tried() {
        let marks = Marks::new(3, 0);
        (0..3).for_each(|index| assert!(marks.fail(index, Trouble::Line, 0)));
        assert_eq!(picks(&marks, 1, 3), [0, 1, 2]);
        assert_eq!(marks.pick(0, || FIRST).check, None, "the request itself is the look");
    }

    #[test]
    fn one_call_goes_to_another_endpoint_each_time() {
        let marks = Marks::new(3, 0);
        let mut tried = 0;
        for left in (0..3).rev() {
            // Other calls turn the rotation meanwhile.
            marks.pick(0, || 0);
            marks.pick(0, || 0);
            let index = marks.pick(tried, || 0).index;
            assert_eq!(tried & bit(index), 0);
            tried |= bit(index);
            assert_eq!(marks.elsewhere(tried, || 0), left > 0);
        }
        marks.fail(0, Trouble::Line, 0);
        assert!(!marks.elsewhere(bit(1) | bit(2), || 0), "a marked endpoint is no place to go");
    }
}
