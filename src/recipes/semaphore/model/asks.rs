//! What the clients of the model know, and do when they are told something.

use std::collections::HashSet;

use bytes::Bytes;

use super::{MARKED, Permit, QUEUE, State, Undone, name};
use crate::model::{Change, Server, Told, Watching, listens};
use crate::pb::mvccpb::Event;
use crate::recipes::semaphore::asking::{HELD, Rank};
use crate::recipes::semaphore::count::{Count, Word};
use crate::waitlist::{Line, Predecessor, Wait, Word as WaitWord};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asks {
    pub(super) phase: Phase,
    pub(super) held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    /// Who is older is read: with the watch that is to go on, if any.
    Looking {
        own: i64,
        then: Then,
    },
    /// Behind one that waits: a watch on its key, and one on our own.
    Behind {
        own: i64,
        wait: Waiting,
    },
    /// The first of those who wait: a watch on all keys and the limit.
    Counting {
        own: i64,
        count: Counting,
        enough: Option<i64>,
    },
    Holding {
        own: i64,
        fence: Watching,
        marks: bool,
    },
    Gone,
}

/// What a read is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Then {
    /// To find out where one stands.
    Stand,
    /// To find out whether the wait behind a predecessor is to go on.
    Wait(Waiting),
    /// To count down from.
    Count(Counting),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    predecessor: u8,
    created: i64,
    seen_at: i64,
    unseen: bool,
    resumed: bool,
    deaf: bool,
    watches: Vec<Watching>,
}

/// What is needed to make a [`Count`] again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Counting {
    watch: Vec<Watching>,
    /// The watch was made again since the older keys were read.
    torn: bool,
    deaf: bool,
    /// The revision that was read at; 0 before that.
    read_at: i64,
    /// The older keys that are left, a bit for each.
    left: u8,
    limit: u32,
}

impl Asks {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Idle, held: false }
    }

    pub(super) fn watches(&self) -> &[Watching] {
        match &self.phase {
            Phase::Behind { wait, .. } => &wait.watches,
            Phase::Counting { count, .. } => &count.watch,
            _ => &[],
        }
    }

    /// The server has acknowledged all that it watches.
    pub(super) fn listens(&self) -> bool {
        listens(self.watches())
    }

    /// It may have missed something, and looks for that after a while.
    pub(super) fn may_look(&self) -> bool {
        match &self.phase {
            Phase::Behind { wait, .. } => wait.deaf,
            Phase::Counting { count, .. } => count.deaf,
            _ => false,
        }
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Looking { .. } | Phase::Behind { .. } | Phase::Counting { .. })
    }

    /// The incarnation of its key that it knows to have.
    pub(super) fn own(&self) -> Option<i64> {
        match self.phase {
            Phase::Looking { own, .. }
            | Phase::Behind { own, .. }
            | Phase::Counting { own, .. }
            | Phase::Holding { own, .. } => Some(own),
            Phase::Idle | Phase::Gone => None,
        }
    }

    /// It has nothing to do of its own accord, but for what its user wants.
    pub(super) fn is_still(&self, server: &Server) -> bool {
        let is_told = |watch: &Watching| watch.next != 0 && watch.has_news(server) == 0;
        let all_told = self.watches().iter().all(is_told);
        match &self.phase {
            Phase::Looking { .. } => false,
            Phase::Counting { enough, .. } => all_told && enough.is_none(),
            Phase::Holding { fence, marks, .. } => is_told(fence) && !marks,
            _ => all_told,
        }
    }

    /// Reads who is older, and goes on with what it waits for.
    pub(super) fn looks(&mut self) {
        let (own, then) = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Behind { own, wait } => (own, Then::Wait(wait)),
            Phase::Counting { own, count, .. } => (own, Then::Count(count)),
            phase => unreachable!("nothing is looked for in {phase:?}"),
        };
        self.phase = Phase::Looking { own, then };
    }
}

impl Waiting {
    fn behind(model: &Permit, client: u8, predecessor: &Predecessor) -> Self {
        let is_it = |number: &u8| name(*number, model.clients) == predecessor.key;
        let number = (0..model.clients).find(is_it).expect("one of them");
        let watch = |number: u8, puts| Watching { keys: 1 << number, next: 0, puts, deletes: true };
        Self {
            predecessor: number,
            created: predecessor.create_revision,
            seen_at: predecessor.seen_at,
            unseen: false,
            resumed: false,
            deaf: false,
            watches: vec![watch(number, true), watch(client, false)],
        }
    }

    /// The crate's own, as it is now.
    fn wait(&self, model: &Permit) -> Wait {
        let kv = crate::pb::mvccpb::KeyValue {
            key: name(self.predecessor, model.clients),
            create_revision: self.created,
            ..Default::default()
        };
        Wait { unseen: self.unseen, ..Wait::behind(Predecessor::one_of_many(&kv, self.seen_at)) }
    }
}

impl Counting {
    fn new(model: &Permit) -> Self {
        let keys = (1 << (model.clients + 1)) - 1;
        let watch = vec![Watching { keys, next: 0, puts: true, deletes: true }];
        Self { watch, torn: false, deaf: false, read_at: 0, left: 0, limit: 0 }
    }

    /// The crate's own, as it is now.
    fn count(&self, model: &Permit) -> Count {
        let numbers = (0..model.clients).filter(|number| self.left & 1 << number != 0);
        let left: HashSet<Bytes> = numbers.map(|number| name(number, model.clients)).collect();
        Count { left, all: true, limit: self.limit, read_at: self.read_at, permits: 1 }
    }

    fn keep(&mut self, model: &Permit, count: &Count) {
        (self.limit, self.read_at) = (count.limit, count.read_at);
        let is_left = |number: &u8| count.left.contains(&name(*number, model.clients));
        self.left = (0..model.clients).filter(is_left).fold(0, |left, number| left | 1 << number);
    }
}

impl State {
    fn at(&mut self, client: u8) -> &mut Asks {
        &mut self.clients[usize::from(client)]
    }

    pub(super) fn ask(&mut self, model: &Permit, client: u8) {
        self.server.write([(client, Change::Put { value: 0, lease: Some(client) })]);
        let own = self.server.revision();
        let all = u32::try_from(model.queue(&self.server).count()).expect("few");
        let limit = self.server.get(model.clients).expect("it was made");
        // As the answer to the put tells, with no read of its own.
        let rank = match all <= model.permits(limit).now {
            true => Some(Rank::In),
            false => model.older(&self.server, own).rank(1),
        };
        self.stands(model, client, own, rank);
    }

    /// Goes on with where one stands. One who is not in when its key is put marks it later.
    fn stands(&mut self, model: &Permit, client: u8, own: i64, rank: Option<Rank>) {
        match rank.expect("all older keys were read") {
            Rank::In => {
                let revision = self.server.revision();
                self.holds(model, client, own, revision, false);
            }
            Rank::First => {
                self.at(client).phase = Phase::Counting { own, count: Counting::new(model), enough: None };
            }
            Rank::Behind(predecessor) => {
                let wait = Waiting::behind(model, client, &predecessor);
                self.at(client).phase = Phase::Behind { own, wait };
            }
        }
    }

    fn holds(&mut self, model: &Permit, client: u8, own: i64, proven_at: i64, marks: bool) {
        self.broken |= !model.was_in(&self.server, client, own, proven_at);
        let fence = Watching { keys: 1 << client, next: proven_at + 1, puts: false, deletes: true };
        *self.at(client) = Asks { phase: Phase::Holding { own, fence, marks }, held: true };
    }

    pub(super) fn look(&mut self, model: &Permit, client: u8) {
        let Phase::Looking { own, then } = self.at(client).phase.clone() else { return };
        if self.server.get(client).is_none_or(|kv| kv.created != own) {
            self.at(client).phase = Phase::Gone;
            return;
        }
        let older = model.older(&self.server, own);
        let rank = older.rank(1);
        match (then, rank) {
            // In line both are one's turn to count, which begins with a read.
            (Then::Stand | Then::Wait(_), Some(Rank::In | Rank::First)) => {
                self.at(client).phase = Phase::Counting { own, count: Counting::new(model), enough: None };
            }
            (Then::Wait(mut wait), Some(Rank::Behind(seen))) if seen.create_revision == wait.created => {
                (wait.unseen, wait.deaf) = (false, false);
                self.at(client).phase = Phase::Behind { own, wait };
            }
            (Then::Stand | Then::Wait(_), rank) => self.stands(model, client, own, rank),
            (Then::Count(_), Some(Rank::In)) => {
                let revision = self.server.revision();
                self.holds(model, client, own, revision, true);
            }
            (Then::Count(mut count), _) => {
                count.keep(model, &Count::of(older, 1));
                (count.torn, count.deaf) = (false, false);
                self.at(client).phase = Phase::Counting { own, count, enough: None };
            }
        }
    }

    pub(super) fn begins(&mut self, client: u8, target: usize, revision: i64) {
        match &mut self.at(client).phase {
            Phase::Behind { wait, .. } => {
                wait.watches[target].begin(revision);
                if wait.watches.iter().any(|watch| watch.next == 0) {
                    return;
                }
                let since = wait.watches.iter().map(|watch| watch.next - 1).max();
                wait.unseen = since.expect("there are two") > wait.seen_at;
                if wait.unseen {
                    self.at(client).looks();
                }
            }
            Phase::Counting { count, .. } => {
                count.watch[target].begin(revision);
                self.at(client).looks();
            }
            _ => {}
        }
    }

    pub(super) fn tell(&mut self, model: &Permit, client: u8, target: usize, all: bool) {
        let server = self.server.clone();
        let named = |number| name(number, model.clients);
        match self.at(client).phase.clone() {
            Phase::Behind { own, mut wait } => {
                let Told::Events(events) = wait.watches[target].tell(&server, all, named) else {
                    self.at(client).phase = Phase::Looking { own, then: Then::Stand };
                    return;
                };
                let events = marked(events);
                let line = Line::behind(&QUEUE.into(), &named(client)).past(HELD);
                self.at(client).phase = match wait.wait(model).told(&line, &events, own, wait.resumed.into())
                {
                    WaitWord::Nothing => Phase::Behind { own, wait },
                    WaitWord::Lost => Phase::Gone,
                    WaitWord::Look => Phase::Looking { own, then: Then::Stand },
                    WaitWord::Turn => unreachable!("two watches prove no turn"),
                };
            }
            Phase::Counting { own, count: mut counting, enough } => {
                let Told::Events(mut events) = counting.watch[target].tell(&server, all, named) else {
                    // Made again from now on.
                    let count = Counting::new(model);
                    self.at(client).phase = Phase::Counting { own, count, enough: None };
                    return;
                };
                let limit = named(model.clients);
                if model.undone == Some(Undone::LimitIsWatchedApart) {
                    events.retain(|event| event.kv.as_ref().is_some_and(|kv| kv.key != limit));
                }
                let torn = counting.torn && model.undone != Some(Undone::TornWatchCountsPermits);
                let mut count = counting.count(model);
                let word = count.told(&events, &limit, &[named(client)], torn);
                counting.keep(model, &count);
                let revisions = events.iter().filter_map(|event| event.kv.as_ref());
                let told_up_to = revisions.map(|kv| kv.mod_revision).max().or(enough);
                self.at(client).phase = match word {
                    Word::Lost => Phase::Gone,
                    Word::Look => Phase::Looking { own, then: Then::Count(counting) },
                    Word::Enough => Phase::Counting { own, count: counting, enough: told_up_to },
                    Word::Nothing => Phase::Counting { own, count: counting, enough: None },
                };
            }
            _ => {}
        }
    }

    pub(super) fn take(&mut self, model: &Permit, client: u8) {
        if let Phase::Counting { own, enough: Some(proven_at), .. } = self.at(client).phase {
            self.holds(model, client, own, proven_at, true);
        }
    }

    pub(super) fn mark(&mut self, client: u8) {
        let stands = self.server.get(client).map(|kv| kv.created);
        let Phase::Holding { own, marks, .. } = &mut self.at(client).phase else { return };
        *marks = false;
        if stands == Some(*own) {
            self.server.write([(client, Change::Put { value: MARKED, lease: Some(client) })]);
        }
    }

    pub(super) fn tell_holder(&mut self, model: &Permit, client: u8) {
        let server = self.server.clone();
        let Phase::Holding { own, fence, .. } = &mut self.at(client).phase else { return };
        let stands = server.get(client).is_some_and(|kv| kv.created == *own);
        match fence.tell(&server, false, |number| name(number, model.clients)) {
            // It reads the key.
            Told::Compacted if stands => fence.next = server.revision() + 1,
            _ => self.at(client).phase = Phase::Gone,
        }
    }

    /// What one has, or waits for, is given up.
    pub(super) fn leave(&mut self, client: u8) {
        let own = self.at(client).own();
        if self.server.get(client).map(|kv| kv.created) == own {
            self.server.write([(client, Change::Delete)]);
        }
        self.at(client).phase = Phase::Gone;
    }

    pub(super) fn breaks(&mut self, client: u8, loses: Option<usize>) {
        let server = self.server.clone();
        let (watches, torn, deaf) = match &mut self.at(client).phase {
            Phase::Behind { wait, .. } => (&mut wait.watches, &mut wait.resumed, &mut wait.deaf),
            Phase::Counting { count, .. } => (&mut count.watch, &mut count.torn, &mut count.deaf),
            _ => return,
        };
        *torn = true;
        if let Some(target) = loses {
            *deaf |= watches[target].has_news(&server) > 0;
            watches[target].lose(&server);
        }
    }
}

/// The mark, as a server tells of it.
fn marked(mut events: Vec<Event>) -> Vec<Event> {
    for kv in events.iter_mut().filter_map(|event| event.kv.as_mut()) {
        if kv.value == [MARKED][..] {
            kv.value = Bytes::from_static(HELD);
        }
    }
    events
}
