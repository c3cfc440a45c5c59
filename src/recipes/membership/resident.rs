//! A member that comes back by itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Member;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::session::Session;
use crate::session::renew::Renewing;

/// A member that joins again whenever it is lost, until it is left or dropped. Made by
/// [`Membership::remain`](super::Membership::remain).
///
/// It ends by itself when its session is closed or orphaned, or on what no time mends (no permission);
/// [`ended`](Self::ended) tells. Dropping it leaves the group in the background.
///
/// ```
/// # use etcd_concurrency::{Membership, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> etcd_concurrency::Result<()> {
/// # let fake = FakeEtcd::start();
/// # let client = fake.client();
/// let session = Session::open(&client).await?;
/// let workers = Membership::new(&session, "workers")?;
/// let resident = workers.remain("10.0.0.7:7000").await?;
/// // The session is lost, for whatever reason; a moment later the member is here again, with another.
/// fake.expire_lease(session.lease());
/// # fake.until(|fake| fake.snapshot().keys.iter().any(|kv| kv.lease != session.lease())).await;
/// assert_eq!(workers.list().await?[0].metadata, "10.0.0.7:7000");
/// resident.leave().await?;
/// # Ok(()) }
/// ```
#[must_use = "dropping it leaves the group"]
pub struct Resident {
    metadata: watch::Sender<Bytes>,
    presence: watch::Receiver<Presence>,
    task: JoinHandle<Result<()>>,
    gone: DropGuard,
}

#[derive(Debug, Clone)]
enum Presence {
    Here(Fence),
    Away,
    Ended(Arc<Error>),
}

impl Resident {
    pub(super) fn new(member: Member, prefix: Bytes, metadata: Bytes) -> Self {
        let runtime = member.session().client().runtime().clone();
        let (metadata, wanted) = watch::channel(metadata);
        let (told, presence) = watch::channel(Presence::Here(member.fence().clone()));
        let gone = CancellationToken::new();
        let life = Life {
            sessions: Renewing::new(member.session()),
            prefix,
            member: Some(member),
            joining: None,
            wanted,
            told,
        };
        let task = runtime.spawn(life.live(gone.clone()));
        Self { metadata, presence, task, gone: gone.drop_guard() }
    }

    /// Says something else of itself from here on: at once, or as soon as it is here again. Nothing is waited for; of
    /// several updates in quick succession the last one counts.
    pub fn update(&self, metadata: impl Into<Bytes>) {
        self.metadata.send_replace(metadata.into());
    }

    /// The member as it is here now: its key, its token; none while it is away.
    pub fn fence(&self) -> Option<Fence> {
        match &*self.presence.borrow() {
            Presence::Here(fence) if fence.is_valid() => Some(fence.clone()),
            _ => None,
        }
    }

    /// Resolves once it has ended by itself, with what it was that no time mends.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn ended(&self) -> Error {
        let mut presence = self.presence.clone();
        let ended = presence.wait_for(|presence| matches!(presence, Presence::Ended(_))).await;
        match ended.as_deref() {
            Ok(Presence::Ended(error)) => {
                Error::new(error.kind().clone(), error.outcome()).because(error.clone())
            }
            // The task went with its runtime.
            _ => LostReason::Closed.into(),
        }
    }

    /// Leaves the group for good: one RPC, and one more for a session that was opened on the way. Where it is about to join
    /// again, that is waited for, for the client's request timeout at most: it is not seen after this is Ok.
    ///
    /// # Errors
    /// As [`Member::leave`]; and what it was that [ended](Self::ended) it before. No error where the member happens to
    /// be away; but where the request to join again got no answer, that is the error, with
    /// [`Outcome::Unknown`](crate::Outcome::Unknown): it may be seen once more for a moment.
    ///
    /// # Cancel safety
    /// Dropping the future lets it go on in the background.
    pub async fn leave(self) -> Result<()> {
        let Self { metadata: _metadata, presence: _presence, task, gone } = self;
        drop(gone);
        task.await.unwrap_or_else(|_| Err(LostReason::Closed.into()))
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident").field("presence", &*self.presence.borrow()).finish_non_exhaustive()
    }
}

type Joining = Pin<Box<dyn Future<Output = Result<Member>> + Send>>;

/// What the task lives on.
struct Life {
    sessions: Renewing,
    prefix: Bytes,
    member: Option<Member>,
    /// The join that is under way: what ends the stay does not end that.
    joining: Option<Joining>,
    wanted: watch::Receiver<Bytes>,
    told: watch::Sender<Presence>,
}

impl Life {
    async fn live(mut self, gone: CancellationToken) -> Result<()> {
        let ended = tokio::select! {
            biased;
            () = gone.cancelled() => None,
            error = self.stay() => Some(error),
        };
        let left = match (ended, self.member.take()) {
            (Some(error), _) => {
                let error = Arc::new(error);
                let copy = Error::new(error.kind().clone(), error.outcome()).because(error.clone());
                self.told.send_replace(Presence::Ended(error));
                Err(copy)
            }
            (None, Some(member)) if member.is_valid() => member.leave().await,
            (None, _) => self.leave_joining().await,
        };
        self.sessions.close().await;
        left
    }

    /// Leaves by a join that is under way, if one is: its request may be applied still, and others would see the member come
    /// after it had left.
    async fn leave_joining(&mut self) -> Result<()> {
        let Some(joining) = self.joining.take() else { return Ok(()) };
        let patience = self.sessions.request_timeout();
        let unanswered = || Error::new(ErrorKind::Timeout, Outcome::Unknown).at("KV/Txn");
        match timeout(patience, joining).await.unwrap_or_else(|_| Err(unanswered())) {
            Ok(member) if member.is_valid() => member.leave().await,
            // What was not answered is settled in the background.
            Err(error) if error.outcome() == Outcome::Unknown => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Stays for as long as that can be.
    async fn stay(&mut self) -> Error {
        loop {
            let error = match self.while_here().await {
                Some(error) => error,
                None => match self.join().await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            if self.member.take_if(|member| !member.is_valid()).is_some() {
                self.told.send_replace(Presence::Away);
            }
            if let Err(error) = self.sessions.after(error).await {
                return error;
            }
        }
    }

    async fn join(&mut self) -> Result<()> {
        let session: Session = self.sessions.session().await?;
        let metadata = self.wanted.borrow_and_update().clone();
        let prefix = self.prefix.clone();
        let joining = Box::pin(async move { Member::join(&session, &prefix, metadata).await });
        let joined = self.joining.insert(joining).await;
        self.joining = None;
        let member = joined?;
        self.sessions.well();
        self.told.send_replace(Presence::Here(member.fence().clone()));
        self.member = Some(member);
        Ok(())
    }

    /// Says what is to be said, until that fails or the member is lost. None while it is away.
    async fn while_here(&mut self) -> Option<Error> {
        let member = self.member.as_ref()?;
        // One watch of the key for as long as it is here.
        let mut lost = std::pin::pin!(member.lost());
        loop {
            tokio::select! {
                biased;
                reason = &mut lost => return Some(reason.into()),
                Ok(()) = self.wanted.changed() => {}
            }
            let metadata = self.wanted.borrow_and_update().clone();
            match member.update(metadata).await {
                Ok(()) => self.sessions.well(),
                Err(error) => {
                    // What could not be said is to be said still.
                    self.wanted.mark_changed();
                    return Some(error);
                }
            }
        }
    }
}
