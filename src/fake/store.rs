//! The multi-version store: keys with all their versions, and the events of each revision in order.
//!
//! Pure: it knows neither a clock nor tokio. A fresh store is at revision 1 and has never been compacted
//! (its compaction mark is -1, as etcd's is: this shows in what it answers to negative revisions).
//! All writes go through [`Write`]; one `Write` makes one revision, or none if it changed nothing.
//! There is one [`Change`] for each version of a key, which the key's versions and the log of events share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::hash::{Hasher, KvHash};
use super::keys::KeyRange;
use super::refusal::Refusal;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};

/// All keys, their history since the last compaction, and the events of every revision since then.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    keys: BTreeMap<Bytes, Vec<Arc<Change>>>,
    /// By revision, and within one in the order in which they were made.
    log: VecDeque<Arc<Change>>,
    revision: i64,
    compacted: i64,
    /// A compaction takes the deletions of its own revision along.
    loses_deletions: bool,
    /// Taken at the last compactions; a question for one of their revisions is answered from here.
    hashes: Vec<KvHash>,
}

/// What a key was from a revision on: a value, or nothing.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: EventType,
    /// Its place among the changes of its revision.
    sub: u32,
    /// Of a deletion, the key and the revision alone.
    pub(crate) kv: KeyValue,
}

/// The changes of one revision, in the order in which they were made (their sub-revisions).
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) revision: i64,
    pub(crate) all: Vec<Arc<Change>>,
}

impl Change {
    pub(crate) fn revision(&self) -> i64 {
        self.kv.mod_revision
    }

    fn place(&self) -> (i64, u32) {
        (self.revision(), self.sub)
    }

    pub(crate) fn is_put(&self) -> bool {
        self.kind == EventType::Put
    }

    /// Whether it made the key, so that no value was before it.
    pub(crate) fn is_creation(&self) -> bool {
        self.kv.create_revision == self.kv.mod_revision
    }

    /// The key from here on.
    fn value(&self) -> Option<&KeyValue> {
        self.is_put().then_some(&self.kv)
    }

    pub(crate) fn event(&self) -> Event {
        Event { r#type: self.kind.into(), kv: Some(self.kv.clone()), prev_kv: None }
    }
}

impl Store {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::losing_deletions(false)
    }

    /// An empty store, whose compactions take the deletions of their own revision along, or do not.
    pub(crate) fn losing_deletions(loses_deletions: bool) -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            revision: 1,
            compacted: -1,
            loses_deletions,
            hashes: Vec::new(),
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision that can still be read; -1 before the first compaction.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The keys of `range` as they are at `revision` (0 or less: now).
    pub(crate) fn range<'s>(
        &'s self,
        range: &'s KeyRange,
        revision: i64,
    ) -> Result<impl Iterator<Item = &'s KeyValue>, Refusal> {
        let at = self.readable(revision, self.revision)?;
        Ok(self.range_at(range, at))
    }

    /// One key as it was at `revision`.
    pub(crate) fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let revision = self.readable(revision, self.revision).ok()?;
        at(self.keys.get(key)?, revision)
    }

    pub(crate) fn write(&mut self) -> Write<'_> {
        Write { store: self, changes: Vec::new() }
    }

    /// Forgets what no read at `revision` or later can see.
    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.keep_hash(revision);
        self.compacted = revision;
        self.keys.retain(|_, versions| {
            let seen = versions.partition_point(|version| version.revision() <= revision);
            let first_kept = match seen.checked_sub(1) {
                Some(last) if !versions[last].is_put() => seen,
                Some(last) => last,
                None => 0,
            };
            if first_kept > 0 {
                versions.drain(..first_kept);
                versions.shrink_to_fit();
            }
            !versions.is_empty()
        });
        let older = self.log.partition_point(|change| change.revision() < revision);
        self.log.drain(..older);
        // Of its own revision a compaction leaves each key's last change alone, deletions among them.
        let own = self.log.partition_point(|change| change.revision() == revision);
        let own: Vec<_> = self.log.drain(..own).collect();
        let last = |at: &usize| own[at + 1..].iter().all(|later| later.kv.key != own[*at].kv.key);
        let told = |at: &usize| last(at) && (own[*at].is_put() || !self.loses_deletions);
        for at in (0..own.len()).rev().filter(told) {
            self.log.push_front(Arc::clone(&own[at]));
        }
        Ok(())
    }

    /// Every change from `revision` on.
    pub(crate) fn changes_from(&self, revision: i64) -> impl Iterator<Item = &Change> {
        let first = self.log.partition_point(|change| change.revision() < revision);
        self.log.range(first..).map(|change| &**change)
    }

    /// The hash of all versions up to `revision` (0: now), as members compare them with each other.
    pub(crate) fn hash(&self, revision: i64) -> Result<KvHash, Refusal> {
        if let Some(kept) = self.hashes.iter().find(|kept| kept.revision == revision) {
            return Ok(*kept);
        }
        if revision > 0 && revision < self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        Ok(self.hash_now(if revision == 0 { self.revision } else { revision }, false))
    }

    fn keep_hash(&mut self, revision: i64) {
        self.hashes.push(self.hash_now(revision, true));
        if self.hashes.len() > HASHES_KEPT {
            self.hashes.remove(0);
        }
    }

    /// Of old versions only those count that `revision` still needs; unless it needs none at all, by a quirk of
    /// the server's. A compaction also needs the deletions of its own revision.
    fn hash_now(&self, revision: i64, for_compaction: bool) -> KvHash {
        let mut versions: Vec<&Change> = Vec::new();
        let mut seen: BTreeSet<(i64, u32)> = BTreeSet::new();
        for all in self.keys.values() {
            let readable = &all[..all.partition_point(|version| version.revision() <= revision)];
            versions.extend(readable.iter().map(|version| &**version));
            let needed =
                |last: &&Arc<Change>| last.is_put() || (for_compaction && last.revision() == revision);
            seen.extend(readable.last().filter(needed).map(|last| last.place()));
        }
        versions.sort_by_key(|version| version.place());
        let mut hash = Hasher::new();
        for version in versions {
            let old = version.revision() <= self.compacted;
            let needless = old && !seen.is_empty() && !seen.contains(&version.place());
            let deletion = version.revision() == self.compacted && !version.is_put();
            if !(needless || deletion) {
                hash.version(version.place(), &version.kv.key, version.value());
            }
        }
        KvHash { hash: hash.finish(), compacted: self.compacted, revision }
    }

    /// Refuses what was compacted or is yet to come; else the revision to read at.
    fn readable(&self, revision: i64, current: i64) -> Result<i64, Refusal> {
        if revision > current {
            return Err(Refusal::FutureRevision);
        }
        let at = if revision <= 0 { current } else { revision };
        if at < self.compacted { Err(Refusal::Compacted) } else { Ok(at) }
    }

    fn range_at<'s>(&'s self, range: &'s KeyRange, revision: i64) -> impl Iterator<Item = &'s KeyValue> {
        range
            .bounds()
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(_, versions)| at(versions, revision))
    }
}

/// The one transaction that may be writing. Reads through it see its own writes.
pub(crate) struct Write<'s> {
    store: &'s mut Store,
    changes: Vec<Arc<Change>>,
}

impl Write<'_> {
    /// The revision that reads see and responses report: the next one once anything was written.
    pub(crate) fn revision(&self) -> i64 {
        self.store.revision + i64::from(!self.changes.is_empty())
    }

    /// As [`Store::range`], seeing this transaction's own writes.
    pub(crate) fn range<'s>(
        &'s self,
        range: &'s KeyRange,
        revision: i64,
    ) -> Result<impl Iterator<Item = &'s KeyValue>, Refusal> {
        let at = self.store.readable(revision, self.revision())?;
        Ok(self.store.range_at(range, at))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        at(self.store.keys.get(key)?, self.revision())
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes, lease: i64) {
        let revision = self.store.revision + 1;
        let (create_revision, version) = match self.get(&key) {
            Some(old) => (old.create_revision, old.version + 1),
            None => (revision, 1),
        };
        let kv = KeyValue { key, create_revision, mod_revision: revision, version, value, lease };
        self.push(EventType::Put, kv);
    }

    /// Whether there was something to delete.
    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        let Some(old) = self.get(key) else { return false };
        let kv =
            KeyValue { key: old.key.clone(), mod_revision: self.store.revision + 1, ..Default::default() };
        self.push(EventType::Delete, kv);
        true
    }

    /// Makes it the next revision; `None` when nothing was written.
    pub(crate) fn commit(self) -> Option<Changes> {
        if self.changes.is_empty() {
            return None;
        }
        self.store.revision += 1;
        self.store.log.extend(self.changes.iter().cloned());
        Some(Changes { revision: self.store.revision, all: self.changes })
    }

    fn push(&mut self, kind: EventType, kv: KeyValue) {
        // No request has as many operations and keys.
        let sub = u32::try_from(self.changes.len()).unwrap_or(u32::MAX);
        let change = Arc::new(Change { kind, sub, kv });
        match self.store.keys.get_mut(&change.kv.key) {
            Some(versions) => versions.push(Arc::clone(&change)),
            None => drop(self.store.keys.insert(change.kv.key.clone(), vec![Arc::clone(&change)])),
        }
        self.changes.push(change);
    }
}

/// So many hashes of compactions are kept.
const HASHES_KEPT: usize = 10;

/// The last version that is not after `revision`. Reads are mostly of the newest, so look there first.
fn at(versions: &[Arc<Change>], revision: i64) -> Option<&KeyValue> {
    versions.iter().rev().find(|version| version.revision() <= revision)?.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, key: &'static str, value: &'static str) -> i64 {
        let mut write = store.write();
        write.put(Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()), 0);
        write.commit().map_or(0, |changes| changes.revision)
    }

    fn delete(store: &mut Store, key: &str) -> i64 {
        let mut write = store.write();
        write.delete(key.as_bytes());
        write.commit().map_or(0, |changes| changes.revision)
    }

    fn values(store: &Store, revision: i64) -> Result<Vec<String>, Refusal> {
        let all = KeyRange::From(Bytes::from_static(b"\0"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(store.range(&all, revision)?.map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect())
    }

    #[test]
    fn each_commit_is_one_revision_and_an_empty_one_is_none() {
        let mut store = Store::new();
        assert_eq!(put(&mut store, "a", "1"), 2);
        assert_eq!(put(&mut store, "a", "2"), 3);
        assert_eq!(delete(&mut store, "missing"), 0);
        assert_eq!(store.revision(), 3);
        let kv = store.get(b"a", 3).cloned().unwrap_or_default();
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    }

    #[test]
    fn a_key_that_comes_back_starts_anew() {
        let mut store = Store::new();
        put(&mut store, "a", "1");
        delete(&mut store, "a");
        put(&mut store, "a", "2");
        let kv = store.get(b"a", 4).cloned().unwrap_or_default();
        assert_eq!((kv.create_revision, kv.version), (4, 1));
        assert_eq!(values(&store, 2), Ok(vec!["a=1".into()]));
        assert_eq!(values(&store, 3), Ok(vec![]));
    }

    #[test]
    fn writes_of_one_transaction_see_each_other() {
        let mut store = Store::new();
        let mut write = store.write();
        assert_eq!(write.revision(), 1);
        write.put(Bytes::from_static(b"a"), Bytes::new(), 0);
        assert_eq!(write.revision(), 2);
        assert!(write.get(b"a").is_some());
        assert!(write.delete(b"a"));
        assert!(write.get(b"a").is_none());
        assert_eq!(write.commit().map(|changes| changes.all.len()), Some(2));
        assert_eq!(store.revision(), 2);
    }

    #[test]
    fn compaction_keeps_what_is_seen_at_its_revision() {
        let mut store = Store::new();
        put(&mut store, "a", "1"); // 2
        put(&mut store, "a", "2"); // 3
        put(&mut store, "b", "1"); // 4
        delete(&mut store, "b"); // 5
        put(&mut store, "c", "1"); // 6
        assert_eq!(store.compact(7), Err(Refusal::FutureRevision));
        assert_eq!(store.compact(5), Ok(()));
        assert_eq!(store.compact(5), Err(Refusal::Compacted));
        assert_eq!(values(&store, 4), Err(Refusal::Compacted));
        assert_eq!(values(&store, 5), Ok(vec!["a=2".into()]));
        assert_eq!(values(&store, 0), Ok(vec!["a=2".into(), "c=1".into()]));
        assert_eq!(values(&store, 7), Err(Refusal::FutureRevision));
        let revisions: Vec<_> = store.changes_from(0).map(Change::revision).collect();
        assert_eq!(revisions, [5, 6]);
    }

    #[test]
    fn negative_revisions_read_now() {
        let mut store = Store::new();
        put(&mut store, "a", "1");
        assert_eq!(values(&store, -3), Ok(vec!["a=1".into()]));
        assert_eq!(store.compact(-1), Err(Refusal::Compacted));
        assert_eq!(store.compact(0), Ok(()));
    }
}
