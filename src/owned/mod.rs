//! Keys of our own: put with a session's lease, held, and taken back whatever happens.
//!
//! A [`Plan`] says what is put, what must hold for that, and what is read and done along with it. What it brings back
//! is an [`Owned`], which is what guards, members and places in a queue are made of. However it ends (released, dropped,
//! its put cut off), what is known to be there is deleted, and what may be there is looked for.
//!
//! Nobody else puts these keys: most are drawn anew each time, and the others are the session's, which its tasks put in
//! turn. So a put that is repeated finds itself.

mod guard;
mod leave;
mod plan;
mod turns;
mod writes;

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::txn::{Op, Txn};
pub(crate) use guard::{guard, holder};
use leave::{Deleted, Leave};
pub(crate) use plan::{Plan, Planned};
pub(crate) use turns::Turns;
pub(crate) use writes::Last;
use writes::Writes;

/// Keys that are held: put by one transaction, so of one create_revision, and given up together. Dropped, they are
/// deleted in the background.
pub(crate) struct Owned {
    session: Session,
    /// One for each key.
    fences: Vec<Fence>,
    header: pb::ResponseHeader,
    writes: Writes,
    /// How they are given up; None once that is in hand.
    leave: Mutex<Option<Leave>>,
    /// The user was given them: they stay where the session is orphaned, for who adopts it.
    handed_out: bool,
}

impl Owned {
    fn new(session: Session, leave: Leave, create_revision: i64, header: pb::ResponseHeader) -> Self {
        leave.owns(create_revision);
        let fences = Fence::each(&session, leave.keys(), create_revision);
        fences.iter().for_each(|fence| fence.stood_at(header.revision));
        let (writes, leave) = (Writes::new(create_revision), Mutex::new(Some(leave)));
        Self { session, fences, header, writes, leave, handed_out: false }
    }

    /// The user is given them.
    pub(crate) fn handed_out(mut self) -> Self {
        self.handed_out = true;
        if let Some(leave) = self.leave.get_mut().unwrap_or_else(PoisonError::into_inner) {
            leave.set_held(Some(&self.fences[0]));
        }
        self
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The key that is held, of its incarnation; of several, the first.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fences[0]
    }

    /// The keys that are held.
    pub(crate) fn fences(&self) -> &[Fence] {
        &self.fences
    }

    /// The header of the answer that proved them to be held.
    pub(crate) fn header(&self) -> &pb::ResponseHeader {
        &self.header
    }

    /// The header's revision is that of a later proof.
    pub(crate) fn proven_at(&mut self, revision: i64) {
        self.header.revision = self.header.revision.max(revision);
        self.fences.iter().for_each(|fence| fence.stood_at(revision));
    }

    /// The key was found, and may have been written before: this is the last write of it.
    pub(crate) fn after(&mut self, last: Last) {
        self.writes = Writes::after(last);
    }

    /// The error that the loss of a key is, if one is known to be lost.
    pub(crate) fn check(&self) -> Result<()> {
        self.fences.iter().try_for_each(Fence::check)
    }

    /// Proves at one revision that all keys stand: one RPC, that asks the cluster and not one member.
    pub(crate) async fn confirm(&mut self) -> Result<()> {
        let stand = self.fence().stands_whole().fold(Txn::new(), Txn::compare);
        // Without a read that is not serializable the member that is asked would answer from its own state, and may lag.
        let read = || {
            Op::from(pb::RangeRequest {
                key: self.fence().key().clone(),
                keys_only: true,
                ..Default::default()
            })
        };
        let txn = stand.success(read()).failure(read());
        let reply = self.session.read(txn).await?;
        if !reply.succeeded {
            return Err(self.why().await.into());
        }
        self.proven_at(reply.header.revision);
        Ok(())
    }

    /// Resolves once a key is lost, with the reason.
    pub(crate) async fn lost(&self) -> LostReason {
        first(self.fences.iter().map(Fence::lost)).await
    }

    /// A key is gone: whose doing was it?
    pub(crate) async fn why(&self) -> LostReason {
        let lost = self.fences.iter().find(|fence| !fence.is_valid());
        lost.unwrap_or(self.fence()).why().await
    }

    /// Gives the key another value: see [`Writes::write`].
    pub(crate) async fn write(&self, value: Bytes) -> Result<pb::ResponseHeader> {
        self.writes.write(&self.session, self.fence(), value).await
    }

    /// Deletes the keys, of this create_revision. Goes on in the background when it fails or is dropped. Nobody believes
    /// in them from here on.
    pub(crate) async fn release(&self) -> Result<()> {
        self.check()?;
        let Some(leave) = self.leave() else {
            return Err(self.fence().lost_reason().unwrap_or(LostReason::Released).into());
        };
        match self.session.cleanup().finish(leave.release(self.fence().token())).await {
            Ok(Deleted::ByUs) => Ok(()),
            // Another client did: for how long were they no longer ours?
            Ok(Deleted::Before) => Err(self.why().await.into()),
            Ok(Deleted::Unknown) => Err(gone_unseen()),
            Err(error) if error.lost_reason().is_some() => Err(error),
            Err(error) => Err(match self.session.lease_handle().lost_reason() {
                Some(reason) => Error::from(reason).with_outcome(error.outcome()).because(error),
                None => error,
            }),
        }
    }

    /// The keys were deleted along with something else: there is nothing to take back.
    pub(crate) fn released(&self) {
        drop(self.leave());
    }

    /// Runs work until it ends or a key is lost, whichever is first, then gives them up.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        // In a block of its own, so that the work is gone before the reason is asked for.
        let done = async {
            tokio::select! {
                biased;
                () = self.ended() => None,
                done = work => Some(done),
            }
        };
        match done.await {
            Some(done) => self.finish(done).await,
            None => Err(self.lost().await.into()),
        }
    }

    /// Runs work that ends by itself when it is told, then gives the keys up.
    pub(crate) async fn run_cooperative<T, F>(&self, work: impl FnOnce(CancellationToken) -> F) -> Result<T>
    where
        F: Future<Output = T>,
    {
        let told = CancellationToken::new();
        let work = work(told.clone());
        tokio::pin!(work);
        let done = tokio::select! {
            biased;
            () = self.ended() => {
                told.cancel();
                work.await;
                return Err(self.lost().await.into());
            }
            done = &mut work => done,
        };
        self.finish(done).await
    }

    async fn finish<T>(&self, done: T) -> Result<T> {
        match self.release().await {
            Err(error) if error.lost_reason().is_some() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the release goes on in the background");
                Ok(done)
            }
            Ok(()) => Ok(done),
        }
    }

    /// Resolves once a key is lost.
    async fn ended(&self) {
        first(self.fences.iter().map(Fence::ended)).await;
    }

    /// From here on the keys are no longer ours.
    fn leave(&self) -> Option<Leave> {
        match self.give_up()? {
            (leave, true) => Some(leave),
            // Where the turn was given to another, the keys are that one's, if it takes them up.
            (leave, false) => {
                if self.may_be_adopted() {
                    leave.abandon(self.fence().token());
                }
                None
            }
        }
    }

    /// This client may adopt the lease, or has, and may take the keys up. That is looked at once they are given up: until then an
    /// adoption may come, which sees that the user has them.
    fn may_be_adopted(&self) -> bool {
        self.session.lease_handle().may_live(self.fence().lost_reason())
    }

    /// As [`leave`](Self::leave); and whether the turn was still ours.
    fn give_up(&self) -> Option<(Leave, bool)> {
        let leave = self.leave.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let was_held = leave.set_held(None);
        // What was lost before stays lost for its own reason.
        let stand = self.fences.iter().filter(|fence| fence.is_valid());
        stand.for_each(|fence| fence.fall(LostReason::Released));
        Some((leave, was_held))
    }
}

impl Owned {
    /// Gives the keys up, in the background where they stand: also while others still share this.
    pub(crate) fn let_go(&self) {
        // The session's end takes all keys along, but where another goes on with the lease.
        let lease = self.session.lease_handle();
        let lost = lease.lost_reason();
        let may_live = lost == Some(LostReason::Orphaned) || lease.may_live(lost);
        // Of several keys that fell for one of them, the others are there yet.
        let some_stand = self.fence().is_valid() || self.fences.len() > 1 && self.session.is_valid();
        let stands = some_stand || may_live && !self.handed_out;
        let token = self.fence().token();
        match self.give_up() {
            Some((leave, true)) if stands => leave.spawn(token),
            // What the user was given is another's to take up where the session was orphaned. Where it was only lost here, or closed
            // and the revoke refused, this client may adopt the lease, or has, and may take the key up.
            Some((leave, _)) if self.may_be_adopted() => leave.abandon(token),
            _ => {}
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The error for a key that was to be deleted and is gone, where an attempt was not answered.
pub(crate) fn gone_unseen() -> Error {
    let error = Error::new(ErrorKind::Fenced, Outcome::Unknown).at("KV/Txn");
    error.because("the key is gone; an attempt that was not answered, or another client, deleted it")
}

/// The output of the first of several futures that is ready.
async fn first<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> T {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    poll_fn(|context| {
        let ready = futures.iter_mut().map(|future| future.as_mut().poll(context)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    })
    .await
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("fences", &self.fences).finish_non_exhaustive()
    }
}
