//! Elections: a mutex whose holder has something to say, and whom everybody can follow.

mod leadership;
mod observe;
mod terms;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::contender;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{self, by_age};
use crate::waitlist::Waitlist;
pub use leadership::Leadership;
pub use observe::Observer;
use terms::Terms;

/// An election on a name: one session at a time leads, the others wait in the order of asking. Go's
/// `concurrency.Election`.
///
/// The key layout is Go's (`{name}/{lease in lower-case hex}`), so Go's clients, `etcdctl elect`, etcd's own election
/// service and this crate stand in one queue. A candidate's value stands in its key; the candidate with the oldest key
/// leads.
///
/// # Which call do I need?
/// | I want to | use |
/// |---|---|
/// | lead once, and do something meanwhile | [`campaign`](Self::campaign), and [`Leadership::run`] |
/// | lead whenever I can, for as long as I live | [`lead`](Self::lead) |
/// | know who leads | [`leader`](Self::leader), or [`observe`](Self::observe) for every change |
/// | write only while I lead | [`Fence::txn`](crate::Fence::txn), by the leadership |
///
/// Two leaders at once are as possible as two holders of a lock, see [`Mutex`](crate::Mutex#what-a-lock-can-promise):
/// write behind the fence.
///
/// ```
/// # use etcd_concurrency::{Election, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let election = Election::new(&session, "scheduler")?;
/// let leadership = election.campaign("node-1").await?;
/// assert_eq!(election.leader().await?.expect("a leader").value, "node-1");
/// leadership.proclaim("node-1 on port 7000").await?;
/// leadership.resign().await?;
/// assert_eq!(election.leader().await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Election {
    list: Waitlist,
    name: Bytes,
}

/// Who leads, or waits to.
///
/// ```
/// # use etcd_concurrency::{Candidate, Election, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// # let election = Election::new(&session, "scheduler")?;
/// let leadership = election.campaign("node-1").await?;
/// let candidates: Vec<Candidate> = election.contenders().await?;
/// assert_eq!((candidates[0].token, candidates[0].lease), (leadership.token(), session.lease()));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// The candidate's key.
    pub key: Bytes,
    /// What it campaigned with, or proclaimed last.
    pub value: Bytes,
    /// The key's create_revision: the fencing token, if this candidate leads. Each leader's is greater than all before.
    pub token: i64,
    /// The revision that wrote the value.
    pub mod_revision: i64,
    /// The lease of the candidate's session.
    pub lease: i64,
}

impl Election {
    /// The election of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        let name = Bytes::copy_from_slice(name.as_ref());
        Ok(Self { list: Waitlist::new(session, &name)?, name })
    }

    /// The session that stands for election.
    pub fn session(&self) -> &Session {
        self.list.session()
    }

    /// Stands for election with a value, and waits until elected. Use [`tokio::time::timeout`] for a limit.
    ///
    /// Uncontended: one RPC. Waiting makes none, except for a look at the predecessor's key every one to two minutes;
    /// when the turn comes, none for the direct successor of the leader, one for others. Tasks that campaign through
    /// one session queue in the process.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] as soon as the session is lost, or the waiting key was deleted by somebody. Whatever keeps
    /// the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point withdraws the candidate and leaves no key, watch or task behind: what is under
    /// way is settled in the background. The place in the queue is lost.
    pub async fn campaign(&self, value: impl Into<Bytes>) -> Result<Leadership> {
        Ok(Leadership::new(self.list.enter(value.into()).await?))
    }

    /// Goes on leading after a restart of the process: with a session that has [adopted](crate::SessionBuilder::lease)
    /// the leader's lease, and the [key](crate::Fence::key) and [token](crate::Fence::token) of the leadership, from
    /// wherever they were stored. One RPC, that only reads. Go's `ResumeElection`, which does not look.
    ///
    /// ```
    /// # use etcd_concurrency::{Election, Session, fake::FakeEtcd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
    /// # let client = FakeEtcd::start().client();
    /// # let before = Session::open(&client).await?;
    /// let leadership = Election::new(&before, "scheduler")?.campaign("node-1").await?;
    /// let (key, token) = (leadership.key().clone(), leadership.token());
    /// let lease = before.orphan();
    /// // Another process, a moment later:
    /// let session = Session::builder(&client).lease(lease).open().await?;
    /// let leadership = Election::new(&session, "scheduler")?.resume(key, token).await?;
    /// leadership.proclaim("node-1, back again").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotLeader`] if the seat is gone: the key does not exist, is of another create_revision, or does not
    /// lead. [`ErrorKind::InvalidInput`] for a key that is not this session's on this name. [`ErrorKind::Locked`] while
    /// a task of this process campaigns or leads with the same session.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn resume(&self, key: impl AsRef<[u8]>, token: i64) -> Result<Leadership> {
        if key.as_ref() != &self.list.key()[..] {
            let why = format!("this session's key on this name is {:?}", self.list.key());
            return Err(Error::invalid("key", why));
        }
        let place = self.list.come_back(token).await?;
        Ok(Leadership::new(place.ok_or_else(|| Error::new(ErrorKind::NotLeader, Outcome::NotApplied))?))
    }

    /// Who leads now; None when nobody stands for election. One RPC, and one more where a key that no candidate put (one
    /// that is not of the layout above) is older than the leader's. Go's `Leader`.
    ///
    /// # Errors
    /// Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn leader(&self) -> Result<Option<Candidate>> {
        match &self.read(1).await?[..] {
            // A key that no candidate put is in the way: who comes after it?
            [first] if !self.is_candidate(first) => Ok(self.contenders().await?.into_iter().next()),
            first => Ok(first.first().cloned().map(Candidate::from)),
        }
    }

    /// All who stand for election: the leader, then those who wait, in their order. One RPC.
    ///
    /// # Errors
    /// As [`leader`](Self::leader).
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn contenders(&self) -> Result<Vec<Candidate>> {
        let all = self.read(0).await?.into_iter();
        Ok(all.filter(|kv| self.is_candidate(kv)).map(Candidate::from).collect())
    }

    /// Follows the election: who leads now, then every change of the leader or of its value, and every empty seat
    /// (None). One RPC at the start, none per change; reconnects and compactions are outlived. Every one to two minutes
    /// one more counts the candidates, after deletions that old servers lose. Nothing is sent before the first item is
    /// asked for. Where something may have been left out, [`Observer::gaps`] tells.
    ///
    /// It ends with an error when the election's session is lost, or watching is refused. Go's `Observe`.
    pub fn observe(&self) -> Observer {
        Observer::new(self.session(), self.list.prefix())
    }

    /// Leads whenever it can: campaigns, does the work until that has ended or the leadership is lost, and in the
    /// latter case campaigns again, over session losses too. Returns what the work returned.
    ///
    /// When the leadership is lost the work is dropped, wherever it waits: it must not have handed on what it does to
    /// other tasks; [`lead_cooperative`](Self::lead_cooperative) tells it instead. The seat is given up after the work
    /// has ended, also where clones of the leadership were kept. Work whose leadership was lost just as it ended is done
    /// again.
    ///
    /// Where the session was lost, another is opened with the same settings; it is closed at the end. Between terms
    /// there is a pause, which grows from 25 ms to 1 s while no term lasts.
    ///
    /// ```
    /// # use etcd_concurrency::{Election, Op, Session, fake::FakeEtcd};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
    /// # let client = FakeEtcd::start().client();
    /// # let session = Session::open(&client).await?;
    /// let election = Election::new(&session, "scheduler")?;
    /// let done = election.lead("node-1", |leadership| async move {
    ///     leadership.txn().success(Op::put("schedule", "…")).commit().await
    /// });
    /// assert!(done.await??.succeeded);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] when the session was closed or orphaned, or its parent token cancelled. What no time mends: no
    /// permission, an unknown user, a wrong password, a request that the server refuses as it is. Anything else, a full
    /// database and a token that is refused again and again among it, is tried again.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work, and gives the seat up in the background.
    pub async fn lead<T, W, F>(&self, value: impl Into<Bytes>, mut work: W) -> Result<T>
    where
        W: FnMut(Arc<Leadership>) -> F,
        F: Future<Output = T>,
    {
        let mut terms = Terms::new(self, value.into());
        loop {
            let term = terms.next().await?;
            let leadership = term.leadership();
            match leadership.owned().run(work(leadership.clone())).await {
                Ok(done) => {
                    terms.end().await;
                    return Ok(done);
                }
                Err(error) => terms.lost(term, error).await?,
            }
        }
    }

    /// As [`lead`](Self::lead), with work that ends by itself when it is told: the token is cancelled when the
    /// leadership is lost, and the next campaign begins after the work has ended.
    ///
    /// # Errors
    /// As [`lead`](Self::lead), but always after the work has ended.
    ///
    /// # Cancel safety
    /// As [`lead`](Self::lead).
    pub async fn lead_cooperative<T, W, F>(&self, value: impl Into<Bytes>, mut work: W) -> Result<T>
    where
        W: FnMut(Arc<Leadership>, CancellationToken) -> F,
        F: Future<Output = T>,
    {
        let mut terms = Terms::new(self, value.into());
        loop {
            let term = terms.next().await?;
            let leadership = term.leadership();
            match leadership.owned().run_cooperative(|told| work(leadership.clone(), told)).await {
                Ok(done) => {
                    terms.end().await;
                    return Ok(done);
                }
                Err(error) => terms.lost(term, error).await?,
            }
        }
    }

    /// The same election, for another session.
    fn with(&self, session: &Session) -> Result<Self> {
        Self::new(session, &self.name)
    }

    async fn read(&self, limit: i64) -> Result<Vec<KeyValue>> {
        let request = by_age(self.list.prefix(), limit);
        let range = self.session().client().transport().range(request).await;
        let range = self.session().lease_handle().learn_of_past(range)?;
        txn::revision(&range)?;
        Ok(range.kvs)
    }

    fn is_candidate(&self, kv: &KeyValue) -> bool {
        contender(self.list.prefix(), &kv.key).holds(kv.lease)
    }
}

impl From<KeyValue> for Candidate {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, lease, .. } = kv;
        Self { key, value, token: create_revision, mod_revision, lease }
    }
}
