//! A fenced lock.

use bytes::Bytes;

use crate::error::Result;
#[cfg(doc)]
use crate::fence::Fence;
use crate::owned::{Owned, guard};
use crate::session::Session;
use crate::waitlist::Waitlist;

/// A lock on a name, held by one session at a time, granted in the order of asking. Go's `concurrency.Mutex`.
///
/// The key layout is Go's (`{name}/{lease in lower-case hex}`), so Go's clients, `etcdctl lock` and this crate exclude
/// each other on one name. Any number of tasks may lock one name through one session: they queue in the process, and
/// only the first of them goes to the server. A task that keeps a guard whose key was deleted keeps the others waiting for
/// a second or two at most: who is next watches the key.
///
/// **Keys below a name.** Contenders are told by the shape of their keys: that above, and for a
/// [`MultiLock`](crate::MultiLock) a dash and 16 random hex digits behind it; and by their lease, which is the one in the
/// key. Any other key below the name, such as `jobs/nightly/owner` or `orders/1001`, is passed over, at one RPC more where the youngest two are such (on etcd
/// 3.7 one for each hundred that are called like a lease, where any key there has one); it is logged once for each name, since
/// Go's clients and `etcdctl` wait for any key that is there. So put what belongs to a lock beside its name:
/// `jobs/nightly-owner`.
///
/// # What a lock can promise
/// A lease alone cannot exclude: a holder that was paused for longer than its TTL does not know, for a moment, that
/// another one holds the lock. So write to etcd through [`Fence::txn`], which the server refuses once the guard's
/// key is gone; hand [`Fence::token`] to whatever else you write to, and have it refuse smaller ones; and stop
/// when [`Fence::lost`] resolves, or work inside [`MutexGuard::run`].
///
/// ```
/// # use etcd_concurrency::{Mutex, Op, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let mutex = Mutex::new(&session, "jobs/nightly")?;
/// let guard = mutex.lock().await?;
/// guard.txn().success(Op::put("jobs/nightly-owner", "me")).commit().await?;
/// guard.unlock().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Mutex {
    list: Waitlist,
}

impl Mutex {
    /// The lock of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        Ok(Self { list: Waitlist::new(session, name.as_ref())? })
    }

    /// The session that the lock is taken with.
    pub fn session(&self) -> &Session {
        self.list.session()
    }

    /// Waits for the lock, and takes it. Use [`tokio::time::timeout`] for a limit.
    ///
    /// Uncontended: one RPC. Waiting makes none, except for a look at the predecessor's key every one to two minutes;
    /// when the turn comes, none for the direct successor of the holder, one for others. Where the youngest keys below the
    /// name are no contenders', each read is two.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) as soon as the session is lost, or the waiting key was deleted by
    /// somebody. Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point gives up the place in the queue and leaves no key, watch or task behind: what
    /// is under way is settled in the background. The place in the queue is lost.
    pub async fn lock(&self) -> Result<MutexGuard> {
        Ok(MutexGuard { owned: self.list.enter(Bytes::new()).await?.handed_out() })
    }

    /// Takes the lock if nobody holds it or waits for it: one RPC, and none where a task of this process has it; a few where
    /// there are other keys below the name. Leaves nothing behind when it fails.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) where somebody does; else as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<MutexGuard> {
        Ok(MutexGuard { owned: self.list.try_enter(Bytes::new()).await?.handed_out() })
    }
}

/// A lock that is held. Owned and `'static`: it may move to another task. Go's `Locker` has no counterpart of its own:
/// the guard is the locker.
///
/// Dropping it releases the lock in the background; [`unlock`](Self::unlock) waits for that and tells of failure. The
/// release is repeated in the background until it is settled or the session is lost.
///
/// ```
/// # use etcd_concurrency::{Mutex, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let guard = Mutex::new(&session, "report")?.lock().await?;
/// let token = guard.token();
/// let done = guard.run(async { format!("stored with fencing token {token}") }).await?;
/// assert!(done.ends_with(&token.to_string()));
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard releases the lock"]
pub struct MutexGuard {
    owned: Owned,
}

guard!(MutexGuard, unlock);
