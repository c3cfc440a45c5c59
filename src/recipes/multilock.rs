//! Several locks at once, or none.

use std::future::Future;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, LostReason, Result};
use crate::fence::{Fence, FencedTxn};
use crate::key::{name_prefix, unique_key};
use crate::owned::{Owned, Plan};
use crate::pb::etcdserverpb::ResponseHeader;
use crate::session::Session;
use crate::waitlist::{Line, checked, enter, try_enter};

/// Locks on several names, taken together.
///
/// One transaction asks for all of them, so that of any two who ask for overlapping names one is before the other in
/// every queue: nobody waits in a circle, whatever the order in which the names are given. While it waits for some of
/// the names, it keeps its place in the queues of the others.
///
/// A name below another one, `a/b` and `a`, is another lock here; beside Go's clients, which wait for any key below a name,
/// use names that are not below each other.
///
/// Each name is the same lock as a [`Mutex`](crate::Mutex) of that name (Go's too): they exclude each other. Whoever
/// holds one lock and then asks for another can still wait in a circle with others who do: ask for all at once.
///
/// ```
/// # use etcd_concurrency::{MultiLock, Mutex, Op, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let guard = MultiLock::new(&session, ["accounts/ada", "accounts/bob"])?.lock().await?;
/// assert!(Mutex::new(&session, "accounts/bob")?.try_lock().await.is_err());
/// // The server commits this only while both locks are ours.
/// guard.txn().success(Op::put("transfers/1", "ada to bob")).commit().await?;
/// guard.unlock().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct MultiLock {
    session: Session,
    /// Sorted.
    prefixes: Vec<Bytes>,
}

impl MultiLock {
    /// The locks of these names. Nothing is sent.
    ///
    /// The server takes no more than 64 of them (`--max-txn-ops` is 128, and each costs two).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for no names, an empty one, or one that is given
    /// twice.
    pub fn new(session: &Session, names: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self> {
        let mut prefixes = Vec::new();
        for name in names {
            prefixes.push(name_prefix(checked(name.as_ref())?));
        }
        prefixes.sort();
        if prefixes.is_empty() {
            return Err(Error::invalid("names", "there are none"));
        }
        if let Some(twice) = prefixes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid("names", format!("{:?} is given twice", twice[0])));
        }
        Ok(Self { session: session.clone(), prefixes })
    }

    /// The session that the locks are taken with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Waits for all of the locks, and takes them.
    ///
    /// Uncontended: one RPC, however many they are. Each name that has to be waited for costs what it costs a
    /// [`Mutex`](crate::Mutex::lock); after a wait one more RPC proves that all are held.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) as soon as the session is lost, or another client has deleted the key of
    /// the name that is being waited for; one of the others is missed when the wait has ended. [`ErrorKind::TooManyOps`](crate::ErrorKind::TooManyOps) for more names than the server
    /// takes. Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point gives up all places and leaves no key, watch or task behind: what is under way
    /// is settled in the background.
    pub async fn lock(&self) -> Result<MultiLockGuard> {
        let (plan, lines) = self.ask();
        Ok(MultiLockGuard { owned: enter(plan, &lines).await?.handed_out() })
    }

    /// Takes the locks if nobody holds one of them or waits for it: one RPC. Leaves nothing behind when it fails.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked) where somebody does; else as [`lock`](Self::lock).
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<MultiLockGuard> {
        Ok(MultiLockGuard { owned: try_enter(|| Ok(self.ask())).await?.handed_out() })
    }

    fn ask(&self) -> (Plan, Vec<Line>) {
        let lease = self.session.lease();
        let keys: Vec<_> = self.prefixes.iter().map(|prefix| unique_key(prefix, lease)).collect();
        let lines = self.prefixes.iter().zip(&keys).map(|(prefix, key)| Line::behind(prefix, key)).collect();
        (Plan::of(&self.session, keys, Bytes::new()), lines)
    }
}

/// Several locks that are held. Owned and `'static`; dropping it releases all of them in the background.
///
/// To lose one is to lose the guard.
///
/// ```
/// # use etcd_concurrency::{LostReason, MultiLock, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let guard = MultiLock::new(&session, ["a", "b"])?.lock().await?;
/// assert!(guard.fences().iter().all(|fence| fence.token() == guard.token()));
/// session.close().await?;
/// assert_eq!(guard.lost().await, LostReason::Closed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard releases the locks"]
pub struct MultiLockGuard {
    owned: Owned,
}

impl MultiLockGuard {
    /// The fencing token, the same for all of the names: for each of them greater than its holders' before.
    pub fn token(&self) -> i64 {
        self.owned.fence().token()
    }

    /// What is held: one fence for each name, in the order of the names. They fall together, and each commits only while
    /// all of the locks are held.
    pub fn fences(&self) -> &[Fence] {
        self.owned.fences()
    }

    /// The session that the locks are held with.
    pub fn session(&self) -> &Session {
        self.owned.session()
    }

    /// The header of the answer that proved the locks to be ours.
    pub fn header(&self) -> &ResponseHeader {
        self.owned.header()
    }

    /// A transaction that the server commits only while all of the locks are held. It takes one compare for each.
    pub fn txn(&self) -> FencedTxn<'_> {
        self.owned.fence().txn()
    }

    /// True while the session is valid and no key known to be gone. Reads the clock, not the network.
    pub fn is_valid(&self) -> bool {
        self.owned.check().is_ok()
    }

    /// Resolves once one of the locks is lost, with the reason.
    ///
    /// The first call starts a watch on each key, which lasts as long as the future.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn lost(&self) -> LostReason {
        self.owned.lost().await
    }

    /// As [`MutexGuard::run`](crate::MutexGuard::run).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> Result<T> {
        self.owned.run(work).await
    }

    /// As [`MutexGuard::run_cooperative`](crate::MutexGuard::run_cooperative).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn run_cooperative<T, F>(self, work: impl FnOnce(CancellationToken) -> F) -> Result<T>
    where
        F: Future<Output = T>,
    {
        self.owned.run_cooperative(work).await
    }

    /// Releases all of the locks: one RPC, each guarded by its key's create_revision.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if one was lost before; the others are then released in the
    /// background. [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) as at
    /// [`MutexGuard::unlock`](crate::MutexGuard::unlock). Any other error means that the release goes on in the background.
    ///
    /// # Cancel safety
    /// Dropping the future lets the release go on in the background.
    pub async fn unlock(self) -> Result<()> {
        self.owned.release().await
    }
}
