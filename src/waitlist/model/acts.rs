//! What the clients of the model do when they are told something.

use super::client::{Actor, Asked, Client, LookOut, Phase, Waiting};
use super::state::{Answer, PREFIX, State, key, lease};
use super::{Line, Undone, Word};
use crate::lease::suspects::ANY;
use crate::model::{Kv, Told, Watching};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::waitlist::{Standing, line};

/// The line of a client, as the crate has it.
fn line(client: u8) -> line::Line {
    line::Line::behind(&PREFIX.into(), &key(client))
}

/// Who stands before a client, by the youngest of the line, as the crate reads it.
fn standing(client: u8, kvs: &[(u8, Kv)], more: bool, revision: i64) -> Standing {
    let named = |(number, kv): &(u8, Kv)| KeyValue { lease: lease(*number), ..kv.named(key(*number)) };
    let kvs: Vec<KeyValue> = kvs.iter().map(named).collect();
    let range = pb::RangeResponse { kvs: kvs.clone(), more, ..Default::default() };
    line(client).behind_first(&kvs, &range, revision).expect("all are contenders")
}

impl State {
    fn client(&mut self, client: u8) -> &mut Client {
        &mut self.clients[usize::from(client)]
    }

    pub(super) fn lock(&mut self, client: u8) {
        self.client(client).rounds -= 1;
        self.client(client).phase = Phase::Joining { unanswered: 0, dropped: false };
        self.ask(Actor::main(client), Asked::Put);
    }

    /// An answer will not come: the same is asked again.
    pub(super) fn unanswered(&mut self, actor: Actor) {
        let client = self.client(actor.client);
        let again = match (&mut client.phase, &client.look_out) {
            (_, Some(LookOut { deleting, .. })) if actor.looks_out => {
                deleting.map_or(Asked::Read, Asked::Delete)
            }
            (Phase::Joining { unanswered, .. }, _) => {
                *unanswered += 1;
                Asked::Put
            }
            // In the midst of a wait the watch is listened to until the next read.
            (Phase::Looking { own, wait: Some(wait) }, _) => {
                client.phase = Phase::Waiting { own: *own, wait: wait.clone() };
                return;
            }
            (Phase::Looking { own, .. }, _) => Asked::Look(*own),
            (Phase::Leaving { own }, _) => Asked::Delete(*own),
            (Phase::TakingBack { deleting, .. }, _) => deleting.map_or(Asked::Read, Asked::Delete),
            (other, _) => unreachable!("nothing is asked in {other:?}"),
        };
        self.ask(actor, again);
    }

    pub(super) fn answered(&mut self, model: &Line, actor: Actor, answer: Answer) {
        let number = actor.client;
        if answer == Answer::NoLease {
            return self.lose_session(number);
        }
        if actor.looks_out {
            return self.look_out_answered(number, &answer);
        }
        match (self.client(number).phase.clone(), answer) {
            (
                Phase::Joining { unanswered, dropped },
                Answer::Put { created, found, line, more, revision },
            ) => {
                let is_fresh = self.client(number).look_out.is_none();
                let came = found && is_fresh;
                let to_come = u32::from(unanswered).saturating_sub(u32::from(came));
                if to_come > 0 {
                    self.suspect(number, created, to_come, revision);
                }
                self.client(number).owns(created);
                if dropped {
                    return self.leave(number, created);
                }
                if found && model.undone != Some(Undone::FoundIsFresh) {
                    self.client(number).phase = Phase::Looking { own: created, wait: None };
                    return self.ask(Actor::main(number), Asked::Look(created));
                }
                let others: Vec<_> = line.into_iter().filter(|(key, _)| *key != number).collect();
                let standing = standing(number, &others, more, revision);
                self.proceed(model, number, created, standing, revision);
            }
            (Phase::Looking { .. }, Answer::Looked { stands: false, .. }) => {
                self.client(number).phase = Phase::Idle;
            }
            (Phase::Looking { own, wait }, Answer::Looked { line, more, revision, .. }) => {
                let standing = standing(number, &line, more, revision);
                match (wait, standing) {
                    (Some(mut wait), Standing::Behind(seen))
                        if seen.create_revision == wait.created && seen.key == key(wait.predecessor) =>
                    {
                        match wait.wait().moves_up(seen) {
                            Some(standing) => self.proceed(model, number, own, standing, revision),
                            None => {
                                (wait.unseen, wait.deaf) = (false, false);
                                self.client(number).phase = Phase::Waiting { own, wait };
                            }
                        }
                    }
                    (_, standing) => self.proceed(model, number, own, standing, revision),
                }
            }
            (Phase::TakingBack { .. }, Answer::Read { created: Some(created), revision }) => {
                self.client(number).phase = Phase::TakingBack { deleting: Some(created), seen_at: revision };
                self.ask(actor, Asked::Delete(created));
            }
            (Phase::TakingBack { .. }, Answer::Read { created: None, revision }) => {
                self.taken_back(number, revision);
            }
            (Phase::TakingBack { seen_at, .. }, Answer::Deleted) => self.taken_back(number, seen_at),
            (Phase::Leaving { .. }, Answer::Deleted) => self.client(number).phase = Phase::Idle,
            (phase, answer) => unreachable!("{answer:?} in {phase:?}"),
        }
    }

    /// Goes on with how a key stands, by an answer of a revision.
    fn proceed(&mut self, model: &Line, number: u8, own: i64, standing: Standing, revision: i64) {
        match standing {
            Standing::First => self.holds(number, own, revision),
            Standing::Behind(predecessor) => {
                let wait = Waiting::behind(number, predecessor, model.undone);
                self.client(number).phase = Phase::Waiting { own, wait };
            }
        }
    }

    fn holds(&mut self, number: u8, own: i64, proven_at: i64) {
        self.grant(number, own, proven_at);
        let fence = Watching { keys: 1 << number, next: proven_at + 1, puts: false, deletes: true };
        self.client(number).phase = Phase::Holding { own, fence };
        self.client(number).held += 1;
    }

    fn leave(&mut self, number: u8, own: i64) {
        self.client(number).phase = Phase::Leaving { own };
        self.ask(Actor::main(number), Asked::Delete(own));
    }

    pub(super) fn begins(&mut self, model: &Line, number: u8, target: usize, revision: i64) {
        let Phase::Waiting { own, mut wait } = self.client(number).phase.clone() else { return };
        wait.watches[target].begin(revision);
        if wait.watches.iter().any(|watch| watch.next == 0) {
            self.client(number).phase = Phase::Waiting { own, wait };
            return;
        }
        let since = wait.watches.iter().map(|watch| watch.next - 1).max().expect("there is one");
        let mut now = wait.wait();
        now.begins(since);
        wait.unseen = now.unseen && model.undone != Some(Undone::NoSecondLook);
        if wait.unseen {
            self.client(number).phase = Phase::Looking { own, wait: Some(wait) };
            self.ask(Actor::main(number), Asked::Look(own));
        } else {
            self.client(number).phase = Phase::Waiting { own, wait };
        }
    }

    pub(super) fn tell(&mut self, model: &Line, number: u8, target: usize, all: bool) {
        let Phase::Waiting { own, mut wait } = self.client(number).phase.clone() else { return };
        let told = wait.watches[target].tell(&self.server, all, key);
        let events = match told {
            Told::Events(events) => events,
            Told::Compacted if model.undone == Some(Undone::DeafAfterCompaction) => {
                wait.watches[target].next = self.server.revision() + 1;
                self.client(number).phase = Phase::Waiting { own, wait };
                return;
            }
            Told::Compacted => {
                self.client(number).phase = Phase::Looking { own, wait: None };
                return self.ask(Actor::main(number), Asked::Look(own));
            }
        };
        let resumed = u32::from(wait.resumed && model.undone != Some(Undone::TornWatchProves));
        let (mut now, line) = (wait.wait(), line(number));
        now.unseen &= model.undone != Some(Undone::UnseenProves);
        let word = match model.undone {
            Some(Undone::OwnDeletionIsOverlooked) => {
                let mut words =
                    events.iter().map(|event| now.told(&line, std::slice::from_ref(event), own, resumed));
                words.find(|word| *word != Word::Nothing).unwrap_or(Word::Nothing)
            }
            _ => now.told(&line, &events, own, resumed),
        };
        let told_up_to = events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        match word {
            Word::Nothing => self.client(number).phase = Phase::Waiting { own, wait },
            Word::Lost => self.client(number).phase = Phase::Idle,
            Word::Look => {
                self.client(number).phase = Phase::Looking { own, wait: None };
                self.ask(Actor::main(number), Asked::Look(own));
            }
            Word::Turn => self.holds(number, own, told_up_to.expect("an event says so")),
        }
    }

    pub(super) fn breaks(&mut self, number: u8, loses: Option<usize>) {
        let server = self.server.clone();
        let Phase::Waiting { wait, .. } = &mut self.client(number).phase else { return };
        wait.resumed = true;
        if let Some(target) = loses {
            wait.deaf |= wait.watches[target].has_news(&server) > 0;
            wait.watches[target].lose(&server);
        }
    }

    pub(super) fn second_look(&mut self, number: u8) {
        let Phase::Waiting { own, wait } = self.client(number).phase.clone() else { return };
        self.client(number).phase = Phase::Looking { own, wait: Some(wait) };
        self.ask(Actor::main(number), Asked::Look(own));
    }

    /// The guard's fence: what is told of its key.
    pub(super) fn tell_holder(&mut self, number: u8) {
        let server = self.server.clone();
        let Phase::Holding { own, fence } = &mut self.client(number).phase else { return };
        let stands = server.get(number).is_some_and(|kv| kv.created == *own);
        let is_lost = match fence.tell(&server, false, key) {
            Told::Events(events) => {
                let own = *own;
                events.iter().filter_map(|event| event.kv.as_ref()).any(|kv| kv.mod_revision > own)
            }
            // It reads the key.
            Told::Compacted => {
                fence.next = server.revision() + 1;
                !stands
            }
        };
        if is_lost {
            self.client(number).phase = Phase::Idle;
        }
    }

    /// The user drops what it has.
    pub(super) fn drop_all(&mut self, number: u8) {
        if let Phase::Joining { dropped, .. } = &mut self.client(number).phase {
            *dropped = true;
        } else if let Some(own) = self.client(number).own() {
            self.give_up(Actor::main(number));
            self.leave(number, own);
        }
    }

    /// The put of a join has failed for good: it may have been applied, or will be.
    pub(super) fn fail(&mut self, number: u8) {
        self.give_up(Actor::main(number));
        self.client(number).phase = Phase::TakingBack { deleting: None, seen_at: 0 };
        self.ask(Actor::main(number), Asked::Read);
    }

    fn taken_back(&mut self, number: u8, seen_at: i64) {
        self.client(number).phase = Phase::Idle;
        self.suspect(number, 0, ANY, seen_at);
    }

    pub(super) fn lose_session(&mut self, number: u8) {
        Actor::both(number).into_iter().for_each(|actor| self.give_up(actor));
        let client = self.client(number);
        (client.phase, client.look_out, client.is_lost) = (Phase::Idle, None, true);
    }
}
