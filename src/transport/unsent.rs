//! Whether a request's message has left this process.
//!
//! A server does nothing with a call whose message it has not got. So an attempt that ends before anything beneath has
//! read the message was not applied: it waited for a token, say, or for a connection. Once it is given up nothing can read
//! the message any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::RawService;
use super::channel::Route;

/// What has become of a message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    #[default]
    Unread,
    /// It may have been sent.
    Read,
    /// Unread, and it stays so.
    GivenUp,
}

/// A service of which a [`Route`] learns whether the message of its request is read.
#[derive(Clone)]
pub(super) struct Told(pub(super) RawService);

impl Service<Request<Body>> for Told {
    type Response = <RawService as Service<Request<Body>>>::Response;
    type Error = <RawService as Service<Request<Body>>>::Error;
    type Future = <RawService as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = told(parts.extensions.get(), body);
        self.0.call(Request::from_parts(parts, body))
    }
}

/// A message that tells a route when it is read. What a read or a stream asks for changes nothing, and is not followed.
pub(super) fn told(route: Option<&Route>, body: Body) -> Body {
    match route.filter(|route| route.tells()) {
        // There is nothing to read.
        Some(route) if body.is_end_stream() => {
            route.reads();
            body
        }
        Some(route) => Body::new(Telling { body, route: route.clone() }),
        None => body,
    }
}

struct Telling {
    body: Body,
    route: Route,
}

impl http_body::Body for Telling {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.route.reads() {
            return Poll::Ready(Some(Err(Status::cancelled("the call was given up"))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;
    use crate::error::{ErrorKind, Outcome};
    use crate::pb::etcdserverpb as pb;
    use crate::transport::namespace::Namespace;
    use crate::transport::{Limits, Repeat, Sees, Transport};

    async fn outcome(service: RawService) -> (ErrorKind, Outcome) {
        let limits = Limits { request_timeout: Duration::from_secs(10), answer: 1 << 20 };
        let transport = Transport::new(service, None, Namespace::new(""), limits);
        let write = transport.raw_txn(pb::TxnRequest::default(), Repeat::Never, Sees::Past);
        let error = write.await.map(|_| ()).expect_err("not answered");
        (error.kind().clone(), error.outcome())
    }

    /// A write that waited for a token or a connection until its deadline was told to be of unknown outcome.
    #[tokio::test(start_paused = true)]
    async fn what_no_server_has_got_was_not_applied() {
        let holds = RawService::new(service_fn(|request: Request<Body>| async move {
            let _kept = request;
            pending().await
        }));
        assert_eq!(outcome(holds).await, (ErrorKind::Timeout, Outcome::NotApplied));
        let sends = RawService::new(service_fn(|request: Request<Body>| async move {
            let _sent = request.into_body().collect().await;
            pending().await
        }));
        assert_eq!(outcome(sends).await, (ErrorKind::Timeout, Outcome::Unknown));
        let breaks = RawService::new(service_fn(|_: Request<Body>| async move {
            Err(Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe))))
        }));
        assert_eq!(outcome(breaks).await, (ErrorKind::Disconnected, Outcome::NotApplied));
    }

    /// A layer that has it in hand yet cannot send it later.
    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_unread_is_never_read() {
        let (late, sent) = (Duration::from_secs(60), tokio::sync::mpsc::unbounded_channel());
        let (sender, mut receiver) = sent;
        let lags = RawService::new(service_fn(move |request: Request<Body>| {
            let sender = sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                let _ = sender.send(request.into_body().collect().await.is_ok());
            });
            pending()
        }));
        assert_eq!(outcome(lags).await, (ErrorKind::Timeout, Outcome::NotApplied));
        assert_eq!(receiver.recv().await, Some(false));
    }
}
