//! A line: whom a key of ours stands behind, and the wait for one's turn in it.

use std::future::Future;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::key::unshared;
use crate::owned::Owned;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::txn::{Compare, Op, Txn, TxnReply, by_youth, unexpected};
use crate::watch::{Events, Watch, second_look};

/// From so many keys in a line on it is read no more often than needed.
const MANY: i64 = 64;

/// A line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The keys under this prefix that are older than ours come before us.
    ahead: Bytes,
    key: Bytes,
    /// A key with this value lets us pass.
    open: Option<&'static [u8]>,
}

/// Reads who stands before a place.
pub(crate) trait Look {
    /// One RPC. An error where the place no longer is one.
    fn look(&self, place: &mut Owned) -> impl Future<Output = Result<Standing>> + Send;

    /// One's turn may come while the predecessor stays: whoever looks for itself then must look at more than that.
    const PAST_PREDECESSOR: bool = false;
}

/// Who stands before a place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Standing {
    /// Nobody.
    First,
    /// Somebody: at least this one.
    Behind(Predecessor),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Predecessor {
    key: Bytes,
    create_revision: i64,
    /// Nobody was before it.
    is_first: bool,
    /// So many are in the line that it is not to be read again without need: the server reads all of it each time.
    among_many: bool,
    /// The revision at which this was read.
    seen_at: i64,
}

impl Predecessor {
    /// One that has others before it.
    pub(crate) fn one_of_many(kv: &KeyValue, seen_at: i64) -> Self {
        Self {
            key: unshared(&kv.key),
            create_revision: kv.create_revision,
            is_first: false,
            among_many: false,
            seen_at,
        }
    }
}

impl Line {
    /// Behind all older keys of a prefix, which may be our key's own.
    pub(crate) fn behind(ahead: &Bytes, key: &Bytes) -> Self {
        Self { ahead: ahead.clone(), key: key.clone(), open: None }
    }

    /// Past those whose value is this one; only the oldest of all keys may ever get it.
    pub(crate) fn past(self, open: &'static [u8]) -> Self {
        Self { open: Some(open), ..self }
    }

    /// Nobody is in the line.
    pub(super) fn is_empty(&self) -> Compare {
        Compare::none_with_prefix(self.ahead.clone())
    }

    /// The youngest two of the line, or of those up to a create_revision.
    pub(super) fn last_two(&self, max_create_revision: i64) -> Op {
        let keys_only = self.open.is_none();
        pb::RangeRequest { keys_only, ..by_youth(&self.ahead, 2, max_create_revision) }.into()
    }

    pub(super) fn own(&self) -> Op {
        look_at(&self.key)
    }

    pub(super) fn is_own(&self, kv: &KeyValue, create_revision: i64) -> bool {
        kv.key == self.key && kv.create_revision == create_revision
    }

    /// Who stands before us, by the youngest two as they were when our key was put.
    pub(super) fn standing(&self, put: &TxnReply, last_two: usize) -> Result<Standing> {
        let (last_two, revision) = (put.range(last_two)?, put.header.revision);
        let before = match &last_two.kvs[..] {
            [own, before @ ..] if self.is_own(own, revision) => before,
            _ if self.key.starts_with(&self.ahead) => {
                return Err(unexpected("our key is not the last of the queue"));
            }
            before => before,
        };
        let others = last_two.count - i64::from(before.len() < last_two.kvs.len());
        Ok(self.behind_first(before, others == 1, last_two.count, revision))
    }

    /// Waits until the predecessor is gone, or lets us pass; tells who stands before the place then.
    pub(crate) async fn wait_for(
        &self,
        order: &impl Look,
        place: &mut Owned,
        predecessor: Predecessor,
    ) -> Result<Standing> {
        let session = place.session().clone();
        // Boxed, since most who ask for a turn need not wait.
        session.unless_lost(Box::pin(self.watch(order, place, predecessor))).await
    }

    async fn watch<L: Look>(
        &self,
        order: &L,
        place: &mut Owned,
        mut predecessor: Predecessor,
    ) -> Result<Standing> {
        let mut both = Watch::key(predecessor.key.clone()).and_key(self.key.clone());
        if self.open.is_none() {
            both = both.no_put();
        }
        let mut watcher = place.session().client().watch(both);
        let since = match watcher.created().await {
            Ok(since) => since,
            Err(error) => return look_after(order, place, error).await,
        };
        if since > predecessor.seen_at {
            // In a short line it is worth knowing whether the predecessor has become the first.
            let stands =
                predecessor.among_many && !L::PAST_PREDECESSOR && stands(place, &predecessor).await?;
            if !stands {
                match Box::pin(still_behind(order, place, &predecessor)).await? {
                    Ok(seen) => predecessor.is_first = seen.is_first,
                    Err(other) => return Ok(other),
                }
            }
        }
        let mut again = Instant::now() + second_look();
        loop {
            let events = tokio::select! {
                biased;
                events = watcher.next() => events,
                () = tokio::time::sleep_until(again) => {
                    // Servers before 3.4.36 and 3.5.18 can lose a delete at the edge of a compaction.
                    again = Instant::now() + second_look();
                    if !L::PAST_PREDECESSOR && stands(place, &predecessor).await? {
                        continue;
                    }
                    match Box::pin(still_behind(order, place, &predecessor)).await? {
                        Ok(_) => continue,
                        Err(other) => return Ok(other),
                    }
                }
            };
            let events = match events {
                Ok(events) => events,
                Err(error) => return look_after(order, place, error).await,
            };
            if deletes(&events, &self.key, place.fence().token()) {
                return Err(place.fence().why().await.into());
            }
            if deletes(&events, &predecessor.key, predecessor.create_revision)
                || self.opens(&events, &predecessor)
            {
                if !predecessor.is_first {
                    return order.look(place).await;
                }
                place.proven_at(events.revision);
                return Ok(Standing::First);
            }
        }
    }

    /// The standing behind the first of these, who are in the order of the youngest first.
    fn behind_first(&self, before: &[KeyValue], is_first: bool, keys: i64, seen_at: i64) -> Standing {
        match before.first() {
            None => Standing::First,
            Some(first) if self.lets_pass(first) => Standing::First,
            Some(first) => Standing::Behind(Predecessor {
                key: unshared(&first.key),
                create_revision: first.create_revision,
                is_first,
                // Where a predecessor may let us pass, it is not enough that it stands.
                among_many: self.open.is_none() && keys > MANY,
                seen_at,
            }),
        }
    }

    fn lets_pass(&self, kv: &KeyValue) -> bool {
        self.open.is_some_and(|open| kv.value == open)
    }

    /// True where the predecessor now lets us pass.
    fn opens(&self, events: &Events, predecessor: &Predecessor) -> bool {
        events.events.iter().any(|event| {
            event.r#type() == EventType::Put
                && event.kv.as_ref().is_some_and(|kv| {
                    kv.key == predecessor.key
                        && kv.create_revision == predecessor.create_revision
                        && self.lets_pass(kv)
                })
        })
    }
}

impl Look for Line {
    async fn look(&self, place: &mut Owned) -> Result<Standing> {
        let own = place.fence().token();
        let txn = Txn::new().success(self.last_two(own - 1)).success(self.own());
        let reply = place.session().read(txn).await?;
        let stands = reply.found(1)?.first().is_some_and(|kv| self.is_own(kv, own));
        if !stands {
            return Err(place.fence().why().await.into());
        }
        place.proven_at(reply.header.revision);
        let line = reply.range(0)?;
        let before = &line.kvs[..];
        match before.first() {
            Some(first) if first.create_revision >= own => {
                Err(unexpected(format!("{:?} is not older than us", first.key)))
            }
            _ => Ok(self.behind_first(before, before.len() == 1, line.count, reply.header.revision)),
        }
    }
}

/// After a watch that ended: compaction loses events, so the queue is read instead. Anything else ends the wait.
async fn look_after(order: &impl Look, place: &mut Owned, error: Error) -> Result<Standing> {
    match error.kind() {
        ErrorKind::Compacted { .. } => order.look(place).await,
        _ => Err(error),
    }
}

/// Looks whether a place is still behind the predecessor that it watches; if not, that is how it stands.
///
/// Of several keys of one create_revision we go on with the one that is watched, unless somebody deleted that alone.
async fn still_behind(
    order: &impl Look,
    place: &mut Owned,
    watched: &Predecessor,
) -> Result<std::result::Result<Predecessor, Standing>> {
    match order.look(place).await? {
        Standing::Behind(seen) if seen.create_revision == watched.create_revision => {
            match seen.key == watched.key || stands(place, watched).await? {
                true => Ok(Ok(seen)),
                false => Ok(Err(Standing::Behind(seen))),
            }
        }
        other => Ok(Err(other)),
    }
}

/// True while the predecessor's key, of its create_revision, is there. An error where our own is not.
async fn stands(place: &Owned, predecessor: &Predecessor) -> Result<bool> {
    let own = place.fence();
    let txn = Txn::new().success(look_at(&predecessor.key)).success(look_at(own.key()));
    let reply = place.session().read(txn).await?;
    let is_there = |index: usize, created: i64| {
        reply.found(index).map(|kvs| kvs.first().is_some_and(|kv| kv.create_revision == created))
    };
    match is_there(1, own.token())? {
        true => is_there(0, predecessor.create_revision),
        false => Err(own.why().await.into()),
    }
}

/// Reads of one key whether it is there, and since when.
fn look_at(key: &Bytes) -> Op {
    pb::RangeRequest { key: key.clone(), keys_only: true, ..Default::default() }.into()
}

fn deletes(events: &Events, key: &Bytes, create_revision: i64) -> bool {
    // A watch that starts at "now" on a member that lags behind can tell of an earlier incarnation's end.
    events.events.iter().any(|event| {
        event.r#type() == EventType::Delete
            && event.kv.as_ref().is_some_and(|kv| kv.key == *key && kv.mod_revision > create_revision)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A predecessor that let readers pass before their watch had begun was found to stand, and they waited for its end.
    #[test]
    fn a_line_that_lets_pass_is_read_again_however_long_it_is() {
        let prefix = Bytes::from_static(b"lock/");
        let line = Line::behind(&prefix, &Bytes::from_static(b"lock/b"));
        let ahead = [KeyValue { key: "lock/a".into(), create_revision: 2, ..Default::default() }];
        let among_many = |line: &Line, keys| match line.behind_first(&ahead, true, keys, 3) {
            Standing::Behind(predecessor) => predecessor.among_many,
            Standing::First => panic!("somebody is ahead"),
        };
        assert!(among_many(&line, MANY + 1) && !among_many(&line, MANY));
        assert!(!among_many(&line.past(b"open"), MANY + 1));
    }

    /// 8 of a waiter's 13.8 KB were the buffer of the reply that its predecessor's key is from.
    #[test]
    fn a_predecessor_keeps_no_reply_in_memory() {
        let reply = Bytes::from(b"lock/a".to_vec());
        let line = Line::behind(&Bytes::from_static(b"lock/"), &Bytes::from_static(b"lock/b"));
        let ahead = [KeyValue { key: reply.slice(..), create_revision: 2, ..Default::default() }];
        let (waits, asks) = (line.behind_first(&ahead, true, 2, 3), Predecessor::one_of_many(&ahead[0], 3));
        drop(ahead);
        assert!(reply.is_unique(), "{waits:?}, {asks:?}");
    }
}
