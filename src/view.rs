//! A live copy of a prefix: read once, then followed by its watch, one revision at a time.
//!
//! The watch starts at "now" and is acknowledged before the read, so nothing falls between the two; what the watch
//! tells of revisions that the read has seen is passed over. Compaction loses events: the copy is made anew.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::prefix_end;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::watch::{Watch, Watcher};

/// A live copy of all keys that start with a prefix.
pub(crate) struct View {
    client: Client,
    prefix: Bytes,
    watcher: Option<Watcher>,
    /// The revision that was read; none before.
    read_at: Option<i64>,
    /// Events that were delivered and are yet to be applied.
    pending: VecDeque<Event>,
    copy: Copy,
}

/// Keys by the revision that created them: the oldest is the first.
#[derive(Debug, Default)]
struct Copy {
    by_age: BTreeMap<(i64, Bytes), KeyValue>,
    /// Each key's create_revision.
    ages: HashMap<Bytes, i64>,
}

impl View {
    /// Nothing is sent yet.
    pub(crate) fn new(client: &Client, prefix: &Bytes) -> Self {
        Self {
            client: client.clone(),
            prefix: prefix.clone(),
            watcher: None,
            read_at: None,
            pending: VecDeque::new(),
            copy: Copy::default(),
        }
    }

    /// Waits for the next revision that may have changed something, and applies it; the first call reads what is there.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        loop {
            match self.step().await {
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    (self.watcher, self.read_at) = (None, None);
                    self.pending.clear();
                }
                other => return other,
            }
        }
    }

    /// The key that was created first.
    pub(crate) fn oldest(&self) -> Option<&KeyValue> {
        self.copy.by_age.values().next()
    }

    async fn step(&mut self) -> Result<()> {
        let watch = || self.client.watch(Watch::prefix(&self.prefix).progress());
        let watcher = self.watcher.get_or_insert_with(watch);
        let Some(read_at) = self.read_at else {
            watcher.created().await?;
            return self.read().await;
        };
        while self.pending.is_empty() {
            self.pending
                .extend(watcher.next().await?.events.into_iter().filter(|event| revision(event) > read_at));
        }
        let next = self.pending.front().map(revision);
        let one = self.pending.iter().take_while(|event| Some(revision(event)) == next).count();
        self.pending.drain(..one).for_each(|event| self.copy.apply(event));
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        let range_end = prefix_end(&self.prefix);
        let request = pb::RangeRequest { key: self.prefix.clone(), range_end, ..Default::default() };
        let range = self.client.transport().range(request).await?;
        let missing =
            || Error::protocol("a range's answer without header", Outcome::NotApplied).at("KV/Range");
        self.read_at = Some(range.header.as_ref().ok_or_else(missing)?.revision);
        self.copy = Copy::default();
        range.kvs.into_iter().for_each(|kv| self.copy.put(kv));
        Ok(())
    }
}

impl Copy {
    fn apply(&mut self, event: Event) {
        let kind = event.r#type();
        let Some(kv) = event.kv else { return };
        match kind {
            EventType::Put => self.put(kv),
            EventType::Delete => self.remove(&kv.key),
        }
    }

    fn put(&mut self, kv: KeyValue) {
        self.remove(&kv.key);
        self.ages.insert(kv.key.clone(), kv.create_revision);
        self.by_age.insert((kv.create_revision, kv.key.clone()), kv);
    }

    fn remove(&mut self, key: &Bytes) {
        if let Some(age) = self.ages.remove(key) {
            self.by_age.remove(&(age, key.clone()));
        }
    }
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, create_revision: i64, mod_revision: i64) -> KeyValue {
        KeyValue { key: key.into(), create_revision, mod_revision, ..Default::default() }
    }

    #[test]
    fn the_oldest_is_by_creation_and_a_key_that_came_back_is_young() {
        let mut copy = Copy::default();
        let oldest = |copy: &Copy| copy.by_age.values().next().map(|kv| kv.key.clone());
        copy.put(kv("b", 5, 5));
        copy.put(kv("a", 7, 7));
        copy.put(kv("b", 5, 9));
        assert_eq!(oldest(&copy), Some("b".into()));
        let delete = Event { r#type: EventType::Delete.into(), kv: Some(kv("b", 0, 10)), prev_kv: None };
        copy.apply(delete);
        assert_eq!(oldest(&copy), Some("a".into()));
        copy.put(kv("b", 11, 11));
        assert_eq!(oldest(&copy), Some("a".into()));
        assert_eq!((copy.by_age.len(), copy.ages.len()), (2, 2));
    }
}
