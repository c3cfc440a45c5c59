//! The states of the model, and what leads from one to the next.

use bytes::Bytes;

use super::Left;
use super::client::{Actor, Asked, Client};
use crate::key::owner_key;
use crate::model::{Change, Kv, OfWatches, Server};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) server: Server,
    pub(super) clients: Vec<Client>,
    /// Requests on their way, in an order of their own: none is before another.
    pub(super) requests: Vec<Request>,
    /// Answers on their way: one at most to each actor.
    pub(super) answers: Vec<(Actor, Answer)>,
    pub(super) left: Left,
    /// The largest token that was handed out.
    pub(super) granted: i64,
    /// No third party deletes a key.
    pub(super) keeps_order: bool,
    pub(super) broken: Option<Broken>,
}

/// What a step has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    /// A turn was proven at a revision at which it was none.
    Proof,
    /// A token was handed out after a larger one.
    Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Request {
    pub(super) from: Actor,
    pub(super) asked: Asked,
    /// The actor waits for the answer. Otherwise it has given that up, and the server applies the request all the same.
    pub(super) awaited: bool,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    /// The key, of this create_revision, was put by this request, or found; and who stands in the line.
    Put {
        created: i64,
        found: bool,
        line: Vec<(u8, Kv)>,
        more: bool,
        revision: i64,
    },
    /// Whether the key of the create_revision that was asked for stands, and who is older.
    Looked {
        stands: bool,
        line: Vec<(u8, Kv)>,
        more: bool,
        revision: i64,
    },
    Read {
        created: Option<i64>,
        revision: i64,
    },
    Deleted,
    NoLease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A task asks for the lock.
    Lock(u8),
    /// The server applies the request of this number.
    Apply(usize, Request),
    Answer(Actor),
    /// The answer to an actor's request will not come.
    Lose(Actor),
    /// Something happens to the watches of a wait.
    Watches(u8, OfWatches),
    /// The holder's watch on its key tells.
    TellHolder(u8),
    /// The watch for late keys tells of the next put.
    TellLookOut(u8),
    /// What came late is deleted.
    Sweep(u8),
    /// After a minute or two, one who waits looks.
    SecondLook(u8),
    /// The caller drops what it has: the future, or the guard.
    Drop(u8),
    /// A join fails, and what became of its put is unknown.
    Fail(u8),
    /// A third party deletes a key, or all.
    Delete(Option<u8>),
    /// A session stops believing in its lease.
    Lost(u8),
    /// The server ends a lease.
    End(u8),
    Compact,
}

pub(super) const PREFIX: &[u8] = b"m/";

/// The lease of a client, whose number is that of its key.
pub(super) fn lease(client: u8) -> i64 {
    i64::from(client) + 1
}

pub(super) fn key(client: u8) -> Bytes {
    owner_key(PREFIX, lease(client))
}

impl State {
    /// The youngest two keys older than this revision, and whether there are more.
    fn youngest(&self, before: i64) -> (Vec<(u8, Kv)>, bool) {
        let mut line: Vec<(u8, Kv)> = self.server.all().filter(|(_, kv)| kv.created < before).collect();
        line.sort_by_key(|(_, kv)| -kv.created);
        let more = line.len() > 2;
        line.truncate(2);
        (line, more)
    }

    pub(super) fn apply(&mut self, request: Request, by_name: bool) {
        let client = request.from.client;
        let answer = match request.asked {
            Asked::Put if self.server.has_ended(client) => Answer::NoLease,
            Asked::Put => {
                let found = self.server.get(client);
                if found.is_none() {
                    self.server.write([(client, Change::Put { value: 0, lease: Some(client) })]);
                }
                let created = self.server.get(client).expect("it was put or found").created;
                let (line, more) = self.youngest(i64::MAX);
                let revision = self.server.revision();
                Answer::Put { created, found: found.is_some(), line, more, revision }
            }
            Asked::Look(own) => {
                let stands = self.server.get(client).is_some_and(|kv| kv.created == own);
                let (line, more) = self.youngest(own);
                Answer::Looked { stands, line, more, revision: self.server.revision() }
            }
            Asked::Read => {
                let created = self.server.get(client).map(|kv| kv.created);
                Answer::Read { created, revision: self.server.revision() }
            }
            Asked::Delete(created) => {
                if self.server.get(client).is_some_and(|kv| by_name || kv.created == created) {
                    self.server.write([(client, Change::Delete)]);
                }
                Answer::Deleted
            }
        };
        if request.awaited {
            self.answers.push((request.from, answer));
            self.answers.sort_by_key(|(actor, _)| *actor);
        }
    }

    pub(super) fn ask(&mut self, from: Actor, asked: Asked) {
        self.requests.push(Request { from, asked, awaited: true });
        self.requests.sort_unstable();
    }

    /// The place of an actor's answer.
    pub(super) fn answer_to(&self, actor: Actor) -> Option<usize> {
        self.answers.iter().position(|(to, _)| *to == actor)
    }

    /// Gives the answer up that an actor waits for; what was asked, where it waits for one.
    pub(super) fn give_up(&mut self, actor: Actor) {
        if let Some(place) = self.answer_to(actor) {
            self.answers.remove(place);
        }
        for request in self.requests.iter_mut().filter(|request| request.from == actor) {
            request.awaited = false;
        }
        self.requests.sort_unstable();
    }

    pub(super) fn is_awaited(&self, actor: Actor) -> bool {
        self.answer_to(actor).is_some()
            || self.requests.iter().any(|request| request.awaited && request.from == actor)
    }

    /// Nothing is on its way, and nothing is left to be told.
    pub(super) fn is_still(&self) -> bool {
        self.requests.is_empty()
            && self.answers.is_empty()
            && self.clients.iter().enumerate().all(|(number, client)| {
                let number = u8::try_from(number).expect("few");
                client.is_still(&self.server) && (!client.is_lost || self.server.has_ended(number))
            })
    }

    /// The turn of a client is proven at a revision.
    pub(super) fn grant(&mut self, client: u8, token: i64, proven_at: i64) {
        let then = self.server.at(proven_at);
        let stood = then[usize::from(client)].is_some_and(|kv| kv.created == token);
        let is_first = then.iter().flatten().all(|kv| kv.created >= token);
        if !stood || !is_first {
            self.broken = Some(Broken::Proof);
        }
        // Where a third party deletes keys, one that was the first may hear of that when another is.
        if token <= self.granted && self.keeps_order {
            self.broken = Some(Broken::Order);
        }
        self.granted = self.granted.max(token);
    }
}
