//! The Lease service.

use tonic::{Request, Response, Status, Streaming};

use super::inbox::{Heard, Inbox};
use super::responses::Responses;
use super::visit::Visit;
use super::{Meta, Server};
use crate::fake::core::Core;
use crate::fake::rpc::Rpc;
use crate::fake::shared::Reply;
use crate::fake::watch::StreamId;
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};

#[tonic::async_trait]
impl Lease for Server {
    type LeaseKeepAliveStream = Responses<LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        self.call(Rpc::LeaseGrant, request, Core::grant).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.call(Rpc::LeaseRevoke, request, Core::revoke).await
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let meta = Meta::of(request.metadata());
        self.open(Rpc::LeaseKeepAlive, &meta).await?;
        let stream = self.shared.with(|state, _| state.open_stream(&self.client, meta.needs_leader));
        let inbox = Inbox::new(self, Rpc::LeaseKeepAlive, stream, request.into_inner());
        let visit = Visit::new(self, Rpc::LeaseKeepAlive, meta.on_stream(), false);
        let listener = tokio::spawn(listen(visit, stream, inbox));
        Responses::new(self, Rpc::LeaseKeepAlive, stream, Some(listener.abort_handle())).started().await
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.call(Rpc::LeaseTimeToLive, request, Core::time_to_live).await
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.call(Rpc::LeaseLeases, request, Core::leases).await
    }
}

/// Answers each keep-alive in turn; ends the stream when the client has no more, or may not.
async fn listen(visit: Visit, stream: StreamId, mut inbox: Inbox<LeaseKeepAliveRequest>) {
    loop {
        match inbox.hear().await {
            Heard::Message(message, after) => {
                match visit.losing(after.is_an_end()).serve(message, Core::keep_alive).await {
                    Ok(reply) => visit.shared.with(|state, _| state.reply(stream, Reply::KeepAlive(reply))),
                    Err(status) => return visit.shared.with(|state, _| state.refuse(stream, status)),
                }
                after.befall(&visit.shared, stream);
            }
            Heard::End => return visit.shared.with(|state, _| state.finish(stream)),
            Heard::Broken => return,
        }
    }
}
