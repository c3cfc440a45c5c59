//! What must be finished, whoever stops waiting for it.
//!
//! A future that is dropped while its request is under way leaves a question: was it applied? Work that is wrapped by
//! [`Cleanup::finish`] moves to a background task instead and reads its answer there; what the answer brought (a key, a
//! lease) is dropped there, and cleans up after itself as it would anywhere.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;
pub(crate) use crate::lease::Debt;
use crate::lease::{Lease, Owed, Unsaved};

/// The background tasks of one session.
#[derive(Clone)]
pub(crate) struct Cleanup {
    runtime: Handle,
    tasks: TaskTracker,
    /// Those that must end before the lease is revoked.
    urgent: TaskTracker,
    /// Whose `urgent` it is: kept by the work, so that one who adopts the lease waits for it, too.
    lease: Option<Arc<Lease>>,
    /// Work counts as under way also while a caller still waits for it.
    from_the_start: bool,
    unsaved: Unsaved,
}

impl Cleanup {
    pub(crate) fn new(runtime: Handle) -> Self {
        let (tasks, urgent) = (TaskTracker::new(), TaskTracker::new());
        // Closed trackers take tasks as open ones do, and can be waited for by several at once.
        tasks.close();
        urgent.close();
        Self { runtime, tasks, urgent, lease: None, from_the_start: false, unsaved: Unsaved::default() }
    }

    /// What must end before the lease is revoked, and what is lost with it, is counted for all sessions on the lease, as any of them
    /// revokes it.
    pub(super) fn of(runtime: Handle, lease: &Arc<Lease>) -> Self {
        let (urgent, unsaved) = (lease.urgent().clone(), lease.unsaved());
        urgent.close();
        lease.holds().close();
        Self { urgent, unsaved, lease: Some(lease.clone()), ..Self::new(runtime) }
    }

    /// The same, for work that needs the lease: closing or dropping the session waits for it, for as long as its
    /// patience lasts, before it revokes the lease. For what would be lost with the lease's keys: the item of a take whose
    /// reply was lost, say.
    ///
    /// `session.cleanup().before_revoke().spawn(work)`, or `.finish(work)` for a request that is under way. The session
    /// is lost when such work matters, so the work must not end for that; it is to end by itself when the server refuses
    /// it for good (the lease's end is such a refusal: `LeaseNotFound`). It must hold no `Session`, which would keep the
    /// lease from being revoked at all: a `Client` and the lease's id are enough.
    pub(crate) fn before_revoke(&self) -> Self {
        Self { tasks: self.urgent.clone(), from_the_start: true, ..self.clone() }
    }

    /// Something that the lease's end loses unless it is saved: until it is, closing the session says so.
    pub(crate) fn debt(&self) -> Debt {
        self.unsaved.debt(Owed::Item)
    }

    /// A hold of a barrier that may outlast the lease without an owner: until it is known not to, closing a session on the lease says
    /// so. Closing waits until this is dropped.
    pub(crate) fn hold(&self) -> Debt {
        self.outlasting(Owed::Hold)
    }

    /// The same of a release that may fail where no caller is told of that.
    pub(crate) fn release(&self) -> Debt {
        self.outlasting(Owed::Release)
    }

    /// What tells of the barrier's releases that ended before another hold of it, and were told to no caller: later ones settle them.
    pub(crate) fn releases(&self) -> &Unsaved {
        &self.unsaved
    }

    fn outlasting(&self, owed: Owed) -> Debt {
        let of_the_lease = self.lease.as_ref().map(|lease| lease.holds().token());
        self.unsaved.debt(owed).counted(of_the_lease.into_iter().chain([self.tasks.token()]))
    }

    /// The error that it is that something is not saved. Where the lease is another's, what that one is about to do says
    /// nothing of this session's end.
    pub(super) fn unsaved(&self) -> Option<Error> {
        match self.lease.as_ref().is_some_and(|lease| lease.is_anothers()) {
            true => self.unsaved.error_so_far(),
            false => self.unsaved.error(),
        }
    }

    /// Waits until the work that must be done before the lease is revoked has ended.
    pub(super) async fn may_revoke(&self) {
        self.before_revoke().drained().await;
    }

    /// Runs work in the background. After the runtime's end it is dropped: its leases will expire.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let lease = self.lease.clone().filter(|_| self.from_the_start);
        let work = async move {
            let _lease = lease;
            work.await;
        };
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Runs work that goes on in the background when the returned future is dropped before its end.
    pub(crate) fn finish<T, F>(&self, work: F) -> Finish<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let counted = self.from_the_start.then(|| self.tasks.token());
        Finish { work: Some(Box::pin(work)), cleanup: self.clone(), counted }
    }

    /// Waits until no hold of a barrier, of whichever session on the lease, may outlast that without an owner. Any of them ends the
    /// lease for all, and so their holds.
    pub(super) async fn holds_settled(&self) {
        if let Some(lease) = &self.lease {
            lease.holds().wait().await;
        }
    }

    /// Waits until all work in the background has ended.
    pub(crate) async fn drained(&self) {
        self.tasks.wait().await;
    }
}

/// See [`Cleanup::finish`].
pub(crate) struct Finish<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    cleanup: Cleanup,
    /// A caller that is told of the session's end drops its work, but not before the revoke would be sent.
    counted: Option<TaskTrackerToken>,
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let done = std::task::ready!(work.as_mut().poll(context));
        self.work = None;
        self.counted = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.cleanup.spawn(async move { drop(work.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends_all_the_same() {
        let cleanup = Cleanup::new(Handle::current());
        let (go, gone) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel();
        let mut work = cleanup.finish(async move {
            gone.await.unwrap();
            done.send(()).unwrap();
        });
        tokio::select! {
            biased;
            () = &mut work => panic!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(work);
        go.send(()).unwrap();
        finished.await.unwrap();
        cleanup.drained().await;
    }

    /// A queue's take that was not answered bound the item to the lease, and `close` revoked that before it was settled:
    /// the item was gone.
    #[tokio::test]
    async fn what_needs_the_lease_is_waited_for_before_it_is_revoked() {
        let cleanup = Cleanup::new(Handle::current());
        cleanup.spawn(std::future::pending());
        let (go, gone) = oneshot::channel::<()>();
        cleanup.before_revoke().spawn(async move { gone.await.unwrap() });
        let mut revoking = tokio::spawn({
            let cleanup = cleanup.clone();
            async move { cleanup.may_revoke().await }
        });
        tokio::task::yield_now().await;
        assert!(!revoking.is_finished());
        go.send(()).unwrap();
        (&mut revoking).await.unwrap();
    }

    #[tokio::test]
    async fn work_that_was_never_polled_is_done_too() {
        let cleanup = Cleanup::new(Handle::current());
        let (done, finished) = oneshot::channel();
        drop(cleanup.finish(async move { done.send(()).unwrap() }));
        finished.await.unwrap();
    }
}
