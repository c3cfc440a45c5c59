//! What became of an item since it was taken, as the events of its key tell: where a reply was lost, or a lease has ended.
//!
//! They are asked for from the last revision at which the key is known to have been as it was. An item may have waited, or been
//! taken, long before the last compaction: from then on its events are gone, though those that matter are not.
//!
//! Servers before 3.4.36 and 3.5.18 do not tell a watch of a deletion in the revision that it begins at, where that is the last one
//! compacted (etcd#18089). A read at that revision is answered all the same, so the key is read there first. What is later cannot
//! be lost in that way: a compaction of a later revision is told to the watch.

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
    /// It was deleted, at this revision; whether it was put among the dead letters is compacted.
    Gone(i64),
    /// The server has compacted that.
    Forgotten,
}

/// What became of an item that was taken: one RPC, and where it is gone, two more and perhaps a watch.
pub(super) async fn fate(client: &Client, keys: &Keys, taken: &Item) -> Result<Fate> {
    let (item, place) = (keys.item(&taken.place), &taken.place);
    let range = pb::RangeRequest { key: item.clone(), keys_only: true, ..Default::default() };
    let found = client.transport().range(range).await?;
    // A key that was deleted and put again has another create_revision.
    if let Some(kv) = found.kvs.first()
        && kv.create_revision == taken.kv.create_revision
    {
        let is_unmoved = kv.mod_revision == taken.kv.mod_revision;
        let stood_at = revision(&found)?;
        return Ok(if is_unmoved { Fate::Unmoved(stood_at) } else { Fate::Written });
    }
    let Some(event) = first_event(client, &item, taken.stood_at).await? else { return Ok(Fate::Forgotten) };
    if event.r#type() == EventType::Put {
        return Ok(Fate::Written);
    }
    let at = event.kv.map_or(0, |kv| kv.mod_revision);
    match read_at(client, &keys.undelivered(place), at).await {
        Ok(Some(letter)) if letter.mod_revision == at => Ok(Fate::Buried),
        Ok(_) => Ok(Fate::Deleted(at)),
        Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => Ok(Fate::Gone(at)),
        Err(error) => Err(error),
    }
}

/// The first event of a key after a revision at which it stood, and has changed since; None where that is compacted.
pub(super) async fn first_event(client: &Client, key: &Bytes, after: i64) -> Result<Option<Event>> {
    event(client, key, after, |_| true).await
}

/// The revision at which a key was deleted that stood at a revision, and is gone since; None where that is compacted.
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
    match read_at(client, key, later.start).await {
        Ok(None) => return Ok(Some(deletion(key, later.start))),
        Ok(Some(kv)) if kv.mod_revision == later.start => {
            let put = Event { kv: Some(kv), ..Default::default() };
            if is(&put) {
                return Ok(Some(put));
            }
        }
        Ok(Some(_)) => {}
        // Nothing has happened at all by then.
        Err(error) if *error.kind() == ErrorKind::FutureRevision => {}
        Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
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

fn deletion(key: &Bytes, revision: i64) -> Event {
    let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
    Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
}

/// A key as it was at a revision; None where it was missing. An error also where that is compacted.
pub(super) async fn read_at(client: &Client, key: &Bytes, revision: i64) -> Result<Option<KeyValue>> {
    let range = pb::RangeRequest { key: key.clone(), revision, ..Default::default() };
    Ok(client.transport().range(range).await?.kvs.into_iter().next())
}
