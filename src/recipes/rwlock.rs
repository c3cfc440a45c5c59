//! A lock that readers share and writers have for themselves.

use bytes::Bytes;

use super::{asked, below};
use crate::error::Result;
use crate::key::{Claim, unique_key};
use crate::owned::{Owned, Plan, guard};
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Op, Txn};
use crate::waitlist::{Line, enter, try_enter};

/// A lock on a name: any number of readers, or one writer, in the order of asking.
///
/// A reader waits for the writers that asked before it, a writer for all that did: a waiting writer is not starved, and
/// readers who ask together are let in together. A release wakes those alone who can go on.
///
/// Every acquisition has a key of its own, so tasks that share a session are readers and writers like any others.
///
/// The key layout is that of Go's experimental recipe (`{name}/read/…`, `{name}/write/…`), so its `RWMutex` and this one
/// exclude each other on one name; but not where writers [downgrade](RwLockWriteGuard::downgrade), which Go's knows
/// nothing of. Go's names its keys by the clock; ours by the session's lease and a random number. Keys of other shapes do
/// not count here; Go's writers wait for any key below the name.
///
/// As for any lock, a holder that was paused may not know that it holds no more: write behind the guard's
/// [fence](crate::Fence::txn), see [`Mutex`](crate::Mutex#what-a-lock-can-promise). Tokens order writers with all whom
/// they exclude; readers share, so their tokens say nothing of one another.
///
/// ```
/// # use etcd_concurrency::{RwLock, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let lock = RwLock::new(&session, "schema")?;
/// let (one, two) = (lock.read().await?, lock.read().await?);
/// assert!(lock.try_write().await.is_err());
/// one.unlock().await?;
/// two.unlock().await?;
/// let writing = lock.write().await?;
/// let reading = writing.downgrade().await?;
/// let another = lock.read().await?;
/// # drop((reading, another));
/// # session.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RwLock {
    session: Session,
    all: Bytes,
    readers: Bytes,
    writers: Bytes,
}

impl RwLock {
    /// The lock of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        let [all, readers, writers] = below(name.as_ref(), ["", "read/", "write/"])?;
        Ok(Self { session: session.clone(), all, readers, writers })
    }

    /// The session that the lock is taken with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Waits until no writer that asked before holds the lock or waits for it, and shares the lock.
    ///
    /// Uncontended: one RPC. Waiting makes none, except for a look at the predecessor's key every one to two minutes;
    /// when the turn comes, none where one writer alone was waited for, which has left; else one.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) as soon as the session is lost, or the waiting key was deleted by
    /// somebody. Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point gives up the place in the queue and leaves no key, watch or task behind: what
    /// is under way is settled in the background.
    pub async fn read(&self) -> Result<RwLockReadGuard> {
        let (plan, line) = self.reader();
        Ok(RwLockReadGuard { owned: enter(plan, &[line]).await?.handed_out() })
    }

    /// Waits until all that asked before have left, and has the lock alone.
    ///
    /// It costs what [`read`](Self::read) does.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn write(&self) -> Result<RwLockWriteGuard> {
        let (plan, line) = self.writer();
        Ok(RwLockWriteGuard { owned: enter(plan, &[line]).await?.handed_out() })
    }

    /// Shares the lock if no writer holds it or waits for it: one RPC. Leaves nothing behind when it fails. A writer
    /// that has downgraded still counts as one here.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) where a writer does; else as [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn try_read(&self) -> Result<RwLockReadGuard> {
        let ask = || Ok(self.reader()).map(|(plan, line)| (plan, vec![line]));
        Ok(RwLockReadGuard { owned: try_enter(ask).await?.handed_out() })
    }

    /// Takes the lock if nobody holds it or waits for it: one RPC. Leaves nothing behind when it fails.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) where somebody does; else as [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn try_write(&self) -> Result<RwLockWriteGuard> {
        let ask = || Ok(self.writer()).map(|(plan, line)| (plan, vec![line]));
        Ok(RwLockWriteGuard { owned: try_enter(ask).await?.handed_out() })
    }

    fn reader(&self) -> (Plan, Line) {
        let key = unique_key(&self.readers, self.session.lease());
        let line = Line::behind(&self.writers, &key).past(SHARED).of(asked, 2);
        (Plan::of(&self.session, vec![key], Bytes::new()), line)
    }

    fn writer(&self) -> (Plan, Line) {
        let key = unique_key(&self.writers, self.session.lease());
        let line = Line::behind(&self.all, &key).of(reader_or_writer, 2);
        (Plan::of(&self.session, vec![key], Bytes::new()), line)
    }
}

/// A share of an [`RwLock`]. Owned and `'static`; dropping it releases it in the background.
///
/// ```
/// # use etcd_concurrency::{RwLock, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let guard = RwLock::new(&session, "schema")?.read().await?;
/// let rows = guard.run(async { "read while nobody writes" }).await?;
/// # let _ = rows;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct RwLockReadGuard {
    owned: Owned,
}

/// An [`RwLock`] that is held alone. Owned and `'static`; dropping it releases it in the background.
///
/// ```
/// # use etcd_concurrency::{Op, RwLock, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let guard = RwLock::new(&session, "schema")?.write().await?;
/// guard.txn().success(Op::put("schema-version", "7")).commit().await?;
/// guard.unlock().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct RwLockWriteGuard {
    owned: Owned,
}

impl RwLockWriteGuard {
    /// Lets readers in without letting writers pass: one RPC. The token stays the same.
    ///
    /// Not for names that are shared with Go's `RWMutex`: a writer of Go's that waits would take the lock.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lock was lost before. After any error the lock is released.
    ///
    /// # Cancel safety
    /// Dropping the future releases the lock in the background.
    pub async fn downgrade(self) -> Result<RwLockReadGuard> {
        self.owned.check()?;
        let fence = self.owned.fence();
        // The same value under the same guard: twice is once.
        let open = Op::put_with_lease(fence.key().clone(), SHARED, self.session().lease());
        let txn = Txn::new().compare(fence.is_owner()).success(open);
        let shared = self.session().unless_lost(self.session().transact(txn, Repeat::Harmless)).await?;
        if !shared.value.succeeded {
            return Err(fence.why().await.into());
        }
        // The answer may have been on its way for longer than the session lasts.
        self.owned.check()?;
        Ok(RwLockReadGuard { owned: self.owned })
    }
}

guard!(RwLockReadGuard, unlock);
guard!(RwLockWriteGuard, unlock);

fn reader_or_writer(all: &[u8], key: &[u8]) -> Claim {
    let own = key.strip_prefix(all).unwrap_or_default();
    match asked(b"read/", own) {
        Claim::None => asked(b"write/", own),
        reader => reader,
    }
}

/// The value of a writer's key once readers may pass it.
const SHARED: &[u8] = b"shared";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_readers_and_writers_count_and_users_keys_do_not() {
        for own in
            ["read/5-0123456789abcdef", "write/5-0123456789abcdef", "read/1732817281000000000", "write/1"]
        {
            assert_ne!(reader_or_writer(b"l/", format!("l/{own}").as_bytes()), Claim::None, "{own}");
        }
        for own in ["read/", "write/owner", "owner", "5-0123456789abcdef", "1732817281000000000", "a/write/1"]
        {
            assert_eq!(reader_or_writer(b"l/", format!("l/{own}").as_bytes()), Claim::None, "{own}");
        }
    }
}
