//! What the closure of a run reads and writes with: one attempt.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::timeout;

use super::Isolation;
use super::sets::{Seen, Sets, Span, Write};
use crate::error::{Error, ErrorKind, Outcome, Result, quote};
use crate::fence::Fence;
use crate::key::prefix_range;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::transport::Transport;
use crate::transport::retry::Repeat;
use crate::txn::{self, Op, Txn, TxnReply};

/// One attempt of a [run](super::Stm::run): reads the store, and gathers what is to be written.
///
/// Writes are local until the commit; reads see them. What has been read is not read again, so reading a key twice
/// costs one RPC. All methods take `&self`: reads may run side by side (`tokio::join!`).
///
/// Several writes of one key leave what as many transactions in a row would leave, value and lease, but the server is
/// sent the last one alone. So one that another follows is never refused; and a key that is deleted and then put counts
/// as put over: where it was there before, it keeps its create_revision, and with it whatever fence it is.
///
/// Once the attempt has ended, a handle that was moved elsewhere answers [`ErrorKind::AttemptEnded`].
///
/// ```
/// # use etcd_concurrency::{Error, Stm, StmTxn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// async fn enter(txn: StmTxn, who: &'static str) -> etcd_concurrency::Result<usize> {
///     let inside = txn.get_prefix("room/").await?;
///     if txn.get("door").await?.is_none() {
///         txn.put("door", "open")?;
///     }
///     txn.put(format!("room/{who}"), "here")?;
///     Ok(inside.len() + 1)
/// }
/// let stm = Stm::new(&client);
/// assert_eq!(stm.run(|txn| enter(txn, "ada")).await?.value, 1);
/// assert_eq!(stm.run(|txn| enter(txn, "eve")).await?.value, 2);
/// # Ok(()) }
/// ```
pub struct StmTxn {
    attempt: Arc<Attempt>,
}

impl StmTxn {
    /// The value of a key; None where it is missing, or deleted by this attempt. One RPC if it has not been read yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty key. What keeps a read from being answered until the client's request
    /// timeout. [`ErrorKind::Compacted`] where the snapshot is no longer to be had: whatever the closure makes of it,
    /// another attempt follows.
    ///
    /// # Cancel safety
    /// Safe: it only reads. So are all reads here.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let key = checked(key.into())?;
        match self.attempt.with(|sets| sets.written(&key))? {
            Some(written) => Ok(written),
            None => Ok(self.attempt.key(key).await?.value),
        }
    }

    /// The values of several keys, in their order. One RPC for all that has not been read yet.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Result<Vec<Option<Bytes>>> {
        let keys = keys.into_iter().map(|key| checked(key.into())).collect::<Result<Vec<_>>>()?;
        let unwritten = |sets: &mut Sets| {
            let unwritten = keys.iter().filter(|key| sets.written(key).is_none());
            unwritten.map(|key| Span::key(key.clone())).collect()
        };
        let spans = self.attempt.with(unwritten)?;
        self.attempt.fetch(spans).await?;
        self.attempt.with(|sets| {
            let value = |key: &Bytes| match sets.written(key) {
                Some(written) => Some(written),
                None => sets.ask_key(key).map(|seen| seen.value),
            };
            keys.iter().map(value).collect::<Option<_>>().ok_or_else(unanswered)
        })?
    }

    /// The keys from `start` up to, but without, `end`, and their values, in order; with `\0` for an end, all keys from
    /// `start` on. One RPC if they have not been read yet. Under the serializable levels a commit fails where another
    /// put a key into the range or took one out of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty `start`, or an `end` that is not after it. Else as
    /// [`get`](Self::get).
    pub async fn get_range(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        let (start, end) = (start.into(), end.into());
        if start.is_empty() {
            return Err(Error::invalid("start", "it is empty"));
        }
        if end != b"\0"[..] && end <= start {
            return Err(Error::invalid("end", "it is not after the start"));
        }
        let range = Span::range(start, end);
        self.attempt.fetch(vec![range.clone()]).await?;
        self.attempt.with(|sets| sets.ask_range(&range))?.ok_or_else(unanswered)
    }

    /// The keys that start with a prefix, and their values, in order; all keys for an empty one. Otherwise as
    /// [`get_range`](Self::get_range).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_prefix(&self, prefix: impl Into<Bytes>) -> Result<Vec<(Bytes, Bytes)>> {
        let (start, end) = prefix_range(prefix.into());
        self.get_range(start, end).await
    }

    /// The value of a key, read as a number or whatever else; None where the key is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Unreadable`] where it is no UTF-8, or cannot be parsed. Else as [`get`](Self::get).
    pub async fn get_parsed<T>(&self, key: impl Into<Bytes>) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let key = key.into();
        let Some(value) = self.get(key.clone()).await? else { return Ok(None) };
        let parsed = match std::str::from_utf8(&value) {
            Ok(text) => text.parse().map_err(|error: T::Err| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        parsed.map(Some).map_err(|why| {
            let (key, why) = (quote::text(&key), quote::bounded(&why));
            Error::new(ErrorKind::Unreadable { key, why }, Outcome::NotApplied)
        })
    }

    /// The revision that last wrote a key, as it was read; 0 for a missing key. What this attempt writes does not
    /// count. One RPC if the key has not been read yet.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn rev(&self, key: impl Into<Bytes>) -> Result<i64> {
        Ok(self.attempt.key(checked(key.into())?).await?.mod_revision)
    }

    /// Puts a key, at the commit. It keeps no lease.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty key; and behind the [fence](super::Stm::fenced) of a lock, for one below the
    /// lock's own name, `{name}/…`, as with a guard's [`txn`](crate::Fence::txn).
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        self.put_with_lease(key, value, 0)
    }

    /// Puts a key that goes with a lease, at the commit; which fails with [`ErrorKind::LeaseNotFound`] where there is
    /// no such lease.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_with_lease(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> Result<()> {
        self.write(key.into(), Write::Put { value: value.into(), lease })
    }

    /// Puts a key that keeps the lease it has, or that this attempt has given it, at the commit; which fails with
    /// [`ErrorKind::Refused`] where the key is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where this attempt has deleted the key. Else as [`put`](Self::put).
    pub fn put_keep_lease(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        self.write(key.into(), Write::PutKeepLease { value: value.into() })
    }

    /// Deletes a key, at the commit. A missing one stays missing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty key.
    pub fn del(&self, key: impl Into<Bytes>) -> Result<()> {
        self.write(key.into(), Write::Delete)
    }

    pub(super) fn new(attempt: &Arc<Attempt>) -> Self {
        Self { attempt: Arc::clone(attempt) }
    }

    fn write(&self, key: Bytes, write: Write) -> Result<()> {
        let key = checked(key)?;
        if let Some(fence) = self.attempt.fence.as_ref().filter(|_| write != Write::Delete) {
            fence.may_put(&key)?;
        }
        self.attempt.with(|sets| sets.write(key, write))?
    }
}

impl fmt::Debug for StmTxn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StmTxn").field("isolation", &self.attempt.isolation).finish_non_exhaustive()
    }
}

/// An attempt, as its handle and the run share it.
pub(super) struct Attempt {
    transport: Transport,
    isolation: Isolation,
    /// What the commit is to be behind.
    fence: Option<Fence>,
    state: Mutex<State>,
    /// Held by the read that brings the snapshot's revision; the others wait for that.
    first: tokio::sync::Mutex<()>,
}

struct State {
    /// None once the attempt has ended.
    sets: Option<Sets>,
    /// The attempt cannot be committed any more, whatever the closure does.
    doomed: Option<Error>,
}

impl Attempt {
    /// An attempt that knows something from the start.
    pub(super) fn new(
        transport: &Transport,
        isolation: Isolation,
        fence: Option<&Fence>,
        known: Sets,
    ) -> Arc<Self> {
        let state = Mutex::new(State { sets: Some(known), doomed: None });
        let (transport, first) = (transport.clone(), tokio::sync::Mutex::default());
        Arc::new(Self { transport, isolation, fence: fence.cloned(), state, first })
    }

    /// Ends it: what it read and wrote, or why it cannot be committed.
    pub(super) fn end(&self) -> Result<Sets> {
        let mut state = self.state();
        let sets = state.sets.take();
        match state.doomed.take() {
            Some(doomed) => Err(doomed),
            None => sets.ok_or_else(ended),
        }
    }

    /// Reads what is not known yet: at most one RPC; one more where another read brought the snapshot's revision meanwhile.
    pub(super) async fn fetch(&self, spans: Vec<Span>) -> Result<()> {
        let missing = |sets: &mut Sets| (sets.unknown(spans.clone()), sets.pin());
        loop {
            let (mut unknown, mut pin) = self.with(missing)?;
            if unknown.is_empty() {
                return Ok(());
            }
            let mut first = None;
            if self.isolation.has_snapshot() && pin == 0 {
                // A first read that takes longer is one that is not polled: then this one is the first.
                let patience = self.transport.limits().request_timeout;
                first = timeout(patience, self.first.lock()).await.ok();
                (unknown, pin) = self.with(missing)?;
                if pin != 0 {
                    first = None;
                }
            }
            if unknown.is_empty() {
                return Ok(());
            }
            let read = self.read(unknown, pin).await;
            drop(first);
            let read = match &self.fence {
                Some(fence) => fence.learn_of_past(read),
                None => read,
            };
            let (read, revision) = read.inspect_err(|error| self.doom(error))?;
            let is_of_snapshot = self.with(|sets| {
                let same = sets.pin() == pin;
                if same {
                    sets.learn(read, revision);
                }
                same
            })?;
            if is_of_snapshot {
                return Ok(());
            }
        }
    }

    async fn key(&self, key: Bytes) -> Result<Seen> {
        self.fetch(vec![Span::key(key.clone())]).await?;
        self.with(|sets| sets.ask_key(&key))?.ok_or_else(unanswered)
    }

    /// Reads at a revision, or (for 0) as the isolation has it: one RPC.
    async fn read(&self, spans: Vec<Span>, revision: i64) -> Result<(Vec<Answered>, i64)> {
        // The snapshot's first read is linearizable; at its revision every member that has it says the same.
        let serializable = revision != 0 || !self.isolation.has_snapshot();
        let request = |span: &Span| pb::RangeRequest { revision, serializable, ..span.request() };
        if let [span] = &spans[..] {
            let range = self.transport.range(request(span)).await?;
            let revision = txn::revision(&range)?;
            return Ok((vec![(span.clone(), range.kvs)], revision));
        }
        let gets = spans.iter().map(|span| Op::from(request(span)));
        let txn = gets.fold(Txn::new(), Txn::success);
        let answer = self.transport.txn(txn.into(), Repeat::Read).await?;
        let reply =
            TxnReply::try_from(answer.value).map_err(|error| error.with_outcome(Outcome::NotApplied))?;
        Ok((answered(spans, &reply)?, reply.header.revision))
    }

    /// A snapshot that was compacted stays so.
    fn doom(&self, error: &Error) {
        if let ErrorKind::Compacted { .. } = error.kind() {
            let doomed = Error::new(error.kind().clone(), Outcome::NotApplied);
            self.state().doomed = Some(doomed);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Sets) -> T) -> Result<T> {
        self.state().sets.as_mut().map(f).ok_or_else(ended)
    }

    /// No code of ours panics under this lock; if it did, the data would still be whole.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a span was answered with.
pub(super) type Answered = (Span, Vec<KeyValue>);

/// The answers to reads that are a transaction's first operations.
pub(super) fn answered(spans: Vec<Span>, reply: &TxnReply) -> Result<Vec<Answered>> {
    let answer = |(index, span)| {
        let kvs = reply.kvs(index).ok_or_else(|| unexpected("a read was not answered"))?;
        Ok((span, kvs.to_vec()))
    };
    spans.into_iter().enumerate().map(answer).collect()
}

/// An empty key is none.
pub(super) fn checked(key: Bytes) -> Result<Bytes> {
    if key.is_empty() { Err(Error::invalid("key", "it is empty")) } else { Ok(key) }
}

fn ended() -> Error {
    Error::new(ErrorKind::AttemptEnded, Outcome::NotApplied)
}

fn unanswered() -> Error {
    unexpected("what was read is not known")
}

fn unexpected(detail: &'static str) -> Error {
    Error::protocol(detail, Outcome::NotApplied)
}
