//! The calls that are about leases.

use tokio_stream::Stream;
use tonic::{Response, Status, Streaming};

use super::channel::Route;
use super::cluster::Sees;
use super::retry::Repeat;
use super::{Answer, Transport, routed, with_leader};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::pb::etcdserverpb as pb;

/// How a lease came to be gone that was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// By this: the store then had this revision.
    At(i64),
    /// It was gone before; in doubt, by an attempt of this whose answer was lost.
    Before { in_doubt: bool },
}

impl Transport {
    /// Grants a lease of an id that the caller chose: a repeated grant finds its own lease.
    pub(crate) async fn lease_grant(&self, id: i64, ttl: i64) -> Result<Answer<pb::LeaseGrantResponse>> {
        debug_assert_ne!(id, 0, "a grant without an id orphans a lease when it is repeated");
        self.raw_lease_grant(pb::LeaseGrantRequest { ttl, id }, Repeat::Harmless, Sees::Nothing).await
    }

    /// Revokes a lease. One that is gone already counts as revoked.
    pub(crate) async fn lease_revoke(&self, id: i64) -> Result<Revoked> {
        match self.raw_lease_revoke(pb::LeaseRevokeRequest { id }, Repeat::Harmless, Sees::Nothing).await {
            Ok(answer) => Ok(Revoked::At(answer.value.header.map_or(0, |header| header.revision))),
            Err(error) if *error.kind() == ErrorKind::LeaseNotFound => {
                Ok(Revoked::Before { in_doubt: error.outcome() != Outcome::NotApplied })
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn lease_time_to_live(
        &self,
        id: i64,
        keys: bool,
    ) -> Result<Answer<pb::LeaseTimeToLiveResponse>> {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        let mut answer = self.raw_lease_time_to_live(request, Repeat::Read, Sees::Nothing).await?;
        answer.value = self.namespace.time_to_live(answer.value);
        Ok(answer)
    }

    /// Renews a lease once, by a stream of its own: the seconds that it has, by its leader's word; none where it is gone.
    pub(crate) async fn lease_keep_alive(&self, id: i64) -> Result<i64> {
        let attempt = |route| {
            let mut client = pb::lease_client::LeaseClient::new(self.service.clone());
            let only = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
            let request = routed(with_leader(only), route);
            async move {
                let mut answers = client.lease_keep_alive(request).await?.into_inner();
                let first = answers.message().await?;
                first.map(Response::new).ok_or_else(|| Status::unavailable("the keep-alive stream ended"))
            }
        };
        let answer =
            self.call("Lease/LeaseKeepAlive", Repeat::Read, Sees::Nothing, || 0, attempt).await?.value;
        match answer.id == id {
            true => Ok(answer.ttl),
            false => Err(Error::protocol("a keep-alive of another lease", Outcome::NotApplied)),
        }
    }

    /// Opens a keep-alive stream.
    pub(crate) async fn open_keep_alive(
        &self,
        requests: impl Stream<Item = pb::LeaseKeepAliveRequest> + Send + 'static,
        route: Route,
    ) -> Result<Streaming<pb::LeaseKeepAliveResponse>> {
        let mut client = pb::lease_client::LeaseClient::new(self.service.clone());
        let request = routed(with_leader(requests), route.clone());
        // A lease gives up what takes too long for it. An adoption waits for as long as a request: there is to be time for
        // another attempt meanwhile.
        let limit = self.limits.request_timeout / 4 * 3;
        self.open(
            "Lease/LeaseKeepAlive",
            &route,
            limit,
            async move { client.lease_keep_alive(request).await },
        )
        .await
    }
}
