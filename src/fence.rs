//! Fences: transactions that the server commits only while a guard's key stands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::SetOnce;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::watch::Watch;

/// A key of a session, of one incarnation: whoever holds it is who it says.
#[derive(Debug)]
pub(crate) struct Fence {
    pub(crate) session: Session,
    pub(crate) key: Bytes,
    pub(crate) create_revision: i64,
    /// The key is gone; whose doing it was may not be known yet.
    gone: AtomicBool,
    /// Why it no longer stands, once that is known.
    fallen: SetOnce<LostReason>,
}

impl Fence {
    pub(crate) fn new(session: Session, key: Bytes, create_revision: i64) -> Self {
        Self { session, key, create_revision, gone: AtomicBool::new(false), fallen: SetOnce::new() }
    }

    /// Why it no longer stands, as far as that is known here.
    pub(crate) fn lost_reason(&self) -> Option<LostReason> {
        let gone = || self.gone.load(Ordering::Acquire).then_some(LostReason::KeyDeleted);
        self.fallen.get().copied().or_else(|| self.session.lease_handle().lost_reason()).or_else(gone)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.lost_reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// The fence fell. The first reason given stays.
    pub(crate) fn fall(&self, reason: LostReason) {
        let _ = self.fallen.set(reason);
    }

    /// Resolves once the key is gone, or the session is lost, with the reason.
    pub(crate) async fn lost(&self) -> LostReason {
        self.ended().await;
        match self.fallen.get().copied().or_else(|| self.session.lease_handle().lost_reason()) {
            Some(reason) => reason,
            None => self.why().await,
        }
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
            _ = self.session.lost() => {}
            _ = self.fallen.wait() => {}
            () = self.key_deleted() => self.gone.store(true, Ordering::Release),
        }
    }

    /// Resolves once the server says that the key, of this create_revision, is gone.
    async fn key_deleted(&self) {
        let client = self.session.client();
        // What happened since the key was created: nothing can have been missed.
        let mut from = self.create_revision + 1;
        loop {
            let watch = Watch::key(self.key.clone()).from_revision(from).no_put();
            let mut watcher = client.watch(watch);
            let error = loop {
                match watcher.next().await {
                    Ok(events) if events.events.iter().any(|event| self.is_end(event)) => return,
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            let blind = match error.kind() {
                ErrorKind::Compacted { .. } => match self.stands().await {
                    Ok(Some(revision)) => {
                        from = revision + 1;
                        continue;
                    }
                    Ok(None) => return,
                    Err(error) => error,
                },
                _ => error,
            };
            tracing::warn!(error = %blind, "a guard's key cannot be watched; only its session's end will tell");
            return std::future::pending().await;
        }
    }

    /// The revision at which the key was read and stood, if it did.
    async fn stands(&self) -> Result<Option<i64>> {
        let request = pb::RangeRequest { key: self.key.clone(), keys_only: true, ..Default::default() };
        let range = self.session.client().transport().range(request).await?;
        let missing =
            || Error::protocol("a range's answer without header", Outcome::NotApplied).at("KV/Range");
        let revision = range.header.as_ref().ok_or_else(missing)?.revision;
        Ok(range.kvs.first().is_some_and(|kv| self.is_this(kv)).then_some(revision))
    }

    /// The key is gone: whose doing was it? A lease that is gone takes its keys along, and its end is the better reason.
    pub(crate) async fn why(&self) -> LostReason {
        self.gone.store(true, Ordering::Release);
        let lease = self.session.lease_handle();
        let asked = self.session.client().transport().lease_time_to_live(lease.id(), false);
        let reason = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) if answer.value.ttl < 0 => lease.gone(),
            // It stands, or nobody can tell in time: what is known is that the key is gone.
            _ => lease.lost_reason().unwrap_or(LostReason::KeyDeleted),
        };
        self.fall(reason);
        reason
    }

    fn is_end(&self, event: &crate::pb::mvccpb::Event) -> bool {
        event.r#type() == EventType::Delete
            && event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.key == self.key && kv.mod_revision > self.create_revision)
    }

    fn is_this(&self, kv: &KeyValue) -> bool {
        kv.key == self.key && kv.create_revision == self.create_revision
    }

    /// Holds while this key, of this create_revision, exists.
    pub(crate) fn compare(&self) -> Compare {
        Compare::create_revision(self.key.clone()).is(self.create_revision)
    }

    /// Commits a transaction behind the fence.
    async fn commit(&self, txn: Txn) -> Result<TxnReply> {
        // Saves the server the trouble, and whoever wakes late the wait for its answer.
        self.check()?;
        // The fence's own failure must not be taken for that of the user's compares.
        let flat = txn.is_unconditional();
        let fenced = match flat {
            true => txn.compare(self.compare()),
            false => Txn::new().compare(self.compare()).success(Op::txn(txn)),
        };
        let answer = self.session.client().transport().txn(fenced.into(), Repeat::Never).await;
        let reply = TxnReply::try_from(self.session.learn(answer)?.value)?;
        match reply.succeeded {
            false => {
                self.fall(LostReason::KeyDeleted);
                Err(Error::new(ErrorKind::Fenced, Outcome::NotApplied).at("KV/Txn"))
            }
            true if flat => Ok(reply),
            true => reply.inner(),
        }
    }
}

/// A transaction behind a guard's fence: the server commits it only while that guard's key, of that create_revision,
/// exists.
///
/// A holder that was paused, partitioned or replaced cannot write with it, however late its request arrives. That
/// protects what lives in etcd; for what lives elsewhere, hand on the guard's token and have it checked there.
///
/// The fence takes one compare, and with compares of your own one operation more, out of the server's
/// `--max-txn-ops`.
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

impl<'a> FencedTxn<'a> {
    pub(crate) fn new(fence: &'a Fence) -> Self {
        Self { fence, txn: Txn::new() }
    }

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
    /// [`ErrorKind::Lost`] when the session or guard is lost already: nothing was sent. For everything else
    /// [`Error::outcome`] says whether it was applied; a write of unknown outcome is not repeated.
    ///
    /// # Cancel safety
    /// Not safe: a transaction whose future is dropped may have been applied, or not.
    pub async fn commit(self) -> Result<TxnReply> {
        self.fence.commit(self.txn).await
    }
}

/// How long the reason for a loss is worth waiting for; that it is lost is known already.
const PATIENCE: Duration = Duration::from_secs(1);
