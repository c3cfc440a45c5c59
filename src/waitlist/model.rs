//! The protocol of a line of waiters, checked over all its states: the put that joins and its repetition, the wait, the turn, what
//! is taken back when a future is dropped, and the look-out for keys that come late.
//!
//! Each request may be applied at any later time, also when its client has long given it up; each answer may be lost; each watch
//! has a cursor of its own; a third party deletes keys, one or all in one revision; leases end; the server compacts. How often
//! each of these happens is bounded ([`Left`]), and nothing else is: all orders of all that may happen are gone through.

mod acts;
mod client;
mod late;
mod state;

use stateright::{Model, Property};

use super::decide::Word;
use crate::model::{Change, OfWatches, Server, check, is_large, of_watches};
use client::{Actor, Client, Phase};
use state::{Broken, State, Step};

/// How often what goes wrong may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Left {
    /// The answer to a request is lost. The request itself is applied earlier, later, or after all that follows.
    losses: u8,
    /// The caller drops a future: while it joins, or waits.
    drops: u8,
    /// A third party deletes a key, or all keys at one revision.
    deletes: u8,
    /// A session stops believing in its lease, and the server ends it some time after that.
    ends: u8,
    /// A watch is made again.
    breaks: u8,
    /// A watch is acknowledged by a member that lags, by so many revisions as there are.
    lags: u8,
    /// One who waits looks, as it does every one to two minutes, also where it has missed nothing.
    looks: u8,
    compactions: u8,
}

/// What is left undone, to see that it is needed. The names are those of the mutations that do the same to the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    NoConfirm,
    NoSecondLook,
    /// What happened before the watch began is taken for seen, where the read of it failed.
    UnseenProves,
    TornWatchProves,
    LateKeyStays,
    DeleteByName,
    /// What is told of the predecessor is believed before what is told of our own key is looked at.
    OwnDeletionIsOverlooked,
    /// Of a line that was to be read after a compaction it is believed that nothing happened.
    DeafAfterCompaction,
    /// Put again after a lost answer, the key is taken for one that was put just now.
    FoundIsFresh,
}

/// A model: so many sessions, each of which takes the lock so often.
#[derive(Debug, Clone)]
struct Line {
    sessions: u8,
    rounds: u8,
    left: Left,
    undone: Option<Undone>,
}

impl Model for Line {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let clients = usize::from(self.sessions);
        vec![State {
            server: Server::new(clients),
            clients: vec![Client::new(self.rounds); clients],
            requests: Vec::new(),
            answers: Vec::new(),
            left: self.left,
            granted: 0,
            keeps_order: self.left.deletes == 0,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let server = &state.server;
        steps.extend(state.requests.iter().enumerate().map(|(place, request)| Step::Apply(place, *request)));
        steps.dedup_by(|one, other| matches!((one, other), (Step::Apply(_, a), Step::Apply(_, b)) if a == b));
        steps.extend(state.answers.iter().map(|(actor, _)| Step::Answer(*actor)));
        let is_still = state.is_still();
        for (number, client) in (0..self.sessions).zip(&state.clients) {
            // The sessions are alike: the first to ask is the first.
            let is_next = number == 0 || state.clients[usize::from(number) - 1].rounds < self.rounds;
            if is_next && client.may_lock() {
                steps.push(Step::Lock(number));
            }
            for actor in Actor::both(number) {
                if state.left.losses > 0 && state.is_awaited(actor) {
                    steps.push(Step::Lose(actor));
                }
            }
            let (lags, breaks) = (state.left.lags > 0, state.left.breaks > 0);
            let of_watches = of_watches(client.watches(), server, lags, breaks);
            steps.extend(of_watches.into_iter().map(|step| Step::Watches(number, step)));
            if client.listens() {
                // One that may have missed something looks in the end; the others cannot know that they have not.
                if is_still && client.may_look() || client.has_unseen() || state.left.looks > 0 {
                    steps.push(Step::SecondLook(number));
                }
            }
            if let Phase::Holding { fence, .. } = &client.phase
                && fence.has_news(server) > 0
            {
                steps.push(Step::TellHolder(number));
            }
            if client.look_out.as_ref().is_some_and(|look_out| look_out.watch.has_news(server) > 0) {
                steps.push(Step::TellLookOut(number));
            }
            if client.may_sweep() {
                steps.push(Step::Sweep(number));
            }
            let is_free = matches!(client.phase, Phase::Holding { .. });
            if is_free || state.left.drops > 0 && client.may_drop() {
                steps.push(Step::Drop(number));
            }
            if state.left.drops > 0 && matches!(client.phase, Phase::Joining { .. }) {
                steps.push(Step::Fail(number));
            }
            if state.left.ends > 0 && !client.is_lost && client.phase != Phase::Idle {
                steps.push(Step::Lost(number));
            }
            if client.is_lost && !server.has_ended(number) {
                steps.push(Step::End(number));
            }
            if state.left.deletes > 0 && server.get(number).is_some() {
                steps.push(Step::Delete(Some(number)));
            }
        }
        if state.left.deletes > 0 && server.all().count() > 1 {
            steps.push(Step::Delete(None));
        }
        if state.left.compactions > 0 && server.revision() > 1 {
            steps.push(Step::Compact);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Lock(client) => state.lock(client),
            Step::Apply(place, request) => {
                state.requests.remove(place);
                state.apply(request, self.undone == Some(Undone::DeleteByName));
            }
            Step::Answer(actor) => {
                let place = state.answer_to(actor)?;
                let (_, answer) = state.answers.remove(place);
                state.answered(self, actor, answer);
            }
            Step::Lose(actor) => {
                state.left.losses -= 1;
                state.give_up(actor);
                state.unanswered(actor);
            }
            Step::Watches(client, OfWatches::Begin { target, behind }) => {
                state.left.lags -= u8::from(behind > 0);
                let revision = state.server.revision() - behind;
                state.begins(self, client, target, revision);
            }
            Step::Watches(client, OfWatches::Tell { target, all }) => state.tell(self, client, target, all),
            Step::TellHolder(client) => state.tell_holder(client),
            Step::TellLookOut(client) => state.tell_look_out(client),
            Step::Sweep(client) => state.sweep(self, client),
            Step::Watches(client, OfWatches::Break { loses }) => {
                state.left.breaks -= 1;
                state.breaks(client, loses);
            }
            Step::SecondLook(client) => {
                let one = &last.clients[usize::from(client)];
                let is_free = one.has_unseen() || one.may_look() && last.is_still();
                state.left.looks -= u8::from(!is_free);
                state.second_look(client);
            }
            Step::Drop(client) => {
                let is_free = matches!(state.clients[usize::from(client)].phase, Phase::Holding { .. });
                state.left.drops -= u8::from(!is_free);
                state.drop_all(client);
            }
            Step::Fail(client) => {
                state.left.drops -= 1;
                state.fail(client);
            }
            Step::Delete(one) => {
                state.left.deletes -= 1;
                let gone: Vec<u8> = match one {
                    Some(key) => vec![key],
                    None => state.server.all().map(|(key, _)| key).collect(),
                };
                state.server.write(gone.into_iter().map(|key| (key, Change::Delete)));
            }
            Step::Lost(client) => {
                state.left.ends -= 1;
                state.lose_session(client);
            }
            Step::End(client) => state.server.end(client),
            Step::Compact => {
                state.left.compactions -= 1;
                state.server.compact();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("a turn that is proven is one", |_, state| {
                state.broken != Some(Broken::Proof)
            }),
            Property::<Self>::always("tokens grow", |_, state| state.broken != Some(Broken::Order)),
            Property::<Self>::always("there is one holder whose key stands", |_, state| {
                let stands = |(number, client): &(u8, &Client)| match client.phase {
                    Phase::Holding { own, .. } => {
                        state.server.get(*number).is_some_and(|kv| kv.created == own)
                    }
                    _ => false,
                };
                (0..).zip(&state.clients).filter(stands).count() <= 1
            }),
            Property::<Self>::always("a key has an owner once all is still", |_, state| {
                !state.is_still()
                    || state
                        .server
                        .all()
                        .all(|(key, kv)| state.clients[usize::from(key)].own() == Some(kv.created))
            }),
            Property::<Self>::always("a holder whose key is gone is told", |_, state| {
                !state.is_still()
                    || (0..).zip(&state.clients).all(|(number, client)| match client.phase {
                        Phase::Holding { own, .. } => {
                            state.server.get(number).is_some_and(|kv| kv.created == own)
                        }
                        _ => true,
                    })
            }),
            Property::<Self>::always("one whose predecessor is gone is told", |_, state| {
                !state.is_still() || state.clients.iter().all(|client| client.is_behind(&state.server))
            }),
            Property::<Self>::always("the first in the line holds once all is still", |_, state| {
                let first = state.server.all().min_by_key(|(_, kv)| kv.created);
                !state.is_still()
                    || first.is_none_or(|(key, _)| {
                        let client = &state.clients[usize::from(key)];
                        matches!(client.phase, Phase::Holding { .. }) || client.may_look()
                    })
            }),
            Property::<Self>::sometimes("all have held", |model, state| {
                state.clients.iter().all(|client| client.held == model.rounds)
            }),
        ]
    }
}

fn of(sessions: u8, rounds: u8, left: Left) -> Line {
    Line { sessions, rounds, left, undone: None }
}

const NONE: Left =
    Left { losses: 0, drops: 0, deletes: 0, ends: 0, breaks: 0, lags: 0, looks: 0, compactions: 0 };

#[test]
fn a_line_in_which_nothing_goes_wrong() {
    check(of(3, 1, NONE)).holds("three sessions");
    check(of(2, 2, NONE)).holds("two sessions, twice each");
}

/// All orders of what is drawn up here: in some seconds, or with `MODEL_LARGE=1` in some minutes.
#[test]
fn a_line_in_trouble() {
    let small = [
        (3, 1, Left { losses: 1, ..NONE }),
        (3, 1, Left { deletes: 1, ..NONE }),
        (3, 1, Left { breaks: 1, lags: 1, ..NONE }),
        (2, 1, Left { losses: 1, drops: 1, deletes: 1, ..NONE }),
        (2, 1, Left { deletes: 1, breaks: 1, compactions: 1, lags: 1, ..NONE }),
        (2, 2, Left { ends: 1, losses: 1, ..NONE }),
        (3, 1, Left { deletes: 1, breaks: 1, ..NONE }),
        (2, 2, Left { lags: 1, deletes: 1, ..NONE }),
        (2, 1, Left { losses: 1, deletes: 1, looks: 1, lags: 1, ..NONE }),
    ];
    let large = [
        (2, 2, Left { losses: 2, ..NONE }),
        (2, 2, Left { losses: 1, drops: 1, ..NONE }),
        (3, 1, Left { drops: 1, deletes: 1, ..NONE }),
        (3, 1, Left { losses: 1, deletes: 1, ..NONE }),
        (3, 1, Left { deletes: 1, breaks: 1, lags: 1, compactions: 1, ..NONE }),
        (3, 1, Left { ends: 1, breaks: 1, ..NONE }),
        (3, 1, Left { looks: 1, deletes: 1, ..NONE }),
        (2, 2, Left { losses: 1, lags: 1, deletes: 1, ..NONE }),
    ];
    let large = if is_large() { &large[..] } else { &[] };
    for &(sessions, rounds, left) in small.iter().chain(large) {
        check(of(sessions, rounds, left)).holds(&format!("{sessions} sessions, {rounds} each, {left:?}"));
    }
}

/// What is left undone is found, in the least that is needed for that.
#[test]
fn what_makes_a_turn_is_needed() {
    let needed = [
        (Undone::NoConfirm, 3, 1, Left { drops: 1, ..NONE }),
        (Undone::NoSecondLook, 2, 1, NONE),
        (Undone::UnseenProves, 2, 1, Left { losses: 1, deletes: 1, ..NONE }),
        (Undone::TornWatchProves, 2, 1, Left { deletes: 1, breaks: 1, ..NONE }),
        (Undone::OwnDeletionIsOverlooked, 2, 1, Left { deletes: 1, ..NONE }),
        (Undone::DeafAfterCompaction, 2, 1, Left { compactions: 1, ..NONE }),
        (Undone::LateKeyStays, 2, 1, Left { losses: 1, ..NONE }),
        (Undone::DeleteByName, 2, 2, Left { losses: 1, ..NONE }),
        (Undone::FoundIsFresh, 3, 1, Left { losses: 1, ..NONE }),
    ];
    for (undone, sessions, rounds, left) in needed {
        let model = Line { undone: Some(undone), ..of(sessions, rounds, left) };
        check(model).breaks(&format!("{undone:?}"));
    }
}
