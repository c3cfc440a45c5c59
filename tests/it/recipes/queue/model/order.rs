//! In which order items were taken, read from the record of all that was written.

use std::collections::BTreeMap;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::mvccpb::{Event, event::EventType};
use etcd_concurrency::{ErrorKind, Outcome, Watch};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::text;

/// All that is written while a test plays.
pub(super) struct Record {
    /// None where the server had compacted what was to come next.
    batches: UnboundedReceiver<Option<Vec<Event>>>,
}

impl Record {
    pub(super) async fn start(fake: &FakeEtcd) -> Record {
        let client = fake.client_for("record");
        let mut watcher = client.watch(Watch::prefix("").from_revision(1));
        watcher.created().await.unwrap();
        let (told, batches) = unbounded_channel();
        tokio::task::spawn_local(async move {
            loop {
                let batch = match watcher.next().await {
                    Ok(events) => Some(events.events),
                    // A restart broke the stream, and before it was there again came a compaction.
                    Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => None,
                    Err(error) => panic!("the record broke: {error}"),
                };
                let whole = batch.is_some();
                if told.send(batch).is_err() || !whole {
                    return;
                }
            }
        });
        Record { batches }
    }

    /// All that was written up to a revision. None where a part is missing.
    pub(super) async fn up_to(mut self, revision: i64) -> Option<Vec<Event>> {
        let mut all = Vec::new();
        while all.last().map_or(1, self::revision) < revision {
            all.extend(self.batches.recv().await.expect("the record goes on")?);
        }
        Some(all)
    }
}

/// An item that is there.
struct Item {
    /// The order: priority, where there is one, then age.
    rank: (String, i64),
    /// In nobody's hand since this revision.
    free_since: Option<i64>,
}

/// Nobody took an item while one that comes before it was free, and had been when the other became free: whoever saw
/// the one as the first to take saw the other too. Gives how many were taken.
pub(super) fn check_takes(events: &[Event], name: &str) -> usize {
    let (items, claims) = (format!("{name}/items/"), format!("{name}/claims/"));
    let (mut there, mut taken) = (BTreeMap::<String, Item>::new(), 0);
    for written in events.chunk_by(|one, next| revision(one) == revision(next)) {
        let now = revision(&written[0]);
        let mut claimed = Vec::new();
        for event in written {
            let (kv, deleted) = (event.kv.as_ref().unwrap(), event.r#type() == EventType::Delete);
            let key = text(&kv.key);
            if let Some(place) = key.strip_prefix(&items) {
                if deleted {
                    there.remove(place);
                } else if kv.version == 1 {
                    let level = place.rsplit_once('/').map_or("", |(level, _)| level).to_owned();
                    let item = Item { rank: (level, kv.create_revision), free_since: Some(now) };
                    there.insert(place.to_owned(), item);
                }
            } else if let Some(place) = key.strip_prefix(&claims) {
                if !deleted {
                    claimed.push(place.to_owned());
                } else if let Some(item) = there.get_mut(place) {
                    item.free_since = Some(now);
                }
            }
        }
        for place in claimed {
            taken += 1;
            let item = there.get_mut(&place).expect("what is taken is there");
            let since = item.free_since.take().expect("what is taken was free");
            let rank = item.rank.clone();
            let passed_over = there
                .iter()
                .find(|(_, other)| other.rank < rank && other.free_since.is_some_and(|other| other <= since));
            if let Some((other, item)) = passed_over {
                let free = item.free_since;
                panic!(
                    "at {now}, {place} (free since {since}) was taken before {other} (free since {free:?})"
                );
            }
        }
    }
    taken
}

/// What one sender was told was sent came in the order of its sending. Gives how many those were.
pub(super) fn check_sends(events: &[Event], name: &str, sent: &BTreeMap<String, Outcome>) -> usize {
    let items = format!("{name}/items/");
    let mut came = BTreeMap::<String, i64>::new();
    for kv in events.iter().filter_map(|event| event.kv.as_ref()) {
        if kv.key.starts_with(items.as_bytes()) && kv.version == 1 {
            // Later it may be put again: saved from the end of a session, at the end of the queue.
            came.entry(text(&kv.value)).or_insert(kv.create_revision);
        }
    }
    let mut told = BTreeMap::<&str, BTreeMap<u32, i64>>::new();
    for (value, &revision) in &came {
        if sent.get(value) == Some(&Outcome::Applied) {
            let (sender, n) = value.split_once('-').unwrap();
            told.entry(sender).or_default().insert(n.parse().unwrap(), revision);
        }
    }
    for (sender, revisions) in &told {
        assert!(revisions.values().is_sorted(), "{sender}'s are in another order: {revisions:?}");
    }
    told.values().map(BTreeMap::len).sum()
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().unwrap().mod_revision
}
