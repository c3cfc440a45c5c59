//! Software transactional memory: closures that read and write, and are committed as a whole or not at all.

mod commit;
mod handle;
mod known;
mod marker;
#[cfg(test)]
mod model;
mod run;
mod sets;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::Client;
use crate::error::{Error, Outcome, Result};
use crate::fence::Fence;
use crate::session::Session;
use commit::Commit;
pub use handle::StmTxn;
use handle::{Attempt, checked};
use marker::Markers;
use run::{Limits, Run};
use sets::{Sets, Span};

/// Software transactional memory: runs a closure that reads and writes keys, and commits what it did in one
/// transaction; if others wrote what it read, it is run again. Go's `NewSTM`.
///
/// A clone is cheap. Any number of runs may be under way at once.
///
/// ```
/// # use etcd_concurrency::{Stm, StmTxn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// async fn transfer(txn: StmTxn, from: &'static str, to: &'static str, sum: u64) -> etcd_concurrency::Result<bool> {
///     let balance: u64 = txn.get_parsed(from).await?.unwrap_or(0);
///     let Some(rest) = balance.checked_sub(sum) else { return Ok(false) };
///     let there: u64 = txn.get_parsed(to).await?.unwrap_or(0);
///     txn.put(from, rest.to_string())?;
///     txn.put(to, (there + sum).to_string())?;
///     Ok(true)
/// }
/// let stm = Stm::new(&client);
/// stm.run(|txn| async move { txn.put("ada", "100") }).await?;
/// let done = stm.run(|txn| transfer(txn, "ada", "eve", 30)).await?;
/// assert!(done.value);
/// assert_eq!(done.attempts, 1);
/// # Ok(()) }
/// ```
///
/// # The closure
/// It may be run several times, so it should do nothing but read and write through its [`StmTxn`]. What it returns is
/// returned by the run that was committed. An error that it returns ends the run, with nothing written.
///
/// # What it costs
/// One RPC for each read of something new, one for the commit; none for the commit of a run that only read, under the
/// serializable levels. A failed commit brings back what was read, as it is now: the first retry costs one RPC where it
/// reads the same; later ones, which come after a pause, read it anew and cost two. One that has read more than 1 MiB, or than half of
/// the [largest answer](crate::ClientBuilder::max_answer_size), brings nothing back. Keys named to [`prefetch`](Self::prefetch) cost one
/// RPC together.
///
/// Each key that was read and each that was written takes a compare out of the server's `--max-txn-ops` (128 by
/// default), and each range one and one for each key found in it; see
/// [`ErrorKind::TooManyOps`](crate::ErrorKind::TooManyOps). With etcd's auth, all of them must be readable to the user.
///
/// # Coming from Go
/// `WithIsolation` and `WithPrefetch` are methods here; for `WithAbortContext`, drop the run's future, or set a
/// [`deadline`](Self::deadline). `NewSTMRepeatable`, `NewSTMSerializable` and `NewSTMReadCommitted`, deprecated there,
/// are [`isolation`](Self::isolation). A missing key is `None` here, not an empty string.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `run`"]
pub struct Stm {
    client: Client,
    isolation: Isolation,
    prefetch: Arc<[Bytes]>,
    max_attempts: Option<u32>,
    deadline: Option<Duration>,
    fence: Option<Fence>,
    marker_prefix: Bytes,
    markers: Option<Arc<Markers>>,
}

/// What an attempt may see of others' writes, and which of them keep it from being committed.
///
/// All levels write all or nothing, never show what is not committed, and give one key one value within an attempt.
///
/// | | reads | the commit fails where others, since it was read, | so it allows |
/// |---|---|---|---|
/// | [`SerializableSnapshot`](Self::SerializableSnapshot) | one revision | wrote a key or range that was read, or a key that is written | nothing |
/// | [`Serializable`](Self::Serializable) | one revision | wrote a key or range that was read | overwriting what was not read |
/// | [`RepeatableReads`](Self::RepeatableReads) | each key once | wrote a key that was read or found | the same, phantoms, read skew within an attempt |
/// | [`ReadCommitted`](Self::ReadCommitted) | each key once | — | the same, read skew, lost updates, write skew |
///
/// ```
/// # use etcd_concurrency::{Isolation, Stm, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let stm = Stm::new(&client).isolation(Isolation::Serializable);
/// let read = stm.run(|txn| async move { txn.get_many(["a", "b"]).await }).await?;
/// assert_eq!(read.value, [None, None]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// All reads are of one revision, that of the first; nothing that was read, and nothing that is written after
    /// something was read, may have been written by others since.
    #[default]
    SerializableSnapshot,
    /// The same, but a key that is written without having been read may have been written by others since: it is
    /// overwritten.
    Serializable,
    /// Each key is read once, at whatever revision the member asked has, which may lag behind. The values of one
    /// attempt may be of different revisions (read skew), but an attempt that saw such is not committed: none of the
    /// keys that were read may have been written since. A range may have new keys by then (phantoms).
    RepeatableReads,
    /// Reads as [`RepeatableReads`](Self::RepeatableReads), and is always committed: what others wrote meanwhile is
    /// overwritten (lost updates), or no longer what the writes rest on (write skew).
    ReadCommitted,
}

impl Isolation {
    /// All reads are of one revision.
    fn has_snapshot(self) -> bool {
        matches!(self, Isolation::SerializableSnapshot | Isolation::Serializable)
    }
}

/// A run that was committed.
///
/// ```
/// # use etcd_concurrency::{Committed, Stm, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let stm = Stm::new(&client);
/// let written = stm.run(|txn| async move { txn.put("a", "1") }).await?;
/// let read = stm.run(|txn| async move { txn.rev("a").await }).await?;
/// assert_eq!(read.value, written.revision);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// The revision of the commit. Where nothing was written: of what was read (under
    /// [`ReadCommitted`](Isolation::ReadCommitted), of the newest read; under
    /// [`RepeatableReads`](Isolation::RepeatableReads), one at which all keys that were read or found held, or of the newest
    /// read where only empty ranges were read); 0 where nothing was read either.
    pub revision: i64,
    /// Which attempt was committed; the first is 1.
    pub attempts: u32,
}

impl Stm {
    /// Transactional memory over a client: [`SerializableSnapshot`](Isolation::SerializableSnapshot), as many attempts
    /// as it takes.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            isolation: Isolation::default(),
            prefetch: Arc::new([]),
            max_attempts: None,
            deadline: None,
            fence: None,
            marker_prefix: Bytes::from_static(MARKER_PREFIX),
            markers: None,
        }
    }

    /// The isolation level. Go's `WithIsolation`.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Reads these keys, too, before the closure runs: one RPC for all. One that the closure does not ask for does not
    /// count as read. Go's `WithPrefetch`.
    pub fn prefetch(mut self, keys: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        self.prefetch = self.prefetch.iter().cloned().chain(keys.into_iter().map(Into::into)).collect();
        self
    }

    /// How many attempts a run makes at most. Default: no limit.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// How long after its beginning a run may still begin another attempt. Default: no limit.
    ///
    /// An attempt is not cut short, so that its outcome is known; each of its RPCs has the client's request timeout.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Commits only while the fence stands: with the compare of [`Fence::is_owner`]. A run that only reads is then
    /// committed, too, with one RPC. A guard is its fence: `.fenced(&guard)`.
    ///
    /// The fence must be of this client's cluster and namespace. Behind that of a lock nothing is put below the lock's own
    /// name: see [`StmTxn::put`].
    pub fn fenced(mut self, fence: &Fence) -> Self {
        self.fence = Some(fence.clone());
        self
    }

    /// Finds out what became of a commit that nobody answered, and goes on from there: a run is applied once where it
    /// returns a value, and not at all where it returns an error other than
    /// [`ErrorKind::CommitUnknown`](crate::ErrorKind::CommitUnknown).
    ///
    /// That holds for requests that are applied late, too, however late: the server refuses them. For this each commit
    /// also puts a marker key with the session's lease, one for each run under way at the same
    /// time; they are used again, and deleted with the last clone of this `Stm`, or with the session. One whose very first
    /// commit got no answer at once stays until the session's lease ends. They take one
    /// compare and one operation of each commit, and no other client is to touch them: after one is deleted, a request that is
    /// still under way may be applied a second time. See
    /// [`marker_prefix`](Self::marker_prefix). Runs that write nothing need none.
    ///
    /// The session must be of this client's cluster. It stays open as long as this `Stm`.
    pub fn exactly_once(mut self, session: &Session) -> Self {
        self.markers = Some(Markers::new(&self.client, session, &self.marker_prefix));
        self
    }

    /// What the keys begin with that [`exactly_once`](Self::exactly_once) puts: after it come the lease's id in
    /// lower-case hex, a slash, and something random. Default: `__stm/`. With etcd's auth, the user must be allowed to
    /// read and write there.
    pub fn marker_prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.marker_prefix = prefix.into();
        if let Some(markers) = self.markers.take() {
            return self.exactly_once(markers.session());
        }
        self
    }

    /// Runs the closure, and commits what it wrote; again and again, until nobody else wrote in between what it read.
    /// The first retry comes at once, later ones after random pauses that grow to 64 ms.
    ///
    /// # Errors
    /// What the closure returns; nothing is written then. Of its own, as the closure's error type has them:
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) where no attempt within the limits was free of conflicts.
    /// - [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) or [`ErrorKind::Lost`](crate::ErrorKind::Lost) where the fence
    ///   fell, or the session of [`exactly_once`](Self::exactly_once) was lost. Nothing was written.
    /// - [`ErrorKind::CommitUnknown`](crate::ErrorKind::CommitUnknown) where nobody answered the commit. With
    ///   [`exactly_once`](Self::exactly_once): where the session was lost, or the server refused to let the marker be
    ///   put, before that could be found out.
    /// - [`ErrorKind::TooManyOps`](crate::ErrorKind::TooManyOps), [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge)
    ///   and whatever else the server refuses the commit for; what keeps it from being asked until the client's request
    ///   timeout. Nothing was written.
    /// - [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for limits of no attempt, an empty key to prefetch, or
    ///   markers below the name of the lock that is the fence; and for a put of the fence's own key without its lease. Nothing
    ///   was written.
    ///
    /// # Panics
    /// Where the closure does; what that attempt was to write is not written.
    ///
    /// # Cancel safety
    /// Dropping the future while the closure runs writes nothing. While a commit is under way it may be applied, or
    /// not, and that at any later time; at most once with [`exactly_once`](Self::exactly_once), and no more after the
    /// session's lease has ended. It leaves no key behind but those of `exactly_once`, which go as is said there.
    pub async fn run<T, E, F, Fut>(&self, mut body: F) -> Result<Committed<T>, E>
    where
        F: FnMut(StmTxn) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let mut limits = Limits::new(self.max_attempts, self.deadline)?;
        let mut ahead = self.ahead()?;
        if let (Some(fence), Some(markers)) = (&self.fence, &self.markers) {
            fence.may_put(markers.prefix())?;
        }
        let mut run = Run::new();
        let mut known = Sets::new(self.isolation);
        loop {
            limits.attempts += 1;
            if let Err(error) = self.standing() {
                return run.end(Err(error.into())).await;
            }
            let attempt = Attempt::new(self.client.transport(), self.isolation, self.fence.as_ref(), known);
            let done = match attempt.fetch(ahead.clone()).await {
                Ok(()) => body(StmTxn::new(&attempt)).await,
                Err(error) => Err(error.into()),
            };
            let why;
            (known, why) = match (attempt.end(), done) {
                (Err(doomed), _) => (Sets::new(self.isolation), limits.conflict().because(doomed)),
                (Ok(_), Err(error)) => return run.end(Err(error)).await,
                (Ok(sets), Ok(value)) if !self.needs_commit(&sets) => {
                    let (revision, attempts) = (sets.revision(), limits.attempts);
                    return run.end(Ok(Committed { value, revision, attempts })).await;
                }
                (Ok(sets), Ok(value)) => {
                    run.offer(limits.attempts, value);
                    let mark = match &self.markers {
                        Some(markers) if sets.has_written() => {
                            Some(run.mark.get_or_insert_with(|| markers.take()))
                        }
                        _ => None,
                    };
                    match self.commit(&sets, limits.attempts, mark).await {
                        Ok(Commit::Done { attempt, revision }) => {
                            let committed = run.committed(attempt, revision)?;
                            return run.end(Ok(committed)).await;
                        }
                        Ok(Commit::Conflict(seen)) => (seen, limits.conflict()),
                        Ok(Commit::Failed(error)) => (Sets::new(self.isolation), error),
                        Err(error) if error.outcome() == Outcome::Unknown => return Err(error.into()),
                        Err(error) => return run.end(Err(error.into())).await,
                    }
                }
            };
            run.refused();
            match limits.pause() {
                Some(pause) if pause.is_zero() => {}
                Some(pause) => {
                    tokio::time::sleep(pause).await;
                    // What the commit brought back is old by now, and would only meet the next conflict.
                    let again = known.spans();
                    known = Sets::new(self.isolation);
                    if !again.is_empty() {
                        ahead = again;
                    }
                }
                None => return run.end(Err(why.into())).await,
            }
        }
    }

    /// What is read before the closure runs.
    fn ahead(&self) -> Result<Vec<Span>> {
        self.prefetch.iter().map(|key| Ok(Span::key(checked(key.clone())?))).collect()
    }
}

/// The keys of markers, so that they stand together out of the way.
const MARKER_PREFIX: &[u8] = b"__stm/";
