//! Counting what comes back from a server: bytes, and the events of watches.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use etcd_concurrency::pb::etcdserverpb::WatchResponse;
use http::{Request, Response};
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;
use tower::{Layer, Service};

/// Counts answers. Clones share the counts; as a layer it wraps any gRPC service.
#[derive(Clone, Default)]
pub(crate) struct Answers {
    bytes: Arc<AtomicU64>,
    events: Arc<AtomicU64>,
    watches: Arc<AtomicI64>,
    open: Arc<AtomicI64>,
}

impl Answers {
    /// Bytes of all answers since this was asked last, gRPC's five in front of each message included.
    pub(crate) fn take_bytes(&self) -> u64 {
        self.bytes.swap(0, Relaxed)
    }

    /// Events that watches brought since this was asked last.
    pub(crate) fn take_events(&self) -> u64 {
        self.events.swap(0, Relaxed)
    }

    /// Watches that the server has begun and not ended, as far as it said.
    pub(crate) fn watches(&self) -> i64 {
        self.watches.load(Relaxed)
    }

    /// Calls that have no answer yet.
    pub(crate) fn open(&self) -> i64 {
        self.open.load(Relaxed)
    }

    fn count(&self, watch: bool, body: Body) -> Body {
        let (counts, mut read) = (self.clone(), Vec::new());
        // They end with their stream.
        let mut standing = Standing::new(&self.watches);
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                counts.bytes.fetch_add(data.len() as u64, Relaxed);
                if watch {
                    read.extend_from_slice(data);
                    while let Some(message) = message(&mut read) {
                        let answer = WatchResponse::decode(&message[..]).expect("a watch's answer");
                        counts.events.fetch_add(answer.events.len() as u64, Relaxed);
                        standing.add(i64::from(answer.created) - i64::from(answer.canceled));
                    }
                }
            }
            frame
        }))
    }
}

/// Takes the first whole message of a stream.
fn message(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(read.get(1..5)?.try_into().ok()?) as usize;
    (read.len() >= 5 + length).then(|| read.drain(..5 + length).skip(5).collect())
}

impl<S> Layer<S> for Answers {
    type Service = Answering<S>;

    fn layer(&self, inner: S) -> Answering<S> {
        Answering { inner, answers: self.clone() }
    }
}

/// A service whose answers are counted.
#[derive(Clone)]
pub(crate) struct Answering<S> {
    inner: S,
    answers: Answers,
}

impl<S> Service<Request<Body>> for Answering<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (answers, watch) = (self.answers.clone(), request.uri().path().ends_with("/Watch"));
        let mut open = Standing::new(&self.answers.open);
        open.add(1);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(open);
            Ok(answer?.map(|body| answers.count(watch, body)))
        })
    }
}

/// A part of a count, until it is dropped.
struct Standing {
    of: Arc<AtomicI64>,
    part: i64,
}

impl Standing {
    fn new(of: &Arc<AtomicI64>) -> Standing {
        Standing { of: of.clone(), part: 0 }
    }

    fn add(&mut self, more: i64) {
        self.part += more;
        self.of.fetch_add(more, Relaxed);
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.of.fetch_sub(self.part, Relaxed);
    }
}
