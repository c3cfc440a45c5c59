//! A number of permits over the cluster.
//!
//! Whoever asks puts a key for each permit; the oldest keys hold, as many as there are permits. So whether one is in
//! is told by how many keys are older, which the transaction that puts ours reads along. Of those who wait only the
//! first, whose predecessor holds, follows the whole queue, and the limit with it; the others wait for their predecessor to leave or to mark
//! its keys as held. A release wakes the first alone, and the mark of the first wakes the next.

mod asking;
mod count;
mod limit;
#[cfg(test)]
mod model;
mod older;

use bytes::Bytes;

use self::asking::{Asking, Rank};
use self::limit::Limit;
use super::{below, not_zero};
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::owned::{Owned, guard};
use crate::session::Session;

/// A name that a limited number of permits is given for, in the order of asking.
///
/// The limit is kept in etcd: the first who asks sets it, and who comes with another one is told
/// ([`ErrorKind::Mismatch`]). [`resize`](Self::resize) changes it for all.
///
/// It is fair: who asks for many permits is not overtaken by others who ask for few.
///
/// Keys: `{name}/limit`, and one for each permit under `{name}/queue/`, `{lease in hex}-{16 random hex digits}`, for
/// several permits numbered behind a dot. Keys of other shapes hold no permit.
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
    limit: Limit,
    queue: Bytes,
}

impl Semaphore {
    /// The semaphore of this name and this many permits. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, or no permits.
    pub fn new(session: &Session, name: impl AsRef<[u8]>, permits: u32) -> Result<Self> {
        not_zero("permits", permits)?;
        let [limit, queue] = below(name.as_ref(), ["limit", "queue/"])?;
        Ok(Self { session: session.clone(), limit: Limit::new(limit, permits), queue })
    }

    /// The session that permits are taken with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Waits for a permit.
    ///
    /// Where one is free: one RPC. Waiting makes none, but one where more than 31 permits are given, and a look at the queue
    /// every one to two minutes; when the turn comes, up to three.
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
    /// [`ErrorKind::InvalidInput`] for none, or more than there are; also where there are [fewer](Self::resize) by the time
    /// that its turn comes. [`ErrorKind::TooManyOps`] for more than the server
    /// takes. Else as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_many(&self, permits: u32) -> Result<SemaphorePermit> {
        let (asking, mut owned, rank) = Asking::begin(self, permits).await?;
        asking.wait(&mut owned, rank).await?;
        owned.check()?;
        Ok(SemaphorePermit { owned: owned.handed_out() })
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
        let (_, owned, rank) = Asking::begin(self, permits).await?;
        if rank != Rank::In {
            // Waited for, so that nobody is held up by one who only tried; what fails goes on in the background.
            if let Err(error) = owned.release().await {
                tracing::debug!(%error, "what was put for a try is not gone yet");
            }
            // What was read of a session that is lost by now says nothing of the others.
            self.session.check()?;
            return Err(Error::new(ErrorKind::Locked, Outcome::NotApplied));
        }
        owned.check()?;
        Ok(SemaphorePermit { owned: owned.handed_out() })
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
        self.limit.left(&self.session, &self.queue).await
    }

    /// Changes the number of permits, for all: two RPCs. Whoever holds one keeps it: after there are fewer, none is
    /// given until enough have been released. Who waits for more than there then are is told when its turn comes.
    ///
    /// Who asks from now on is still told of a mismatch by the number that the semaphore was made with.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for none. Else as [`available_permits`](Self::available_permits); when the
    /// [outcome](Error::outcome) is unknown, it can be called again.
    ///
    /// # Cancel safety
    /// The change may be made, or not.
    pub async fn resize(&self, permits: u32) -> Result<()> {
        not_zero("permits", permits)?;
        self.limit.change(&self.session, permits).await
    }
}

/// Permits that are held. Owned and `'static`; dropping it releases them in the background.
///
/// Of several, the [fence](Self::fence) has the key of the first, and commits only while the keys of all stand.
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
    owned: Owned,
}

impl SemaphorePermit {
    /// How many permits these are.
    pub fn permits(&self) -> usize {
        self.owned.fences().len()
    }

    /// Resolves once one of the permits is lost, with the reason.
    ///
    /// The first call starts a watch on each key, which lasts as long as the future.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn lost(&self) -> LostReason {
        self.owned.lost().await
    }
}

guard!(SemaphorePermit, release);
