//! A place in the queue: what a guard is made of once it is the first.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::leave::Leave;
use crate::error::{Error, LostReason, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;

/// A place in the queue. Dropped, it is given up in the background.
pub(crate) struct Place {
    session: Session,
    pub(super) fence: Fence,
    pub(super) header: pb::ResponseHeader,
    /// What must be done on leaving; None once it is in hand.
    leave: Mutex<Option<Leave>>,
}

impl Place {
    pub(super) fn new(fence: Fence, header: pb::ResponseHeader, leave: Leave) -> Self {
        Self { session: leave.list.session.clone(), fence, header, leave: Mutex::new(Some(leave)) }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The key that is held, of its incarnation.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The header of the answer that proved the place to be the first.
    pub(crate) fn header(&self) -> &pb::ResponseHeader {
        &self.header
    }

    /// Gives the place up: deletes the key, of this create_revision. Goes on in the background when it fails or is
    /// dropped. Nobody believes in the place from here on.
    pub(crate) async fn release(&self) -> Result<()> {
        self.fence.check()?;
        let Some(leave) = self.leave() else { return Err(LostReason::Released.into()) };
        self.fence.fall(LostReason::Released);
        let released = self.session.cleanup().finish(leave.release(self.fence.token())).await;
        match released {
            Ok(true) => Ok(()),
            // Somebody else did: for how long was the place no longer ours?
            Ok(false) => Err(self.fence.why().await.into()),
            Err(error) => Err(self.session.lease_handle().lost_reason().map_or(error, Error::from)),
        }
    }

    /// Runs work until it ends or the place is lost, whichever is first, then gives the place up.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        // In a block of its own, so that the work is gone before the reason is asked for.
        let done = async {
            tokio::select! {
                biased;
                () = self.fence.ended() => None,
                done = work => Some(done),
            }
        };
        match done.await {
            Some(done) => self.finish(done).await,
            None => Err(self.fence.lost().await.into()),
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
            () = self.fence.ended() => {
                told.cancel();
                work.await;
                return Err(self.fence.lost().await.into());
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

    fn leave(&self) -> Option<Leave> {
        self.leave.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(leave) = self.leave()
            && self.fence.lost_reason().is_none()
        {
            self.fence.fall(LostReason::Released);
            let token = self.fence.token();
            self.session.cleanup().spawn(async move { drop(leave.release(token).await) });
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("fence", &self.fence).finish_non_exhaustive()
    }
}
