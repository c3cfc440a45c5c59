//! The generated server traits on top of the state, and the road that every call takes to it.

mod auth;
mod cluster;
mod door;
mod election;
mod health;
mod inbox;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod responses;
mod road;
mod visit;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

pub(crate) use self::door::Door;
use self::health::Health;
use self::responses::Responses;
use self::visit::Visit;
use super::core::{Caller, Core};
use super::fault::{End, LoseReply, Place, Plan, Ticket, broken};
use super::history::{Answered, Asked};
use super::refusal::Refusal;
use super::rpc::Rpc;
use super::shared::{Reply, Shared};
use crate::pb::etcdserverpb::auth_server::AuthServer;
use crate::pb::etcdserverpb::cluster_server::ClusterServer;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::pb::etcdserverpb::watch_server::WatchServer;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;

/// A service whose methods are each one request applied to the state, and what else it has.
macro_rules! methods {
    ($service:ident { $($more:tt)* } $($method:ident: $rpc:ident, $request:ty => $response:ty;)*) => {
        #[tonic::async_trait]
        impl $service for Server {
            $($more)*
            $(
                async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    self.call(Rpc::$rpc, request, Core::$method).await
                }
            )*
        }
    };
}
use methods;

/// The server as one named client reaches it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    client: Arc<str>,
}

/// What a call's metadata say.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    /// It is to fail where there is no leader.
    needs_leader: bool,
    token: Option<Arc<str>>,
}

impl Server {
    pub(crate) fn new(shared: Arc<Shared>, client: &str) -> Self {
        Self { shared, client: client.into() }
    }

    /// All services, by path.
    pub(crate) fn routes(&self) -> Routes {
        // Too large a message is refused by us, in etcd's words, instead of by the decoder. But for one that only
        // claims to be of gigabytes: the decoder would make room for it.
        let largest = self.shared.max_message_bytes().saturating_add(SURELY_TOO_LARGE);
        Routes::new(KvServer::new(self.clone()).max_decoding_message_size(largest))
            .add_service(WatchServer::new(self.clone()).max_decoding_message_size(largest))
            .add_service(LeaseServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()))
            .add_service(AuthServer::new(self.clone()))
            .add_service(MaintenanceServer::new(self.clone()))
            .add_service(LockServer::new(self.clone()))
            .add_service(ElectionServer::new(self.clone()))
            .add_service(Health(self.clone()))
            .prepare()
    }

    /// Takes a call to the state and its answer back, past all faults.
    async fn call<Q, R>(
        &self,
        rpc: Rpc,
        request: Request<Q>,
        apply: impl FnOnce(&mut Core, &Q, &Caller<'_>) -> Result<R, Refusal> + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        Q: Asked,
        R: Answered,
    {
        let (visit, request, plan) = self.visit(rpc, request).await?;
        self.finish(plan, async move { visit.serve(request, apply).await }).await
    }

    /// Lets a call in, and looks up what is to befall it.
    async fn visit<Q: Asked>(
        &self,
        rpc: Rpc,
        request: Request<Q>,
    ) -> Result<(Visit, Q, Option<Plan>), Status> {
        self.shared.pass(&self.client).await?;
        let meta = Meta::of(request.metadata());
        let request = request.into_inner();
        let plan = self.shared.plan(Place::Request, rpc, &self.client, request.message());
        let lost = plan.as_ref().is_some_and(|plan| matches!(plan.end, Some(End::LoseReply(_))));
        Ok((Visit::new(self, rpc, meta, lost), request, plan))
    }

    /// Does what a call asks for, past all faults.
    async fn finish<R: Send + 'static>(
        &self,
        plan: Option<Plan>,
        work: impl Future<Output = Result<R, Status>> + Send + 'static,
    ) -> Result<Response<R>, Status> {
        // Most calls are done at once; only those that wait can be broken off.
        let work = {
            let (shared, client) = (Arc::clone(&self.shared), Arc::clone(&self.client));
            async move {
                tokio::select! {
                    biased;
                    answer = work => answer,
                    status = shared.broken_off(&client) => Err(status),
                }
            }
        };
        let Some(plan) = plan else { return work.await.map(Response::new) };
        match plan.end {
            Some(End::Fail(status)) => {
                arrive(plan.delay, &plan.held).await;
                return Err(status);
            }
            Some(End::Vanish) => return Err(self.shared.broken_off(&self.client).await),
            Some(End::LoseReply(_) | End::Split) | None => {}
        }
        let answer = if plan.delay.is_zero() && plan.held.is_empty() {
            work.await
        } else {
            // What is under way arrives, whether or not the caller still waits.
            let arrival = tokio::spawn(async move {
                arrive(plan.delay, &plan.held).await;
                drop(plan.held);
                work.await
            });
            arrival.await.map_err(|_| Status::internal("the request died on its way"))?
        };
        if !plan.delay_reply.is_zero() {
            tokio::time::sleep(plan.delay_reply).await;
        }
        self.shared.pass(&self.client).await?;
        match plan.end {
            Some(End::LoseReply(LoseReply::Error)) => Err(broken()),
            Some(End::LoseReply(LoseReply::Status(status))) => Err(status),
            Some(End::LoseReply(LoseReply::Hang)) => Err(self.shared.broken_off(&self.client).await),
            _ => Ok(Response::new(answer?)),
        }
    }

    fn needs_leader<M>(request: &Request<M>) -> bool {
        Meta::of(request.metadata()).needs_leader
    }

    /// Answers with messages that are all there already.
    async fn messages<T: responses::Said>(
        &self,
        rpc: Rpc,
        needs_leader: bool,
        messages: impl IntoIterator<Item = Reply>,
    ) -> Result<Response<Responses<T>>, Status> {
        let stream = self.shared.with(|state, _| {
            let stream = state.open_stream(&self.client, needs_leader);
            for message in messages {
                state.reply(stream, message);
            }
            state.finish(stream);
            stream
        });
        Responses::new(self, rpc, stream, None).started().await
    }

    /// Takes the opening of a stream past the faults.
    async fn open(&self, rpc: Rpc, meta: &Meta) -> Result<(), Status> {
        self.shared.pass(&self.client).await?;
        if meta.needs_leader && !self.shared.look(|state, _| state.has_leader()) {
            return Err(Refusal::NoLeader.status());
        }
        let Some(plan) = self.shared.plan(Place::Open, rpc, &self.client, &()) else { return Ok(()) };
        arrive(plan.delay + plan.delay_reply, &plan.held).await;
        match plan.end {
            Some(End::Fail(status) | End::LoseReply(LoseReply::Status(status))) => Err(status),
            Some(End::LoseReply(LoseReply::Error)) => Err(broken()),
            Some(End::Vanish | End::LoseReply(LoseReply::Hang)) => {
                Err(self.shared.broken_off(&self.client).await)
            }
            Some(End::Split) | None => Ok(()),
        }
    }
}

impl Meta {
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        // The first is what gRPC clients send, the second what comes through the HTTP gateway.
        let token = text("token").or_else(|| text("authorization"));
        Self {
            needs_leader: text("hasleader") == Some("true"),
            token: token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token).into()),
        }
    }

    /// The same for what is said on a stream: whether there is a leader was asked when it was opened.
    pub(super) fn on_stream(self) -> Self {
        Self { needs_leader: false, ..self }
    }
}

/// What is under way arrives after a time, and not before it is released by all who hold it.
async fn arrive(delay: Duration, held: &[Ticket]) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    for ticket in held {
        ticket.released().await;
    }
}

/// So much more than the largest message the decoder refuses by itself, in its own words.
const SURELY_TOO_LARGE: usize = 64 << 20;
