//! Every watch of a client, and what the server has of it: requests in, answers in, requests out. No stream, no
//! clock.
//!
//! Watch ids are chosen here and never used again, so that what still comes for a cancelled watch is known by its
//! id. Creates are answered in the order in which they were sent; a refusal often carries no id, so it is the
//! oldest unanswered create that was refused.

mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::cursor::{Cursor, Fault};
use super::mailbox::{Mailbox, Pushed};
use super::trials::{Next, Trials};
use super::{Events, Target, Watch};
use crate::error::{Error, ErrorKind, Outcome};
use crate::pb::etcdserverpb as pb;
use requests::{cancel, create};

#[derive(Default)]
pub(super) struct Table {
    watchers: BTreeMap<u64, Entry>,
    /// The watches that the server has or is asked for.
    wire: BTreeMap<i64, Place>,
    /// Unanswered creates, the oldest first; some of them are no longer wanted.
    asked: VecDeque<i64>,
    /// The last watch id given out.
    last_id: i64,
    /// There is a stream to write to.
    open: bool,
    /// What is to be written to it.
    outbox: Vec<pb::WatchRequest>,
    /// Whose answers it is that break streams.
    trials: Trials,
    /// The last watch id that was asked for before the present step of a trial.
    tried: i64,
}

struct Entry {
    mailbox: Arc<Mailbox>,
    rows: Box<[Row]>,
    needs_leader: bool,
}

/// One target of one watcher.
struct Row {
    target: Target,
    cursor: Cursor,
    /// Its id while the server has it or is asked for it.
    wire: Option<i64>,
    /// Acknowledged at least once.
    acknowledged: bool,
    /// Acknowledged since it was last asked for.
    live: bool,
    /// Held back until its watcher has read.
    parked: bool,
    /// It was told something on this stream.
    moved: bool,
}

/// Which row of which watcher.
#[derive(Clone, Copy)]
struct Place {
    watcher: u64,
    target: usize,
}

/// What an answer meant for the stream.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nothing.
    Heard,
    /// A create was refused.
    Refused,
    /// A create was acknowledged.
    Acknowledged,
    /// The stream is of no more use: its token is refused, or it no longer reads.
    Reopen(Option<Error>),
    /// The server does not answer as it should.
    Broken(Error),
}

/// What a reason to cancel means: the error, and whether another token may mend it.
pub(super) type Judge<'a> = &'a dyn Fn(&str) -> (Error, bool);

impl Table {
    /// Gives out ids above `last_id`.
    pub(super) fn new(last_id: i64) -> Self {
        Self { last_id, ..Self::default() }
    }

    pub(super) fn last_id(&self) -> i64 {
        self.last_id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// True while a create is unanswered.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// What is to be sent, in order.
    pub(super) fn outbox(&mut self) -> Vec<pb::WatchRequest> {
        std::mem::take(&mut self.outbox)
    }

    pub(super) fn add(&mut self, id: u64, watch: Watch, mailbox: Arc<Mailbox>) {
        let row = |target: Target| Row {
            cursor: Cursor::new(target.from),
            target,
            wire: None,
            acknowledged: false,
            live: false,
            parked: false,
            moved: false,
        };
        let rows = watch.targets.into_iter().map(row).collect();
        self.watchers.insert(id, Entry { mailbox, rows, needs_leader: watch.needs_leader });
        self.create_missing(id);
    }

    /// The watcher is gone.
    pub(super) fn remove(&mut self, id: u64) {
        self.take(id);
    }

    /// The watcher has read: what was held back for it goes on.
    pub(super) fn drained(&mut self, id: u64) {
        if let Some(entry) = self.watchers.get_mut(&id) {
            entry.rows.iter_mut().for_each(|row| row.parked = false);
            self.create_missing(id);
        }
    }

    /// A new stream: everything is created again from where it had come to.
    pub(super) fn opened(&mut self) {
        self.open = true;
        let ids: Vec<u64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.create_missing(id);
        }
        if self.asked.is_empty() {
            // Servers send nothing at all on a stream, not even its head, before they are asked something.
            self.probe();
        }
        self.tried = self.last_id;
    }

    /// The stream broke, soon after it had been opened or not. Ends the watcher whose answers it is that break one stream
    /// after another.
    pub(super) fn broke(&mut self, soon: bool, error: &Arc<Error>) {
        // What breaks the stream whenever it comes is what a watch is told first.
        let stuck = |entry: &Entry| entry.rows.iter().any(|row| !row.moved);
        let moved = self.watchers.iter().filter(|(_, entry)| !stuck(entry));
        moved.for_each(|(id, _)| self.trials.moved(*id));
        let all = self.watchers.iter().filter(|(_, entry)| stuck(entry)).map(|(id, _)| *id);
        if let Some(culprit) = self.trials.broke(soon, || all.collect()) {
            tracing::warn!(%error, "one watch's answers break every stream: it is ended");
            self.end(culprit, error);
        }
    }

    /// How long the stream is to be well until [`advance`](Self::advance) is called; none where there is no need to.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.trials.pause().filter(|_| self.open)
    }

    /// The stream has been well for so long: more goes onto it.
    pub(super) fn advance(&mut self) {
        if !self.open || self.asked.front().is_some_and(|asked| *asked <= self.tried) {
            return;
        }
        match self.trials.advance() {
            Next::Create(group) => group.into_iter().for_each(|id| self.create_missing(id)),
            Next::Probe => self.probe(),
            Next::Wait => {}
        }
        self.tried = self.last_id;
    }

    /// This process stood still: that the stream breaks meanwhile says nothing about those who are tried.
    pub(super) fn stood_still(&mut self) {
        self.trials.closed();
    }

    /// The stream is gone, and every watch with it.
    pub(super) fn closed(&mut self) {
        self.open = false;
        self.trials.closed();
        self.outbox.clear();
        self.asked.clear();
        for place in std::mem::take(&mut self.wire).into_values() {
            self.unhook(place);
        }
    }

    /// Asks something that is answered always and does nothing: a watch that is deaf to everything, and its
    /// cancellation. On a key that is watched anyway, since a refusal makes old servers stop reading.
    pub(super) fn probe(&mut self) {
        let Some(row) = self.watchers.values().find_map(|entry| entry.rows.first()) else { return };
        let deaf = Target { no_put: true, no_delete: true, progress: false, ..row.target.clone() };
        self.last_id += 1;
        self.asked.push_back(self.last_id);
        self.outbox.extend([create(self.last_id, &deaf, 0), cancel(self.last_id)]);
    }

    /// Ends every watcher that cannot do without a leader.
    pub(super) fn end_leaderless(&mut self, error: &Arc<Error>) {
        self.end_where(error, |entry| entry.needs_leader);
    }

    pub(super) fn end_all(&mut self, error: &Arc<Error>) {
        self.end_where(error, |_| true);
    }

    pub(super) fn respond(&mut self, response: pb::WatchResponse, judge: Judge<'_>) -> Turn {
        let id = response.watch_id;
        if response.created {
            return self.answered(response, judge);
        }
        if response.canceled {
            let Some(place) = self.wire.get(&id).copied() else { return Turn::Heard };
            let (error, mends) = match response.compact_revision {
                0 => judge(&response.cancel_reason),
                revision => (compacted(revision), false),
            };
            self.forget(id);
            if mends {
                return Turn::Reopen(Some(error));
            }
            self.end(place.watcher, &Arc::new(error));
            return Turn::Heard;
        }
        self.deliver(response);
        Turn::Heard
    }

    /// A create's answer.
    fn answered(&mut self, response: pb::WatchResponse, judge: Judge<'_>) -> Turn {
        let id = response.watch_id;
        let Some(asked) = self.asked.pop_front() else {
            return broken("a watch was acknowledged that nobody asked for".into());
        };
        if response.canceled {
            return self.refused(asked, &response, judge);
        }
        if id != asked {
            // Servers before 3.4, and etcd's gRPC proxy, choose ids of their own.
            return broken(format!("watch {asked} was acknowledged as {id}"));
        }
        let Some(place) = self.wire.get(&id).copied() else { return Turn::Acknowledged };
        let Some(entry) = self.watchers.get_mut(&place.watcher) else { return Turn::Acknowledged };
        let row = &mut entry.rows[place.target];
        match row.cursor.created(response.header.as_ref()) {
            Ok(revision) => {
                row.live = true;
                match std::mem::replace(&mut row.acknowledged, true) {
                    false => entry.mailbox.acknowledge(revision),
                    true => entry.mailbox.resume(),
                }
                entry.mailbox.set_live(entry.rows.iter().all(|row| row.live));
            }
            Err(fault) => self.end(place.watcher, &Arc::new(fault.into())),
        }
        Turn::Acknowledged
    }

    fn refused(&mut self, asked: i64, response: &pb::WatchResponse, judge: Judge<'_>) -> Turn {
        // The first members of 3.4 refuse by the id asked for, and from then on read no request on that stream
        // (etcd#11708).
        let refused = if response.watch_id == asked { Turn::Reopen(None) } else { Turn::Refused };
        // A probe that is refused, its token having run out, has been answered all the same.
        let Some(place) = self.forget(asked) else { return refused };
        let (error, mends) = judge(&response.cancel_reason);
        if mends {
            // However often in a row: users and roles may be edited all the time. What no other token mends, a user
            // that is gone or a password that is wrong, is said when one is asked for.
            return Turn::Reopen(Some(error));
        }
        self.end(place.watcher, &Arc::new(error));
        refused
    }

    /// Events or a report for one watch. What is for all of them, with the id -1, is not for a cursor: old servers
    /// send it ahead of events.
    fn deliver(&mut self, response: pb::WatchResponse) {
        let id = response.watch_id;
        let Some(place) = self.wire.get(&id).copied() else { return };
        let Some(entry) = self.watchers.get_mut(&place.watcher) else { return };
        let row = &mut entry.rows[place.target];
        let batch = match row.cursor.take(response) {
            Ok(Some(batch)) => batch,
            Ok(None) => return,
            Err(fault) => return self.end(place.watcher, &Arc::new(fault.into())),
        };
        if batch.events.is_empty() && !row.target.progress {
            return;
        }
        row.moved |= !batch.events.is_empty();
        let events = Events { target: place.target, revision: batch.revision, events: batch.events };
        match entry.mailbox.push(events) {
            Pushed::Taken => return,
            Pushed::Full => {}
            // It comes again when there is room.
            Pushed::Refused(revision) => row.cursor.rewind(revision),
        }
        row.parked = true;
        self.forget(id);
        self.outbox.push(cancel(id));
    }

    /// Creates what the watcher wants and the server has not.
    fn create_missing(&mut self, watcher: u64) {
        if self.trials.holds(watcher) {
            return;
        }
        let Some(entry) = self.watchers.get_mut(&watcher).filter(|_| self.open) else { return };
        for (target, row) in entry.rows.iter_mut().enumerate() {
            if row.wire.is_none() && !row.parked {
                self.last_id += 1;
                self.outbox.push(create(self.last_id, &row.target, row.cursor.start()));
                self.asked.push_back(self.last_id);
                self.wire.insert(self.last_id, Place { watcher, target });
                (row.wire, row.moved) = (Some(self.last_id), false);
            }
        }
    }

    /// Takes a watch off the table of what the server has.
    fn forget(&mut self, id: i64) -> Option<Place> {
        let place = self.wire.remove(&id)?;
        self.unhook(place)?;
        Some(place)
    }

    /// The server has it no more.
    fn unhook(&mut self, place: Place) -> Option<()> {
        let entry = self.watchers.get_mut(&place.watcher)?;
        let row = entry.rows.get_mut(place.target)?;
        (row.wire, row.live) = (None, false);
        row.cursor.broken();
        entry.mailbox.set_live(false);
        Some(())
    }

    fn end(&mut self, watcher: u64, error: &Arc<Error>) {
        if let Some(entry) = self.take(watcher) {
            entry.mailbox.end(error);
        }
    }

    fn end_where(&mut self, error: &Arc<Error>, which: impl Fn(&Entry) -> bool) {
        let ids: Vec<u64> =
            self.watchers.iter().filter(|(_, entry)| which(entry)).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, error);
        }
    }

    /// Takes a watcher out, and cancels what the server has of it.
    fn take(&mut self, watcher: u64) -> Option<Entry> {
        let entry = self.watchers.remove(&watcher)?;
        self.trials.forget(watcher);
        for id in entry.rows.iter().filter_map(|row| row.wire) {
            self.wire.remove(&id);
            self.outbox.push(cancel(id));
        }
        Some(entry)
    }
}

fn compacted(revision: i64) -> Error {
    Error::new(ErrorKind::Compacted { revision }, Outcome::NotApplied).at(RPC)
}

fn broken(detail: String) -> Turn {
    Turn::Broken(Error::protocol(detail, Outcome::NotApplied).at(RPC))
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::protocol(fault.to_string(), Outcome::NotApplied).at(RPC)
    }
}

pub(super) const RPC: &str = "Watch/Watch";

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
