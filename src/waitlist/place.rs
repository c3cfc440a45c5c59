//! A place in the queue: what a guard is made of once it is the first.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::ticket::Ticket;
use crate::error::{Error, LostReason, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::Txn;

/// A place in one queue or several. Dropped, it is given up in the background.
pub(crate) struct Place {
    session: Session,
    /// One for each key, all of one create_revision.
    fences: Vec<Fence>,
    header: pb::ResponseHeader,
    /// To be given back on leaving; None once that is in hand.
    ticket: Mutex<Option<Ticket>>,
}

impl Place {
    pub(super) fn new(ticket: Ticket, create_revision: i64, header: pb::ResponseHeader) -> Self {
        let session = ticket.session.clone();
        let fence = |key: &Bytes| Fence::new(&session, key.clone(), create_revision);
        let fences = ticket.keys().iter().map(fence).collect();
        Self { session, fences, header, ticket: Mutex::new(Some(ticket)) }
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

    /// The header of the answer that proved the place to be the first.
    pub(crate) fn header(&self) -> &pb::ResponseHeader {
        &self.header
    }

    /// The error that the loss of a key is, if one is known to be lost.
    pub(crate) fn check(&self) -> Result<()> {
        self.fences.iter().try_for_each(Fence::check)
    }

    /// Proves at one revision that all keys stand: one RPC.
    pub(super) async fn confirm(&self) -> Result<()> {
        let txn = self.fences.iter().fold(Txn::new(), |txn, fence| txn.compare(fence.is_owner()));
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
        match answer.value.succeeded {
            true => Ok(()),
            false => Err(self.why().await.into()),
        }
    }

    /// The header's revision is that of the proof.
    pub(crate) fn proven_at(&mut self, revision: i64) {
        self.header.revision = self.header.revision.max(revision);
    }

    /// Resolves once a key is lost, with the reason.
    pub(crate) async fn lost(&self) -> LostReason {
        first(self.fences.iter().map(Fence::lost)).await
    }

    /// Resolves once a key is lost.
    async fn ended(&self) {
        first(self.fences.iter().map(Fence::ended)).await;
    }

    /// A key is gone: whose doing was it?
    pub(crate) async fn why(&self) -> LostReason {
        let lost = self.fences.iter().find(|fence| !fence.is_valid());
        lost.unwrap_or(self.fence()).why().await
    }

    /// Gives the place up: deletes the keys, of this create_revision. Goes on in the background when it fails or is
    /// dropped. Nobody believes in the place from here on.
    pub(crate) async fn release(&self) -> Result<()> {
        self.check()?;
        let Some(ticket) = self.leave() else { return Err(LostReason::Released.into()) };
        let released = self.session.cleanup().finish(ticket.release(self.fence().token())).await;
        match released {
            Ok(true) => Ok(()),
            // Somebody else did: for how long was the place no longer ours?
            Ok(false) => Err(self.why().await.into()),
            Err(error) => Err(self.session.lease_handle().lost_reason().map_or(error, Error::from)),
        }
    }

    /// Runs work until it ends or the place is lost, whichever is first, then gives the place up.
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

    /// Runs work that ends by itself when it is told, then gives the place up.
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

    /// From here on the place is no longer ours.
    fn leave(&self) -> Option<Ticket> {
        let ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.fences.iter().for_each(|fence| fence.fall(LostReason::Released));
        Some(ticket)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The session's end takes all keys along.
        let stands = self.fences.iter().any(Fence::is_valid);
        if let Some(ticket) = self.leave()
            && stands
        {
            let token = self.fence().token();
            self.session.cleanup().spawn(async move { drop(ticket.release(token).await) });
        }
    }
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

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("fences", &self.fences).finish_non_exhaustive()
    }
}
