//! gRPC's health service: the server serves, as long as it can be reached.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codegen::BoxStream;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Status};
use tower::Service;

use super::Server;
use crate::pb::codec::SmallBuffers;

/// The health service of one server.
#[derive(Debug, Clone)]
pub(super) struct Health(pub(super) Server);

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    /// None but the server as a whole, which has no name, is known.
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: HealthCheckResponse = HealthCheckResponse { status: 1 };
const SERVICE_UNKNOWN: HealthCheckResponse = HealthCheckResponse { status: 3 };

type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl UnaryService<HealthCheckRequest> for Health {
    type Response = HealthCheckResponse;
    type Future = Answer<HealthCheckResponse>;

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let Server { shared, client } = self.0.clone();
        Box::pin(async move {
            shared.pass(&client).await?;
            if !request.get_ref().service.is_empty() {
                return Err(Status::new(Code::NotFound, "unknown service"));
            }
            Ok(tonic::Response::new(SERVING))
        })
    }
}

/// The same, told once and then never again: nothing changes.
struct Watch(Server);

impl ServerStreamingService<HealthCheckRequest> for Watch {
    type Response = HealthCheckResponse;
    type ResponseStream = BoxStream<HealthCheckResponse>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let Server { shared, client } = self.0.clone();
        Box::pin(async move {
            shared.pass(&client).await?;
            let known = request.get_ref().service.is_empty();
            let first = tokio_stream::once(Ok(if known { SERVING } else { SERVICE_UNKNOWN }));
            let stream: Self::ResponseStream = Box::pin(first.chain(tokio_stream::pending()));
            Ok(tonic::Response::new(stream))
        })
    }
}

impl Service<Request<Body>> for Health {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let health = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(SmallBuffers::default());
            Ok(match request.uri().path() {
                "/grpc.health.v1.Health/Check" => grpc.unary(health, request).await,
                "/grpc.health.v1.Health/Watch" => grpc.server_streaming(Watch(health.0), request).await,
                _ => Status::unimplemented("unknown method").into_http(),
            })
        })
    }
}
