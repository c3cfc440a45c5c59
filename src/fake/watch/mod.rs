//! Watch bookkeeping: who watches what, how far each watcher is, and what each stream is to be sent next.
//!
//! Pure. A watcher is either *synced*, and gets each revision's events as they are committed, or it *lags*
//! (its start revision is old, or its stream did not read for a while) and is caught up from the store when
//! its stream asks for more. Only a watcher that lags can meet a compaction, as on the real server.

mod index;
mod pieces;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use self::index::Index;
use super::keys::KeyRange;
use super::store::{Change, Changes, Store};
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::Event;

pub(crate) type StreamId = u64;

/// All watch streams and their watchers.
#[derive(Debug)]
pub(crate) struct Hub {
    streams: BTreeMap<StreamId, Stream>,
    synced: Index,
    fragment_bytes: usize,
    ready: BTreeSet<StreamId>,
    /// Draws the order in which watchers are served; that of their streams and ids without.
    order: Option<fastrand::Rng>,
}

/// One stream: its watchers by id, and the responses that wait to be sent.
#[derive(Debug, Default)]
struct Stream {
    watchers: BTreeMap<i64, Watcher>,
    /// Those of them that lag.
    lagging: BTreeSet<i64>,
    queue: VecDeque<WatchResponse>,
    next_id: i64,
}

#[derive(Debug)]
struct Watcher {
    range: KeyRange,
    start: i64,
    /// The first revision that it has not seen.
    next: i64,
    state: State,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    /// Asked for progress now and then; `idle` when nothing was sent since the last time.
    progress: bool,
    idle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Synced,
    Lagging,
    /// Told of the compaction; it stays until its stream cancels it, and holds up the stream's progress.
    Compacted,
}

impl Hub {
    /// Responses of this size and more are split for watchers that ask for fragments.
    pub(crate) fn new(fragment_bytes: usize, order: Option<u64>) -> Self {
        Self {
            streams: BTreeMap::new(),
            synced: Index::default(),
            fragment_bytes,
            ready: BTreeSet::new(),
            order: order.map(fastrand::Rng::with_seed),
        }
    }

    pub(crate) fn open(&mut self, stream: StreamId) {
        self.streams.insert(stream, Stream::default());
    }

    pub(crate) fn close(&mut self, stream: StreamId) {
        let Some(closed) = self.streams.remove(&stream) else { return };
        for (id, watcher) in &closed.watchers {
            self.synced.remove(&watcher.range, (stream, *id));
        }
        self.ready.remove(&stream);
    }

    /// How many watchers there are, those ended by a compaction not counted.
    pub(crate) fn watchers(&self) -> usize {
        let live = |stream: &Stream| {
            stream.watchers.values().filter(|watcher| watcher.state != State::Compacted).count()
        };
        self.streams.values().map(live).sum()
    }

    /// Makes a watcher; the answer, also of a refusal, is queued on the stream. The member that makes it may have seen
    /// less than there is.
    pub(crate) fn create(
        &mut self,
        stream: StreamId,
        mut request: WatchCreateRequest,
        (seen, revision): (i64, i64),
        may: Result<(), &'static str>,
    ) -> Result<i64, &'static str> {
        if request.start_revision == 0 && seen < revision {
            request.start_revision = seen + 1;
        }
        let outcome = if request.start_revision < 0 {
            Err("etcdserver: mvcc: required revision has been compacted")
        } else {
            may.and_then(|()| self.admit(stream, request, revision))
        };
        let (watch_id, reason) = match outcome {
            Ok(id) => (id, String::new()),
            Err(reason) => (INVALID_ID, reason.to_owned()),
        };
        let canceled = !reason.is_empty();
        let response = WatchResponse { created: true, canceled, cancel_reason: reason, ..at(seen, watch_id) };
        self.queue(stream, response);
        outcome
    }

    /// Ends a watcher. An unknown id is not answered.
    pub(crate) fn cancel(&mut self, stream: StreamId, id: i64, revision: i64) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        open.lagging.remove(&id);
        if let Some(watcher) = open.watchers.remove(&id) {
            self.synced.remove(&watcher.range, (stream, id));
            self.queue(stream, WatchResponse { canceled: true, ..at(revision, id) });
        }
    }

    /// Answers a progress request: one response for the whole stream, and none at all while any of its
    /// watchers lags or waits for a revision to come.
    pub(crate) fn progress(&mut self, stream: StreamId, revision: i64) {
        let Some(open) = self.streams.get(&stream) else { return };
        let up_to_date = open.watchers.values().all(|watcher| watcher.is_up_to_date(revision));
        if up_to_date && !open.watchers.is_empty() {
            self.queue(stream, at(revision, INVALID_ID));
        }
    }

    /// The progress interval is over: tells the stream's watchers that asked and heard nothing meanwhile.
    pub(crate) fn tick(&mut self, stream: StreamId, revision: i64) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let mut told = Vec::new();
        for (id, watcher) in open.watchers.iter_mut().filter(|(_, watcher)| watcher.progress) {
            if watcher.idle && watcher.is_up_to_date(revision) {
                told.push(*id);
            }
            watcher.idle = true;
        }
        for id in told {
            self.queue(stream, at(revision, id));
        }
    }

    /// Whether any watcher of the stream wants progress now and then.
    pub(crate) fn wants_progress(&self, stream: StreamId) -> bool {
        self.streams
            .get(&stream)
            .is_some_and(|stream| stream.watchers.values().any(|watcher| watcher.progress))
    }

    /// A revision was committed.
    pub(crate) fn notify(&mut self, store: &Store, changes: &Changes) {
        let mut matched: BTreeMap<(StreamId, i64), Vec<&Change>> = BTreeMap::new();
        for change in &changes.all {
            for watcher in self.synced.watchers_of(&change.kv.key) {
                matched.entry(watcher).or_default().push(change);
            }
        }
        let mut matched: Vec<_> = matched.into_iter().collect();
        if let Some(order) = &mut self.order {
            order.shuffle(&mut matched);
        }
        for ((stream_id, id), matched) in matched {
            let Some(stream) = self.streams.get_mut(&stream_id) else { continue };
            let Some(watcher) = stream.watchers.get_mut(&id) else { continue };
            if changes.revision < watcher.next {
                continue;
            }
            self.ready.insert(stream_id);
            if stream.queue.len() >= QUEUED_RESPONSES {
                self.synced.remove(&watcher.range, (stream_id, id));
                watcher.state = State::Lagging;
                watcher.next = changes.revision;
                stream.lagging.insert(id);
                continue;
            }
            watcher.next = changes.revision + 1;
            let events = watcher.select(store, matched);
            if !events.is_empty() {
                watcher.idle = false;
                stream.queue.push_back(WatchResponse { events, ..at(changes.revision, id) });
            }
        }
    }

    /// What the stream is to be sent next, if anything.
    pub(crate) fn next(&mut self, stream: StreamId, store: &Store) -> Option<WatchResponse> {
        while self.streams.get(&stream).is_some_and(|open| open.queue.is_empty() && !open.lagging.is_empty())
        {
            self.catch_up(stream, store);
        }
        let open = self.streams.get_mut(&stream)?;
        let mut response = open.queue.pop_front()?;
        let fragments = open.watchers.get(&response.watch_id).is_some_and(|watcher| watcher.fragment);
        if fragments && let Some(rest) = pieces::split_off(&mut response, self.fragment_bytes) {
            open.queue.push_front(rest);
        }
        Some(response)
    }

    /// A response in the smallest pieces in which it may come.
    pub(crate) fn pieces(&self, stream: StreamId, response: WatchResponse) -> Vec<WatchResponse> {
        let watcher = self.streams.get(&stream).and_then(|open| open.watchers.get(&response.watch_id));
        pieces::smallest(response, watcher.is_some_and(|watcher| watcher.fragment))
    }

    /// The streams that may have something to send since this was last asked.
    pub(crate) fn take_ready(&mut self) -> BTreeSet<StreamId> {
        std::mem::take(&mut self.ready)
    }

    fn admit(
        &mut self,
        stream_id: StreamId,
        request: WatchCreateRequest,
        revision: i64,
    ) -> Result<i64, &'static str> {
        let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
        let range = KeyRange::new(key, request.range_end);
        if range.is_empty() {
            return Err("mvcc: watcher range is empty");
        }
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return Err("mvcc: watcher range is empty");
        };
        let id = match request.watch_id {
            0 => {
                while stream.watchers.contains_key(&stream.next_id) {
                    stream.next_id += 1;
                }
                stream.next_id += 1;
                stream.next_id - 1
            }
            id if stream.watchers.contains_key(&id) => {
                return Err("mvcc: duplicate watch ID provided on the WatchStream");
            }
            id => id,
        };
        let start = request.start_revision;
        let synced = start == 0 || start > revision;
        if synced {
            self.synced.insert(range.clone(), (stream_id, id));
        } else {
            stream.lagging.insert(id);
        }
        let has = |filter: FilterType| request.filters.contains(&filter.into());
        let watcher = Watcher {
            range,
            start,
            next: if synced { start.max(revision + 1) } else { start },
            state: if synced { State::Synced } else { State::Lagging },
            no_put: has(FilterType::Noput),
            no_delete: has(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress: request.progress_notify,
            idle: true,
        };
        stream.watchers.insert(id, watcher);
        Ok(id)
    }

    /// Reads what the stream's lagging watchers missed, at most so many revisions of it at a time.
    fn catch_up(&mut self, stream_id: StreamId, store: &Store) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        let next = match &mut self.order {
            None => std::mem::take(&mut stream.lagging),
            // Each by itself.
            Some(order) => {
                stream.lagging.iter().nth(order.usize(..stream.lagging.len())).into_iter().copied().collect()
            }
        };
        for id in next {
            stream.lagging.remove(&id);
            let Some(watcher) = stream.watchers.get_mut(&id) else { continue };
            if watcher.next < store.compacted() {
                watcher.state = State::Compacted;
                let told = WatchResponse { canceled: true, compact_revision: store.compacted(), ..at(0, id) };
                stream.queue.push_back(told);
                continue;
            }
            let (events, more_from) = watcher.missed(store);
            if let Some(revision) = more_from {
                watcher.next = revision;
                stream.lagging.insert(id);
            } else {
                watcher.next = store.revision() + 1;
                watcher.state = State::Synced;
                self.synced.insert(watcher.range.clone(), (stream_id, id));
            }
            if !events.is_empty() {
                watcher.idle = false;
                stream.queue.push_back(WatchResponse { events, ..at(store.revision(), id) });
            }
        }
    }

    fn queue(&mut self, stream_id: StreamId, response: WatchResponse) {
        if let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.queue.push_back(response);
            self.ready.insert(stream_id);
        }
    }
}

impl Watcher {
    fn is_up_to_date(&self, revision: i64) -> bool {
        self.state == State::Synced && revision >= self.start
    }

    /// The events that it wants, with previous values if it wants them.
    fn select(&self, store: &Store, changes: Vec<&Change>) -> Vec<Event> {
        let wanted = |change: &&Change| if change.is_put() { !self.no_put } else { !self.no_delete };
        let event = |change: &Change| {
            let mut event = change.event();
            if self.prev_kv && !change.is_creation() {
                event.prev_kv = store.get(&change.kv.key, change.revision() - 1).cloned();
            }
            event
        };
        changes.into_iter().filter(wanted).map(event).collect()
    }

    /// Its events from its next revision on, and where to go on if that was not all.
    fn missed(&self, store: &Store) -> (Vec<Event>, Option<i64>) {
        let mut missed: Vec<&Change> = Vec::new();
        let mut revisions = 0;
        let mut more_from = None;
        for change in store.changes_from(self.next).filter(|change| self.range.contains(&change.kv.key)) {
            if missed.last().is_none_or(|last| last.revision() != change.revision()) {
                if revisions == REVISIONS_PER_RESPONSE {
                    more_from = Some(change.revision());
                    break;
                }
                revisions += 1;
            }
            missed.push(change);
        }
        (self.select(store, missed), more_from)
    }
}

/// A response without events: the header's revision and whom it is for.
fn at(revision: i64, watch_id: i64) -> WatchResponse {
    let header = Some(ResponseHeader { revision, ..Default::default() });
    WatchResponse { header, watch_id, ..Default::default() }
}

/// The id of no watcher: of refused ones, and of progress of a whole stream.
pub(crate) const INVALID_ID: i64 = -1;

/// A stream that lets more than this wait loses its place: its watchers lag until it reads on.
const QUEUED_RESPONSES: usize = 128;

/// So many revisions a watcher that lags is sent in one response.
const REVISIONS_PER_RESPONSE: usize = 1000;

#[cfg(test)]
mod tests;
