//! Fences: who holds a key of a session, and transactions that the server commits only while it stands.

mod blind;
mod watched;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::SetOnce;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::lease::{Held, Lease, SessionState};
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};

/// What is held: a key of a session, of one incarnation. Every guard dereferences to its fence.
///
/// A clone is cheap, and does not hold what the guard holds: move one into the work that the guard
/// [runs](crate::MutexGuard::run), or hand one to a transaction that is to commit only while the guard stands. It
/// outlives the guard as [lost](Self::lost), [`Released`](LostReason::Released).
///
/// ```
/// # use etcd_concurrency::{Mutex, Op, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let guard = Mutex::new(&session, "report")?.lock().await?;
/// let fence = guard.fence().clone();
/// let work = async move { fence.txn().success(Op::put("report-state", "sent")).commit().await };
/// guard.run(work).await??;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Fence(Arc<Inner>);

struct Inner {
    client: Client,
    lease: Arc<Lease>,
    key: Bytes,
    /// Of a guard of several keys, all of them, which stand or fall together; none for a guard of one.
    keys: Option<Arc<[Bytes]>>,
    create_revision: i64,
    /// The greatest revision at which the key is known to have stood: who waits for its end has no use for what was before.
    stood_at: AtomicI64,
    /// The key is gone, or another of the guard's; whose doing it was may not be known yet.
    gone: Arc<AtomicBool>,
    /// Why it no longer stands, once that is known.
    fallen: Arc<SetOnce<LostReason>>,
    /// So many slashes before the key's end ends the name of a lock; 0 where it is no lock's key.
    below: AtomicU8,
    /// When the key is to be read where its watch may have lost its end, in seconds of the client's time; 0 before it was first
    /// watched. Kept here, as no watch may last for so long.
    look: AtomicU32,
}

impl Fence {
    /// The fencing token: the create_revision of the key. Each holder's is greater than all before it.
    ///
    /// Send it along with every write outside of etcd; whoever keeps the greatest token seen, and refuses smaller ones,
    /// cannot be written to by a holder of the past.
    pub fn token(&self) -> i64 {
        self.0.create_revision
    }

    /// The key.
    pub fn key(&self) -> &Bytes {
        &self.0.key
    }

    /// A compare that holds only while this key, of its create_revision, exists: for transactions of your own.
    /// Go's `IsOwner`. [`txn`](Self::txn) adds it by itself, for each key of a guard that has several.
    pub fn is_owner(&self) -> Compare {
        Compare::create_revision(self.0.key.clone()).is(self.0.create_revision)
    }

    /// A transaction that the server commits only while this key exists; of a guard of several keys, all of them.
    pub fn txn(&self) -> FencedTxn<'_> {
        FencedTxn { fence: self, txn: Txn::new() }
    }

    /// True while the session is valid and the key not known to be gone. Reads the clock, not the network.
    pub fn is_valid(&self) -> bool {
        self.lost_reason().is_none()
    }

    /// Resolves once the key is lost, with the reason: its release, its deletion by somebody, or the session's end.
    ///
    /// The first call starts a watch on the key, which lasts as long as the future. Where the server refuses that, the key
    /// is read now and then: its end may be told a minute or two late then. So may an end that a server before 3.4.36 or
    /// 3.5.18 loses as the watch's stream is opened again. The session's end is told at its deadline, on
    /// the runtime that polls this; a tokio runtime needs its time enabled for that.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn lost(&self) -> LostReason {
        self.ended().await;
        match self.0.fallen.get().copied().or_else(|| self.0.lease.lost_reason()) {
            Some(reason) => reason,
            None => self.why().await,
        }
    }

    pub(crate) fn new(session: &Session, key: Bytes, create_revision: i64) -> Self {
        Self(Arc::new(Inner {
            client: session.client().clone(),
            lease: session.lease_handle().clone(),
            key,
            keys: None,
            create_revision,
            stood_at: AtomicI64::new(create_revision),
            gone: Arc::default(),
            fallen: Arc::default(),
            below: AtomicU8::new(0),
            look: AtomicU32::new(0),
        }))
    }

    /// One for each key of a guard: one of them lost, all are.
    pub(crate) fn each(session: &Session, keys: &[Bytes], create_revision: i64) -> Vec<Self> {
        if let [key] = keys {
            return vec![Self::new(session, key.clone(), create_revision)];
        }
        let (all, gone, fallen): (Arc<[Bytes]>, Arc<AtomicBool>, Arc<SetOnce<_>>) =
            (keys.into(), Arc::default(), Arc::default());
        let fence = |key: &Bytes| {
            Self(Arc::new(Inner {
                client: session.client().clone(),
                lease: session.lease_handle().clone(),
                key: key.clone(),
                keys: Some(all.clone()),
                create_revision,
                stood_at: AtomicI64::new(create_revision),
                gone: gone.clone(),
                fallen: fallen.clone(),
                below: AtomicU8::new(0),
                look: AtomicU32::new(0),
            }))
        };
        keys.iter().map(fence).collect()
    }

    /// The keys of the guard, all of this create_revision.
    pub(crate) fn keys(&self) -> &[Bytes] {
        self.0.keys.as_deref().unwrap_or(std::slice::from_ref(&self.0.key))
    }

    /// It is a lock's, whose name ends so many slashes before the end of the key: nothing else is to be put below it.
    pub(crate) fn is_below_name(&self, slashes: u8) {
        self.0.below.store(slashes, Ordering::Relaxed);
    }

    /// Whether a key is below the lock's own name, and none of the guard's.
    fn is_own_line(&self, key: &[u8]) -> bool {
        let slashes = usize::from(self.0.below.load(Ordering::Relaxed));
        let in_line = |own: &Bytes| {
            let slash = own.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').nth(slashes - 1);
            slash.is_some_and(|(end, _)| key.starts_with(&own[..=end]))
        };
        slashes > 0 && self.keys().iter().any(in_line) && !self.keys().iter().any(|own| own == key)
    }

    /// Refuses a key that is below the lock's own name: Go's clients would wait for it as for a holder's.
    pub(crate) fn may_put(&self, key: &Bytes) -> Result<()> {
        let below = "is below the name of the lock, where those who wait for it have their keys";
        let refused = || Error::invalid("key", format!("{key:?} {below}"));
        if self.is_own_line(key) { Err(refused()) } else { Ok(()) }
    }

    /// An error for what is not to be put behind this fence, as it would keep others waiting for ever.
    pub(crate) fn permits(&self, txn: &Txn) -> Result<()> {
        if let Some(put) = txn.puts_any(&|put| self.is_own_line(&put.key)) {
            self.may_put(&put.key)?;
        }
        let detaches = |put: &pb::PutRequest| {
            put.lease != self.0.lease.id() && !put.ignore_lease && self.keys().contains(&put.key)
        };
        let goes_alone = "is the guard's own, and would not go with the session's lease";
        let refused = |put: &pb::PutRequest| Error::invalid("lease", format!("{:?} {goes_alone}", put.key));
        txn.puts_any(&detaches).map_or(Ok(()), |put| Err(refused(put)))
    }

    /// Compares that hold only while all keys of the guard exist.
    pub(crate) fn stands_whole(&self) -> impl Iterator<Item = Compare> {
        self.keys().iter().map(|key| Compare::create_revision(key.clone()).is(self.0.create_revision))
    }

    /// Why it no longer stands, as far as that is known here.
    pub(crate) fn lost_reason(&self) -> Option<LostReason> {
        let gone = || self.0.gone.load(Ordering::Acquire).then_some(LostReason::KeyDeleted);
        self.0.fallen.get().copied().or_else(|| self.0.lease.lost_reason()).or_else(gone)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.lost_reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// An answer that the cluster has lost revisions ends the session.
    pub(crate) fn learn_of_past<T>(&self, answer: Result<T>) -> Result<T> {
        self.0.lease.learn_of_past(answer)
    }

    /// The fence fell. The first reason given stays.
    pub(crate) fn fall(&self, reason: LostReason) {
        let _ = self.0.fallen.set(reason);
    }

    /// The server says of this revision that the key stood.
    pub(crate) fn stood_at(&self, revision: i64) {
        self.0.stood_at.fetch_max(revision, Ordering::Relaxed);
    }

    /// Resolves once the key is gone, or the session is lost: as soon as that is known, without a reason.
    ///
    /// The key's watch starts with the first call: a lock that is taken and released needs none.
    pub(crate) async fn ended(&self) {
        if self.lost_reason().is_some() {
            return;
        }
        tokio::select! {
            biased;
            _ = self.0.lease.lost() => {}
            _ = self.0.fallen.wait() => {}
            () = self.key_deleted() => self.0.gone.store(true, Ordering::Release),
        }
    }

    /// The key is gone: whose doing was it? A lease that is gone takes its keys along, and its end is the better reason.
    pub(crate) async fn why(&self) -> LostReason {
        self.0.gone.store(true, Ordering::Release);
        let lease = &self.0.lease;
        // Boxed: everything that waits for a loss would be as large.
        let asked = Box::pin(lease.ask());
        let reason = match timeout(PATIENCE, asked).await {
            Ok(Ok(Some(reason))) => reason,
            // It stands, or that cannot be told in time: what is known is that the key is gone.
            _ => lease.lost_reason().unwrap_or(LostReason::KeyDeleted),
        };
        self.fall(reason);
        reason
    }

    /// What a turn goes with, while this is what the user holds.
    pub(crate) fn held(&self) -> Arc<dyn Held> {
        self.0.clone()
    }
}

impl Held for Inner {
    /// By its own word, or its session's, which another may have followed on the lease. The clock is not looked at: it may be
    /// a user's code.
    fn is_lost(&self) -> bool {
        let is_lost = |state| matches!(state, SessionState::Lost(_));
        self.gone.load(Ordering::Acquire) || self.fallen.get().is_some() || is_lost(self.lease.state())
    }

    fn lost(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move { Fence(self).ended().await })
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("key", &self.key).field("token", &self.create_revision).finish()
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence")
            .field("key", &self.0.key)
            .field("token", &self.0.create_revision)
            .field("lost", &self.lost_reason())
            .finish_non_exhaustive()
    }
}

/// A transaction behind a guard's fence: the server commits it only while that guard's key, of that create_revision,
/// exists.
///
/// A holder that was paused, partitioned or replaced cannot write with it, however late its request arrives. That
/// protects what lives in etcd; for what lives elsewhere, hand on the guard's token and have it checked there.
///
/// The fence takes one compare for each key of the guard out of the server's `--max-txn-ops`, and one operation more with
/// compares of your own, or where there is no operation, or only serializable reads: the server then reads the key, too,
/// so that it cannot answer from the past.
///
/// ```
/// # use etcd_concurrency::{Compare, ErrorKind, Mutex, Op, Session, Txn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let guard = Mutex::new(&session, "ledger")?.lock().await?;
/// let first = guard.txn().compare(Compare::missing("entry/1")).success(Op::put("entry/1", "paid"));
/// assert!(first.commit().await?.succeeded);
///
/// // Somebody breaks the lock; whatever the holder sends from now on is refused.
/// client.txn(Txn::new().success(Op::delete(guard.key().clone()))).await?;
/// let late = guard.txn().success(Op::put("entry/2", "paid")).commit().await;
/// assert_eq!(*late.expect_err("fenced").kind(), ErrorKind::Fenced);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing happens before `commit`"]
pub struct FencedTxn<'a> {
    fence: &'a Fence,
    txn: Txn,
}

impl FencedTxn<'_> {
    /// Adds a compare of your own.
    pub fn compare(mut self, compare: Compare) -> Self {
        self.txn = self.txn.compare(compare);
        self
    }

    /// Adds an operation for when all of your compares hold.
    pub fn success(mut self, op: Op) -> Self {
        self.txn = self.txn.success(op);
        self
    }

    /// Adds an operation for when one of your compares does not hold.
    pub fn failure(mut self, op: Op) -> Self {
        self.txn = self.txn.failure(op);
        self
    }

    /// Commits: one RPC. [`TxnReply::succeeded`] tells of your own compares.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when the guard's key is gone: nothing was applied, and the guard is lost.
    /// [`ErrorKind::InvalidInput`] for a put of a key below the name of the guard's own lock, `{name}/…`: Go's clients would
    /// wait for that key as for a holder's; and for one of the guard's own key without its session's lease, after whose end
    /// it would stay. Nothing was sent. [`ErrorKind::Lost`] when the session or guard is lost already: nothing was sent. For
    /// everything else
    /// [`Error::outcome`] says whether it was applied; a write of unknown outcome is not repeated.
    ///
    /// # Cancel safety
    /// Not safe: a transaction whose future is dropped may have been applied, or not.
    pub async fn commit(self) -> Result<TxnReply> {
        self.fence.permits(&self.txn)?;
        // Saves the server the trouble, and whoever wakes late the wait for its answer.
        self.fence.check()?;
        let fenced = |txn: Txn| self.fence.stands_whole().fold(txn, Txn::compare);
        // The fence's own failure must not be taken for that of the user's compares: where there are none of the user's, what
        // is to be applied when they fail is never reached, and must not be when the fence's do.
        let flat = self.txn.is_unconditional();
        let may_delete = self.txn.may_delete();
        let request = match flat {
            true => fenced(self.txn.without_failure()),
            false => fenced(Txn::new()).success(Op::txn(self.txn)),
        };
        // Of compares alone, or with serializable reads only, one member would tell from what may be the past.
        let (request, added) = request.vouched();
        // A lease that is not found is not the fence's: while its key stands, so does its lease.
        let answer = self.fence.0.client.transport().txn(request.into(), Repeat::Never).await;
        let answer = self.fence.learn_of_past(answer)?;
        let reply = TxnReply::try_from(answer.value)?;
        if reply.succeeded {
            // The compares tell of the key before the operations, which may have deleted it.
            self.fence.stood_at(reply.header.revision - i64::from(may_delete));
        }
        match reply.succeeded {
            false => {
                self.fence.fall(LostReason::KeyDeleted);
                Err(Error::new(ErrorKind::Fenced, Outcome::NotApplied).at("KV/Txn"))
            }
            true if flat => reply.without_read(added),
            true => reply.inner(),
        }
    }
}

/// How long the reason for a loss is worth waiting for; that it is lost is known already.
const PATIENCE: Duration = Duration::from_secs(1);
