//! What became of an item since it was taken, as the events of its key tell: where a reply was lost, or a lease has ended.
//!
//! They are asked for from the last revision at which the key is known to have been as it was. An item may have waited, or been
//! taken, long before the last compaction: from then on its events are gone, though those that matter are not.

use bytes::Bytes;
use tokio::time::timeout;

use super::core::Item;
use super::keys::Keys;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::txn::revision;
use crate::watch::Watch;

/// What happened first to an item's key after the write that took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing, up to this revision.
    Unmoved(i64),
    /// It was written: it was given back, or another took it.
    Written,
    /// It was deleted, at this revision.
    Deleted(i64),
    /// It was deleted, and put among the dead letters.
    Buried,
    /// The server has compacted that.
    Forgotten,
}

/// What became of an item that was taken: one RPC, and where it is not as it was, a watch and another.
pub(super) async fn fate(client: &Client, keys: &Keys, taken: &Item) -> Result<Fate> {
    let (item, place) = (keys.item(&taken.place), &taken.place);
    let range = pb::RangeRequest { key: item.clone(), keys_only: true, ..Default::default() };
    let found = client.transport().range(range).await?;
    if found.kvs.first().is_some_and(|kv| kv.mod_revision == taken.kv.mod_revision) {
        return Ok(Fate::Unmoved(revision(&found)?));
    }
    let Some(event) = first_event(client, &item, taken.stood_at).await? else { return Ok(Fate::Forgotten) };
    if event.r#type() == EventType::Put {
        return Ok(Fate::Written);
    }
    let at = event.kv.map_or(0, |kv| kv.mod_revision);
    match read_at(client, &keys.undelivered(place), at).await {
        Ok(Some(letter)) if letter.mod_revision == at => Ok(Fate::Buried),
        Ok(_) => Ok(Fate::Deleted(at)),
        Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => Ok(Fate::Forgotten),
        Err(error) => Err(error),
    }
}

/// The first event after a revision of a key that has changed since; None where that is compacted.
pub(super) async fn first_event(client: &Client, key: &Bytes, after: i64) -> Result<Option<Event>> {
    event(client, key, after, |_| true).await
}

/// The revision at which a key was deleted that is gone since a revision; None where that is compacted.
pub(super) async fn deleted_at(client: &Client, key: &Bytes, after: i64) -> Result<Option<i64>> {
    let deleted = event(client, key, after, |event| event.r#type() == EventType::Delete).await?;
    Ok(deleted.and_then(|event| event.kv).map(|kv| kv.mod_revision))
}

async fn event(
    client: &Client,
    key: &Bytes,
    after: i64,
    is: impl Fn(&Event) -> bool,
) -> Result<Option<Event>> {
    // No store has the last one that there is.
    let later = after.saturating_add(1)..i64::MAX;
    let mut watcher = client.watch(Watch::key(key).from_revision(later.start));
    let first = async {
        let is_later = |event: &Event| {
            event.kv.as_ref().is_some_and(|kv| kv.key == key && later.contains(&kv.mod_revision))
        };
        loop {
            let mut events = watcher.next().await?.events.into_iter();
            if let Some(event) = events.find(|event| is_later(event) && is(event)) {
                return Ok(event);
            }
        }
    };
    match timeout(client.transport().limits().request_timeout, first).await {
        Ok(Ok(event)) => Ok(Some(event)),
        Ok(Err(error)) if matches!(Error::kind(&error), ErrorKind::Compacted { .. }) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::new(ErrorKind::Timeout, Outcome::NotApplied).at("Watch/Watch")),
    }
}

/// A key as it was at a revision; None where it was missing. An error also where that is compacted.
pub(super) async fn read_at(client: &Client, key: &Bytes, revision: i64) -> Result<Option<KeyValue>> {
    let range = pb::RangeRequest { key: key.clone(), revision, ..Default::default() };
    Ok(client.transport().range(range).await?.kvs.into_iter().next())
}
