//! The wait for one's turn in a line.
//!
//! **One cursor.** The server tells each watch by itself: after a broken stream each catches up in its own time, and one
//! that was too slow for a while is served later, without a word. So of two watches neither says how far the other is. A
//! turn is taken on the word of a watch alone where that one watch tells of the predecessor's key and of our own: a watch
//! on the range from the one to the other, whose events come in the order of their revisions, and those of one revision
//! together. That is for the direct successor of the first in the line, whose turn needs no other proof. Whoever has
//! others before it has a watch on each of the two keys, and reads the line, with its own key, when one of them tells
//! something: it needs no order, and does not hear of what happens to the keys in between.
//!
//! Old servers can lose a deletion where a watch is made again (see [`Watcher::resumed`]), that of our own key, too. So after
//! a broken stream the line is read in any case.

use std::cmp::{max, min};

use tokio::time::{Instant, timeout};

use super::line::{Line, Look, Predecessor, Standing, look_at};
use crate::error::{Error, ErrorKind, Result};
use crate::owned::Owned;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::transport::retry::{Backoff, second_look};
use crate::txn::Txn;
use crate::watch::{Watch, Watcher};

impl Line {
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
        let on_one_cursor = predecessor.is_first && !predecessor.is_noisy;
        let mut watcher = place.session().client().watch(self.targets(&predecessor, on_one_cursor));
        let since = match self.begun(order, place, &predecessor, &mut watcher).await? {
            Err(standing) => return Ok(standing),
            Ok(Ok(since)) => since,
            Ok(Err(error)) => return look_after(order, place, error).await,
        };
        // What happened before the watch began is yet to be seen.
        let mut unseen = since > predecessor.seen_at;
        let (mut due, mut again) = (unseen, Instant::now() + second_look());
        let (mut noise, mut backoff) = (0, Backoff::default());
        loop {
            if std::mem::take(&mut due) {
                match Box::pin(look_again(order, place, &predecessor, unseen)).await {
                    Ok(Some(standing)) => return Ok(standing),
                    Ok(None) => {
                        (unseen, again) = (false, Instant::now() + second_look());
                        backoff.reset();
                    }
                    // Meanwhile the watch is listened to.
                    Err(error) if place.session().mends(error.kind()) => {
                        tracing::debug!(%error, "a look at a line failed; trying again");
                        again = Instant::now() + backoff.next();
                    }
                    Err(error) => return Err(error),
                }
            }
            let events = tokio::select! {
                biased;
                events = watcher.next() => events,
                // Servers before 3.4.36 and 3.5.18 can lose a delete at the edge of a compaction.
                () = tokio::time::sleep_until(again) => {
                    due = true;
                    continue;
                }
            };
            let events = match events {
                Ok(events) => events,
                Err(error) => return look_after(order, place, error).await,
            };
            // All events of the revisions that are told are looked at before anything is decided.
            if events.events.iter().any(|event| deletes(event, self.key(), place.fence().token())) {
                return Err(place.fence().why().await.into());
            }
            let ends = |event: &Event| deletes(event, &predecessor.key, predecessor.create_revision);
            if events.events.iter().any(|event| ends(event) || self.opened(event, &predecessor)) {
                // Only the watch on both keys knows that our own stood then, and only if it was never made again.
                let whole = watcher.resumed() == 0;
                let proven = on_one_cursor && whole && !unseen && events.events.iter().any(ends);
                if !proven {
                    return look(order, place).await;
                }
                place.proven_at(events.told_up_to());
                return Ok(Standing::First);
            }
            noise += events.events.len();
            if on_one_cursor && noise > MOST_NOISE {
                predecessor.is_noisy = true;
                return Ok(Standing::Behind(predecessor));
            }
        }
    }

    /// What became of the beginning of a watch: the revision of its "now", or the error that ended it. While it does not begin
    /// the line is looked at now and then: that may end the wait, with how the place stands.
    async fn begun(
        &self,
        order: &impl Look,
        place: &mut Owned,
        predecessor: &Predecessor,
        watcher: &mut Watcher,
    ) -> Result<std::result::Result<Result<i64>, Standing>> {
        loop {
            if let Ok(begun) = timeout(second_look(), watcher.created()).await {
                return Ok(Ok(begun));
            }
            match Box::pin(still_behind(order, place, predecessor)).await {
                Ok(Ok(_)) => {}
                Ok(Err(standing)) => return Ok(Err(standing)),
                // It is tried again, as the watch is.
                Err(error) if place.session().mends(error.kind()) => {
                    tracing::debug!(%error, "a line is neither watched nor read for now")
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What tells of the end of the predecessor, or of its letting us pass, and of the end of our own key.
    fn targets(&self, predecessor: &Predecessor, on_one_cursor: bool) -> Watch {
        let (before, own) = (&predecessor.key, self.key());
        match (on_one_cursor, self.opens()) {
            (false, false) => Watch::key(before).and_key(own).no_put(),
            (false, true) => Watch::key(before).and(Watch::key(own).no_put()),
            (true, opens) => {
                let end = [&max(before, own)[..], b"\0"].concat();
                let both = Watch::range(min(before, own), end).no_put();
                if opens { both.and(Watch::key(before).no_delete()) } else { both }
            }
        }
    }

    /// True where the predecessor now lets us pass.
    fn opened(&self, event: &Event, predecessor: &Predecessor) -> bool {
        event.r#type() == EventType::Put
            && event.kv.as_ref().is_some_and(|kv| {
                kv.key == predecessor.key
                    && kv.create_revision == predecessor.create_revision
                    && self.lets_pass(kv)
            })
    }
}

/// After a watch that ended: compaction loses events, so the queue is read instead. Anything else ends the wait.
async fn look_after(order: &impl Look, place: &mut Owned, error: Error) -> Result<Standing> {
    match error.kind() {
        ErrorKind::Compacted { .. } => look(order, place).await,
        _ => Err(error),
    }
}

/// Reads how a place stands, over what time mends: one who has waited for hours does not lose the place for one read.
async fn look(order: &impl Look, place: &mut Owned) -> Result<Standing> {
    let mut backoff = Backoff::default();
    loop {
        match order.look(place).await {
            Ok(standing) => return Ok(standing),
            Err(error) => place.session().outlast(error, &mut backoff).await?,
        }
    }
}

/// Looks whether a place is to go on with the predecessor that it watches; if not, that is how it stands. `unseen`: what
/// happened before the watch began is yet to be seen.
async fn look_again<L: Look>(
    order: &L,
    place: &mut Owned,
    predecessor: &Predecessor,
    unseen: bool,
) -> Result<Option<Standing>> {
    // In a short line it is worth knowing whether the predecessor has become the first.
    let is_enough = !L::PAST_PREDECESSOR && (predecessor.among_many || !unseen);
    if is_enough && stands(place, predecessor).await? {
        return Ok(None);
    }
    Ok(match still_behind(order, place, predecessor).await? {
        // Its end will be the proof, where one watch tells of it.
        Ok(seen) if unseen && seen.is_first && !predecessor.is_first => Some(Standing::Behind(seen)),
        Ok(_) => None,
        Err(other) => Some(other),
    })
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

fn deletes(event: &Event, key: &[u8], create_revision: i64) -> bool {
    // A watch that starts at "now" on a member that lags behind can tell of an earlier incarnation's end.
    let ends = |kv: &KeyValue| kv.key == key && kv.mod_revision > create_revision;
    event.r#type() == EventType::Delete && event.kv.as_ref().is_some_and(ends)
}

/// So much may be told of keys in between until each of the two is watched for itself.
const MOST_NOISE: usize = 64;
