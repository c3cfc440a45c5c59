//! Who comes after a lease that was lost here: a later handle of this client, or the revoke.
//!
//! **Not both.** A revoke that was sent may be applied after any time, and would end the lease of one that has adopted it since.
//! So whether there is a successor, and that a revoke may be sent, is decided under the lock under which leases are
//! adopted; from then on this client adopts the lease no more, unless the revoke was refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use super::{Lease, SessionState};
use crate::error::LostReason;

/// Whether a lease may be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayRevoke {
    Yes,
    /// An adoption is under way that no keep-alive has proven.
    NotYet,
    /// It is another's.
    No,
}

impl Lease {
    /// True where the lease is not to be revoked by those that were on it: it was given away, or lost here, and adopted
    /// again since.
    pub(crate) fn is_anothers(&self) -> bool {
        self.is_given_away() || self.was_adopted()
    }

    fn is_given_away(&self) -> bool {
        match self.state.now() {
            // They wanted it ended.
            SessionState::Lost(LostReason::Closed) => false,
            SessionState::Lost(LostReason::Orphaned) => true,
            _ => self.given_away.load(Ordering::Relaxed),
        }
    }

    /// A later handle of this client, that keeps the lease alive or is about to.
    fn successor(&self) -> Option<Arc<Self>> {
        self.leases.successor_or(self, || {})
    }

    /// A later handle of this client had the lease, or has it, and may have given it away since.
    fn was_adopted(&self) -> bool {
        self.carried.proven.load(Ordering::Relaxed) > self.number
    }

    /// A keep-alive was answered.
    pub(super) fn proves(&self) {
        self.carried.proven.fetch_max(self.number, Ordering::Relaxed);
    }

    /// Asks whether a revoke may be sent. Once it may, this client adopts the lease no more: a server may apply the
    /// revoke after any time, and would end the adopter's lease with it.
    pub(crate) fn may_revoke(&self) -> MayRevoke {
        if self.is_anothers() {
            return MayRevoke::No;
        }
        let begin = || {
            self.carried.revokes.fetch_add(1, Ordering::Relaxed);
        };
        match self.leases.successor_or(self, begin) {
            Some(_) => MayRevoke::NotYet,
            None => {
                self.carried.decided.notify_waiters();
                MayRevoke::Yes
            }
        }
    }

    /// A revoke that was sent was not applied, nor will be.
    pub(crate) fn was_not_revoked(&self) {
        self.carried.revokes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits, for a TTL at most, for this client to adopt the lease again after it was lost here. False once it is revoked,
    /// too.
    pub(crate) async fn adopted_again(&self) -> bool {
        let end = Instant::now() + self.ttl();
        loop {
            // Made before the look: no change is missed.
            let decided = self.carried.decided.notified();
            if self.successor().is_some() {
                return true;
            }
            let revoked = self.carried.revokes.load(Ordering::Relaxed) > 0;
            if revoked || timeout_at(end, decided).await.is_err() {
                return false;
            }
        }
    }
}
