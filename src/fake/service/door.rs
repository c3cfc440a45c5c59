//! The server's door in process: closed while it is stopped.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::ConnectError;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use crate::fake::shared::Shared;

/// The routes, behind what a closed port says.
#[derive(Clone)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    routes: Routes,
}

impl Door {
    pub(crate) fn new(shared: Arc<Shared>, routes: Routes) -> Self {
        Self { shared, routes }
    }
}

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, cx).map_err(|never| match never {})
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.shared.is_stopped() {
            // As tonic's own channel tells it, so that clients see that nothing was sent.
            let refused = ConnectError(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            return Box::pin(std::future::ready(Err(refused)));
        }
        let answer = self.routes.call(request);
        Box::pin(async move { answer.await.map_err(|never| match never {}) })
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}
