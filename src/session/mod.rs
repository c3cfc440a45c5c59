//! Sessions: a lease that is kept alive, and everything that hangs on it.

mod builder;
pub(crate) mod cleanup;
pub(crate) mod renew;
pub(crate) mod settle;
mod work;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::Client;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{LostReason, Result};
use crate::lease::{Lease, SessionState};
pub use builder::SessionBuilder;
use builder::Settings;
use cleanup::Cleanup;

/// A session: a lease on the server, kept alive from here, and believed in no longer than the server keeps it.
///
/// Its handles are cheap to clone. When the last one is dropped (guards hold one too) the lease is revoked in the
/// background, and with it goes all that was put with it. Go's counterpart is `concurrency.Session`.
///
/// **The deadline.** A session is valid until its deadline: the moment its last answered keep-alive was *sent*, plus
/// the TTL that the server granted, less a [margin](SessionBuilder::margin). The clock counts the time that the
/// machine was suspended (on Linux). When the deadline passes the session is lost at once, whether or not the network
/// answers; every guard on it, and everybody who waits through it, learns the reason.
///
/// Keep-alives go out at a third of the TTL; all sessions of a client share one stream and one task.
///
/// ```
/// # use etcd_concurrency::{Session, fake::FakeEtcd};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::builder(&client).ttl(Duration::from_secs(10)).open().await?;
/// assert!(session.is_valid());
/// tokio::select! {
///     reason = session.lost() => println!("stop at once: {reason}"),
///     () = async { /* work */ } => {}
/// }
/// session.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    lease: Arc<Lease>,
    cleanup: Cleanup,
    settings: Settings,
    /// The lease is no longer ours to revoke.
    let_go: AtomicBool,
}

impl Session {
    /// A session with a TTL of 60 s; see [`Session::builder`] for another.
    ///
    /// # Errors
    /// As [`SessionBuilder::open`].
    ///
    /// # Cancel safety
    /// As [`SessionBuilder::open`].
    pub async fn open(client: &Client) -> Result<Self> {
        Self::builder(client).open().await
    }

    /// Sets up a session.
    pub fn builder(client: &Client) -> SessionBuilder {
        SessionBuilder::new(client)
    }

    /// The client that the session was opened with.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The lease's id. Keys put with it go when the session ends.
    pub fn lease(&self) -> i64 {
        self.inner.lease.id()
    }

    /// The TTL that the server granted last.
    pub fn ttl(&self) -> Duration {
        self.inner.lease.ttl()
    }

    /// True until the deadline passes or the session is lost otherwise.
    ///
    /// This reads the clock, not the network: it is right at once after the process was stopped or the machine slept.
    pub fn is_valid(&self) -> bool {
        self.inner.lease.lost_reason().is_none()
    }

    /// What is left until the deadline if no keep-alive is answered any more; zero once lost.
    pub fn remaining(&self) -> Duration {
        match self.inner.lease.lost_reason() {
            Some(_) => Duration::ZERO,
            None => self.inner.lease.remaining(),
        }
    }

    /// The state, and every change of it.
    ///
    /// The channel tells of an end when a timer or an answer brings it about; ask [`is_valid`](Self::is_valid) before
    /// doing what needs the session, even while a value of the channel is borrowed. Do not hold that for long: keeping
    /// the client's leases alive waits for it where there is something to tell.
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.inner.lease.watch()
    }

    /// Resolves once the session is lost, with the reason.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn lost(&self) -> LostReason {
        self.inner.lease.lost().await
    }

    /// Opens another session with this one's settings and a lease of its own: what comes after a loss. One RPC.
    ///
    /// The TTL is the one that this session was granted.
    ///
    /// # Errors
    /// As [`SessionBuilder::open`]; [`Lost`](ErrorKind::Lost) where the parent token is cancelled.
    ///
    /// # Cancel safety
    /// As [`SessionBuilder::open`].
    pub async fn reopen(&self) -> Result<Self> {
        Self::builder(self.client()).like(self).open().await
    }

    /// Stops keeping the lease alive without revoking it, and returns its id: whoever adopts it (see
    /// [`SessionBuilder::lease`]) has the rest of its TTL to do so. Here the session is lost
    /// ([`LostReason::Orphaned`]). Go's `Orphan`.
    ///
    /// Keys put with the lease stay until it expires.
    pub fn orphan(self) -> i64 {
        self.inner.let_go.store(true, Ordering::Relaxed);
        self.inner.lease.lose(LostReason::Orphaned);
        self.inner.lease.id()
    }

    /// Ends the session: it is lost here at once ([`LostReason::Closed`]), then the lease is revoked and work in the
    /// background (releases under way) waited for. Closing twice, or after a loss, is harmless. Go's `Close`.
    ///
    /// # Errors
    /// The revoke failed until the client's request timeout. The lease then ends with its TTL.
    ///
    /// # Cancel safety
    /// The revoke goes on in the background.
    pub async fn close(&self) -> Result<()> {
        let inner = &self.inner;
        inner.lease.lose(LostReason::Closed);
        let revoked = if inner.let_go.swap(true, Ordering::Relaxed) {
            Ok(())
        } else {
            let (transport, id) = (inner.client.transport().clone(), inner.lease.id());
            inner.cleanup.finish(async move { transport.lease_revoke(id).await }).await
        };
        let drained = tokio::time::timeout(self.patience(), inner.cleanup.drained()).await;
        if drained.is_err() {
            tracing::debug!("work is left in the background: the lease's end will settle it");
        }
        revoked
    }

    pub(crate) fn lease_handle(&self) -> &Arc<Lease> {
        &self.inner.lease
    }

    pub(crate) fn cleanup(&self) -> &Cleanup {
        &self.inner.cleanup
    }

    /// The error that the session's end is, if it ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.inner.lease.lost_reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// How long work in the background is worth waiting for.
    pub(crate) fn patience(&self) -> Duration {
        self.inner.client.transport().limits().request_timeout
    }

    fn new(client: Client, lease: Arc<Lease>, settings: Settings) -> Self {
        let cleanup = Cleanup::new(client.runtime().clone());
        lease.enter();
        Self { inner: Arc::new(Inner { client, lease, cleanup, settings, let_go: AtomicBool::new(false) }) }
    }
}

/// The last handle is gone: so is the lease, as soon as the server hears of it. Unless another session is on it.
impl Drop for Inner {
    fn drop(&mut self) {
        let last = self.lease.leave();
        if self.let_go.swap(true, Ordering::Relaxed) || !last {
            return;
        }
        // Whoever drops it may hold a borrow of the state.
        let reason = self.lease.end(LostReason::Closed);
        if matches!(reason, LostReason::LeaseGone | LostReason::Revoked) {
            return;
        }
        self.cleanup.spawn(builder::revoke(self.client.clone(), self.lease.id(), self.lease.ttl()));
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lease", &format_args!("{:x}", self.lease()))
            .field("state", &self.inner.lease.state())
            .finish()
    }
}
