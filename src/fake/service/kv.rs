//! The KV service.

use tonic::{Request, Response, Status};

use super::Server;
use super::responses::Responses;
use crate::fake::core::Core;
use crate::fake::history::Streamed;
use crate::fake::rpc::Rpc;
use crate::fake::shared::Reply;
use crate::pb::etcdserverpb::kv_server::Kv;
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};

#[tonic::async_trait]
impl Kv for Server {
    type RangeStreamStream = Responses<RangeStreamResponse>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.call(Rpc::Range, request, Core::range).await
    }

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let needs_leader = Self::needs_leader(&request);
        let request = request.map(Streamed);
        let answer = self
            .call(Rpc::RangeStream, request, |core, request, caller| core.range_stream(&request.0, caller));
        let pieces = answer.await?.into_inner().into_iter();
        let replies = pieces.map(|piece| Reply::Range(RangeStreamResponse { range_response: Some(piece) }));
        self.messages(Rpc::RangeStream, needs_leader, replies).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.call(Rpc::Put, request, Core::put).await
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.call(Rpc::DeleteRange, request, Core::delete_range).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.call(Rpc::Txn, request, Core::txn).await
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.call(Rpc::Compact, request, Core::compact).await
    }
}
