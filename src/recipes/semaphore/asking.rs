//! Asking for permits, and waiting for them.

use std::future::ready;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::Semaphore;
use super::count::{Count, Word};
use super::limit::Permits;
use super::older::Older;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::fence::Fence;
use crate::key::{prefix_end, unique_key};
use crate::owned::{Owned, Plan, Planned};
use crate::transport::retry::{Backoff, Repeat, Rounds, second_look};
use crate::txn::{Op, Txn, by_youth, unexpected};
use crate::waitlist::{Line, Look, Predecessor, Standing};
use crate::watch::{Failed, Watch, Watcher};

/// Where one stands.
#[derive(Debug, PartialEq)]
pub(super) enum Rank {
    /// The permits are ours.
    In,
    /// The predecessor holds its own, or may: the next that are released may be ours.
    First,
    /// The predecessor waits.
    Behind(Predecessor),
}

/// One who asks.
pub(super) struct Asking<'a> {
    of: &'a Semaphore,
    permits: u32,
    /// How many older keys are worth reading, by what is known of the limit.
    reach: AtomicU32,
}

impl<'a> Asking<'a> {
    /// Asks for permits: tells where one stands then. One RPC; one more where one has to wait among many.
    pub(super) async fn begin(of: &'a Semaphore, permits: u32) -> Result<(Self, Owned, Rank)> {
        if permits == 0 {
            return Err(Error::invalid("permits", "none are asked for"));
        }
        if permits > MOST_ASKED {
            let puts = permits as usize;
            let error = ErrorKind::TooManyOps { compares: puts, success: puts, failure: puts };
            return Err(Error::new(error, Outcome::NotApplied).at("KV/Txn"));
        }
        let key = unique_key(&of.queue, of.session.lease());
        let keys: Vec<_> = match permits {
            1 => vec![key],
            _ => (0..permits).map(|n| Bytes::from([&key, format!(".{n}").as_bytes()].concat())).collect(),
        };
        let shown = i64::from(permits) + i64::from(of.limit.made().min(MOST_SHOWN)) + 1;
        let youngest = by_youth(&of.queue, shown, 0);
        let plan = Plan::of(&of.session, keys, Bytes::new()).read(of.limit.make()).also(youngest.into());
        // The turn is kept while more of the line is read.
        let (Planned { owned, found, reply }, _turn) = plan.put_in_turn().await?;
        let mut place = owned.ok_or_else(|| unexpected("keys were neither put nor found"))?;
        let limit = match reply.inner_succeeded(0) {
            // Made with this.
            Some(true) => of.limit.read(None)?,
            _ => of.limit.read(reply.inner_kvs(0).unwrap_or_default().first())?,
        };
        enough(permits, limit)?;
        let asking = Self { of, permits, reach: AtomicU32::new(limit.now) };
        let rank = match found {
            // Others may have joined after an earlier attempt of ours.
            Some(_) => None,
            None => {
                let line = reply.range(1)?;
                match u32::try_from(line.count).is_ok_and(|count| count <= limit.now) {
                    true => Some(Rank::In),
                    false => Older::of(&of.queue, line, place.fence().token(), limit, reply.header.revision)
                        .rank(permits),
                }
            }
        };
        let rank = match rank {
            Some(rank) => rank,
            None => {
                let rank = of.session.unless_lost(Box::pin(asking.older(&mut place))).await?.1;
                if rank == Rank::In {
                    // It may have been otherwise when our keys were put: who came since took us for one that waits.
                    asking.mark(&place);
                }
                rank
            }
        };
        Ok((asking, place, rank))
    }

    /// Waits until the permits are ours, from where one stands now.
    pub(super) async fn wait(&self, place: &mut Owned, mut rank: Rank) -> Result<()> {
        if rank == Rank::In {
            return Ok(());
        }
        let mut rounds = Rounds::new();
        while let Rank::Behind(predecessor) = rank {
            rounds.again().await;
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

    /// Reads who is older, and that our keys stand, until that tells where one stands: one RPC, mostly.
    async fn older(&self, place: &mut Owned) -> Result<(Older, Rank)> {
        let (semaphore, fence) = (self.of, place.fence().clone());
        let mut reach = self.reach.load(Ordering::Relaxed);
        for _ in 0..MOST_READS {
            // Without end, where there may be as many as that.
            let limit = if reach == u32::MAX { 0 } else { i64::from(reach) + 1 };
            let txn = fence
                .stands_whole()
                .fold(Txn::new(), Txn::compare)
                .success(semaphore.limit.get())
                .success(by_youth(&semaphore.queue, limit, fence.token() - 1).into())
                .failure(semaphore.limit.get());
            let reply = semaphore.session.read(txn).await?;
            if !reply.succeeded {
                return Err(place.why().await.into());
            }
            let revision = reply.header.revision;
            place.proven_at(revision);
            let permits = semaphore.limit.read(reply.first(0))?;
            // There may be fewer than when it was asked. What is asked for would never be there, and all others wait behind.
            enough(self.permits, permits)?;
            let older = Older::of(&semaphore.queue, reply.range(1)?, fence.token(), permits, revision);
            self.reach.store(permits.now, Ordering::Relaxed);
            match older.rank(self.permits) {
                Some(rank) => return Ok((older, rank)),
                // There are more who hold permits than we knew of; then more who may hold one too many; then keys in
                // between that are no contenders'.
                None if reach < permits.now => reach = permits.now,
                None if reach < permits.most => reach = permits.most,
                None => reach = u32::MAX,
            }
        }
        Err(unexpected("what is read of a queue does not tell who is in it"))
    }

    /// Waits until the permits are ours, following all that are older.
    async fn follow(&self, place: &mut Owned) -> Result<()> {
        // Keys and limit on one watch: what it tells of the one is as old as what it tells of the other.
        let watch = || {
            let both = Watch::range(self.of.limit.key(), prefix_end(&self.of.queue));
            self.of.session.client().watch(both)
        };
        let (mut watcher, mut backoff, mut rounds) = (watch(), Backoff::default(), Rounds::new());
        loop {
            rounds.again().await;
            match self.follow_once(place, &mut watcher).await {
                Ok(true) => return Ok(()),
                Ok(false) => backoff.reset(),
                Err(Failed::Watch(error)) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    watcher = watch();
                }
                // It tells nothing any more. Made again, it would be ended again.
                Err(Failed::Watch(error)) => return Err(error),
                Err(Failed::Read(error)) => self.of.session.outlast(error, &mut backoff).await?,
            }
        }
    }

    /// Reads who is older, and counts down; false where it must be read again.
    async fn follow_once(&self, place: &mut Owned, watcher: &mut Watcher) -> Result<bool, Failed> {
        // A watch that does not begin tells nothing: then it is read now and then.
        let begun = match timeout(second_look(), watcher.created()).await {
            Ok(begun) => begun.map(|_| true).map_err(Failed::Watch)?,
            Err(_) => false,
        };
        let resumed = watcher.resumed();
        let (older, rank) = self.older(place).await.map_err(Failed::Read)?;
        if rank == Rank::In || !begun {
            return Ok(rank == Rank::In);
        }
        let mut count = Count::of(older, self.permits);
        let again = Instant::now() + second_look();
        let mut enough = false;
        loop {
            let events = tokio::select! {
                biased;
                events = watcher.next() => events.map_err(Failed::Watch)?,
                // All that was told is looked at before anything is decided.
                () = ready(()), if enough => return Ok(true),
                () = sleep_until(again) => return Ok(false),
            };
            let torn = watcher.resumed() != resumed;
            match count.told(&events.events, self.of.limit.key(), place.fence().keys(), torn) {
                Word::Lost => return Err(Failed::Read(place.why().await.into())),
                Word::Look => return Ok(false),
                word => enough = word == Word::Enough,
            }
            if enough {
                place.proven_at(events.told_up_to());
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
        Ok(match self.older(place).await?.1 {
            Rank::In | Rank::First => Standing::First,
            Rank::Behind(predecessor) => Standing::Behind(predecessor),
        })
    }
}

/// An error where more are asked for than there are.
fn enough(asked: u32, permits: Permits) -> Result<()> {
    if asked <= permits.now {
        return Ok(());
    }
    Err(Error::invalid("permits", format!("{asked} are asked for, and there are {}", permits.now)))
}

/// More are refused without a request: no server is set to take a transaction of so many.
const MOST_ASKED: u32 = 1 << 16;
/// The value of a key that had to wait and now holds.
pub(super) const HELD: &[u8] = b"held";
/// So many older keys are read along with a put at most.
const MOST_SHOWN: u32 = 31;
/// Each read reaches further than the one before it, unless the number of permits changes in between.
const MOST_READS: usize = 8;
