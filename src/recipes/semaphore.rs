//! A number of permits over the cluster.
//!
//! Whoever asks puts a key for each permit; the oldest keys hold, as many as there are permits. So whether one is in
//! is told by how many keys are older, which the transaction that puts ours reads along. Of those who wait only the
//! first, whose predecessor holds, follows the whole queue; the others wait for their predecessor to leave or to mark
//! its keys as held. A release wakes the first alone, and the mark of the first wakes the next.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::fence::Fence;
use crate::key::{name_prefix, prefix_end, unique_key};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::waitlist::{Joined, Line, Look, Place, Predecessor, Standing, Ticket, checked, guard};
use crate::watch::{Watch, Watcher, second_look};

/// A name that a limited number of permits is given for, in the order of asking.
///
/// The limit is kept in etcd: the first who asks sets it, and who comes with another one is told
/// ([`ErrorKind::Mismatch`]). [`resize`](Self::resize) changes it for all.
///
/// It is fair: who asks for many permits is not overtaken by others who ask for few.
///
/// Keys: `{name}/limit`, and one for each permit under `{name}/queue/`.
///
/// As for any lock, a holder that was paused may not know that it holds no more: write behind the permit's
/// [fence](crate::Fence::txn), see [`Mutex`](crate::Mutex#what-a-lock-can-promise).
///
/// ```
/// # use etcd_concurrency::{Semaphore, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let downloads = Semaphore::new(&session, "downloads", 2)?;
/// let (one, two) = (downloads.acquire().await?, downloads.acquire().await?);
/// assert!(downloads.try_acquire().await.is_err());
/// one.release().await?;
/// assert_eq!(downloads.available_permits().await?, 1);
/// # drop(two);
/// # session.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Semaphore {
    session: Session,
    limit: Bytes,
    queue: Bytes,
    permits: u32,
}

impl Semaphore {
    /// The semaphore of this name and this many permits. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, or no permits.
    pub fn new(session: &Session, name: impl AsRef<[u8]>, permits: u32) -> Result<Self> {
        if permits == 0 {
            return Err(Error::invalid("permits", "there are none"));
        }
        let prefix = name_prefix(checked(name.as_ref())?);
        let below = |name: &[u8]| Bytes::from([&prefix, name].concat());
        Ok(Self { session: session.clone(), limit: below(b"limit"), queue: below(b"queue/"), permits })
    }

    /// The session that permits are taken with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Waits for a permit.
    ///
    /// Where one is free: one RPC. Waiting makes none, except for a look at the queue every one to two minutes; when the
    /// turn comes, up to three.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the semaphore was made with another number of permits. [`ErrorKind::Lost`] as soon
    /// as the session is lost, or the waiting key was deleted by somebody. Whatever keeps the server from answering
    /// until the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point gives up the place in the queue and leaves no key, watch or task behind: what
    /// is under way is settled in the background.
    pub async fn acquire(&self) -> Result<SemaphorePermit> {
        self.acquire_many(1).await
    }

    /// Waits for several permits, that come together and go together. The server takes about 120 at once
    /// (`--max-txn-ops` is 128, and each costs one).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for none, or more than there are. [`ErrorKind::TooManyOps`] for more than the server
    /// takes. Else as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_many(&self, permits: u32) -> Result<SemaphorePermit> {
        let (asking, mut place, mut rank) = self.ask(permits).await?;
        let waited = rank != Rank::In;
        while rank != Rank::In {
            rank = match rank {
                Rank::Behind(predecessor) => {
                    let line = Line::behind(&self.queue, place.fence().key()).past(HELD);
                    match line.wait_for(&asking, &mut place, predecessor).await? {
                        Standing::First => Rank::First,
                        Standing::Behind(predecessor) => Rank::Behind(predecessor),
                    }
                }
                Rank::First | Rank::In => {
                    asking.wait_as_first(&mut place).await?;
                    Rank::In
                }
            };
        }
        if waited {
            asking.mark(&place);
        }
        place.check()?;
        Ok(SemaphorePermit { place })
    }

    /// Takes a permit if one is free and nobody waits: one RPC, and another where that fails.
    ///
    /// To find out, a place in the queue is taken, and given up: for that moment others wait behind it.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where none is. Else as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<SemaphorePermit> {
        self.try_acquire_many(1).await
    }

    /// Takes several permits if they are free and nobody waits, as [`try_acquire`](Self::try_acquire) does one.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire) and [`acquire_many`](Self::acquire_many).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire_many(&self, permits: u32) -> Result<SemaphorePermit> {
        let (_, place, rank) = self.ask(permits).await?;
        if rank != Rank::In {
            // Waited for, so that nobody is held up by one who only tried; what fails goes on in the background.
            if let Err(error) = place.release().await {
                tracing::debug!(%error, "what was put for a try is not gone yet");
            }
            return Err(Error::new(ErrorKind::Locked, Outcome::NotApplied));
        }
        place.check()?;
        Ok(SemaphorePermit { place })
    }

    /// How many permits are neither held nor waited for. One RPC.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the semaphore was made with another number of permits. Whatever keeps the server
    /// from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn available_permits(&self) -> Result<u32> {
        let range_end = prefix_end(&self.queue);
        let all =
            pb::RangeRequest { key: self.queue.clone(), range_end, count_only: true, ..Default::default() };
        let txn = Txn::new().success(Op::get(self.limit.clone())).success(all.into());
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
        let reply = TxnReply::try_from(answer.value)?;
        let limit = self.limit(reply.kvs(0).unwrap_or_default().first())?;
        let asked = reply.ranged(1).map_or(0, |range| range.count);
        Ok(limit.saturating_sub(u32::try_from(asked).unwrap_or(u32::MAX)))
    }

    /// Changes the number of permits, for all: two RPCs. Whoever holds one keeps it: after there are fewer, none is
    /// given until enough have been released.
    ///
    /// Who asks from now on is still told of a mismatch by the number that the semaphore was made with. Where there are
    /// fewer permits than before, who waits behind a holder of one that is now too many may take up to two minutes to see
    /// that its turn has come.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for none. Else as [`available_permits`](Self::available_permits); when the
    /// [outcome](Error::outcome) is unknown, it can be called again.
    ///
    /// # Cancel safety
    /// The change may be made, or not.
    pub async fn resize(&self, permits: u32) -> Result<()> {
        if permits == 0 {
            return Err(Error::invalid("permits", "there are none"));
        }
        let value = Bytes::from(format!("{} {permits}", self.permits));
        let mut seen = 0;
        loop {
            let txn = Txn::new()
                .compare(Compare::mod_revision(self.limit.clone()).is(seen))
                .success(Op::put(self.limit.clone(), value.clone()))
                .failure(Op::get(self.limit.clone()));
            let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await?;
            let reply = TxnReply::try_from(answer.value)?;
            let found = reply.kvs(0).and_then(<[_]>::first);
            self.limit(found)?;
            if reply.succeeded || found.is_some_and(|kv| kv.value == value) {
                return Ok(());
            }
            seen = found.map_or(0, |kv| kv.mod_revision);
        }
    }

    async fn ask(&self, permits: u32) -> Result<(Asking<'_>, Place, Rank)> {
        if permits == 0 {
            return Err(Error::invalid("permits", "none are asked for"));
        }
        let key = unique_key(&self.queue, self.session.lease());
        let keys: Vec<_> = match permits {
            1 => vec![key],
            _ => (0..permits).map(|n| Bytes::from([&key, format!(".{n}").as_bytes()].concat())).collect(),
        };
        let known = Txn::new()
            .compare(Compare::missing(self.limit.clone()))
            .success(Op::put(self.limit.clone(), self.permits.to_string()))
            .failure(Op::get(self.limit.clone()));
        let reads = vec![Op::txn(known), self.youngest(i64::from(permits) + 1, 0)];
        let joined = Ticket::new(&self.session, keys).put(Vec::new(), Bytes::new(), reads).await?;
        let Joined { place, found, reply } =
            joined.ok_or_else(|| unexpected("keys were neither put nor found"))?;
        let limit = self.limit(reply.inner_kvs(0).unwrap_or_default().first())?;
        if permits > limit {
            return Err(Error::invalid("permits", format!("{permits} are asked for, and there are {limit}")));
        }
        let asking = Asking { of: self, permits, limit: AtomicU32::new(limit) };
        let rank = match found {
            // Others may have joined after an earlier attempt of ours.
            Some(_) => asking.older(&place).await?.rank(permits),
            None => {
                let range = reply.ranged(1).ok_or_else(|| unexpected("no answer for the queue"))?;
                let token = place.fence().token();
                let older = u32::try_from(range.count).unwrap_or(u32::MAX).saturating_sub(permits);
                let youngest = range.kvs.iter().find(|kv| kv.create_revision < token).cloned();
                let revision = reply.header.revision;
                rank(older, permits, limit, youngest.as_ref(), revision)
            }
        };
        Ok((asking, place, rank))
    }

    /// The youngest keys of the queue, or of those up to a create_revision, the youngest first.
    fn youngest(&self, limit: i64, max_create_revision: i64) -> Op {
        pb::RangeRequest {
            key: self.queue.clone(),
            range_end: prefix_end(&self.queue),
            limit,
            sort_order: pb::range_request::SortOrder::Descend.into(),
            sort_target: pb::range_request::SortTarget::Create.into(),
            max_create_revision,
            ..Default::default()
        }
        .into()
    }

    /// How many permits there are by what the limit's key says: the number that the semaphore was made with, and the one
    /// that it has now, if that is another.
    fn limit(&self, kv: Option<&KeyValue>) -> Result<u32> {
        let Some(kv) = kv else { return Ok(self.permits) };
        let text = String::from_utf8_lossy(&kv.value);
        let mut numbers = text.split(' ').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(made)), now) if made == self.permits => match now {
                None => Ok(made),
                Some(Ok(now)) => Ok(now),
                Some(Err(_)) => Err(mismatch(&text)),
            },
            _ => Err(mismatch(&text)),
        }
    }
}

/// Permits that are held. Owned and `'static`; dropping it releases them in the background.
///
/// Of several, the [fence](Self::fence) is that of the first.
///
/// ```
/// # use etcd_concurrency::{Semaphore, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let permit = Semaphore::new(&session, "downloads", 2)?.acquire_many(2).await?;
/// assert_eq!(permit.permits(), 2);
/// permit.run(async { "downloaded" }).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the permit releases it"]
pub struct SemaphorePermit {
    place: Place,
}

impl SemaphorePermit {
    /// How many permits these are.
    pub fn permits(&self) -> usize {
        self.place.fences().len()
    }
}

guard!(SemaphorePermit, release);

/// Where one stands.
#[derive(Debug, PartialEq)]
enum Rank {
    /// The permits are ours.
    In,
    /// The predecessor holds its own: the next that are released may be ours.
    First,
    /// The predecessor waits.
    Behind(Predecessor),
}

/// One who asks.
struct Asking<'a> {
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

impl Asking<'_> {
    /// Reads who is older, and that our key stands: one RPC.
    async fn older(&self, place: &Place) -> Result<Older> {
        let (semaphore, fence) = (self.of, place.fence());
        loop {
            let known = self.limit.load(Ordering::Relaxed);
            let txn = Txn::new()
                .compare(fence.is_owner())
                .success(Op::get(semaphore.limit.clone()))
                .success(semaphore.youngest(i64::from(known) + 1, fence.token() - 1));
            let answer = semaphore.session.client().transport().txn(txn.into(), Repeat::Read).await?;
            let reply = TxnReply::try_from(answer.value)?;
            if !reply.succeeded {
                return Err(fence.why().await.into());
            }
            let limit = semaphore.limit(reply.kvs(0).unwrap_or_default().first())?;
            self.limit.store(limit, Ordering::Relaxed);
            // With more permits than we knew of, there may be more who hold them.
            if limit <= known {
                let kvs = reply.kvs(1).unwrap_or_default().to_vec();
                return Ok(Older { kvs, limit, revision: reply.header.revision });
            }
        }
    }

    /// Waits until the permits are ours, following all that are older.
    async fn wait_as_first(&self, place: &mut Place) -> Result<()> {
        let session = &self.of.session;
        tokio::select! {
            biased;
            reason = session.lost() => Err(reason.into()),
            done = self.follow(place) => done,
        }
    }

    async fn follow(&self, place: &mut Place) -> Result<()> {
        let watch = || {
            let both = Watch::prefix(&self.of.queue).no_put().and_key(&self.of.limit);
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
    async fn follow_once(&self, place: &mut Place, watcher: &mut Watcher) -> Result<bool> {
        watcher.created().await?;
        let older = self.older(place).await?;
        if older.rank(self.permits) == Rank::In {
            place.proven_at(older.revision);
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
    fn mark(&self, place: &Place) {
        let (session, fences) = (self.of.session.clone(), place.fences().to_vec());
        self.of.session.cleanup().spawn(async move {
            let work = || async {
                let mark = |fence: &Fence| {
                    let put = Op::put_with_lease(fence.key().clone(), HELD, session.lease());
                    Op::txn(Txn::new().compare(fence.is_owner()).success(put))
                };
                if fences.iter().any(|fence| fence.check().is_err()) {
                    return Ok(());
                }
                let txn = fences.iter().map(mark).fold(Txn::new(), Txn::success);
                session.client().transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
            };
            session.settle("a mark", work).await;
        });
    }
}

impl Look for Asking<'_> {
    // One that holds a permit too many, after there are fewer, may stay while others make room.
    const PAST_PREDECESSOR: bool = true;

    async fn look(&self, place: &Place) -> Result<Standing> {
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

fn mismatch(found: &str) -> Error {
    let found = found.to_owned();
    Error::new(ErrorKind::Mismatch { what: "number of permits", found }, Outcome::NotApplied)
}

fn unexpected(detail: &str) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}

/// The value of a key that had to wait and now holds.
const HELD: &[u8] = b"held";
/// The target of the watch that is the limit's key.
const LIMIT: usize = 1;
