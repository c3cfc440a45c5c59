//! Putting an item again that went with its session's lease: once, however often that is sent.
//!
//! The put is made together with a slip of a lease of its own: no attempt is applied after another, as that finds the slip, nor
//! after the lease has ended. The lease is renewed for as long as the put is refused. Where it is gone all the same, since the
//! process stood still, say, and an attempt may have been applied before, the events of the item's key tell whether one was. They
//! are asked for from the last renewal on, at which it was seen that none was.
//!
//! Nor must the lease come again once it has ended: one that a late attempt of its grant could make again fences no put.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::back::Tries;
use super::core::Item;
use super::settle::Settler;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::ids;
use crate::key::{prefix_end, unique_key};
use crate::pb::etcdserverpb as pb;
use crate::session::builder::DOUBTED;
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, revision};
use crate::watch::{Events, Watch};

impl Settler {
    /// Puts an item again, at the end of the queue.
    pub(super) async fn save(&self, item: &Item, tries: &mut Tries) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let mut fence = self.grant(tries).await?;
            tries.in_doubt = false;
            let sent = self.put(item, &mut fence, tries).await;
            if let Err(error) = self.client().transport().lease_revoke(fence.lease).await {
                tracing::debug!(%error, "a lease that saved an item is left to its TTL");
            }
            match sent {
                Err(error) if *error.kind() == ErrorKind::LeaseNotFound => {
                    if error.outcome() != Outcome::NotApplied
                        && self.was_saved(item, fence.unput_at, tries).await?
                    {
                        return Ok(());
                    }
                }
                sent => return sent,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Puts an item with a slip of this lease, unless an attempt before this one has.
    async fn put(&self, item: &Item, fence: &mut PutFence, tries: &mut Tries) -> Result<()> {
        let lease = fence.lease;
        let (key, slip) = (self.keys.item(&item.place), unique_key(&self.keys.senders, lease));
        let keys_only =
            |key: &Bytes| pb::RangeRequest { key: key.clone(), keys_only: true, ..Default::default() };
        let read = Txn::new().success(keys_only(&slip).into()).success(keys_only(&key).into());
        let txn = Txn::new()
            .compare(Compare::missing(slip.clone()))
            .compare(Compare::missing(key.clone()))
            .success(Op::put(key, item.kv.value.clone()))
            .success(Op::put_with_lease(slip, Bytes::new(), lease));
        let mut renewed = Instant::now();
        while let Err(error) = self.send(&txn, Repeat::Harmless).await {
            self.again(tries, error).await?;
            if renewed.elapsed() > RENEWAL {
                renewed = Instant::now();
                match self.renew(&read, fence).await {
                    Ok(Renewed::Applied) => break,
                    Ok(Renewed::Lives) => {}
                    // A full database refuses the put before it looks for the lease, for hours. By then it may be forgotten
                    // whether an attempt was applied before.
                    Ok(Renewed::Ended) => {
                        return Err(Error::new(ErrorKind::LeaseNotFound, Outcome::Unknown).at("KV/Txn"));
                    }
                    Err(error) => tracing::debug!(%error, "the lease of a put was not renewed"),
                }
            }
        }
        tries.answered();
        Ok(())
    }

    /// Renews the lease of a put, and looks whether an attempt was applied.
    async fn renew(&self, read: &Txn, fence: &mut PutFence) -> Result<Renewed> {
        let found = self.send(read, Repeat::Read).await;
        let left = self.client().transport().lease_keep_alive(fence.lease).await?;
        let has_ended = left <= 0;
        if has_ended {
            // By the log's word, too: a leader that is none any more may not know of the lease, and an attempt may come yet.
            self.client().transport().lease_revoke(fence.lease).await?;
        }
        let found = match found {
            Err(_) if has_ended => return Ok(Renewed::Ended),
            found => found?.value,
        };
        if !found.found(0)?.is_empty() {
            return Ok(Renewed::Applied);
        }
        if has_ended {
            return Ok(Renewed::Ended);
        }
        // The lease has lived until after the read, and with it the slip of an attempt that was applied before.
        if found.found(1)?.is_empty() {
            fence.unput_at = found.header.revision;
        }
        Ok(Renewed::Lives)
    }

    /// Whether an attempt was applied before the lease ended that it was made with. None will be.
    async fn was_saved(&self, item: &Item, unput_at: i64, tries: &mut Tries) -> Result<bool> {
        let key = self.keys.item(&item.place);
        loop {
            let mut marks = None;
            let told = self.was_put(&key, unput_at, &mut marks, tries).await;
            if let Some(lease) = marks {
                self.give_lease_back(lease, TTL);
            }
            match told {
                Err(error) if !matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    self.again(tries, error).await?;
                }
                told => return told,
            }
        }
    }

    /// Whether an item's key was put after a revision, that nothing puts any more: it may be gone again. An error also where that is
    /// compacted. Tells which lease the mark has.
    ///
    /// A watch tells what was put, but says nowhere that it has told all, and may lag by any time. So a mark is put behind what
    /// is asked for, and one watch is told of both: in their order. It begins before the mark is put, and goes on for as long as that
    /// is refused: a full database refuses it, and its lease, until an operator compacts the history to make space.
    async fn was_put(
        &self,
        key: &Bytes,
        after: i64,
        lease: &mut Option<i64>,
        tries: &mut Tries,
    ) -> Result<bool> {
        let range = pb::RangeRequest { key: key.clone(), keys_only: true, ..Default::default() };
        let found = self.client().transport().range(range).await?;
        if found.kvs.iter().any(|kv| kv.mod_revision > after) {
            return Ok(true);
        }
        let now = revision(&found)?;
        let is_put = |told: Events| {
            told.events.into_iter().filter_map(|event| event.kv).find_map(|kv| match kv.mod_revision > now {
                true => Some(false),
                false => (kv.key == key && kv.mod_revision > after).then_some(true),
            })
        };
        // Nothing but keys of the queue sorts between the two.
        let both = Watch::range(key, prefix_end(&self.keys.senders)).no_delete().progress();
        let mut watcher = self.client().watch(both.from_revision(after.saturating_add(1)));
        {
            let mut marked = std::pin::pin!(self.mark(lease, tries));
            loop {
                tokio::select! {
                    biased;
                    marked = &mut marked => break marked?,
                    told = watcher.next() => if let Some(is_put) = is_put(told?) {
                        return Ok(is_put);
                    },
                }
            }
        }
        let patience = self.client().transport().limits().request_timeout;
        // However long it takes to tell all: another watch would begin from the start.
        loop {
            let Ok(told) = timeout(patience, watcher.next()).await else {
                let late = Error::new(ErrorKind::Timeout, Outcome::NotApplied).at("Watch/Watch");
                self.again(tries, late).await?;
                continue;
            };
            tries.answered();
            if let Some(is_put) = is_put(told?) {
                return Ok(is_put);
            }
        }
    }

    /// Puts a mark, with a lease of its own, or another one where that has ended.
    async fn mark(&self, lease: &mut Option<i64>, tries: &mut Tries) -> Result<()> {
        loop {
            let granted = self.grant(tries).await?.lease;
            *lease = Some(granted);
            let mark = unique_key(&self.keys.senders, granted);
            let put = Txn::new().success(Op::put_with_lease(mark, Bytes::new(), granted));
            match self.until(&put, Repeat::Harmless, tries).await {
                Err(error) if *error.kind() == ErrorKind::LeaseNotFound => tries.pause().await,
                marked => return marked.map(drop),
            }
        }
    }

    /// A lease whose every attempt to grant it was answered, as far as such a one is to be had: the item waits.
    async fn grant(&self, tries: &mut Tries) -> Result<PutFence> {
        let mut doubted = 0;
        loop {
            let lease = ids::lease();
            match self.client().transport().lease_grant(lease, SECONDS).await {
                // The attempt without an answer may come after the lease was revoked. It would make the lease again, and let a put
                // in that comes as late: the slip has gone, and the item may have been taken.
                Ok(answer) if answer.unanswered > 0 && doubted < DOUBTED => {
                    doubted += 1;
                    tries.answered();
                    self.give_lease_back(lease, TTL);
                }
                Ok(Answer { value: granted, .. }) => {
                    let revision = granted.header.map_or(0, |header| header.revision);
                    let strange = match granted.id == lease {
                        true if (1..i64::MAX).contains(&revision) => {
                            tries.answered();
                            return Ok(PutFence { lease, unput_at: revision });
                        }
                        true => "a lease was granted at a revision that no store has",
                        false => "another lease was granted",
                    };
                    self.again(tries, Error::protocol(strange, Outcome::Unknown)).await?;
                }
                // One of an attempt before, or of another process: nothing can tell. It is not used.
                Err(error) if *error.kind() == ErrorKind::LeaseExists => tries.pause().await,
                Err(error) => self.again(tries, error).await?,
            }
        }
    }
}

/// What is known of a put whose lease was to be renewed.
enum Renewed {
    /// An attempt was applied.
    Applied,
    /// Another may be.
    Lives,
    /// None is applied any more.
    Ended,
}

/// A lease that fences a put.
struct PutFence {
    lease: i64,
    /// A revision before all that is put with it.
    unput_at: i64,
}

/// For so long a process may stand still, or a server be away, and the put goes on with its lease.
const TTL: Duration = Duration::from_secs(SECONDS.unsigned_abs());
const SECONDS: i64 = 600;
/// How often the lease is renewed, as far as the pauses between the attempts allow that.
const RENEWAL: Duration = Duration::from_secs(60);
