//! Sends chosen requests to one member, whatever the client's rotation says: a layer around the connections.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use etcd_concurrency::RawService;
use etcd_concurrency::pb::etcdserverpb::request_op::Request as Op;
use etcd_concurrency::pb::etcdserverpb::{RequestOp, TxnRequest, TxnResponse};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Layer, Service, ServiceExt};

/// What becomes of a request that its client gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The client says so on the stream, as gRPC does; the member finds that behind the request when it goes on, and
    /// may have begun by then.
    Cancelled,
    /// The member never hears of it: so it is where the client was killed, or its packets are lost.
    Unheard,
}

/// Sends the first transaction that writes below an armed name to one member, and no other.
#[derive(Clone)]
pub(crate) struct Steer {
    to: Channel,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    armed: HashMap<String, GivenUp>,
    sent: BTreeMap<String, Option<bool>>,
}

impl Steer {
    pub(crate) fn new(to: Channel) -> Steer {
        Steer { to, shared: Arc::default() }
    }

    pub(crate) fn arm(&self, name: &str, given_up: GivenUp) {
        self.shared().armed.insert(name.to_owned(), given_up);
    }

    /// The names whose request was sent there; and of those that were not cancelled, once they were answered, whether
    /// the conditions held when it was applied.
    pub(crate) fn sent(&self) -> BTreeMap<String, Option<bool>> {
        self.shared().sent.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a transaction is to be steered, and how; it is from here on.
    fn take(&self, txn: &TxnRequest) -> Option<(String, GivenUp)> {
        let mut shared = self.shared();
        let mut written = Vec::new();
        keys(&txn.success, &mut written);
        let is_below = |name: &&String| written.iter().any(|key| key.starts_with(name.as_bytes()));
        let name = shared.armed.keys().find(is_below).cloned()?;
        let given_up = shared.armed.remove(&name)?;
        shared.sent.insert(name.clone(), None);
        Some((name, given_up))
    }

    async fn call(self, inner: RawService, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let steered =
            TxnRequest::decode(bytes.get(5..).unwrap_or_default()).ok().and_then(|txn| self.take(&txn));
        let request = Request::from_parts(parts, Body::new(Full::new(bytes)));
        let Some((name, given_up)) = steered else { return inner.oneshot(request).await };
        let answer = answer(self.to.clone(), request);
        if given_up == GivenUp::Cancelled {
            return answer.await.map(|(_, response)| response);
        }
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let answer = answer.await;
            let succeeded = answer.as_ref().ok().map(|(succeeded, _)| *succeeded);
            self.shared().sent.insert(name, succeeded);
            // Its client may have given it up.
            let _ = sender.send(answer.map(|(_, response)| response));
        });
        receiver.await.map_err(|_| Status::unavailable("the runtime ends"))?
    }
}

/// The whole answer, and whether it is one of a transaction whose conditions held.
async fn answer(to: Channel, request: Request<Body>) -> Result<(bool, Response<Body>), Status> {
    let answer = to.oneshot(request).await.map_err(|error| Status::from_error(error.into()))?;
    let (parts, body) = answer.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    let bytes = collected.to_bytes();
    let succeeded = TxnResponse::decode(bytes.get(5..).unwrap_or_default()).is_ok_and(|txn| txn.succeeded);
    let body = Full::new(bytes).with_trailers(std::future::ready(trailers.map(Ok)));
    Ok((succeeded, Response::from_parts(parts, Body::new(body))))
}

fn keys<'a>(ops: &'a [RequestOp], into: &mut Vec<&'a Bytes>) {
    for op in ops {
        match &op.request {
            Some(Op::RequestPut(put)) => into.push(&put.key),
            Some(Op::RequestDeleteRange(delete)) => into.push(&delete.key),
            Some(Op::RequestTxn(txn)) => keys(&txn.success, into),
            Some(Op::RequestRange(_)) | None => {}
        }
    }
}

impl Layer<RawService> for Steer {
    type Service = Steered;

    fn layer(&self, inner: RawService) -> Steered {
        Steered { inner, steer: self.clone() }
    }
}

/// A service some of whose requests go elsewhere.
#[derive(Clone)]
pub(crate) struct Steered {
    inner: RawService,
    steer: Steer,
}

impl Service<Request<Body>> for Steered {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path().ends_with("/Txn") {
            let inner = self.inner.clone();
            Box::pin(self.steer.clone().call(std::mem::replace(&mut self.inner, inner), request))
        } else {
            Box::pin(self.inner.call(request))
        }
    }
}
