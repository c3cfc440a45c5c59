//! Whether a lease is gone, by the word of one who must know.
//!
//! Any member answers LeaseTimeToLive from what it has itself. One that led, stood still, and goes on believes for a moment
//! that it leads yet: it does not know of a lease that was granted under the next leader, and knows of one that has been
//! revoked since. A keep-alive is answered by a leader that has made sure of being one (since 3.4.31), so its word counts,
//! for the end of a lease and for its life. One that a follower has passed on is answered without making sure. Such a
//! follower takes a member for its leader that the others have replaced: it is cut off from a majority together with it,
//! which takes a cluster of five (docs/safety.md).

use std::sync::atomic::Ordering;

use super::{Lease, lock};
use crate::error::{LostReason, Result};
use crate::transport::Revoked;

/// What the answer to a revoke tells of how long a lease lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It lived until the revoke, which was sent when the store was known to have the one revision, and after which it had the other.
    Revoked { sent_at: i64, at: i64 },
    /// It had ended before.
    Before,
}

impl End {
    /// Whether a key that was gone by this revision was gone before the lease ended.
    pub(crate) fn is_after(self, gone_by: i64) -> bool {
        // What the revoke deletes it deletes at the revision that it leaves, if there is anything; or that is one from before.
        matches!(self, Self::Revoked { sent_at, at } if gone_by <= sent_at || gone_by < at)
    }
}

impl Lease {
    /// Why the lease is lost, if it is: as far as that is known here; otherwise the leader is asked, by a keep-alive. An
    /// error where that cannot be told.
    pub(crate) async fn ask(&self) -> Result<Option<LostReason>> {
        if let Some(reason) = self.lost_reason() {
            return Ok(Some(reason));
        }
        // Its answer is not taken for a renewal: the clock counts from the keep-alives of the task that keeps it.
        let left = self.leases.shared.transport.lease_keep_alive(self.id).await?;
        Ok((left <= 0).then(|| self.gone()))
    }

    /// Whether the server has the lease no more, though it may not be kept alive here: it is not renewed by this, unless the
    /// member that is asked does not know of it.
    pub(crate) async fn is_over(&self) -> Result<bool> {
        let transport = &self.leases.shared.transport;
        let known = transport.lease_time_to_live(self.id, false).await?.value;
        // One that has run out and is not revoked yet still has its keys, and a new leader renews it.
        if known.ttl >= 0 || known.granted_ttl != 0 {
            return Ok(false);
        }
        Ok(transport.lease_keep_alive(self.id).await? <= 0)
    }

    /// A revoke was answered that was sent when this revision of the store was known.
    pub(crate) fn revoke_told(&self, revoked: Revoked, sent_at: i64) {
        // Another one that was sent, and not answered, may have been what ended it.
        let is_only = self.carried.revokes.load(Ordering::Relaxed) == 1;
        let mut end = lock(&self.carried.end);
        *end = match revoked {
            Revoked::At(at) => Some(End::Revoked { sent_at, at }),
            Revoked::Before { in_doubt: false } if is_only => Some(End::Before),
            Revoked::Before { .. } => *end,
        };
    }

    /// What the answer to this client's revoke tells of how long the lease lived.
    pub(crate) fn end_told(&self) -> Option<End> {
        *lock(&self.carried.end)
    }

    /// A revoke of this client's was sent, and was not refused.
    pub(crate) fn may_have_revoked(&self) -> bool {
        self.carried.revokes.load(Ordering::Relaxed) > 0
    }

    /// A revoke of this client's may have been applied, and has not been answered.
    pub(crate) fn awaits_revoke(&self) -> bool {
        self.may_have_revoked() && !self.carried.revoked.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_gone_before_a_revoke_did_not_go_with_it() {
        let revoked = |sent_at, at| End::Revoked { sent_at, at };
        assert!(revoked(6, 8).is_after(7) && revoked(7, 7).is_after(7) && revoked(7, 8).is_after(7));
        assert!(!revoked(6, 7).is_after(7), "it may have gone with it");
        assert!(!revoked(6, 0).is_after(7), "a server that does not say");
        assert!(!End::Before.is_after(7));
    }
}
