//! The protocol of a dequeue whose answer is lost, and of a close right after it, checked over all its states.
//!
//! One item; a consumer that takes it for good, and settles that where it got no answer; another that takes what is free. The
//! requests of the first are applied whenever the server likes. What became of an item whose lease ended before it was settled is
//! not in it: see `save.rs`, and the simulation.

use stateright::{Model, Property};

use crate::model::{Change, Server, check};

#[derive(Debug, Clone)]
struct Dequeue {
    left: Left,
    undone: Option<Undone>,
}

/// How often what goes wrong may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Left {
    /// The answer to a request is lost, and the request is sent again.
    losses: u8,
    /// A take is given up: it may have been applied, or will be.
    failures: u8,
    /// The other consumer takes an item that is free, and gives it back at once, or keeps it.
    others: u8,
}

/// What is left undone. The first name is that of the mutation that does the same to the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    RevokedBeforeItIsSettled,
    /// A take that was not applied is not made to be refused.
    LateTakeIsNotRefused,
    /// A take does not compare the item with what was seen.
    TakeComparesNoItem,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    server: Server,
    requests: Vec<Request>,
    answer: Option<Answer>,
    phase: Phase,
    /// To how many callers the item was given for good.
    delivered: u8,
    left: Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Request {
    asked: Asked,
    awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Asked {
    /// Claims the item, and binds it to the lease, where it is of this mod_revision and not claimed.
    Take(i64),
    /// Reads the claim and the item.
    Read,
    /// Deletes the claim, and frees the item of the lease, where the claim is ours.
    GiveBack,
    /// Writes the item as it is, where it is of this mod_revision: no take that expects that is applied any more.
    Refuse(i64),
    /// Deletes the item that the caller was given, where it is of this mod_revision.
    DeleteKept(i64),
    Revoke,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    /// The transaction's compares held; the item's mod_revision after it; there is no claim, or it is ours.
    Done { done: bool, item: i64, may_be_ours: bool },
    /// Whether the claim is ours, and the item's mod_revision.
    Read { ours: bool, item: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Taking {
        seen: i64,
        ambiguous: bool,
    },
    /// What became of a take that expected this mod_revision is being settled.
    Settling {
        seen: i64,
    },
    /// Nothing is left to be settled.
    Settled,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Take,
    Apply(usize, Request),
    Answer,
    Lose,
    Fail,
    Close,
    /// The other consumer takes the item, and keeps it.
    OtherKeeps,
    /// The other consumer takes it, and gives it back.
    OtherReturns,
}

const ITEM: u8 = 0;
const CLAIM: u8 = 1;
/// The consumer whose requests are late, by its lease.
const OURS: u8 = 7;

impl State {
    fn item(&self) -> i64 {
        self.server.get(ITEM).map_or(0, |kv| kv.modified)
    }

    fn is_ours(&self) -> bool {
        self.server.get(CLAIM).is_some_and(|kv| kv.lease == Some(OURS))
    }

    fn done(&self, done: bool) -> Answer {
        let may_be_ours = self.server.get(CLAIM).is_none() || self.is_ours();
        Answer::Done { done, item: self.item(), may_be_ours }
    }

    fn ask(&mut self, asked: Asked, awaited: bool) {
        self.requests.push(Request { asked, awaited });
        self.requests.sort_unstable();
    }

    /// The request whose answer is waited for is no longer; which it was.
    fn give_up(&mut self) -> Option<Asked> {
        self.answer = None;
        let awaited = self.requests.iter_mut().find(|request| request.awaited)?;
        awaited.awaited = false;
        let asked = awaited.asked;
        self.requests.sort_unstable();
        Some(asked)
    }

    fn apply(&mut self, model: &Dequeue, request: Request) {
        let bound = Change::Put { value: 0, lease: Some(OURS) };
        let free = Change::Put { value: 0, lease: None };
        let (item, ended) = (self.item(), self.server.has_ended(OURS));
        let done = match request.asked {
            Asked::Take(seen) => {
                let unmoved = item == seen || model.undone == Some(Undone::TakeComparesNoItem) && item != 0;
                let takes = unmoved && self.server.get(CLAIM).is_none() && !ended;
                if takes {
                    self.server.write([(CLAIM, bound), (ITEM, bound)]);
                }
                takes
            }
            Asked::Read => false,
            Asked::GiveBack => {
                let gives = self.is_ours() && item != 0;
                if gives {
                    self.server.write([(CLAIM, Change::Delete), (ITEM, free)]);
                }
                gives
            }
            Asked::Refuse(seen) => {
                if item == seen {
                    let lease = self.server.get(ITEM).and_then(|kv| kv.lease);
                    self.server.write([(ITEM, Change::Put { value: 0, lease })]);
                }
                item == seen
            }
            Asked::DeleteKept(taken) => {
                if item == taken {
                    self.server.write([(ITEM, Change::Delete), (CLAIM, Change::Delete)]);
                }
                true
            }
            Asked::Revoke => {
                if !ended {
                    self.server.end(OURS);
                }
                true
            }
        };
        if request.awaited {
            self.answer = Some(match request.asked {
                Asked::Read => Answer::Read { ours: self.is_ours(), item: self.item() },
                // A take that is sent again finds its own claim.
                Asked::Take(_) => self.done(done || self.is_ours()),
                _ => self.done(done),
            });
        }
    }

    fn answered(&mut self, model: &Dequeue, answer: Answer) {
        match (self.phase, answer) {
            (Phase::Taking { .. }, Answer::Done { done: true, item: taken, .. }) => {
                self.delivered += 1;
                self.phase = Phase::Settled;
                self.ask(Asked::DeleteKept(taken), false);
            }
            // Another was faster, or an earlier attempt of this take was, and lost its claim.
            (Phase::Taking { seen, ambiguous }, Answer::Done { may_be_ours, .. }) => {
                match ambiguous && may_be_ours {
                    true => self.settles(seen),
                    false => self.phase = Phase::Settled,
                }
            }
            (Phase::Settling { .. }, Answer::Read { ours: true, .. }) => self.ask(Asked::GiveBack, true),
            (Phase::Settling { seen }, Answer::Read { item, .. })
                if item == seen && model.undone != Some(Undone::LateTakeIsNotRefused) =>
            {
                self.ask(Asked::Refuse(seen), true);
            }
            (Phase::Settling { .. }, Answer::Read { .. } | Answer::Done { done: true, .. }) => {
                self.phase = Phase::Settled
            }
            // It was applied, or another took the item, between the two.
            (Phase::Settling { seen }, Answer::Done { .. }) => self.settles(seen),
            (phase, answer) => unreachable!("{answer:?} in {phase:?}"),
        }
    }

    fn settles(&mut self, seen: i64) {
        self.phase = Phase::Settling { seen };
        self.ask(Asked::Read, true);
    }
}

impl Model for Dequeue {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut server = Server::new(2);
        server.write([(ITEM, Change::Put { value: 0, lease: None })]);
        let (requests, answer, phase) = (Vec::new(), None, Phase::Idle);
        vec![State { server, requests, answer, phase, delivered: 0, left: self.left }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let requests = state.requests.iter().enumerate();
        steps.extend(requests.map(|(place, request)| Step::Apply(place, *request)));
        let awaits = state.answer.is_some() || state.requests.iter().any(|request| request.awaited);
        let is_free = state.item() != 0 && state.server.get(CLAIM).is_none();
        let may_close = match state.phase {
            Phase::Settled => true,
            Phase::Settling { .. } => self.undone == Some(Undone::RevokedBeforeItIsSettled),
            _ => false,
        };
        let ways = [
            (state.phase == Phase::Idle && is_free, Step::Take),
            (state.answer.is_some(), Step::Answer),
            (state.left.losses > 0 && awaits, Step::Lose),
            (state.left.failures > 0 && matches!(state.phase, Phase::Taking { .. }), Step::Fail),
            (may_close, Step::Close),
            (state.left.others > 0 && is_free, Step::OtherKeeps),
            (state.left.others > 0 && is_free, Step::OtherReturns),
        ];
        steps.extend(ways.into_iter().filter(|(may, _)| *may).map(|(_, step)| step));
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Take => {
                let seen = state.item();
                state.phase = Phase::Taking { seen, ambiguous: false };
                state.ask(Asked::Take(seen), true);
            }
            Step::Apply(place, request) => {
                state.requests.remove(place);
                state.apply(self, request);
            }
            Step::Answer => {
                let answer = state.answer.take()?;
                state.answered(self, answer);
            }
            Step::Lose => {
                state.left.losses -= 1;
                if let Phase::Taking { ambiguous, .. } = &mut state.phase {
                    *ambiguous = true;
                }
                let asked = state.give_up().unwrap_or(match state.phase {
                    Phase::Taking { seen, .. } => Asked::Take(seen),
                    // What is settled is read again.
                    _ => Asked::Read,
                });
                state.ask(asked, true);
            }
            Step::Fail => {
                let Phase::Taking { seen, .. } = state.phase else { return None };
                state.left.failures -= 1;
                state.give_up();
                state.settles(seen);
            }
            Step::Close => {
                state.give_up();
                state.phase = Phase::Closed;
                state.ask(Asked::Revoke, false);
            }
            Step::OtherKeeps => {
                state.left.others -= 1;
                state.delivered += 1;
                state.server.write([(ITEM, Change::Delete)]);
            }
            Step::OtherReturns => {
                state.left.others -= 1;
                // Its take and its return are two writes.
                for _ in 0..2 {
                    state.server.write([(ITEM, Change::Put { value: 0, lease: None })]);
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("an item is given to one caller", |_, state| state.delivered <= 1),
            Property::<Self>::always("an item is given or there, once all is still", |_, state| {
                let is_still = state.requests.is_empty() && state.answer.is_none();
                let is_over = is_still && matches!(state.phase, Phase::Settled | Phase::Closed);
                let is_there = state.item() != 0 && state.server.get(CLAIM).is_none();
                !is_over || is_there == (state.delivered == 0)
            }),
            Property::<Self>::sometimes("it is given to the one whose requests are late", |_, state| {
                state.delivered == 1
                    && state.left.others == self::TROUBLE.others
                    && state.phase == Phase::Closed
            }),
        ]
    }
}

const TROUBLE: Left = Left { losses: 2, failures: 1, others: 2 };

#[test]
fn an_item_is_given_once_or_stays_however_late_its_take_is_applied() {
    check(Dequeue { left: TROUBLE, undone: None }).holds("a dequeue, and a close");
}

/// What is left undone is found.
#[test]
fn what_keeps_an_item_is_needed() {
    for undone in [Undone::RevokedBeforeItIsSettled, Undone::LateTakeIsNotRefused, Undone::TakeComparesNoItem]
    {
        check(Dequeue { left: TROUBLE, undone: Some(undone) }).breaks(&format!("{undone:?}"));
    }
}
