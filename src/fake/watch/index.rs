//! Finds the watchers of a key without asking each of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::StreamId;
use crate::fake::keys::KeyRange;

/// A watcher: its stream, and its id there.
pub(super) type WatcherKey = (StreamId, i64);

/// Watchers by what they watch. Watchers of one range share an entry, so ten thousand on one prefix cost a
/// key one look-up.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, BTreeSet<WatcherKey>>,
    ranges: BTreeMap<KeyRangeByStart, BTreeSet<WatcherKey>>,
}

/// Ordered by where it starts, so that a look-up stops at the ranges that start above the key.
type KeyRangeByStart = (Bytes, KeyRange);

impl Index {
    pub(super) fn insert(&mut self, range: KeyRange, watcher: WatcherKey) {
        let watchers = match range {
            KeyRange::One(key) => self.keys.entry(key).or_default(),
            range => self.ranges.entry((range.start().clone(), range)).or_default(),
        };
        watchers.insert(watcher);
    }

    pub(super) fn remove(&mut self, range: &KeyRange, watcher: WatcherKey) {
        if let KeyRange::One(key) = range {
            let Some(watchers) = self.keys.get_mut(key) else { return };
            watchers.remove(&watcher);
            if watchers.is_empty() {
                self.keys.remove(key);
            }
            return;
        }
        let entry = (range.start().clone(), range.clone());
        let Some(watchers) = self.ranges.get_mut(&entry) else { return };
        watchers.remove(&watcher);
        if watchers.is_empty() {
            self.ranges.remove(&entry);
        }
    }

    pub(super) fn watchers_of<'i>(&'i self, key: &'i Bytes) -> impl Iterator<Item = WatcherKey> + 'i {
        let single = self.keys.get(key).into_iter().flatten();
        let ranged = self
            .ranges
            .iter()
            .take_while(move |((start, _), _)| start <= key)
            .filter(move |((_, range), _)| range.contains(key))
            .flat_map(|(_, watchers)| watchers);
        single.chain(ranged).copied()
    }
}
