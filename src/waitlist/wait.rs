//! The wait for one's turn in a line.
//!
//! What is watched and read, and for how long. What a wait decides by that stands in [`decide`](super::decide).

use std::cmp::{max, min};

use tokio::time::{Instant, timeout};

use super::decide::{Wait, Word};
use super::line::{Line, Look, Predecessor, Standing, look_at};
use crate::error::{Error, ErrorKind, Result};
use crate::owned::Owned;
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
        predecessor: Predecessor,
    ) -> Result<Standing> {
        let mut wait = Wait::behind(predecessor);
        let mut watcher = place.session().client().watch(self.targets(&wait));
        let since = match self.begun(order, place, &wait.predecessor, &mut watcher).await? {
            Err(standing) => return Ok(standing),
            Ok(Ok(since)) => since,
            Ok(Err(error)) => return look_after(order, place, error).await,
        };
        wait.begins(since);
        let (mut due, mut again) = (wait.unseen, Instant::now() + second_look());
        let (mut noise, mut backoff) = (0, Backoff::default());
        loop {
            if std::mem::take(&mut due) {
                match Box::pin(look_again(order, place, &wait)).await {
                    Ok(Some(standing)) => return Ok(standing),
                    Ok(None) => {
                        wait.unseen = false;
                        again = Instant::now() + second_look();
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
            match wait.told(self, &events.events, place.fence().token(), watcher.resumed()) {
                Word::Nothing => {}
                Word::Lost => return Err(place.fence().why().await.into()),
                Word::Look => return look(order, place).await,
                Word::Turn => {
                    place.proven_at(events.told_up_to());
                    return Ok(Standing::First);
                }
            }
            noise += events.events.len();
            if wait.on_one_cursor && noise > MOST_NOISE {
                wait.predecessor.is_noisy = true;
                return Ok(Standing::Behind(wait.predecessor));
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
    fn targets(&self, wait: &Wait) -> Watch {
        let (before, own) = (&wait.predecessor.key, self.key());
        match (wait.on_one_cursor, self.opens()) {
            (false, false) => Watch::key(before).and_key(own).no_put(),
            (false, true) => Watch::key(before).and(Watch::key(own).no_put()),
            (true, opens) => {
                let end = [&max(before, own)[..], b"\0"].concat();
                let both = Watch::range(min(before, own), end).no_put();
                if opens { both.and(Watch::key(before).no_delete()) } else { both }
            }
        }
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

/// Looks whether a place is to go on with the predecessor that it watches; if not, that is how it stands.
async fn look_again<L: Look>(order: &L, place: &mut Owned, wait: &Wait) -> Result<Option<Standing>> {
    // In a short line it is worth knowing whether the predecessor has become the first.
    let is_enough = !L::PAST_PREDECESSOR && (wait.predecessor.among_many || !wait.unseen);
    if is_enough && stands(place, &wait.predecessor).await? {
        return Ok(None);
    }
    Ok(match still_behind(order, place, &wait.predecessor).await? {
        Ok(seen) => wait.moves_up(seen),
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

/// So much may be told of keys in between until each of the two is watched for itself.
const MOST_NOISE: usize = 64;
