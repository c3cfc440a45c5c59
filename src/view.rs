//! A live copy of a few keys or of a prefix: read once, then followed by its watch, one revision at a time.
//!
//! The watch starts at "now" and is acknowledged before the read, so nothing falls between the two; what the watch
//! tells of revisions that the read has seen is passed over. Compaction loses events: it is read anew, and the
//! difference from the old copy is what has changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::pending;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::{prefix_end, unshared};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{self, Op, Txn, TxnReply};
use crate::watch::{Events, Watch, Watcher, second_look};

/// A live copy of keys.
pub(crate) struct View {
    client: Client,
    /// Each a key and a range's end, which is empty for one key.
    parts: Vec<(Bytes, Bytes)>,
    watcher: Option<Watcher>,
    /// The revision that was read; none before.
    read_at: Option<i64>,
    /// Events that were delivered and are yet to be applied.
    pending: VecDeque<Event>,
    /// When to look whether a deletion was lost.
    look: Option<Instant>,
    copy: Copy,
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// It is there, and was not.
    Came(KeyValue),
    /// It is the same key, written again.
    Written(KeyValue),
    /// It was this, and is gone.
    Went(KeyValue),
}

/// Keys by the revision that created them: the oldest is the first.
#[derive(Debug, Default)]
struct Copy {
    by_age: BTreeMap<(i64, Bytes), KeyValue>,
    /// Each key's create_revision.
    ages: HashMap<Bytes, i64>,
}

impl View {
    /// Of all keys that start with a prefix. Nothing is sent yet.
    pub(crate) fn new(client: &Client, prefix: &Bytes) -> Self {
        Self::of(client, vec![(prefix.clone(), prefix_end(prefix))])
    }

    /// Of these keys. Of what happens in one revision to several of them, each is told for itself.
    pub(crate) fn keys<const N: usize>(client: &Client, keys: [&Bytes; N]) -> Self {
        Self::of(client, keys.into_iter().map(|key| (key.clone(), Bytes::new())).collect())
    }

    /// This key too, which is not under the prefix.
    pub(crate) fn and_key(mut self, key: &Bytes) -> Self {
        self.parts.push((key.clone(), Bytes::new()));
        self
    }

    /// Waits for the next revision that may have changed something, and applies it; the first call reads what is there.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        self.changes().await.map(drop)
    }

    /// As [`changed`](Self::changed), and tells what has changed: the first call, all that is there.
    pub(crate) async fn changes(&mut self) -> Result<Vec<Change>> {
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

    /// Waits until the copy shows something, or the session is lost.
    pub(crate) async fn until<T>(
        &mut self,
        session: &Session,
        mut shows: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        loop {
            session.unless_lost(self.changed()).await?;
            if let Some(shown) = shows(self) {
                // What shows it may have been on its way for longer than the session lasts.
                session.check()?;
                return Ok(shown);
            }
        }
    }

    /// The key that was created first.
    pub(crate) fn oldest(&self) -> Option<&KeyValue> {
        self.by_age().next()
    }

    /// All keys, those that were created first first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = &KeyValue> {
        self.copy.by_age.values()
    }

    pub(crate) fn get(&self, key: &Bytes) -> Option<&KeyValue> {
        let age = self.copy.ages.get(key)?;
        self.copy.by_age.get(&(*age, key.clone()))
    }

    pub(crate) fn len(&self) -> usize {
        self.copy.ages.len()
    }

    fn of(client: &Client, parts: Vec<(Bytes, Bytes)>) -> Self {
        Self {
            client: client.clone(),
            parts,
            watcher: None,
            read_at: None,
            pending: VecDeque::new(),
            look: None,
            copy: Copy::default(),
        }
    }

    async fn step(&mut self) -> Result<Vec<Change>> {
        let (client, parts) = (&self.client, &self.parts);
        let watcher = self.watcher.get_or_insert_with(|| client.watch(watch(parts)));
        let Some(read_at) = self.read_at else {
            watcher.created().await?;
            return self.read().await;
        };
        while self.pending.is_empty() {
            let look = async {
                match self.look {
                    Some(look) => sleep_until(look).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                events = watcher.next() => self.pending.extend(news(events?, read_at)),
                () = look => {
                    // Servers before 3.4.36 and 3.5.18 can lose a deletion at the edge of a compaction. One that
                    // is only late is no harm.
                    self.look = Some(Instant::now() + second_look());
                    if count(client, parts).await? != self.copy.ages.len() {
                        return self.read().await;
                    }
                }
            }
        }
        let next = self.pending.front().map(revision);
        let one = self.pending.iter().take_while(|event| Some(revision(event)) == next).count();
        Ok(self.pending.drain(..one).filter_map(|event| self.copy.apply(event)).collect())
    }

    async fn read(&mut self) -> Result<Vec<Change>> {
        let (revision, kvs) = read(&self.client, &self.parts).await?;
        (self.read_at, self.look) = (Some(revision), Some(Instant::now() + second_look()));
        self.pending.retain(|event| self::revision(event) > revision);
        let mut fresh = Copy::default();
        kvs.into_iter().for_each(|kv| drop(fresh.put(kv)));
        let old = std::mem::replace(&mut self.copy, fresh);
        Ok(self.copy.since(old))
    }
}

impl Copy {
    fn apply(&mut self, event: Event) -> Option<Change> {
        let kind = event.r#type();
        let kv = event.kv?;
        match kind {
            EventType::Put => Some(match self.put(kv.clone()) {
                Some(_) => Change::Written(kv),
                None => Change::Came(kv),
            }),
            EventType::Delete => self.remove(&kv.key).map(Change::Went),
        }
    }

    /// Gives the same key's last version, if it was there.
    fn put(&mut self, mut kv: KeyValue) -> Option<KeyValue> {
        (kv.key, kv.value) = (unshared(&kv.key), unshared(&kv.value));
        let before = self.remove(&kv.key);
        self.ages.insert(kv.key.clone(), kv.create_revision);
        self.by_age.insert((kv.create_revision, kv.key.clone()), kv);
        before
    }

    fn remove(&mut self, key: &Bytes) -> Option<KeyValue> {
        let age = self.ages.remove(key)?;
        self.by_age.remove(&(age, key.clone()))
    }

    /// What changed since an earlier copy: those who went, then the others, the oldest first.
    fn since(&self, old: Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut stayed = HashMap::new();
        for (age, kv) in old.by_age {
            match self.by_age.contains_key(&age) {
                true => drop(stayed.insert(age, kv.mod_revision)),
                false => changes.push(Change::Went(kv)),
            }
        }
        for (age, kv) in &self.by_age {
            match stayed.get(age) {
                None => changes.push(Change::Came(kv.clone())),
                Some(written) if *written != kv.mod_revision => changes.push(Change::Written(kv.clone())),
                Some(_) => {}
            }
        }
        changes
    }
}

fn watch(parts: &[(Bytes, Bytes)]) -> Watch {
    let watch = |(key, end): &(Bytes, Bytes)| match end.is_empty() {
        true => Watch::key(key).progress(),
        false => Watch::range(key, end).progress(),
    };
    parts.iter().map(watch).reduce(Watch::and).unwrap_or_else(|| Watch::key(""))
}

fn news(events: Events, read_at: i64) -> impl Iterator<Item = Event> {
    events.events.into_iter().filter(move |event| revision(event) > read_at)
}

fn ranges(parts: &[(Bytes, Bytes)], count_only: bool) -> Vec<pb::RangeRequest> {
    let range = |(key, range_end): &(Bytes, Bytes)| pb::RangeRequest {
        key: key.clone(),
        range_end: range_end.clone(),
        count_only,
        ..Default::default()
    };
    parts.iter().map(range).collect()
}

/// Reads all parts at one revision: one RPC.
async fn range(client: &Client, ranges: Vec<pb::RangeRequest>) -> Result<(i64, Vec<pb::RangeResponse>)> {
    let transport = client.transport();
    if let [one] = &ranges[..] {
        let answer = transport.range(one.clone()).await?;
        return Ok((txn::revision(&answer)?, vec![answer]));
    }
    let asked = ranges.len();
    let txn = ranges.into_iter().fold(Txn::new(), |txn, range| txn.success(Op::from(range)));
    let reply = TxnReply::try_from(transport.txn(txn.into(), Repeat::Read).await?.value)?;
    let missing = || Error::protocol("a read that was not answered", Outcome::NotApplied).at("KV/Txn");
    let answers = (0..asked).map(|index| reply.ranged(index).cloned().ok_or_else(missing));
    Ok((reply.header.revision, answers.collect::<Result<_>>()?))
}

async fn read(client: &Client, parts: &[(Bytes, Bytes)]) -> Result<(i64, Vec<KeyValue>)> {
    let (revision, answers) = range(client, ranges(parts, false)).await?;
    Ok((revision, answers.into_iter().flat_map(|answer| answer.kvs).collect()))
}

async fn count(client: &Client, parts: &[(Bytes, Bytes)]) -> Result<usize> {
    let (_, answers) = range(client, ranges(parts, true)).await?;
    Ok(answers.iter().map(|answer| usize::try_from(answer.count).unwrap_or_default()).sum())
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

    fn copy<const N: usize>(kvs: [KeyValue; N]) -> Copy {
        let mut copy = Copy::default();
        kvs.into_iter().for_each(|kv| drop(copy.put(kv)));
        copy
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

    #[test]
    fn events_tell_who_came_and_who_was_written_and_who_went() {
        let mut copy = copy([kv("a", 5, 5)]);
        let event = |kind: EventType, kv| Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
        assert_eq!(copy.apply(event(EventType::Put, kv("a", 5, 6))), Some(Change::Written(kv("a", 5, 6))));
        assert_eq!(copy.apply(event(EventType::Put, kv("b", 7, 7))), Some(Change::Came(kv("b", 7, 7))));
        assert_eq!(copy.apply(event(EventType::Delete, kv("a", 0, 8))), Some(Change::Went(kv("a", 5, 6))));
        assert_eq!(copy.apply(event(EventType::Delete, kv("c", 0, 9))), None);
    }

    #[test]
    fn a_copy_keeps_no_reply_in_memory() {
        let reply = Bytes::from(b"key and value".to_vec());
        let mut copy = Copy::default();
        copy.put(KeyValue { key: reply.slice(..3), value: reply.slice(8..), ..Default::default() });
        assert!(reply.is_unique(), "{copy:?}");
    }

    #[test]
    fn two_copies_differ_by_what_happened_between_them() {
        let old = copy([kv("gone", 1, 1), kv("same", 2, 2), kv("written", 3, 4), kv("again", 5, 5)]);
        let new = copy([kv("same", 2, 2), kv("written", 3, 7), kv("again", 8, 8), kv("new", 9, 9)]);
        let expected = [
            Change::Went(kv("gone", 1, 1)),
            Change::Went(kv("again", 5, 5)),
            Change::Written(kv("written", 3, 7)),
            Change::Came(kv("again", 8, 8)),
            Change::Came(kv("new", 9, 9)),
        ];
        assert_eq!(new.since(old), expected);
    }
}
