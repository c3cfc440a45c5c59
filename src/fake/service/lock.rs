//! The server-side Lock service.

use tonic::{Code, Request, Response, Status};

use super::Server;
use super::queue::Place;
use super::visit::Visit;
use crate::fake::history::Need;
use crate::fake::refusal::Refusal;
use crate::fake::rpc::Rpc;
use crate::pb::etcdserverpb::{DeleteRangeRequest, RangeRequest};
use crate::pb::v3lockpb::lock_server::Lock;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

#[tonic::async_trait]
impl Lock for Server {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (visit, request, plan) = self.visit(Rpc::Lock, request).await?;
        self.finish(plan, async move {
            let outcome = lock(&visit, &request).await;
            visit.over(request, outcome)
        })
        .await
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (visit, request, plan) = self.visit(Rpc::Unlock, request).await?;
        self.finish(plan, async move {
            let outcome = unlock(&visit, &request).await;
            visit.over(request, outcome)
        })
        .await
    }
}

async fn lock(visit: &Visit, request: &LockRequest) -> Result<LockResponse, Refusal> {
    let place = Place::take(visit, &request.name, request.lease, bytes::Bytes::new()).await?;
    if place.is_first() {
        let (key, _, header) = place.keep();
        return Ok(LockResponse { header, key });
    }
    place.wait().await;
    // The lease may have ended meanwhile.
    let get = RangeRequest { key: place.key.clone(), ..Default::default() };
    let mine = visit.ask(Need::Read, |core, caller| core.range(&get, caller)).await?;
    let (key, ..) = place.keep();
    if mine.kvs.is_empty() {
        return Err(Refusal::Other(Code::Unknown, "mutex: session is expired"));
    }
    Ok(LockResponse { header: mine.header, key })
}

async fn unlock(visit: &Visit, request: &UnlockRequest) -> Result<UnlockResponse, Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let delete = DeleteRangeRequest { key: request.key.clone(), ..Default::default() };
    let answer = visit.ask(Need::Proposal, |core, caller| core.delete_range(&delete, caller)).await?;
    Ok(UnlockResponse { header: answer.header })
}
