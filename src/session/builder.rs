//! Opening a session: a lease of our own, or one that exists.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::cleanup::Cleanup;
use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::ids;
use crate::lease::clock::{LONGEST_TTL, LeaseClock, Moment};

/// Sets up a [`Session`]. Made by [`Session::builder`].
///
/// ```
/// # use etcd_concurrency::{Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// use std::time::Duration;
/// let session = Session::builder(&client).ttl(Duration::from_secs(15)).margin(Duration::from_secs(2)).open().await?;
/// assert!(session.remaining() <= Duration::from_secs(13));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `open`"]
pub struct SessionBuilder {
    client: Client,
    ttl: Duration,
    or_longer: bool,
    lease: Option<i64>,
    settings: Settings,
}

/// What a session that is opened again has in common with the first.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    margin: Option<Duration>,
    pub(super) parent: Option<CancellationToken>,
}

impl SessionBuilder {
    pub(super) fn new(client: &Client) -> Self {
        let client = client.clone();
        Self { client, ttl: DEFAULT_TTL, or_longer: false, lease: None, settings: Settings::default() }
    }

    /// How long the session outlives its last keep-alive. Default 60 s; rounded up to whole seconds, as etcd counts
    /// in those. The server has a minimum (2 s with its default election timeout) and a maximum of 9,000,000,000 s.
    ///
    /// A short TTL frees locks sooner after a crash, and loses them sooner when the network hiccups. Go's `WithTTL`.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Takes a longer TTL when the server's minimum is above the one asked for. Without this, `open` refuses it.
    pub fn or_longer(mut self) -> Self {
        self.or_longer = true;
        self
    }

    /// How long before the server could expire the lease belief in it ends here.
    ///
    /// It covers clocks that run at different speeds, and the time between the check and the act. Default: a twentieth
    /// of the TTL, at least 100 ms and at most 3 s. At most half of the TTL is used.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.settings.margin = Some(margin);
        self
    }

    /// Adopts a lease that exists instead of granting one: after a restart, or one that was
    /// [orphaned](Session::orphan). Its TTL is the one it was granted with. Go's `WithLease`.
    ///
    /// The session owns the lease: closing it, or dropping the last of this client's on the lease, revokes the lease; an
    /// earlier one that was lost does so no more. Sessions of one client on one lease queue for a name like tasks on one
    /// session; two *processes* on one lease do not exclude each other. Futures of an earlier one's that wait for a lock, and are
    /// kept without being polled, keep their place among them: drop them before.
    pub fn lease(mut self, id: i64) -> Self {
        self.lease = Some(id);
        self
    }

    /// Closes the session when this token is cancelled. Go's `WithContext`.
    pub fn parent(mut self, token: CancellationToken) -> Self {
        self.settings.parent = Some(token);
        self
    }

    /// The settings of a session that was granted its TTL, whatever it had asked for.
    pub(super) fn like(self, session: &Session) -> Self {
        Self { ttl: session.ttl(), or_longer: true, settings: session.inner.settings.clone(), ..self }
    }

    /// Opens the session: one RPC, and two more where an attempt of it was not answered.
    ///
    /// The lease's id is drawn here, from the operating system. Where an answer was lost and the server says of the
    /// repetition that the lease exists, nothing proves whose it is: another id is drawn, and the lease in doubt is left
    /// to end with its TTL, of which a warning tells. Where the repetition was granted the lease, the attempt before it may
    /// come yet, and make the lease again after the session's end, for requests that come as late: another lease is taken, and
    /// once that is there, the first is revoked in the background. Where attempts go on being lost, the fourth such lease is
    /// used, or the first that comes after the request timeout; and where no other is to be had, or not within the request
    /// timeout, the one that there is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a TTL of zero, above etcd's maximum, or below the server's minimum (unless
    /// [`or_longer`](Self::or_longer)); [`ErrorKind::LeaseNotFound`] for a lease to adopt that does not exist, or
    /// that this client is revoking; [`ErrorKind::Timeout`] for one that no answered keep-alive proves within the client's
    /// request timeout; [`ErrorKind::Lost`] where the parent token is cancelled or the client's runtime has ended; whatever else keeps the
    /// request from being answered until the request timeout.
    /// With [`Outcome::Unknown`] a lease that holds nothing may stay until its TTL is over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no lease behind: a grant under way is revoked in the background. One that a server
    /// applies after that ends with its TTL.
    pub async fn open(self) -> Result<Session> {
        if self.ttl.is_zero() {
            return Err(Error::invalid("ttl", "it is zero"));
        }
        let seconds = self.ttl.as_secs().saturating_add(u64::from(self.ttl.subsec_nanos() > 0));
        if seconds > LONGEST_TTL {
            return Err(Error::invalid("ttl", format!("{seconds} s are more than etcd's {LONGEST_TTL}")));
        }
        let Some(parent) = self.settings.parent.clone() else { return self.open_for(seconds).await };
        // Dropped, the opening cleans up after itself.
        let session = tokio::select! {
            biased;
            () = parent.cancelled() => return Err(LostReason::Closed.into()),
            session = self.open_for(seconds) => session?,
        };
        close_with(parent, &session);
        Ok(session)
    }

    async fn open_for(self, seconds: u64) -> Result<Session> {
        match self.lease {
            None => self.grant(seconds).await,
            Some(id) => self.adopt(id).await,
        }
    }

    async fn grant(self, seconds: u64) -> Result<Session> {
        let (or_longer, cleanup) = (self.or_longer, Cleanup::new(self.client.runtime().clone()));
        // What was granted is a session before anybody can drop it, so that dropping it revokes it.
        let (session, granted) = cleanup.finish(self.grant_lease(seconds)).await?;
        if granted > seconds && !or_longer {
            drop(session);
            let why = format!("{seconds} s are less than the server's minimum of {granted} s");
            return Err(Error::invalid("ttl", why));
        }
        tracing::debug!(lease = format_args!("{:x}", session.lease()), ttl = granted, "session open");
        Ok(session)
    }

    async fn grant_lease(self, seconds: u64) -> Result<(Session, u64)> {
        let mut in_doubt = None;
        match (self.grant_sure(seconds, &mut in_doubt).await, in_doubt) {
            // What keeps another lease from being had is no reason to do without the one that there is.
            (Err(error), Some((session, granted))) if session.is_valid() => {
                let lease = session.lease();
                let why = "no other lease is to be had: one is used whose grant may come again";
                tracing::debug!(%error, lease = format_args!("{lease:x}"), "{why}");
                Ok((session, granted))
            }
            // The one in doubt is revoked, as it is dropped.
            (granted, _) => granted,
        }
    }

    /// Grants a lease of which no attempt may come yet. What was granted on the way to it is given beside it, kept alive and
    /// owned: it may be needed where there is no other.
    async fn grant_sure(
        &self,
        seconds: u64,
        in_doubt: &mut Option<(Session, u64)>,
    ) -> Result<(Session, u64)> {
        let transport = self.client.transport();
        let asked = i64::try_from(seconds).unwrap_or(i64::MAX);
        let end = Instant::now() + transport.limits().request_timeout;
        let mut taken = Error::new(ErrorKind::LeaseExists, Outcome::NotApplied).at("Lease/LeaseGrant");
        let mut doubted = 0;
        for _ in 0..IDS {
            let id = ids::lease();
            let sent = self.client.leases().time().now();
            let asking = async { transport.lease_grant(id, asked).await };
            let answer = match in_doubt {
                None => asking.await,
                // There is one to fall back upon: a caller need not wait for longer than for that one alone.
                Some(_) => timeout_at(end, asking).await.unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Timeout, Outcome::Unknown).at("Lease/LeaseGrant"))
                }),
            };
            match answer {
                Ok(answer) if answer.value.id != id => {
                    let detail = format!("lease {:x} was granted for {id:x}", answer.value.id);
                    return Err(Error::protocol(detail, Outcome::Unknown).at("Lease/LeaseGrant"));
                }
                // The attempt without an answer may come after the session's end. It would make the lease again, and what comes
                // as late of the session's puts would be held with it, without an owner. What no put of ours names stays empty.
                Ok(answer) if answer.unanswered > 0 && doubted < DOUBTED && Instant::now() < end => {
                    doubted += 1;
                    match self.open_on(id, sent, seconds, answer.value.ttl).await {
                        Ok(granted) => *in_doubt = Some(granted),
                        // It came too late to be used.
                        Err(error) if error.lost_reason() == Some(LostReason::Expired) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(answer) => return self.open_on(id, sent, seconds, answer.value.ttl).await,
                Err(error) if *error.kind() == ErrorKind::LeaseExists => {
                    // An earlier attempt of this very grant may have been applied; or another process drew the same id,
                    // as a machine that was copied in this moment does. Nothing can tell: the lease is neither used nor
                    // revoked.
                    if error.outcome() != Outcome::NotApplied {
                        tracing::warn!(
                            lease = format_args!("{id:x}"),
                            ttl = seconds,
                            "a grant's answer was lost, and the lease exists: it is left to its TTL"
                        );
                        taken = error;
                    }
                    if Instant::now() >= end {
                        break;
                    }
                }
                Err(error) => {
                    if error.outcome() == Outcome::Unknown {
                        self.give_back(id, seconds);
                    }
                    return Err(error);
                }
            }
        }
        Err(taken)
    }

    /// A session on a lease that was granted for so long, whose grant was sent then. As it is dropped the lease is revoked, for
    /// as long as it was granted for.
    async fn open_on(&self, id: i64, sent: Moment, asked: u64, granted: i64) -> Result<(Session, u64)> {
        let Ok(granted @ 1..) = u64::try_from(granted) else {
            self.give_back(id, asked);
            return Err(Error::protocol(format!("a lease granted for {granted} s"), Outcome::Applied));
        };
        let ttl = Duration::from_secs(granted.min(LONGEST_TTL));
        let kept = self.client.leases().keep(id, LeaseClock::granted(sent, ttl, self.settings.margin))?;
        let session = Session::new(self.client.clone(), kept.lease().clone(), self.settings.clone());
        // From here on the session alone is on it, and gives it back.
        drop(kept);
        // The answer may have taken longer than the lease lives.
        if let Err(lost) = session.check() {
            // Where the client's runtime has ended there is no background to revoke in.
            if lost.lost_reason() == Some(LostReason::Closed)
                && let Err(error) = self.client.transport().lease_revoke(id).await
            {
                tracing::debug!(%error, "a revoke failed: the lease's TTL will end it");
            }
            return Err(lost);
        }
        Ok((session, granted))
    }

    /// Revokes in the background what may have been granted, for so long as it may live.
    fn give_back(&self, id: i64, seconds: u64) {
        let settle = revoke(self.client.clone(), id, Duration::from_secs(seconds));
        self.client.runtime().spawn(settle);
    }

    /// Nothing is known of the lease until a keep-alive is answered: that is waited for.
    async fn adopt(self, id: i64) -> Result<Session> {
        let leases = self.client.leases();
        let patience = self.client.transport().limits().request_timeout;
        let end = Instant::now() + patience;
        loop {
            let now = leases.time().now();
            let kept = leases.keep(id, LeaseClock::unproven(now, patience, self.settings.margin))?;
            let lease = kept.lease();
            let proven = async {
                tokio::select! {
                    biased;
                    _ = lease.lost() => {}
                    () = lease.proven() => {}
                }
            };
            // A lease that is kept already has a deadline of its own, which may be far away.
            let silent = timeout_at(end, proven).await.is_err();
            return match lease.lost_reason() {
                None if silent => {
                    Err(Error::new(ErrorKind::Timeout, Outcome::NotApplied).at("Lease/LeaseKeepAlive"))
                }
                None => {
                    lease.adopt()?;
                    Ok(Session::new(self.client.clone(), lease.clone(), self.settings.clone()))
                }
                // Given up by another session or adoption of this client: it is there for others to adopt.
                Some(LostReason::Orphaned) if !silent => continue,
                Some(LostReason::LeaseGone | LostReason::Revoked) => {
                    Err(Error::new(ErrorKind::LeaseNotFound, Outcome::NotApplied).at("Lease/LeaseKeepAlive"))
                }
                Some(LostReason::Expired | LostReason::Orphaned) => {
                    Err(Error::new(ErrorKind::Timeout, Outcome::NotApplied).at("Lease/LeaseKeepAlive"))
                }
                Some(reason) => Err(reason.into()),
            };
        }
    }
}

/// Revokes a lease, again and again until it is gone, or its TTL has passed and it has ended by itself.
pub(super) async fn revoke(client: Client, id: i64, ttl: Duration) {
    let end = Instant::now() + ttl.min(LONGEST_REVOKE);
    let mut backoff = crate::transport::retry::Backoff::default();
    while let Err(error) = client.transport().lease_revoke(id).await {
        tracing::debug!(%error, lease = format_args!("{id:x}"), "a revoke failed");
        let pause = backoff.next();
        if client.transport().is_final(error.kind()) || Instant::now() + pause > end {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Closes the session when the token is cancelled; does not keep it open.
fn close_with(parent: CancellationToken, session: &Session) {
    let (lease, weak) = (session.lease_handle().clone(), Arc::downgrade(&session.inner));
    let Some(gone) = session.inner.gone.clone() else { return };
    session.client().runtime().spawn(async move {
        tokio::select! {
            biased;
            _ = lease.lost() => return,
            // Another session on the lease has its own parent.
            () = gone.cancelled() => return,
            () = parent.cancelled() => {}
        }
        let Some(inner) = weak.upgrade() else { return };
        if let Err(error) = (Session { inner }).close().await {
            tracing::debug!(%error, "closing with the parent failed: it goes on in the background");
        }
    });
}

/// How many lease ids are tried. One of 63 random bits is taken by nobody, unless the server says so of all.
const IDS: usize = 16;
/// How many leases are given back for an attempt of their grant that may come yet. The next is used all the same.
pub(crate) const DOUBTED: usize = 3;
const DEFAULT_TTL: Duration = Duration::from_secs(60);
/// A lease that lives for years is not revoked for years.
const LONGEST_REVOKE: Duration = Duration::from_secs(600);
