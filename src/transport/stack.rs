//! Services and layers of any make, brought into one form.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use super::RawService;

/// Erases a service.
///
/// It is asked for its readiness in the answer's future, on a clone of its own: tonic's generated clients turn an
/// error of `poll_ready` into mere words, and with them the proof that nothing was sent.
pub(crate) fn erase<S, B>(service: S) -> RawService
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    RawService::new(service_fn(move |request| answer(service.clone(), request)))
}

async fn answer<S, B>(service: S, request: Request<Body>) -> Result<Response<Body>, Status>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    match service.oneshot(request).await {
        Ok(answer) => Ok(answer.map(Body::new)),
        Err(error) => Err(Status::from_error(error.into())),
    }
}

/// The user's layers. The first is outermost.
#[derive(Clone, Default)]
pub(crate) struct Layers(Vec<Arc<dyn Fn(RawService) -> RawService + Send + Sync>>);

impl Layers {
    pub(crate) fn add<L, B>(&mut self, layer: L)
    where
        L: Layer<RawService> + Send + Sync + 'static,
        L::Service: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send + 'static,
        <L::Service as Service<Request<Body>>>::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.0.push(Arc::new(move |inner| erase(layer.layer(inner))));
    }

    pub(crate) fn around(&self, service: RawService) -> RawService {
        self.0.iter().rev().fold(service, |inner, layer| layer(inner))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
