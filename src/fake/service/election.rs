//! The server-side Election service.

use bytes::Bytes;
use tonic::{Code, Request, Response, Status};

use super::Server;
use super::queue::{Place, created_at, op};
use super::responses::Responses;
use super::visit::Visit;
use crate::fake::history::{Answer, Need};
use crate::fake::keys::KeyRange;
use crate::fake::refusal::Refusal;
use crate::fake::rpc::Rpc;
use crate::fake::shared::Reply;
use crate::fake::watch::StreamId;
use crate::key::{name_prefix, prefix_end};
use crate::pb::etcdserverpb::request_op;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, TxnRequest};
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::pb::v3electionpb::election_server::Election;
use crate::pb::v3electionpb::*;

/// Methods that take a visit and a request, and are recorded when they are over.
macro_rules! election {
    ($($method:ident: $rpc:ident, $request:ty => $response:ty;)*) => {
        #[tonic::async_trait]
        impl Election for Server {
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let (visit, request, plan) = self.visit(Rpc::$rpc, request).await?;
                    self.finish(plan, async move {
                        let outcome = $method(&visit, &request).await;
                        visit.over(request, outcome)
                    })
                    .await
                }
            )*

            type ObserveStream = Responses<LeaderResponse>;

            async fn observe(
                &self,
                request: Request<LeaderRequest>,
            ) -> Result<Response<Self::ObserveStream>, Status> {
                let needs_leader = Self::needs_leader(&request);
                let (visit, request, plan) = self.visit(Rpc::Observe, request).await?;
                self.finish(plan, std::future::ready(Ok(()))).await?;
                let stream = self.shared.with(|state, now| {
                    visit.record(state, now, &request, Ok(Answer::Nothing));
                    state.open_stream(&self.client, needs_leader)
                });
                let observer = tokio::spawn(observe(visit, request.name, stream));
                Responses::new(self, Rpc::Observe, stream, Some(observer.abort_handle())).started().await
            }
        }
    };
}

election! {
    campaign: Campaign, CampaignRequest => CampaignResponse;
    proclaim: Proclaim, ProclaimRequest => ProclaimResponse;
    leader: Leader, LeaderRequest => LeaderResponse;
    resign: Resign, ResignRequest => ResignResponse;
}

async fn campaign(visit: &Visit, request: &CampaignRequest) -> Result<CampaignResponse, Refusal> {
    let lease = visit.session(request.lease).await?;
    let place = Place::take(visit, &request.name, lease, request.value.clone()).await?;
    let name = request.name.clone();
    let leader = LeaderKey { name, key: place.key.clone(), rev: place.revision, lease };
    if place.found.as_ref().is_some_and(|value| *value != request.value) {
        let proclaim = ProclaimRequest { leader: Some(leader.clone()), value: request.value.clone() };
        self::proclaim(visit, &proclaim).await?;
    }
    place.wait().await;
    let (_, _, header) = place.keep();
    Ok(CampaignResponse { header, leader: Some(leader) })
}

async fn proclaim(visit: &Visit, request: &ProclaimRequest) -> Result<ProclaimResponse, Refusal> {
    let leader = request.leader.as_ref().ok_or(MISSING_LEADER)?;
    let lease = visit.session(leader.lease).await?;
    let (key, value) = (leader.key.clone(), request.value.clone());
    let put = PutRequest { key, value, lease, ..Default::default() };
    let txn = TxnRequest {
        compare: vec![created_at(&leader.key, leader.rev)],
        success: vec![op(request_op::Request::RequestPut(put))],
        failure: vec![],
    };
    let answer = visit.ask(Need::Proposal, |core, caller| core.txn(&txn, caller)).await?;
    if answer.succeeded { Ok(ProclaimResponse { header: answer.header }) } else { Err(NOT_LEADER) }
}

async fn leader(visit: &Visit, request: &LeaderRequest) -> Result<LeaderResponse, Refusal> {
    let first = visit.first(&request.name).await?;
    let kv = first.kvs.into_iter().next().ok_or(NO_LEADER)?;
    Ok(LeaderResponse { header: first.header, kv: Some(kv) })
}

async fn resign(visit: &Visit, request: &ResignRequest) -> Result<ResignResponse, Refusal> {
    let leader = request.leader.as_ref().ok_or(MISSING_LEADER)?;
    visit.session(leader.lease).await?;
    let delete = DeleteRangeRequest { key: leader.key.clone(), ..Default::default() };
    let txn = TxnRequest {
        compare: vec![created_at(&leader.key, leader.rev)],
        success: vec![op(request_op::Request::RequestDeleteRange(delete))],
        failure: vec![],
    };
    let answer = visit.ask(Need::Proposal, |core, caller| core.txn(&txn, caller)).await?;
    Ok(ResignResponse { header: answer.header })
}

/// Tells of each leader and of all that it proclaims. Any error ends the stream without a word, as the real
/// server does.
async fn observe(visit: Visit, name: Bytes, stream: StreamId) {
    let prefix = name_prefix(&name);
    let anyone = KeyRange::new(prefix.clone(), prefix_end(&prefix));
    let say = |kv: KeyValue, revision: i64| {
        visit.shared.with(|state, _| {
            let message = LeaderResponse { header: state.core.header_at(revision), kv: Some(kv) };
            state.reply(stream, Reply::Leader(message));
        });
    };
    loop {
        let Ok(first) = visit.first(&name).await else { break };
        let revision = first.header.map_or(0, |header| header.revision);
        let (mut kv, mut seen) = match first.kvs.into_iter().next() {
            Some(kv) => (kv, revision),
            None => {
                let put = visit.next_event(&anyone, revision, |kind| kind == EventType::Put).await;
                let Some((_, kv)) = put else { break };
                let revision = kv.mod_revision;
                (kv, revision)
            }
        };
        let key = KeyRange::One(kv.key.clone());
        loop {
            say(kv, seen);
            let Some((kind, next)) = visit.next_event(&key, seen, |_| true).await else {
                return visit.shared.with(|state, _| state.finish(stream));
            };
            if kind == EventType::Delete {
                break;
            }
            seen = next.mod_revision;
            kv = next;
        }
    }
    visit.shared.with(|state, _| state.finish(stream));
}

impl Visit {
    /// The next event of a range after a revision; `None` when it was compacted.
    async fn next_event(
        &self,
        range: &KeyRange,
        after: i64,
        wanted: impl Fn(EventType) -> bool,
    ) -> Option<(EventType, KeyValue)> {
        let mut next = after + 1;
        let mut found = None;
        self.shared
            .until(|| {
                self.shared.look(|state, _| {
                    let store = &state.core.store;
                    if next < store.compacted() {
                        return true;
                    }
                    found = store
                        .changes_from(next)
                        .find(|change| range.contains(&change.kv.key) && wanted(change.kind))
                        .map(|change| (change.kind, change.kv.clone()));
                    next = store.revision() + 1;
                    found.is_some()
                })
            })
            .await;
        found
    }
}

const MISSING_LEADER: Refusal = Refusal::Other(Code::Unknown, "\"leader\" field must be provided");
const NOT_LEADER: Refusal = Refusal::Other(Code::Unknown, "election: not leader");
const NO_LEADER: Refusal = Refusal::Other(Code::Unknown, "election: no leader");
