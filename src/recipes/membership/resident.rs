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
use crate::lease::Lease;
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
            in_doubt: Vec::new(),
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
    /// again, that is waited for, for the client's request timeout at most.
    ///
    /// It is not seen after this is Ok, but for what may come late of a join that was answered: an attempt of it that had got no
    /// answer before. What that puts is taken away as it comes.
    ///
    /// # Errors
    /// As [`Member::leave`]; and what it was that [ended](Self::ended) it before. No error where the member happens to
    /// be away. But where one of its requests to join again got no answer, now or before, or it was lost with its session and
    /// not by a word of the server's, it may be seen until the lease has ended, or once more for a moment: then there is an
    /// error with [`Outcome::Unknown`](crate::Outcome::Unknown), unless the server says, asked once more, that the lease is gone.
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

/// With the lease that the member is to be held with.
type Joining = (Arc<Lease>, Pin<Box<dyn Future<Output = Result<Member>> + Send>>);

/// What the task lives on.
struct Life {
    sessions: Renewing,
    prefix: Bytes,
    member: Option<Member>,
    /// The join that is under way: what ends the stay does not end that.
    joining: Option<Joining>,
    /// With these leases a member of ours may be seen yet, or once more: of a join without an answer, or one that was here when the
    /// session was lost.
    in_doubt: Vec<Arc<Lease>>,
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
            (None, Some(member)) => {
                self.was_lost(&member);
                Ok(())
            }
            (None, None) => self.leave_joining().await,
        };
        // With the lease goes what is held with it, and what might come.
        self.sessions.close().await;
        left?;
        match may_be_seen(&self.in_doubt).await {
            true => Err(Error::new(ErrorKind::Timeout, Outcome::Unknown).at("KV/Txn").because(SEEN)),
            false => Ok(()),
        }
    }

    /// Leaves by a join that is under way, if one is: its request may be applied still, and others would see the member come
    /// after it had left.
    async fn leave_joining(&mut self) -> Result<()> {
        let Some((lease, joining)) = self.joining.take() else { return Ok(()) };
        match timeout(self.sessions.request_timeout(), joining).await {
            Ok(Ok(member)) if member.is_valid() => return member.leave().await,
            Ok(Ok(member)) => self.was_lost(&member),
            Ok(Err(error)) if !is_open(&error) => {}
            // What was not answered is settled in the background.
            Ok(Err(_)) | Err(_) => self.doubt(lease),
        }
        Ok(())
    }

    /// Where a member was lost with its session, the server may have it for a moment yet.
    fn was_lost(&mut self, member: &Member) {
        if !member.session().is_valid() {
            self.doubt(member.session().lease_handle().clone());
        }
    }

    /// A member of ours may be seen yet, or once more, while this lease lives.
    fn doubt(&mut self, lease: Arc<Lease>) {
        self.in_doubt.retain(|other| !Arc::ptr_eq(other, &lease) && !is_gone(other));
        // What is older has ended by far, as the sessions after it have.
        if self.in_doubt.len() >= MOST_IN_DOUBT {
            self.in_doubt.remove(0);
        }
        self.in_doubt.push(lease);
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
            if let Some(member) = self.member.take_if(|member| !member.is_valid()) {
                self.was_lost(&member);
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
        let lease = session.lease_handle().clone();
        let joining = Box::pin(async move { Member::join(&session, &prefix, metadata).await });
        let (_, joining) = self.joining.insert((lease.clone(), joining));
        let joined = joining.await;
        self.joining = None;
        if joined.as_ref().is_err_and(is_open) {
            self.doubt(lease);
        }
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

/// Whether a join that failed so may be applied still: one whose session was lost ends before it is answered.
fn is_open(error: &Error) -> bool {
    error.outcome() == Outcome::Unknown || error.lost_reason().is_some()
}

/// Whether one of these leases may live, as far as the server says. It is asked where it is not known.
async fn may_be_seen(in_doubt: &[Arc<Lease>]) -> bool {
    for lease in in_doubt {
        let lost = lease.lost_reason();
        // Lost here, or revoked without an answer.
        let may_be_over = matches!(lost, Some(LostReason::Expired | LostReason::Closed));
        let is_over = is_gone(lease) || may_be_over && matches!(lease.is_over().await, Ok(true));
        if !is_over {
            return true;
        }
    }
    false
}

/// The server has said that the lease is gone: nothing comes any more that is to be held with it.
fn is_gone(lease: &Lease) -> bool {
    match lease.lost_reason() {
        Some(LostReason::LeaseGone | LostReason::Revoked) => true,
        lost @ Some(LostReason::Closed | LostReason::Expired) => !lease.may_live(lost),
        _ => false,
    }
}

/// How many leases are remembered with which a member may be seen.
const MOST_IN_DOUBT: usize = 8;
const SEEN: &str =
    "a join was not answered, or the session was lost without the server's word: the member may be seen yet";
