//! Who comes after a lease that was lost here: a later handle of this client, or the revoke.
//!
//! **Not both.** A revoke that was sent may be applied after any time, and would end the lease of one that has adopted it since.
//! So whether there is a successor, and that a revoke may be sent, is decided under the lock under which leases are
//! adopted; from then on this client adopts the lease no more, unless the revoke was refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::registry::Looks;
use super::{Lease, SessionState, lock};
use crate::error::{ErrorKind, LostReason, Result};
use crate::transport::retry::second_look;

/// Whether a lease may be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayRevoke {
    Yes,
    /// An adoption is under way, of which no session has come yet; and which one, where a keep-alive has proven it.
    NotYet {
        proven: Option<u64>,
    },
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
        self.carried.adopted.load(Ordering::Relaxed) > self.number
    }

    /// A keep-alive was answered. That makes no adopter yet: where the adoption is dropped before a session has come of it, the lease
    /// is as it was.
    pub(super) fn proves(&self) {
        self.carried.revoked.store(false, Ordering::Relaxed);
        *lock(&self.carried.looks) = Looks::default();
    }

    /// A session comes of the adoption: the lease is no more for those to revoke that were on it before.
    ///
    /// # Errors
    /// This client revokes it.
    pub(crate) fn adopt(&self) -> Result<()> {
        self.leases.adopted(self)
    }

    /// Asks whether a revoke may be sent. Once it may, this client adopts the lease no more: a server may apply the
    /// revoke after any time, and would end the adopter's lease with it.
    pub(crate) fn may_revoke(&self) -> MayRevoke {
        if self.is_anothers() {
            return MayRevoke::No;
        }
        self.begin_revoke()
    }

    /// Looks again, under the lock under which leases are adopted: since the first look a session may have adopted the lease and
    /// given it away. Such a one is no successor any more, and the lease is another process's.
    fn begin_revoke(&self) -> MayRevoke {
        let mut may = MayRevoke::No;
        let begin = || {
            if !self.is_anothers() {
                self.carried.revokes.fetch_add(1, Ordering::Relaxed);
                may = MayRevoke::Yes;
            }
        };
        match self.leases.successor_or(self, begin) {
            Some(adopter) => MayRevoke::NotYet { proven: adopter.is_proven().then_some(adopter.number) },
            None => may,
        }
    }

    /// A revoke was answered, or the server said that it has the lease no more.
    pub(crate) fn was_revoked(&self) {
        self.carried.revoked.store(true, Ordering::Relaxed);
        self.carried.decided.notify_waiters();
    }

    /// A revoke that was sent was not applied, nor will be.
    pub(crate) fn was_not_revoked(&self) {
        self.carried.revokes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until no revoke may be applied yet that has not been answered.
    pub(crate) async fn no_revoke_awaited(&self) {
        loop {
            // Made before the look: no change is missed.
            let decided = self.carried.decided.notified();
            if !self.awaits_revoke() {
                return;
            }
            decided.await;
        }
    }

    /// Lost here for this reason, the server may have it yet, for this client to adopt it again.
    pub(crate) fn may_live(&self, lost: Option<LostReason>) -> bool {
        let may_be_adopted = matches!(lost, Some(LostReason::Expired | LostReason::Closed));
        may_be_adopted && !self.carried.revoked.load(Ordering::Relaxed)
    }

    /// Another process may have the lease: it was given away, and this client has not adopted it since.
    pub(crate) fn is_away(&self) -> bool {
        let given_away = self.carried.given_away.load(Ordering::Relaxed);
        given_away > 0 && given_away >= self.carried.adopted.load(Ordering::Relaxed)
    }

    /// A session on this handle has an incarnation of a key. Where there were handles before, it may be a key of theirs, which
    /// has been taken up.
    pub(crate) fn owns(&self, key: &Bytes, create_revision: i64) {
        self.suspects().owned(key, create_revision);
        if self.number > 1 {
            self.suspects().taken_up(key, create_revision, self.number);
        }
    }

    /// Whether a later handle has taken up this incarnation of a key.
    pub(crate) fn was_taken_up(&self, key: &Bytes, create_revision: i64) -> bool {
        self.suspects().is_taken_up(key, create_revision, self.number)
    }

    /// Waits for this client to adopt the lease again after it was lost here. False once the server has it no more, or has refused
    /// to say a few times. A revoke that is under way decides nothing: it may be refused.
    ///
    /// For a TTL after the loss no server is asked. Then one of those who wait asks for all: a new leader keeps a lease for
    /// another TTL, and one that it keeps may be adopted. A cluster that is gone for good is asked for half a day.
    pub(crate) async fn adopted_again(&self) -> bool {
        loop {
            // Made before the look: no change is missed.
            let decided = self.carried.decided.notified();
            if self.successor().is_some() {
                return true;
            }
            if self.carried.revoked.load(Ordering::Relaxed) || self.is_not_told() {
                return false;
            }
            let look = self.next_look();
            // There may have been another loss meanwhile, or another's look.
            if timeout_at(look, decided).await.is_ok() || !self.takes_look(look) {
                continue;
            }
            match self.is_over().await {
                Ok(true) => self.was_revoked(),
                Ok(false) => self.looked(None),
                Err(error) => {
                    self.looked(Some(error.kind()));
                    tracing::debug!(%error, "whether a lease is gone is asked again later");
                }
            }
        }
    }

    fn looked(&self, failed: Option<&ErrorKind>) {
        // Another cluster answers for the one that had the lease.
        let refuses = |kind: &ErrorKind| {
            self.leases.shared.transport.is_final(kind) || matches!(kind, ErrorKind::ClusterMismatch { .. })
        };
        let failures = &mut lock(&self.carried.looks).failures;
        match failed {
            None => failures.answered(),
            Some(kind) if refuses(kind) => failures.refused(),
            Some(_) => failures.unanswered(),
        }
    }

    fn is_not_told(&self) -> bool {
        lock(&self.carried.looks).failures.are_many()
    }

    /// When the server is asked next whether it has the lease yet.
    fn next_look(&self) -> Instant {
        let lost_at = (*lock(&self.carried.lost_at)).unwrap_or_else(Instant::now);
        let next = lock(&self.carried.looks).next;
        next.map_or(lost_at + self.ttl(), |next| next.max(lost_at + self.ttl()))
    }

    /// False where another has this look, or there was another loss meanwhile.
    fn takes_look(&self, look: Instant) -> bool {
        let is_due = self.next_look() <= look;
        if is_due {
            lock(&self.carried.looks).next = Some(Instant::now() + second_look());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::testing::{adopt, leases};

    /// A session was lost and dropped. It had found that its lease was not another's, when the client adopted the lease, and gave
    /// it away. The lost one then found nothing in its way, and revoked the lease under the process that had
    /// adopted it from there.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_adopted_and_given_away_between_two_looks_is_not_revoked() {
        let leases = leases();
        let lost = adopt(&leases);
        lost.end(LostReason::Expired);
        assert!(!lost.is_anothers(), "the first look");
        let adopted = adopt(&leases);
        adopted.adopt().expect("no revoke was sent");
        adopted.give_away();
        assert_eq!(lost.begin_revoke(), MayRevoke::No);
        assert!(!lost.may_have_revoked(), "the lease may be adopted");
    }
}
