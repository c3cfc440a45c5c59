//! The protocol of `exactly_once`, checked over all its states: attempts, their repetition, settling, dropped runs, markers that are
//! deleted, and requests that are applied whenever the server likes.
//!
//! A run reads a value and writes it anew. Each of its attempts is one transaction, which compares the value and the marker. A
//! third party writes and deletes the value. What the client knows of its marker is the crate's own [`Known`].

mod acts;

use stateright::{Model, Property};

use super::known::Known;
use crate::model::{Change, Server, check, is_large};

/// So many runs, one after another, on one marker.
#[derive(Debug, Clone)]
struct Runs {
    runs: u8,
    left: Left,
    undone: Option<Undone>,
}

/// How often what goes wrong may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Left {
    /// The answer to a request is lost, and the request is sent again.
    losses: u8,
    /// A request is given up: what became of it is asked of the marker.
    failures: u8,
    /// The caller drops a run.
    drops: u8,
    /// A third party writes the value, or deletes it.
    writes: u8,
    deletes: u8,
}

/// What is left undone. The names are those of the mutations that do the same to the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    MarkerNotCompared,
    /// A marker is deleted though an attempt that expects it to be missing may be under way.
    StragglersMarkerIsDeleted,
    /// What became of an attempt without an answer is read of the marker, and not settled by a write of it.
    FateIsRead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    server: Server,
    /// In an order of their own: none is before another.
    requests: Vec<Request>,
    answer: Option<Answer>,
    known: Known,
    phase: Phase,
    /// How often each run was applied.
    applied: Vec<u8>,
    /// What its caller was told: whether it was applied.
    told: Vec<Option<bool>>,
    left: Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Request {
    asked: Asked,
    awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Asked {
    /// Puts the marker and the value where both are as expected; else reads the marker.
    Attempt {
        run: u8,
        attempt: u8,
        marker: i64,
        value: i64,
    },
    /// Puts the marker where it is as expected; else reads it.
    Settle {
        run: u8,
        marker: i64,
    },
    /// Reads the marker.
    Read,
    DeleteMarker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Committed {
        revision: i64,
    },
    /// The marker's value and mod_revision.
    Refused(Option<(u8, i64)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// The next run is this one.
    Idle(u8),
    /// An attempt is under way: the value that it expects; whether a request of it had no answer; what the answer is to be told to.
    Sent {
        run: u8,
        attempt: u8,
        value: i64,
        ambiguous: bool,
        before: bool,
    },
    Settling {
        run: u8,
        attempt: u8,
        ambiguous: bool,
        before: bool,
    },
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Run,
    Apply(usize, Request),
    Answer,
    Lose,
    Fail,
    Drop,
    /// The last handle is gone: so are the markers that may go.
    Close,
    Write,
    Delete,
}

const MARKER: u8 = 0;
const VALUE: u8 = 1;
/// The attempt that settling puts in the marker: none.
const NONE: u8 = 15;

fn modified(server: &Server, key: u8) -> i64 {
    server.get(key).map_or(0, |kv| kv.modified)
}

impl Model for Runs {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let runs = usize::from(self.runs);
        vec![State {
            server: Server::new(2),
            requests: Vec::new(),
            answer: None,
            known: Known::default(),
            phase: Phase::Idle(0),
            applied: vec![0; runs],
            told: vec![None; runs],
            left: self.left,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let left = &state.left;
        steps.extend(state.requests.iter().enumerate().map(|(place, request)| Step::Apply(place, *request)));
        steps.dedup_by(|one, other| matches!((one, other), (Step::Apply(_, a), Step::Apply(_, b)) if a == b));
        match state.phase {
            Phase::Idle(run) if run < self.runs => steps.push(Step::Run),
            Phase::Idle(_) => steps.push(Step::Close),
            Phase::Sent { .. } | Phase::Settling { .. } => {
                let ways = [
                    (state.answer.is_some(), Step::Answer),
                    (left.losses > 0, Step::Lose),
                    (left.failures > 0 && matches!(state.phase, Phase::Sent { .. }), Step::Fail),
                    (left.drops > 0, Step::Drop),
                ];
                steps.extend(ways.into_iter().filter(|(may, _)| *may).map(|(_, step)| step));
            }
            Phase::Closed => {}
        }
        if left.writes > 0 {
            steps.push(Step::Write);
        }
        if left.deletes > 0 && state.server.get(VALUE).is_some() {
            steps.push(Step::Delete);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match (step, state.phase) {
            (Step::Run, Phase::Idle(run)) => {
                state.known.begins();
                state.attempt(run, 1);
            }
            (Step::Apply(place, request), _) => {
                state.requests.remove(place);
                state.apply(self, request);
            }
            (Step::Answer, _) => {
                let answer = state.answer.take()?;
                state.answered(self, answer);
            }
            (Step::Lose, _) => {
                state.left.losses -= 1;
                state.lose();
            }
            (Step::Fail, Phase::Sent { run, attempt, before, .. }) => {
                state.left.failures -= 1;
                state.give_up();
                state.known.answered(before, false);
                state.settle(self, run, attempt);
            }
            (Step::Drop, Phase::Sent { run, .. } | Phase::Settling { run, .. }) => {
                state.left.drops -= 1;
                state.give_up();
                state.end(run, None);
            }
            (Step::Close, _) => {
                state.phase = Phase::Closed;
                let is_there = state.known.revision() != 0;
                let undone = self.undone == Some(Undone::StragglersMarkerIsDeleted);
                if state.known.is_spent() || undone && is_there {
                    state.requests.push(Request { asked: Asked::DeleteMarker, awaited: false });
                    state.requests.sort_unstable();
                }
            }
            (Step::Write, _) => {
                state.left.writes -= 1;
                state.server.write([(VALUE, Change::Put { value: NONE, lease: None })]);
            }
            (Step::Delete, _) => {
                state.left.deletes -= 1;
                state.server.write([(VALUE, Change::Delete)]);
            }
            (step, phase) => unreachable!("{step:?} in {phase:?}"),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("a run is applied at most once", |_, state| {
                state.applied.iter().all(|times| *times <= 1)
            }),
            Property::<Self>::always("what is told of a run is so, and stays so", |_, state| {
                let is_so =
                    |(applied, told): (&u8, &Option<bool>)| told.is_none_or(|told| (*applied > 0) == told);
                state.applied.iter().zip(&state.told).all(is_so)
            }),
            Property::<Self>::sometimes("all is applied", |_, state| {
                state.applied.iter().all(|times| *times == 1)
            }),
        ]
    }
}

const MOST_ATTEMPTS: u8 = 2;

fn all(left: Left, undone: Option<Undone>) -> Runs {
    Runs { runs: 2, left, undone }
}

/// Two runs, with all that is likely to matter.
const TROUBLE: Left = Left { losses: 1, failures: 1, drops: 1, writes: 1, deletes: 1 };

#[test]
fn a_run_is_applied_once_however_late_its_requests_come() {
    check(all(TROUBLE, None)).holds("two runs, exactly once");
    if is_large() {
        let left = Left { losses: 2, failures: 2, drops: 1, writes: 2, deletes: 2 };
        check(Runs { runs: 3, left, undone: None }).holds("three runs, exactly once");
    }
}

#[test]
fn what_makes_a_run_exactly_once_is_needed() {
    for undone in [Undone::MarkerNotCompared, Undone::StragglersMarkerIsDeleted, Undone::FateIsRead] {
        check(all(TROUBLE, Some(undone))).breaks(&format!("{undone:?}"));
    }
}
