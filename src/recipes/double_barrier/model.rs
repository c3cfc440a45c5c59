//! The protocol by which a double barrier is entered, checked over all its states: who announces itself, moves in, opens, is let
//! in, and gives up at any time, while its requests are applied whenever the server likes.
//!
//! A ready key names those who are let in; here by a bit for each caller, whose keys are drawn for one call.

mod served;

use stateright::{Model, Property};

use crate::model::{Change, Server, Told, Watching, check, is_large};

/// So many callers, of whom `count` make up a round.
#[derive(Debug, Clone)]
struct Callers {
    callers: u8,
    count: u32,
    left: Left,
    undone: Option<Undone>,
}

/// How often what goes wrong may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Left {
    /// A caller gives up, or one that is inside drops what it has.
    drops: u8,
    /// A third party deletes a caller's key.
    deletes: u8,
}

/// What is left undone. The names are those of the mutations that do the same to the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    OpenedWithoutThoseCounted,
    OneWhoMovesInIsNotSeen,
    EntersAlone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    server: Server,
    requests: Vec<Request>,
    callers: Vec<Phase>,
    left: Left,
    /// A round was opened with others than those who were there.
    is_broken: bool,
    /// A caller has moved in after a round that was over.
    is_after: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Request {
    from: u8,
    asked: Asked,
    awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Asked {
    /// Puts the key that announces.
    Announce,
    /// Puts the key that is counted in place of the one that announces; and the ready key, as the last one who was missing.
    MoveIn(Way),
    /// Puts the ready key, where these are there.
    Open(u8),
    /// Deletes both keys of a caller, and the ready key where no other takes part.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Way {
    /// Into a round that has not begun.
    Beside,
    /// As the last, with these, where none has moved in since this revision.
    With(u8, i64),
    /// After the round of this ready key.
    After(i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Announcing,
    Moving,
    /// After a round that is not over.
    Behind(i64),
    Waiting {
        token: i64,
        watch: Watching,
    },
    Opening {
        token: i64,
        watch: Watching,
    },
    Inside {
        round: i64,
    },
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Enter(u8),
    /// The server applies the request of this number, and answers at once where that is awaited.
    Apply(usize, Request),
    /// A caller finds that the round is over which it stands behind.
    Over(u8),
    /// The watch of one who waits tells of the ready key.
    TellReady(u8),
    GiveUp(u8),
    Delete(u8),
}

impl Callers {
    fn counted(&self, caller: u8) -> u8 {
        self.callers + caller
    }

    fn ready(&self) -> u8 {
        2 * self.callers
    }

    /// The callers whose counted keys are there, a bit for each.
    fn there(&self, server: &Server) -> u8 {
        let is_there = |caller: &u8| server.get(self.counted(*caller)).is_some();
        (0..self.callers).filter(is_there).fold(0, |there, caller| there | 1 << caller)
    }

    /// Whether one who came before the ready key is there: of those, one is inside.
    fn is_inside(&self, server: &Server) -> bool {
        let ready = server.get(self.ready()).map_or(0, |ready| ready.modified);
        let there = (0..self.callers).filter_map(|caller| server.get(self.counted(caller)));
        there.map(|kv| kv.created).min().is_some_and(|oldest| oldest <= ready)
    }
}

impl Model for Callers {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let callers = vec![Phase::Idle; usize::from(self.callers)];
        let server = Server::new(2 * usize::from(self.callers) + 1);
        vec![State {
            server,
            requests: Vec::new(),
            callers,
            left: self.left,
            is_broken: false,
            is_after: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let requests = state.requests.iter().enumerate();
        steps.extend(requests.map(|(place, request)| Step::Apply(place, *request)));
        for (caller, phase) in (0..self.callers).zip(&state.callers) {
            // The callers are alike: the first to enter is the first.
            let is_next = caller == 0 || state.callers[usize::from(caller) - 1] != Phase::Idle;
            match phase {
                Phase::Idle if is_next => steps.push(Step::Enter(caller)),
                Phase::Behind(_) if !self.is_inside(&state.server) => steps.push(Step::Over(caller)),
                Phase::Waiting { watch, .. } if watch.has_news(&state.server) > 0 => {
                    steps.push(Step::TellReady(caller));
                }
                _ => {}
            }
            if state.left.drops > 0 && !matches!(phase, Phase::Idle | Phase::Gone) {
                steps.push(Step::GiveUp(caller));
            }
            if state.left.deletes > 0 && state.server.get(self.counted(caller)).is_some() {
                steps.push(Step::Delete(caller));
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Enter(caller) => {
                state.callers[usize::from(caller)] = Phase::Announcing;
                state.ask(caller, Asked::Announce, true);
            }
            Step::Apply(place, request) => {
                state.requests.remove(place);
                state.apply(self, request);
            }
            Step::Over(caller) => {
                let Phase::Behind(ready) = last.callers[usize::from(caller)] else { return None };
                state.callers[usize::from(caller)] = Phase::Moving;
                state.ask(caller, Asked::MoveIn(Way::After(ready)), true);
            }
            Step::TellReady(caller) => {
                let Phase::Waiting { token, mut watch } = last.callers[usize::from(caller)].clone() else {
                    return None;
                };
                let name = |number: u8| vec![number].into();
                let Told::Events(events) = watch.tell(&last.server, false, name) else { return None };
                let ready = events.iter().filter_map(|event| event.kv.as_ref()).next_back()?;
                let is_named = ready.value.first().is_some_and(|named| named & 1 << caller != 0);
                if is_named && ready.mod_revision > token {
                    state.callers[usize::from(caller)] = Phase::Inside { round: ready.mod_revision };
                } else {
                    // One too many, or gone before.
                    state.gives_up(caller);
                }
            }
            Step::GiveUp(caller) => {
                state.left.drops -= 1;
                state.gives_up(caller);
            }
            Step::Delete(caller) => {
                state.left.deletes -= 1;
                state.server.write([(self.counted(caller), Change::Delete)]);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always(
                "a round is opened with those who are there, as many as it takes",
                |_, state| !state.is_broken,
            ),
            Property::<Self>::always("no more are inside of a round than make it up", |model, state| {
                let mut rounds: Vec<i64> = Vec::new();
                for phase in &state.callers {
                    if let Phase::Inside { round } = phase {
                        rounds.push(*round);
                    }
                }
                rounds.iter().all(|one| {
                    u32::try_from(rounds.iter().filter(|other| *other == one).count())
                        .is_ok_and(|n| n <= model.count)
                })
            }),
            Property::<Self>::always("enough who wait are let in", |model, state| {
                let is_told = |phase: &Phase| match phase {
                    Phase::Waiting { watch, .. } => watch.has_news(&state.server) == 0,
                    _ => true,
                };
                let waits = |phase: &&Phase| matches!(phase, Phase::Waiting { .. });
                let is_still = state.requests.is_empty() && state.callers.iter().all(is_told);
                let waiting = state.callers.iter().filter(waits).count();
                let may_be_gone = model.left.deletes > state.left.deletes;
                !is_still || may_be_gone || waiting < model.count as usize
            }),
            Property::<Self>::sometimes("a round is entered", |model, state| {
                let inside = |phase: &&Phase| matches!(phase, Phase::Inside { .. });
                state.callers.iter().filter(inside).count() == model.count as usize
            }),
        ];
        // All of a round must be lost for that, and one is behind it.
        if u32::from(self.left.deletes) >= self.count && u32::from(self.callers) > self.count {
            properties
                .push(Property::<Self>::sometimes("one moves in after a round", |_, state| state.is_after));
        }
        properties
    }
}

fn of(callers: u8, count: u32, left: Left) -> Callers {
    Callers { callers, count, left, undone: None }
}

#[test]
fn a_round_is_opened_with_those_who_are_there() {
    let all = [
        (2, 2, Left { drops: 1, deletes: 1 }),
        (3, 2, Left { drops: 1, deletes: 0 }),
        (3, 3, Left { drops: 1, deletes: 0 }),
        (3, 3, Left { drops: 0, deletes: 1 }),
        (3, 2, Left { drops: 2, deletes: 0 }),
        (3, 2, Left { drops: 0, deletes: 2 }),
    ];
    let large = [
        (4, 2, Left { drops: 2, deletes: 0 }),
        (4, 3, Left { drops: 1, deletes: 1 }),
        (3, 2, Left { drops: 2, deletes: 1 }),
    ];
    let large = if is_large() { &large[..] } else { &[] };
    for &(callers, count, left) in all.iter().chain(large) {
        check(of(callers, count, left)).holds(&format!("{callers} callers, rounds of {count}, {left:?}"));
    }
}

/// What is left undone is found.
#[test]
fn what_opens_a_round_is_needed() {
    let needed = [
        (Undone::OpenedWithoutThoseCounted, 3, 2, Left { drops: 1, deletes: 0 }),
        (Undone::OneWhoMovesInIsNotSeen, 3, 2, Left::default()),
        (Undone::EntersAlone, 2, 2, Left::default()),
    ];
    for (undone, callers, count, left) in needed {
        check(Callers { undone: Some(undone), ..of(callers, count, left) }).breaks(&format!("{undone:?}"));
    }
}
