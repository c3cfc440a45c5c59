//! Sessions: a lease that is kept alive, and everything that hangs on it.

pub(crate) mod builder;
pub(crate) mod cleanup;
mod ending;
pub(crate) mod renew;
pub(crate) mod settle;
pub(crate) mod straggler;
mod work;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{LostReason, Result};
use crate::lease::{Lease, SessionState};
pub use builder::SessionBuilder;
use builder::Settings;
use cleanup::Cleanup;
use ending::{Ending, GiveBack};
use settle::Settler;

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
/// **What may come late.** A request for a lock or a candidacy that got no answer may be applied after any time, while the
/// lease lives. So its key is looked out for, and taken away, until it has come or the session has ended. That costs no RPC
/// while nothing happens, but a watch for each name of a [`Mutex`](crate::Mutex) or an [`Election`](crate::Election) of
/// which a request got no answer: where those are very many, open another session now and then.
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
    settler: Settler,
    settings: Settings,
    ending: Ending,
    /// Cancelled with the last handle; where there is a parent, which waits for that.
    gone: Option<CancellationToken>,
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
        self.inner.settler.client()
    }

    /// The lease's id. Keys put with it go when the session ends.
    pub fn lease(&self) -> i64 {
        self.lease_handle().id()
    }

    /// The TTL that the server granted last.
    pub fn ttl(&self) -> Duration {
        self.lease_handle().ttl()
    }

    /// True until the deadline passes or the session is lost otherwise.
    ///
    /// This reads the clock, not the network: it is right at once after the process was stopped or the machine slept.
    pub fn is_valid(&self) -> bool {
        self.lease_handle().lost_reason().is_none()
    }

    /// What is left until the deadline if no keep-alive is answered any more; zero once lost.
    pub fn remaining(&self) -> Duration {
        match self.lease_handle().lost_reason() {
            Some(_) => Duration::ZERO,
            None => self.lease_handle().remaining(),
        }
    }

    /// The state, and every change of it.
    ///
    /// The channel tells of an end when a timer or an answer brings it about; ask [`is_valid`](Self::is_valid) before
    /// doing what needs the session, even while a value of the channel is borrowed. Do not hold that for long: all who
    /// watch the session are told when it is given back.
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.lease_handle().watch()
    }

    /// Resolves once the session is lost, with the reason.
    ///
    /// At the deadline it does so on the runtime that polls it, even while the client's own stands still; a tokio runtime
    /// needs its time enabled for that.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn lost(&self) -> LostReason {
        self.lease_handle().lost().await
    }

    /// Opens another session with this one's settings and a lease of its own: what comes after a loss. RPCs as at
    /// [`SessionBuilder::open`].
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
    /// ([`LostReason::Orphaned`]), and so are all sessions of this client on the lease. Go's `Orphan`.
    ///
    /// Keys that are held then stay until the lease ends, for the adopter to take up; what is dropped or released later
    /// stays as well. What was dropped before, and calls that are under way (a [`lock`](crate::Mutex::lock), say), are
    /// taken back in the background, while the process and its client last. So release, and wait for that, what the
    /// adopter is not to find: it may take up a key whose deletion is under way, and lose it.
    ///
    /// One thing is mended only where the same client (or a clone) adopts the lease: a request for a
    /// [`Mutex`](crate::Mutex) or an [`Election`](crate::Election) that got no answer, and is applied after this. Its key is
    /// the adopter's, too. Where another adopts the lease, or where it is applied before that, it stays until the adopter
    /// takes and releases that lock, or the lease ends. Where the lease comes back to this client from another that held such a
    /// lock, an old request of this client may have that lock released: the other is to release it before.
    pub fn orphan(self) -> i64 {
        self.lease_handle().give_away();
        self.lease_handle().id()
    }

    /// Ends the session: it is lost here at once ([`LostReason::Closed`]), then the lease is revoked and work in the
    /// background (releases under way) waited for. What would be lost with the lease is settled before that: an item of a
    /// queue whose take was not answered goes back. Closing twice, or after a loss, is harmless: a lease that was orphaned, or
    /// that this client has adopted again since, is left alone; an adoption under way is waited for, for as long as it may take.
    /// Where its future is kept and not polled, and the server has answered it, that is for the client's request timeout: the lease is
    /// left to it. Go's `Close`.
    ///
    /// All who close a session are told the same: that the lease is gone, or what kept it from being revoked. The revoke
    /// is repeated in the background then, until the lease's TTL has passed; another call waits for the next attempt.
    ///
    /// # Errors
    /// The revoke failed until the client's request timeout. The lease then ends with its TTL, if not before: with
    /// [`Outcome::Unknown`](crate::Outcome::Unknown) a revoke that was sent may be applied yet.
    ///
    /// The lease is gone, but an item of a [`Queue`](crate::Queue) is not back in it, which had been taken, through any session of
    /// this client on the lease, for a dequeue that was dropped or failed, or whose future is kept and not polled; or it is not
    /// known yet whether it is: with what keeps it from being put there, such as
    /// [`NoSpace`](ErrorKind::NoSpace) while the server's database is full, or [`Timeout`](ErrorKind::Timeout) while the server
    /// has not answered. The client goes on trying in the background, and another call tells how that stands; a
    /// process that ends before takes the item along. Where this client has adopted the lease again, what the sessions on it
    /// since then are about to take does not count.
    ///
    /// In the same way, where a hold of a [`Barrier`](crate::Barrier) whose [`hold`](crate::Barrier::hold) failed, was dropped, or
    /// is kept and not polled, is not taken back, or it is not known yet whether it is: a process that ends before leaves the
    /// barrier held. So does one where the hold stands whose [`release`](crate::Barrier::release) was dropped, or is kept and not
    /// polled.
    ///
    /// # Cancel safety
    /// The revoke goes on in the background.
    pub async fn close(&self) -> Result<()> {
        let (inner, lease, began) = (&self.inner, self.lease_handle(), Instant::now());
        let remaining = lease.remaining();
        // The caller may hold a borrow of the state.
        lease.end(LostReason::Closed);
        let revoked = match lease.is_anothers() {
            true => Ok(()),
            false => {
                inner.give_back(match remaining.is_zero() {
                    true => self.patience(),
                    false => self.patience().min(remaining),
                });
                inner.ending.wait().await
            }
        };
        let drained = async {
            self.cleanup().drained().await;
            match lease.is_anothers() {
                // No revoke has waited for it.
                true => self.cleanup().may_revoke().await,
                false => self.cleanup().holds_settled().await,
            }
        };
        // Where the lease is not revoked, some of it waits for an adoption, which may never come.
        let patience = match revoked {
            Ok(()) => self.patience(),
            Err(_) => self.patience().saturating_sub(began.elapsed()),
        };
        if tokio::time::timeout(patience, drained).await.is_err() {
            tracing::debug!("work is left in the background");
        }
        lease.told().await;
        revoked?;
        self.cleanup().unsaved().map_or(Ok(()), Err)
    }

    pub(crate) fn lease_handle(&self) -> &Arc<Lease> {
        self.inner.settler.lease()
    }

    /// What settles for the session without keeping it open.
    pub(crate) fn settler(&self) -> &Settler {
        &self.inner.settler
    }

    pub(crate) fn cleanup(&self) -> &Cleanup {
        self.inner.settler.cleanup()
    }

    /// The error that the session's end is, if it ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.lease_handle().lost_reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// How long work in the background is worth waiting for.
    pub(crate) fn patience(&self) -> Duration {
        self.client().transport().limits().request_timeout
    }

    fn new(client: Client, lease: Arc<Lease>, settings: Settings) -> Self {
        lease.enter();
        let settler = Settler::new(client, lease);
        let ending = Ending::default();
        let gone = settings.parent.is_some().then(CancellationToken::new);
        Self { inner: Arc::new(Inner { settler, settings, ending, gone }) }
    }
}

impl Inner {
    /// Revokes the lease in the background, once what needs the lease is settled, or that has had its time.
    fn give_back(&self, patience: Duration) {
        let (client, lease) = (self.settler.client().clone(), self.settler.lease());
        let cleanup = self.settler.cleanup().clone();
        self.ending.begin(GiveBack { client, lease: lease.clone(), cleanup, patience });
    }
}

/// The last handle is gone: so is the lease, as soon as the server hears of it. Unless another session is on it.
impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(gone) = &self.gone {
            gone.cancel();
        }
        let lease = self.settler.lease();
        if !lease.leave() {
            return;
        }
        let remaining = lease.remaining();
        // The dropping task may hold a borrow of the state.
        let reason = lease.end(LostReason::Closed);
        if matches!(reason, LostReason::LeaseGone | LostReason::Revoked) || lease.is_anothers() {
            return;
        }
        // No caller waits for it, and the lease lives for so long at least; lost here, for its margin.
        let patience = self.settler.client().transport().limits().request_timeout;
        self.give_back(if remaining.is_zero() { patience } else { remaining });
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("lease", &format_args!("{:x}", self.lease()))
            .field("state", &self.lease_handle().state())
            .finish()
    }
}
