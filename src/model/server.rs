//! A server as a protocol meets it: keys with their revisions, all that ever happened to them, and leases that end.

use bytes::Bytes;

use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::watch::Cursor;

/// Keys are numbers here, and leases are those of clients, which are numbers too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    revision: i64,
    keys: Vec<Option<Kv>>,
    /// In the order of their revisions.
    events: Vec<Happened>,
    compacted: i64,
    ended: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kv {
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) value: u8,
    pub(crate) lease: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Happened {
    revision: i64,
    key: u8,
    /// None where the key was deleted.
    put: Option<Kv>,
}

/// What a transaction does to a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Put { value: u8, lease: Option<u8> },
    Delete,
}

impl Server {
    pub(crate) fn new(keys: usize) -> Self {
        Self { revision: 1, keys: vec![None; keys], events: Vec::new(), compacted: 0, ended: Vec::new() }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn get(&self, key: u8) -> Option<Kv> {
        self.keys[usize::from(key)]
    }

    /// The keys that are there, with their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u8, Kv)> {
        (0..).zip(&self.keys).filter_map(|(key, kv)| kv.map(|kv| (key, kv)))
    }

    /// The keys as they were at a revision.
    pub(crate) fn at(&self, revision: i64) -> Vec<Option<Kv>> {
        let mut keys = vec![None; self.keys.len()];
        for event in self.events.iter().take_while(|event| event.revision <= revision) {
            keys[usize::from(event.key)] = event.put;
        }
        keys
    }

    /// Applies the changes of one transaction, at one revision.
    pub(crate) fn write(&mut self, changes: impl IntoIterator<Item = (u8, Change)>) {
        let revision = self.revision + 1;
        for (key, change) in changes {
            let before = self.keys[usize::from(key)];
            let put = match change {
                Change::Put { value, lease } => {
                    let created = before.map_or(revision, |kv| kv.created);
                    Some(Kv { created, modified: revision, value, lease })
                }
                Change::Delete if before.is_none() => continue,
                Change::Delete => None,
            };
            self.keys[usize::from(key)] = put;
            self.events.push(Happened { revision, key, put });
            self.revision = revision;
        }
    }

    /// The lease is gone, and all its keys with it. A transaction that names it is refused from then on.
    pub(crate) fn end(&mut self, lease: u8) {
        self.ended.push(lease);
        self.ended.sort_unstable();
        let keys: Vec<u8> =
            self.all().filter(|(_, kv)| kv.lease == Some(lease)).map(|(key, _)| key).collect();
        self.write(keys.into_iter().map(|key| (key, Change::Delete)));
    }

    pub(crate) fn has_ended(&self, lease: u8) -> bool {
        self.ended.contains(&lease)
    }

    /// What happened up to now is told to no watch any more that has not been told of it.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
    }
}

/// One watch of one client: how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Watching {
    /// A bit for each key.
    pub(crate) keys: u8,
    /// As [`Cursor::start`]: 0 for one that the server has not acknowledged.
    pub(crate) next: i64,
    pub(crate) puts: bool,
    pub(crate) deletes: bool,
}

/// What a watch tells.
pub(crate) enum Told {
    Events(Vec<Event>),
    /// Something of it was compacted before it was told.
    Compacted,
}

impl Watching {
    /// The member that acknowledges the watch is at this revision, which may be one of the past.
    pub(crate) fn begin(&mut self, revision: i64) {
        let mut cursor = Cursor::new(self.next);
        cursor.created(Some(&header(revision))).expect("a revision");
        self.next = cursor.start();
    }

    /// The revisions that it is yet to tell of.
    fn untold<'s>(&self, server: &'s Server) -> impl Iterator<Item = &'s Happened> {
        let Self { keys, next, puts, deletes } = self.clone();
        let is_wanted = move |event: &&Happened| {
            let kind = if event.put.is_some() { puts } else { deletes };
            next != 0 && event.revision >= next && keys & 1 << event.key != 0 && kind
        };
        server.events.iter().filter(is_wanted)
    }

    /// How many revisions it is yet to tell of. A watch that fell behind a compaction has an error to tell.
    pub(crate) fn has_news(&self, server: &Server) -> usize {
        let mut revisions: Vec<i64> = self.untold(server).map(|event| event.revision).collect();
        revisions.dedup();
        revisions.len()
    }

    /// Tells of the next revision that has something for it, or of all.
    pub(crate) fn tell(&mut self, server: &Server, all: bool, name: impl Fn(u8) -> Bytes) -> Told {
        if self.untold(server).any(|event| event.revision <= server.compacted) {
            return Told::Compacted;
        }
        let first = self.untold(server).next().map(|event| event.revision);
        let events = self.untold(server).filter(|event| all || Some(event.revision) == first);
        let events: Vec<Event> = events.map(|event| told(event, &name)).collect();
        let header = Some(header(server.revision));
        let mut cursor = Cursor::new(self.next);
        let batch = cursor.take(pb::WatchResponse { header, events, ..Default::default() });
        self.next = cursor.start();
        Told::Events(batch.expect("a sound answer").map_or_else(Vec::new, |batch| batch.events))
    }

    /// A server of before 3.4.36 and 3.5.18 makes the watch again, and loses the deletions of the next revision.
    pub(crate) fn lose(&mut self, server: &Server) {
        let next = self.untold(server).next().map(|event| event.revision);
        if let Some(revision) = next {
            self.next = revision + 1;
        }
    }
}

fn told(event: &Happened, name: impl Fn(u8) -> Bytes) -> Event {
    let key = name(event.key);
    let kv = match event.put {
        Some(kv) => kv.named(key),
        None => KeyValue { key, mod_revision: event.revision, ..Default::default() },
    };
    let r#type = if event.put.is_some() { EventType::Put } else { EventType::Delete };
    Event { r#type: r#type.into(), kv: Some(kv), prev_kv: None }
}

impl Kv {
    /// As a server tells of it.
    pub(crate) fn named(self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.created,
            mod_revision: self.modified,
            version: 1,
            value: Bytes::copy_from_slice(&[self.value]),
            lease: self.lease.map_or(0, i64::from),
        }
    }
}

fn header(revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader { revision, ..Default::default() }
}
