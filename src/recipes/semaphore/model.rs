//! The protocol of a semaphore whose limit changes, checked over all its states: who asks, who waits behind whom, who counts down,
//! the mark that wakes the next, and the number of permits.
//!
//! As in the [model of a line](crate::waitlist), each watch has a cursor of its own, a third party deletes keys, watches are made
//! again or begin at a member that lags, and the server compacts. Put requests are answered here, since what comes late is that
//! model's.

use bytes::Bytes;
use stateright::{Model, Property};

use super::asking::HELD;
use super::limit::Permits;
use super::older::Older;
use crate::model::{Change, Kv, OfWatches, Server, check, is_large, of_watches};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;

mod asks;

use asks::{Asks, Phase};

/// So many clients, who ask for a permit each.
#[derive(Debug, Clone)]
struct Permit {
    clients: u8,
    /// The permits that there are at first.
    made: u8,
    left: Left,
    undone: Option<Undone>,
}

/// How often what goes wrong may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Left {
    /// The number of permits is changed, to any from one to three.
    resizes: u8,
    drops: u8,
    deletes: u8,
    breaks: u8,
    lags: u8,
    compactions: u8,
}

/// What is left undone. The names are those of the mutations that do the same to the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undone {
    TornWatchCountsPermits,
    /// The watch that counts tells of no change of the limit.
    LimitIsWatchedApart,
    /// A key without a mark is taken for one that waits, whatever the limit was before.
    MarkAloneTells,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    server: Server,
    clients: Vec<Asks>,
    left: Left,
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ask(u8),
    /// The read of one who waits is answered, at the revision of now.
    Look(u8),
    /// Something happens to the watches of a wait.
    Watches(u8, OfWatches),
    /// One who has counted low enough, and has looked at all that was told, takes the permits.
    Take(u8),
    /// The mark of one who holds is put.
    Mark(u8),
    TellHolder(u8),
    Release(u8),
    Drop(u8),
    SecondLook(u8),
    Resize(u8),
    Delete(Option<u8>),
    Compact,
}

const QUEUE: &[u8] = b"s/queue/";
const LIMIT: &[u8] = b"s/limit";
/// The value of a key that is marked.
const MARKED: u8 = 1;

/// The key of a client, which is drawn and of one permit, or the limit's, which is the last.
fn name(number: u8, clients: u8) -> Bytes {
    match number == clients {
        true => Bytes::from_static(LIMIT),
        false => format!("s/queue/{:x}-{number:016x}", number + 1).into(),
    }
}

impl Permit {
    /// What the limit says: how many there are, and the most that there ever were.
    fn permits(&self, limit: Kv) -> Permits {
        let (now, most) = (limit.value & 0xf, limit.value >> 4);
        Permits { now: now.into(), most: most.into(), since: limit.modified }
    }

    /// Who is older than a key of this create_revision, as the crate reads it.
    fn older(&self, server: &Server, token: i64) -> Older {
        let limit = server.get(self.clients).expect("it was made");
        let mut kvs: Vec<KeyValue> = self
            .queue(server)
            .filter(|(_, kv)| kv.created < token)
            .map(|(number, kv)| {
                let value = if kv.value == MARKED { Bytes::from_static(HELD) } else { Bytes::new() };
                let lease = i64::from(number) + 1;
                KeyValue { value, lease, ..kv.named(name(number, self.clients)) }
            })
            .collect();
        kvs.sort_by_key(|kv| -kv.create_revision);
        let line = pb::RangeResponse { kvs, ..Default::default() };
        let mut permits = self.permits(limit);
        if self.undone == Some(Undone::MarkAloneTells) {
            (permits.since, permits.most) = (0, permits.now);
        }
        Older::of(&Bytes::from_static(QUEUE), &line, token, permits, server.revision())
    }

    fn queue(&self, server: &Server) -> impl Iterator<Item = (u8, Kv)> {
        let limit = self.clients;
        server.all().filter(move |(number, _)| *number != limit)
    }

    /// Whether at a revision the permits of a client were its own.
    fn was_in(&self, server: &Server, client: u8, token: i64, at: i64) -> bool {
        let then = server.at(at);
        let limit = then[usize::from(self.clients)].expect("it was made");
        let is_older = |kv: &&Kv| kv.created < token;
        let older = then[..usize::from(self.clients)].iter().flatten().filter(is_older).count();
        let stands = then[usize::from(client)].is_some_and(|kv| kv.created == token);
        stands && older < self.permits(limit).now as usize
    }
}

impl Model for Permit {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut server = Server::new(usize::from(self.clients) + 1);
        server.write([(self.clients, Change::Put { value: self.made | self.made << 4, lease: None })]);
        let clients = vec![Asks::new(); usize::from(self.clients)];
        vec![State { server, clients, left: self.left, broken: false }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let State { server, clients, left, .. } = state;
        let is_still = clients.iter().all(|client| client.is_still(server));
        for (number, client) in (0..self.clients).zip(clients) {
            // The clients are alike: the first to ask is the first.
            let is_next = number == 0 || clients[usize::from(number) - 1].phase != Phase::Idle;
            if client.phase == Phase::Idle && is_next {
                steps.push(Step::Ask(number));
            }
            if matches!(client.phase, Phase::Looking { .. }) {
                steps.push(Step::Look(number));
            }
            let (lags, breaks) = (left.lags > 0, left.breaks > 0);
            let of_watches = of_watches(client.watches(), server, lags, breaks);
            steps.extend(of_watches.into_iter().map(|step| Step::Watches(number, step)));
            if client.listens() && is_still && client.may_look() {
                steps.push(Step::SecondLook(number));
            }
            match &client.phase {
                Phase::Counting { enough: Some(_), .. } => steps.push(Step::Take(number)),
                Phase::Holding { fence, marks, .. } => {
                    steps.push(Step::Release(number));
                    if *marks {
                        steps.push(Step::Mark(number));
                    }
                    if fence.has_news(server) > 0 {
                        steps.push(Step::TellHolder(number));
                    }
                }
                _ => {}
            }
            if left.drops > 0 && client.waits() {
                steps.push(Step::Drop(number));
            }
            if left.deletes > 0 && server.get(number).is_some() {
                steps.push(Step::Delete(Some(number)));
            }
        }
        if left.deletes > 0 && self.queue(server).count() > 1 {
            steps.push(Step::Delete(None));
        }
        if left.resizes > 0 {
            let now = self.permits(server.get(self.clients).expect("it was made")).now;
            steps.extend((1..=3).filter(|to| u32::from(*to) != now).map(Step::Resize));
        }
        if left.compactions > 0 {
            steps.push(Step::Compact);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Ask(client) => state.ask(self, client),
            Step::Look(client) => state.look(self, client),
            Step::Watches(client, OfWatches::Begin { target, behind }) => {
                state.left.lags -= u8::from(behind > 0);
                state.begins(client, target, last.server.revision() - behind);
            }
            Step::Watches(client, OfWatches::Tell { target, all }) => state.tell(self, client, target, all),
            Step::Take(client) => state.take(self, client),
            Step::Mark(client) => state.mark(client),
            Step::TellHolder(client) => state.tell_holder(self, client),
            Step::Release(client) => state.leave(client),
            Step::Drop(client) => {
                state.left.drops -= 1;
                state.leave(client);
            }
            Step::Watches(client, OfWatches::Break { loses }) => {
                state.left.breaks -= 1;
                state.breaks(client, loses);
            }
            Step::SecondLook(client) => state.clients[usize::from(client)].looks(),
            Step::Resize(to) => {
                state.left.resizes -= 1;
                let most = self.permits(last.server.get(self.clients)?).most.max(u32::from(to));
                let value = to | u8::try_from(most).expect("few") << 4;
                state.server.write([(self.clients, Change::Put { value, lease: None })]);
            }
            Step::Delete(one) => {
                state.left.deletes -= 1;
                let gone: Vec<u8> = match one {
                    Some(key) => vec![key],
                    None => self.queue(&last.server).map(|(key, _)| key).collect(),
                };
                state.server.write(gone.into_iter().map(|key| (key, Change::Delete)));
            }
            Step::Compact => {
                state.left.compactions -= 1;
                state.server.compact();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::<Self>::always("permits are never above the limit that stands", |_, state| {
                !state.broken
            }),
            Property::<Self>::always("a key has an owner", |model, state| {
                model
                    .queue(&state.server)
                    .all(|(number, kv)| state.clients[usize::from(number)].own() == Some(kv.created))
            }),
            Property::<Self>::always("a holder whose key is gone is told", |_, state| {
                (0..).zip(&state.clients).all(|(number, client)| match &client.phase {
                    Phase::Holding { own, fence, .. } => {
                        state.server.get(number).is_some_and(|kv| kv.created == *own)
                            || fence.has_news(&state.server) > 0
                    }
                    _ => true,
                })
            }),
            Property::<Self>::always("permits that are free are given", |model, state| {
                !state.clients.iter().all(|client| client.is_still(&state.server))
                    || (0..).zip(&state.clients).all(|(number, client)| {
                        let waits = client.waits() && !client.may_look();
                        let revision = state.server.revision();
                        !waits || !model.was_in(&state.server, number, client.own().unwrap_or(0), revision)
                    })
            }),
            Property::<Self>::sometimes("all have held", |_, state| {
                state.clients.iter().all(|client| client.held)
            }),
        ]
    }
}

fn of(clients: u8, made: u8, left: Left) -> Permit {
    Permit { clients, made, left, undone: None }
}

const NONE: Left = Left { resizes: 0, drops: 0, deletes: 0, breaks: 0, lags: 0, compactions: 0 };

#[test]
fn permits_that_are_asked_for_in_every_order() {
    check(of(3, 1, NONE)).holds("three clients, one permit");
    check(of(4, 2, NONE)).holds("four clients, two permits");
}

#[test]
fn permits_in_trouble() {
    let troubles = [
        (3, 2, Left { resizes: 2, ..NONE }),
        (3, 2, Left { resizes: 1, deletes: 1, ..NONE }),
        (3, 1, Left { deletes: 1, breaks: 1, ..NONE }),
        (3, 2, Left { resizes: 1, breaks: 1, lags: 1, ..NONE }),
        (3, 1, Left { drops: 1, resizes: 1, compactions: 1, ..NONE }),
        (4, 3, Left { resizes: 1, ..NONE }),
    ];
    let large = [
        (3, 2, Left { resizes: 2, deletes: 1, breaks: 1, ..NONE }),
        (4, 2, Left { resizes: 1, deletes: 1, ..NONE }),
        (3, 2, Left { resizes: 1, drops: 1, breaks: 1, lags: 1, compactions: 1, ..NONE }),
    ];
    let large = if is_large() { &large[..] } else { &[] };
    for &(clients, made, left) in troubles.iter().chain(large) {
        check(of(clients, made, left)).holds(&format!("{clients} clients, {made} permits, {left:?}"));
    }
}

/// What is left undone is found.
#[test]
fn what_gives_a_permit_is_needed() {
    let needed = [
        (Undone::TornWatchCountsPermits, 3, 2, Left { deletes: 1, breaks: 1, ..NONE }),
        (Undone::LimitIsWatchedApart, 4, 3, Left { resizes: 1, ..NONE }),
        (Undone::MarkAloneTells, 3, 2, Left { resizes: 2, ..NONE }),
    ];
    for (undone, clients, made, left) in needed {
        check(Permit { undone: Some(undone), ..of(clients, made, left) }).breaks(&format!("{undone:?}"));
    }
}
