//! Asking for permits, and waiting for them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::Semaphore;
use crate::error::{Error, ErrorKind, Result};
use crate::fence::Fence;
use crate::key::unique_key;
use crate::owned::{Owned, Plan, Planned};
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::transport::retry::Repeat;
use crate::txn::{Op, Txn, by_youth, unexpected};
use crate::waitlist::{Line, Look, Predecessor, Standing};
use crate::watch::{Watch, Watcher, second_look};

/// Where one stands.
#[derive(Debug, PartialEq)]
pub(super) enum Rank {
    /// The permits are ours.
    In,
    /// The predecessor holds its own: the next that are released may be ours.
    First,
    /// The predecessor waits.
    Behind(Predecessor),
}

/// One who asks.
pub(super) struct Asking<'a> {
    of: &'a Semaphore,
    permits: u32,
    /// As it was read last.
    limit: AtomicU32,
}

/// Those who are older than us, the youngest first; at least as many as there are permits, if there are.
struct Older {
    kvs: Vec<KeyValue>,
    limit: u32,
    revision: i64,
}

impl<'a> Asking<'a> {
    /// Asks for permits: tells where one stands then. One RPC.
    pub(super) async fn begin(of: &'a Semaphore, permits: u32) -> Result<(Self, Owned, Rank)> {
        if permits == 0 {
            return Err(Error::invalid("permits", "none are asked for"));
        }
        let key = unique_key(&of.queue, of.session.lease());
        let keys: Vec<_> = match permits {
            1 => vec![key],
            _ => (0..permits).map(|n| Bytes::from([&key, format!(".{n}").as_bytes()].concat())).collect(),
        };
        let youngest = by_youth(&of.queue, i64::from(permits) + 1, 0);
        let plan = Plan::of(&of.session, keys, Bytes::new()).read(of.limit.make()).also(youngest.into());
        let Planned { owned, found, reply } = plan.put().await?;
        let mut place = owned.ok_or_else(|| unexpected("keys were neither put nor found"))?;
        let limit = of.limit.read(reply.inner_kvs(0).unwrap_or_default().first())?;
        if permits > limit {
            return Err(Error::invalid("permits", format!("{permits} are asked for, and there are {limit}")));
        }
        let asking = Self { of, permits, limit: AtomicU32::new(limit) };
        let rank = match found {
            // Others may have joined after an earlier attempt of ours.
            Some(_) => of.session.unless_lost(Box::pin(asking.older(&mut place))).await?.rank(permits),
            None => {
                let range = reply.range(1)?;
                let token = place.fence().token();
                let older = u32::try_from(range.count).unwrap_or(u32::MAX).saturating_sub(permits);
                let youngest = range.kvs.iter().find(|kv| kv.create_revision < token);
                rank(older, permits, limit, youngest, reply.header.revision)
            }
        };
        Ok((asking, place, rank))
    }

    /// Waits until the permits are ours, from where one stands now.
    pub(super) async fn wait(&self, place: &mut Owned, mut rank: Rank) -> Result<()> {
        if rank == Rank::In {
            return Ok(());
        }
        while let Rank::Behind(predecessor) = rank {
            let line = Line::behind(&self.of.queue, place.fence().key()).past(HELD);
            rank = match line.wait_for(self, place, predecessor).await? {
                Standing::First => Rank::First,
                Standing::Behind(predecessor) => Rank::Behind(predecessor),
            };
        }
        self.of.session.unless_lost(self.follow(place)).await?;
        self.mark(place);
        Ok(())
    }

    /// Reads who is older, and that our key stands: one RPC.
    async fn older(&self, place: &mut Owned) -> Result<Older> {
        let semaphore = self.of;
        loop {
            let fence = place.fence();
            let known = self.limit.load(Ordering::Relaxed);
            let txn = Txn::new()
                .compare(fence.is_owner())
                .success(semaphore.limit.get())
                .success(by_youth(&semaphore.queue, i64::from(known) + 1, fence.token() - 1).into());
            let reply = semaphore.session.read(txn).await?;
            if !reply.succeeded {
                return Err(fence.why().await.into());
            }
            place.proven_at(reply.header.revision);
            let limit = semaphore.limit.read(reply.first(0))?;
            self.limit.store(limit, Ordering::Relaxed);
            // With more permits than we knew of, there may be more who hold them.
            if limit <= known {
                let kvs = reply.kvs(1).unwrap_or_default().to_vec();
                return Ok(Older { kvs, limit, revision: reply.header.revision });
            }
        }
    }

    /// Waits until the permits are ours, following all that are older.
    async fn follow(&self, place: &mut Owned) -> Result<()> {
        let watch = || {
            let both = Watch::prefix(&self.of.queue).no_put().and_key(self.of.limit.key());
            self.of.session.client().watch(both)
        };
        let mut watcher = watch();
        loop {
            match self.follow_once(place, &mut watcher).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => watcher = watch(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads who is older, and counts down; false where it must be read again.
    async fn follow_once(&self, place: &mut Owned, watcher: &mut Watcher) -> Result<bool> {
        watcher.created().await?;
        let older = self.older(place).await?;
        if older.rank(self.permits) == Rank::In {
            return Ok(true);
        }
        // With more than can hold there are others who are not told here.
        let all = older.kvs.len() <= older.limit as usize;
        let mut left: HashSet<Bytes> = older.kvs.into_iter().map(|kv| kv.key).collect();
        let again = Instant::now() + second_look();
        loop {
            let events = tokio::select! {
                biased;
                events = watcher.next() => events?,
                () = sleep_until(again) => return Ok(false),
            };
            if events.target == LIMIT {
                return Ok(false);
            }
            for key in events.events.iter().filter_map(deleted) {
                left.remove(key);
                if place.fences().iter().any(|fence| fence.key() == key) {
                    return Err(place.why().await.into());
                }
            }
            if !all {
                return Ok(false);
            }
            if left.len() + self.permits as usize <= older.limit as usize {
                place.proven_at(events.revision);
                return Ok(true);
            }
        }
    }

    /// Tells who comes next that we hold: in the background, until it is done.
    fn mark(&self, place: &Owned) {
        let (settler, fences) = (self.of.session.settler().clone(), place.fences().to_vec());
        self.of.session.cleanup().spawn(async move {
            let work = || async {
                let mark = |fence: &Fence| {
                    let put = Op::put_with_lease(fence.key().clone(), HELD, settler.lease().id());
                    Op::txn(Txn::new().compare(fence.is_owner()).success(put))
                };
                if fences.iter().any(|fence| fence.check().is_err()) {
                    return Ok(());
                }
                let txn = fences.iter().map(mark).fold(Txn::new(), Txn::success);
                settler.transact(txn, Repeat::Harmless).await.map(drop)
            };
            settler.settle("a mark", work).await;
        });
    }
}

impl Look for Asking<'_> {
    // One that holds a permit too many, after there are fewer, may stay while others make room.
    const PAST_PREDECESSOR: bool = true;

    async fn look(&self, place: &mut Owned) -> Result<Standing> {
        Ok(match self.older(place).await?.rank(self.permits) {
            Rank::In | Rank::First => Standing::First,
            Rank::Behind(predecessor) => Standing::Behind(predecessor),
        })
    }
}

impl Older {
    fn rank(&self, permits: u32) -> Rank {
        let older = u32::try_from(self.kvs.len()).unwrap_or(u32::MAX);
        rank(older, permits, self.limit, self.kvs.first(), self.revision)
    }
}

/// Where one stands behind so many older keys, the youngest of them this one.
fn rank(older: u32, permits: u32, limit: u32, youngest: Option<&KeyValue>, seen_at: i64) -> Rank {
    match youngest {
        _ if older.saturating_add(permits) <= limit => Rank::In,
        Some(youngest) if older > limit && youngest.value != HELD => {
            Rank::Behind(Predecessor::one_of_many(youngest, seen_at))
        }
        _ => Rank::First,
    }
}

fn deleted(event: &Event) -> Option<&Bytes> {
    (event.r#type() == EventType::Delete).then_some(())?;
    event.kv.as_ref().map(|kv| &kv.key)
}

/// The value of a key that had to wait and now holds.
const HELD: &[u8] = b"held";
/// The target of the watch that is the limit's key.
const LIMIT: usize = 1;
