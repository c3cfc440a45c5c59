//! What went wrong, and what a failure says of a write.

pub(crate) mod quote;

use std::error::Error as StdError;
use std::fmt;

use quote::Words;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: a [kind](Error::kind) to match on, the [outcome](Error::outcome) of the write that failed,
/// the RPC that failed, and a [source](StdError::source) to print.
///
/// ```
/// # use etcd_concurrency::{Client, ErrorKind, Mutex, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// let client = FakeEtcd::start().client();
/// let session = Session::builder(&client).open().await?;
/// let error = Mutex::new(&session, "").err().expect("an empty name locks everything");
/// assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }));
/// # Ok(()) }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    rpc: Option<&'static str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a failed write did.
///
/// ```
/// # use etcd_concurrency::{Op, Outcome, Txn, fake::{Do, FakeEtcd, On, Rpc}};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let (fake, put) = (FakeEtcd::start(), Txn::new().success(Op::put("k", "v")));
/// # let client = fake.client();
/// // The server applies the write, and its reply is lost.
/// fake.fault(On::rpc(Rpc::Txn).once(), Do::lose_reply());
/// let error = client.txn(put).await.expect_err("nobody answered");
/// assert_eq!(error.outcome(), Outcome::Unknown);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The server did not apply it, and never will. Reads are this, but for a transaction of reads: it goes as any
    /// transaction goes, and may be [`Unknown`](Self::Unknown).
    NotApplied,
    /// The server applied it; what failed came after.
    Applied,
    /// It may have been applied, or may yet be.
    Unknown,
}

/// What kind of error it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is not acceptable; nothing was sent.
    #[error("invalid {what}: {}", Words(.why))]
    InvalidInput {
        /// Which argument.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No connection could be made.
    #[error("cannot connect to {}", Words(.endpoint))]
    Connect {
        /// The endpoint, or all that were tried, separated by commas.
        endpoint: String,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Disconnected,
    /// No answer came in time.
    #[error("no answer in time")]
    Timeout,
    /// The peer does not speak etcd's protocol, or not as it should.
    #[error("unexpected answer: {}", Words(.detail))]
    Protocol {
        /// What was wrong with it.
        detail: String,
    },
    /// The server gave up waiting for consensus.
    #[error("the server timed out")]
    ServerTimeout,
    /// The member has no leader.
    #[error("no leader")]
    NoLeader,
    /// The leader changed, or the member asked is not the leader's primary lessor.
    #[error("the leader changed")]
    LeaderChanged,
    /// The server stops or is not ready.
    #[error("the server is unavailable: {}", Words(.message))]
    Unavailable {
        /// The server's words.
        message: String,
    },
    /// The server refused to queue more requests.
    #[error("the server has too many requests")]
    TooManyRequests,
    /// The server's database is full.
    #[error("the server's database space is exceeded")]
    NoSpace,
    /// The lease does not exist (any more).
    #[error("lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// The revision has been compacted.
    #[error("the revision has been compacted (first available: {revision})")]
    Compacted {
        /// The compact revision, or 0 where the server did not say.
        revision: i64,
    },
    /// The revision is yet to come on this member.
    #[error("the revision is a future revision")]
    FutureRevision,
    /// The transaction has more operations than the server allows (`--max-txn-ops`, 128 by default, of each sort).
    #[error(
        "too many operations in one transaction: {compares} compares, {success} operations if they hold, {failure} if not"
    )]
    TooManyOps {
        /// How many compares it has, those of nested transactions included.
        compares: usize,
        /// How many operations for when the compares hold.
        success: usize,
        /// How many operations for when they do not.
        failure: usize,
    },
    /// The request is larger than the server allows.
    #[error("the request is too large")]
    TooLarge,
    /// The answer is larger than this client takes: see
    /// [`ClientBuilder::max_answer_size`](crate::ClientBuilder::max_answer_size). A write may have been applied.
    #[error("the answer is too large: {}", Words(.message))]
    AnswerTooLarge {
        /// How large it is, and how large it may be.
        message: String,
    },
    /// A member of another cluster answered than those before it: the endpoints are of two clusters, or the cluster was
    /// replaced by another. Nothing that it said counts; what was written was written there, in the other cluster, which
    /// is what [`Outcome::Applied`] means here.
    #[error("the answer is from another cluster: {found:x}, not {expected:x}")]
    #[non_exhaustive]
    ClusterMismatch {
        /// The id of the cluster that answered first.
        expected: u64,
        /// The id of the cluster that answered now.
        found: u64,
    },
    /// The cluster answered at an earlier revision than before, which no cluster does that has kept its data: it was
    /// restored from a backup, or is another with the same id. Locks and sessions from before may be others' by now.
    /// What was written was written to the cluster as it is now, which is what [`Outcome::Applied`] means here.
    #[error("the cluster has lost revisions: {found} after {seen}")]
    #[non_exhaustive]
    RevisionsLost {
        /// A revision that the cluster had.
        seen: i64,
        /// Its revision by a later question.
        found: i64,
    },
    /// The server refused the request as malformed.
    #[error("the server refused the request: {}", Words(.message))]
    Refused {
        /// The server's words.
        message: String,
    },
    /// User name or password are wrong, or missing where the server wants them.
    #[error("authentication failed: {}", Words(.message))]
    Unauthenticated {
        /// The server's words.
        message: String,
    },
    /// The token is no longer valid.
    #[error("the auth token is no longer valid")]
    InvalidToken,
    /// The user may not do this.
    #[error("permission denied")]
    PermissionDenied,
    /// The server does not know the request.
    #[error("not supported by the server: {}", Words(.message))]
    Unsupported {
        /// The server's words.
        message: String,
    },
    /// The server ended the watch.
    #[error("the server canceled the watch: {}", Words(.reason))]
    WatchCanceled {
        /// The server's words.
        reason: String,
    },
    /// The session, or what hung on it, is lost.
    #[error("lost: {0}")]
    Lost(LostReason),
    /// Somebody else holds the lock.
    #[error("locked by another")]
    Locked,
    /// The guard's key is gone: the server refused the fenced transaction.
    #[error("fenced: the guard's key is gone")]
    Fenced,
    /// There is no such leadership to go on with: the seat is gone, or another's.
    #[error("not the leader: the seat is gone")]
    NotLeader,
    /// Others wrote what the STM's run had read, at each of its attempts; nothing was written.
    #[error("no attempt of {attempts} was free of conflicts")]
    Conflict {
        /// How many attempts were made.
        attempts: u32,
    },
    /// Nobody can tell whether the STM's run was committed; the [source](std::error::Error::source) says why.
    #[error("what became of the commit is unknown")]
    CommitUnknown,
    /// The handle belongs to an attempt of the STM that has ended.
    #[error("the attempt has ended")]
    AttemptEnded,
    /// A key's value is not what it was to be read as.
    #[error("the value of {} cannot be read: {}", Words(.key), Words(.why))]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
    /// As many are there already as there may be.
    #[error("too many clients: {count} are there already")]
    TooManyClients {
        /// How many there may be.
        count: u32,
    },
    /// What is stored is not what it should be: another client set it up differently, or it is something else.
    #[error("another {what} is stored: \"{}\"", Words(.found))]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// What was found.
        found: String,
    },
    /// An error of the server that has no kind of its own.
    #[error("the server answered {code:?}: {}", Words(.message))]
    Other {
        /// The gRPC code.
        code: tonic::Code,
        /// The server's words.
        message: String,
    },
}

/// Why a session, or a guard that hangs on it, ended.
///
/// ```
/// # use etcd_concurrency::{LostReason, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let watching = session.clone();
/// session.orphan();
/// match watching.lost().await {
///     LostReason::Orphaned => println!("somebody else keeps the lease alive now"),
///     reason => println!("stop: {reason}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The deadline passed with no keep-alive answered. The server may still hold the lease for a moment.
    #[error("the deadline passed without an answered keep-alive")]
    Expired,
    /// The server no longer has the lease, and its TTL may have run out.
    #[error("the server no longer has the lease")]
    LeaseGone,
    /// The server no longer has the lease although its TTL had not run out: somebody revoked it.
    #[error("the lease was revoked")]
    Revoked,
    /// The cluster has [lost revisions](ErrorKind::RevisionsLost): who holds what is not known any more.
    #[error("the cluster has lost revisions")]
    RevisionsLost,
    /// Somebody deleted the guard's key.
    #[error("another client deleted the key")]
    KeyDeleted,
    /// The session was closed, or its parent token was cancelled, or its client's runtime ended.
    #[error("the session was closed")]
    Closed,
    /// The session was orphaned: its lease is no longer kept alive here.
    #[error("the session was orphaned")]
    Orphaned,
    /// The guard was released.
    #[error("the guard was released")]
    Released,
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// What the failed write did. For a read, [`Outcome::NotApplied`].
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// The RPC that failed, as `Service/Method`, if one was made.
    pub fn rpc(&self) -> Option<&'static str> {
        self.0.rpc
    }

    /// Why the session or guard is lost, if that is the error.
    pub fn lost_reason(&self) -> Option<LostReason> {
        match self.0.kind {
            ErrorKind::Lost(reason) => Some(reason),
            _ => None,
        }
    }

    pub(crate) fn new(kind: ErrorKind, outcome: Outcome) -> Self {
        Self(Box::new(Inner { kind, outcome, rpc: None, source: None }))
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::new(ErrorKind::InvalidInput { what, why }, Outcome::NotApplied)
    }

    pub(crate) fn protocol(detail: impl Into<String>, outcome: Outcome) -> Self {
        let detail = detail.into();
        Self::new(ErrorKind::Protocol { detail }, outcome)
    }

    pub(crate) fn at(mut self, rpc: &'static str) -> Self {
        self.0.rpc = Some(rpc);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says how large the transaction was that had too many operations.
    pub(crate) fn with_size(mut self, [compares, success, failure]: [usize; 3]) -> Self {
        if let ErrorKind::TooManyOps { .. } = self.0.kind {
            self.0.kind = ErrorKind::TooManyOps { compares, success, failure };
        }
        self
    }

    pub(crate) fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = outcome;
        self
    }
}

impl From<LostReason> for Error {
    fn from(reason: LostReason) -> Self {
        Self::new(ErrorKind::Lost(reason), Outcome::NotApplied)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.rpc {
            Some(rpc) => write!(f, "{rpc}: {}", self.0.kind)?,
            None => write!(f, "{}", self.0.kind)?,
        }
        match self.0.outcome {
            Outcome::NotApplied => Ok(()),
            Outcome::Applied => f.write_str(" (applied)"),
            Outcome::Unknown => f.write_str(" (whether it was applied is unknown)"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("outcome", &self.0.outcome)
            .field("rpc", &self.0.rpc)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
