//! Whether a lease is gone, by the word of one who must know.
//!
//! Any member answers LeaseTimeToLive from what it has itself. One that led, stood still, and goes on believes for a moment
//! that it leads yet: it does not know of a lease that was granted under the next leader, and knows of one that has been
//! revoked since. A keep-alive is answered by a leader that has made sure of being one (since 3.4.31), so its word counts,
//! for the end of a lease and for its life. One that a follower has passed on is answered without making sure. Such a
//! follower takes a member for its leader that the others have replaced: it is cut off from a majority together with it,
//! which takes a cluster of five (docs/safety.md).

use super::Lease;
use crate::error::{LostReason, Result};

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
}
