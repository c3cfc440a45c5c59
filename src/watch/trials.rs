//! Which watch it is whose answers break the stream.
//!
//! An answer that cannot be delivered (one that is too large for a proxy on the way, say) breaks the stream whenever it
//! is sent, and every other watch with it. After a few streams in a row that broke soon, the watches go onto the next one
//! in groups, each when it has been well for a while without it. The group that breaks it is halved, until it is one
//! watch; that one is tried last, and ended when it has broken the stream several times, each after a longer calm. A
//! stream that breaks while no group is tried breaks for another reason, and all go onto the next one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Who is under suspicion. No stream, no clock.
#[derive(Debug)]
pub(super) struct Trials {
    /// Streams in a row that broke soon.
    early: u32,
    /// How long a stream must be well before the first group is tried on it.
    calm: Duration,
    /// None as long as all go onto a stream at once.
    careful: Option<Careful>,
}

#[derive(Debug, Default)]
struct Careful {
    /// Who is yet to be tried.
    groups: VecDeque<Vec<u64>>,
    /// All of these.
    held: BTreeSet<u64>,
    step: Step,
    /// How often in a row one broke the stream by itself.
    strikes: BTreeMap<u64, u32>,
}

/// What is under way on the stream.
#[derive(Debug, Default)]
enum Step {
    /// It is to be well for a while.
    #[default]
    Calm,
    /// A group was put onto it.
    Trying(Vec<u64>),
    /// The group did no harm so far; something was asked after it, since an answer of theirs may be on its way.
    Asking(Vec<u64>),
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// These go onto the stream.
    Create(Vec<u64>),
    /// Something is asked that is answered always.
    Probe,
    /// Nothing.
    Wait,
}

impl Default for Trials {
    fn default() -> Self {
        Self { early: 0, calm: SHORTEST_CALM, careful: None }
    }
}

impl Trials {
    /// True for a watcher that is kept off the stream until it is tried.
    pub(super) fn holds(&self, watcher: u64) -> bool {
        self.careful.as_ref().is_some_and(|careful| careful.held.contains(&watcher))
    }

    /// How long to wait until the next step, where there is one.
    pub(super) fn pause(&self) -> Option<Duration> {
        let careful = self.careful.as_ref()?;
        match &careful.step {
            Step::Calm => Some(self.calm_before(careful.groups.front()?)),
            Step::Trying(group) => Some(self.calm_before(group) / 2),
            Step::Asking(_) => Some(SHORTEST_CALM / 10),
        }
    }

    /// The stream has been well for that long, and everything that was asked is answered.
    pub(super) fn advance(&mut self) -> Next {
        let Some(careful) = &mut self.careful else { return Next::Wait };
        match std::mem::take(&mut careful.step) {
            Step::Calm => match careful.groups.pop_front() {
                None => Next::Wait,
                Some(group) => {
                    for id in &group {
                        careful.held.remove(id);
                    }
                    careful.step = Step::Trying(group.clone());
                    Next::Create(group)
                }
            },
            Step::Trying(group) => {
                careful.step = Step::Asking(group);
                Next::Probe
            }
            // They are well.
            Step::Asking(_) => Next::Wait,
        }
    }

    /// The stream broke, soon after it had been opened or not. Gives the watcher that is to be ended for it.
    pub(super) fn broke(&mut self, soon: bool, all: impl FnOnce() -> Vec<u64>) -> Option<u64> {
        if !soon {
            *self = Self::default();
            return None;
        }
        let Some(careful) = &mut self.careful else {
            self.early += 1;
            if self.early >= MOST_EARLY {
                let mut careful = Careful::default();
                careful.halve(all());
                self.careful = Some(careful);
            }
            return None;
        };
        match std::mem::take(&mut careful.step) {
            Step::Calm => {
                // Another time it is waited for longer, for what came too late to be seen here.
                *self = Self { calm: (self.calm * 2).min(LONGEST_CALM), ..Self::default() };
                None
            }
            Step::Trying(group) | Step::Asking(group) => match group[..] {
                [id] => {
                    let strikes = careful.strikes.entry(id).or_default();
                    *strikes += 1;
                    if *strikes >= MOST_STRIKES {
                        return Some(id);
                    }
                    careful.hold(vec![id]);
                    None
                }
                _ => {
                    careful.halve(group);
                    None
                }
            },
        }
    }

    /// The stream was closed, or this process stood still, which says nothing about those who are tried.
    pub(super) fn closed(&mut self) {
        let Some(careful) = &mut self.careful else { return };
        if let Step::Trying(group) | Step::Asking(group) = std::mem::take(&mut careful.step) {
            careful.hold(group);
        }
    }

    /// The watcher came further on this stream: what it broke streams with before, it has passed.
    pub(super) fn moved(&mut self, watcher: u64) {
        if let Some(careful) = &mut self.careful {
            careful.strikes.remove(&watcher);
        }
    }

    /// The watcher is gone.
    pub(super) fn forget(&mut self, watcher: u64) {
        let Some(careful) = &mut self.careful else { return };
        careful.strikes.remove(&watcher);
        if careful.held.remove(&watcher) {
            careful.groups.iter_mut().for_each(|group| group.retain(|id| *id != watcher));
            careful.groups.retain(|group| !group.is_empty());
        } else if let Step::Trying(group) | Step::Asking(group) = &mut careful.step {
            group.retain(|id| *id != watcher);
            if group.is_empty() {
                careful.step = Step::Calm;
            }
        }
    }

    /// Longer for one that broke the stream before, lest it be ended for streams that break by themselves.
    fn calm_before(&self, group: &[u64]) -> Duration {
        let strikes = match (group, &self.careful) {
            ([id], Some(careful)) => careful.strikes.get(id).copied().unwrap_or_default(),
            _ => 0,
        };
        self.calm * (1 << strikes)
    }
}

impl Careful {
    fn hold(&mut self, group: Vec<u64>) {
        if !group.is_empty() {
            self.held.extend(&group);
            self.groups.push_back(group);
        }
    }

    fn halve(&mut self, mut group: Vec<u64>) {
        let half = group.split_off(group.len() / 2);
        self.hold(group);
        self.hold(half);
    }
}

/// So many streams in a row may break soon before it is asked whose doing it is.
const MOST_EARLY: u32 = 3;
/// How often in a row a watch may break a stream that was well without it.
const MOST_STRIKES: u32 = 5;
/// Several times the 100 ms after which a server looks again after watches that start in the past.
const SHORTEST_CALM: Duration = Duration::from_millis(500);
const LONGEST_CALM: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs streams on which these watchers are, until one is ended; each breaks as soon as the culprit is on it.
    fn find(trials: &mut Trials, watchers: &[u64], culprit: u64) -> (u64, usize) {
        for streams in 1.. {
            assert!(streams < 100, "{trials:?}");
            while trials.holds(culprit) {
                trials.advance();
            }
            if let Some(ended) = trials.broke(true, || watchers.to_vec()) {
                return (ended, streams);
            }
        }
        unreachable!()
    }

    #[test]
    fn the_one_that_breaks_the_stream_is_found_wherever_it_is() {
        let watchers: Vec<u64> = (0..101).collect();
        for culprit in [0, 1, 50, 99, 100] {
            let (ended, streams) = find(&mut Trials::default(), &watchers, culprit);
            assert_eq!(ended, culprit);
            assert!(streams <= 3 + 7 + 5, "{streams}");
        }
        assert_eq!(find(&mut Trials::default(), &[7], 7).0, 7);
    }

    #[test]
    fn a_stream_that_breaks_by_itself_sets_all_free_and_makes_the_next_trial_a_slower_one() {
        let mut trials = Trials::default();
        for calm in [1, 2, 4, 8, 8] {
            for _ in 0..MOST_EARLY {
                assert!(!trials.holds(1));
                trials.broke(true, || vec![1, 2]);
            }
            assert!(trials.holds(1) && trials.holds(2));
            assert_eq!(trials.pause(), Some(SHORTEST_CALM * calm));
            assert_eq!(trials.broke(true, || vec![1, 2]), None);
            assert_eq!((trials.holds(1), trials.pause()), (false, None));
        }
        trials.broke(false, Vec::new);
        assert_eq!((trials.early, trials.calm), (0, SHORTEST_CALM));
    }

    #[test]
    fn who_goes_while_it_is_tried_or_held_is_forgotten() {
        let mut trials = Trials::default();
        (0..MOST_EARLY).for_each(|_| assert_eq!(trials.broke(true, || vec![1, 2]), None));
        assert_eq!(trials.advance(), Next::Create(vec![1]));
        trials.forget(1);
        trials.forget(2);
        assert_eq!((trials.pause(), trials.advance()), (None, Next::Wait));
    }

    #[test]
    fn a_stream_that_was_closed_on_purpose_is_no_strike() {
        let mut trials = Trials::default();
        (0..MOST_EARLY).for_each(|_| assert_eq!(trials.broke(true, || vec![1]), None));
        for _ in 0..3 * MOST_STRIKES {
            assert_eq!(trials.advance(), Next::Create(vec![1]));
            trials.closed();
        }
        assert!(trials.holds(1));
    }
}
