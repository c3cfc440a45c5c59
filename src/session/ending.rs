//! How a lease is given back: once for all who close its session.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::cleanup::Cleanup;
use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::lease::{Lease, MayRevoke};
use crate::transport::retry::Backoff;

/// The end of a session's lease: not begun, under way, or over.
#[derive(Default)]
pub(super) struct Ending {
    revoking: Mutex<Option<watch::Receiver<Revoking>>>,
}

/// What is to be given back, and what must come before it.
pub(super) struct GiveBack {
    pub(super) client: Client,
    pub(super) lease: Arc<Lease>,
    pub(super) cleanup: Cleanup,
    /// How long the work that comes before the revoke gets.
    pub(super) patience: Duration,
}

/// How the revoke goes.
#[derive(Clone, Default)]
struct Revoking {
    /// How many attempts have failed.
    failed: u64,
    last: Option<Arc<Error>>,
    /// The lease is kept alive for an adoption whose future is not polled: callers wait no longer, but for as long as no session
    /// has come of it the lease may be left to be revoked.
    let_go: bool,
    done: bool,
}

impl Ending {
    /// Revokes the lease in the background, unless that is under way or done: again and again until it is gone, or its
    /// TTL has passed.
    pub(super) fn begin(&self, give_back: GiveBack) {
        let mut revoking = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |under_way: &watch::Receiver<Revoking>| {
            !under_way.borrow().done && under_way.has_changed().is_err()
        };
        if revoking.as_ref().is_some_and(|under_way| !is_over(under_way)) {
            return;
        }
        let (tell, told) = watch::channel(Revoking::default());
        *revoking = Some(told);
        drop(revoking);
        // A runtime that has ended drops the task, and with it the sender, on which callers wait.
        drop(give_back.client.runtime().clone().spawn(revoke(give_back, tell)));
    }

    /// Waits until the lease is gone, or the next attempt to revoke it has failed.
    pub(super) async fn wait(&self) -> Result<()> {
        let revoking = self.revoking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(mut revoking) = revoking else { return Ok(()) };
        let failed = revoking.borrow().failed;
        let told =
            revoking.wait_for(|revoking| revoking.done || revoking.let_go || revoking.failed > failed).await;
        let told = told.map(|told| told.clone()).unwrap_or_else(|_| {
            // It was the last attempt, and had failed already; or the task went with its runtime.
            revoking.borrow().clone()
        });
        match told {
            Revoking { done: true, .. } | Revoking { let_go: true, .. } => Ok(()),
            Revoking { last: Some(error), .. } => {
                let copy = Error::new(error.kind().clone(), error.outcome()).at("Lease/LeaseRevoke");
                Err(copy.because(error))
            }
            Revoking { last: None, .. } => Err(LostReason::Closed.into()),
        }
    }
}

async fn revoke(give_back: GiveBack, tell: watch::Sender<Revoking>) {
    let GiveBack { client, lease, cleanup, patience } = give_back;
    let id = lease.id();
    let request_timeout = client.transport().limits().request_timeout;
    if timeout(patience, cleanup.may_revoke()).await.is_err() {
        tracing::debug!(
            lease = format_args!("{id:x}"),
            "revoked before all that needs the lease was settled"
        );
    }
    let mut under_way = false;
    let again = async {
        let (mut backoff, mut waits_for) = (Backoff::default(), None::<(u64, Instant)>);
        loop {
            let may_revoke = lease.may_revoke();
            // It is a session as soon as its future is polled. Where that is kept and not polled, the lease is the adopter's all the
            // same: it is kept alive for it. Where it is dropped, the lease is as it was.
            let adopter = match may_revoke {
                MayRevoke::NotYet { proven } => proven,
                MayRevoke::Yes | MayRevoke::No => None,
            };
            waits_for = adopter.map(|adopter| match waits_for {
                Some((same, since)) if same == adopter => (same, since),
                _ => (adopter, Instant::now()),
            });
            let let_go = waits_for.is_some_and(|(_, since)| since.elapsed() >= request_timeout);
            tell.send_if_modified(|revoking| std::mem::replace(&mut revoking.let_go, let_go) != let_go);
            match may_revoke {
                MayRevoke::Yes => {}
                MayRevoke::NotYet { .. } => {
                    sleep(PAUSE).await;
                    continue;
                }
                // One that was lost here has been adopted again meanwhile.
                MayRevoke::No => break,
            }
            let sent_at = client.transport().revision();
            under_way = true;
            let revoked = client.transport().lease_revoke(id).await;
            under_way = false;
            let error = match revoked {
                Ok(revoked) => {
                    lease.revoke_told(revoked, sent_at);
                    lease.was_revoked();
                    break;
                }
                Err(error) => error,
            };
            tracing::debug!(%error, lease = format_args!("{id:x}"), "a revoke failed");
            if error.outcome() == Outcome::NotApplied {
                lease.was_not_revoked();
            }
            // A balancer's nonsense, or a full database, passes as an outage does.
            let is_final = client.transport().is_final(error.kind());
            // An attempt before it may be applied yet.
            let error = if lease.awaits_revoke() { error.with_outcome(Outcome::Unknown) } else { error };
            tell.send_modify(|revoking| {
                revoking.failed += 1;
                revoking.last = Some(Arc::new(error));
            });
            if is_final {
                return;
            }
            sleep(backoff.next()).await;
        }
        tell.send_modify(|revoking| revoking.done = true);
    };
    // It is not renewed any more. What the server still has of it then, another has to do with: one that adopted it.
    let (longest, began) = (lease.ttl().saturating_add(request_timeout), Instant::now());
    if timeout(longest, again).await.is_err() {
        tracing::debug!(lease = format_args!("{id:x}"), "never revoked: the lease's TTL has passed");
        // An attempt that is cut off may be applied yet; and where none was made, an adoption was under way all the time.
        let outcome = if lease.awaits_revoke() { Outcome::Unknown } else { Outcome::NotApplied };
        tell.send_modify(|revoking| {
            if under_way || revoking.last.is_none() {
                revoking.failed += 1;
                let cut_off = Error::new(ErrorKind::Timeout, outcome).at("Lease/LeaseRevoke");
                revoking.last = Some(Arc::new(cut_off));
            }
        });
    }
    // All that a caller waits for is told, and who closes again begins anew.
    drop((tell, cleanup, client));
    // Refused, with an attempt before it that may be applied yet: the handle is kept for as long as the lease may live, so that this
    // client does not adopt the lease beside that one. Nothing is sent, and no task waits for it.
    let left = longest.saturating_sub(began.elapsed());
    if timeout(left, lease.no_revoke_awaited()).await.is_err() {
        tracing::debug!(lease = format_args!("{id:x}"), "what became of a revoke was never told");
    }
}

/// How often one looks what has become of an adoption that is under way.
const PAUSE: Duration = Duration::from_millis(250);
