//! Counting RPCs where a user's tower layer would sit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::Request;
use tonic::body::Body;
use tower::{Layer, Service};

/// The methods whose one call lives long. What passes inside them is not counted.
/// `descriptors.rs` holds this list against the definitions.
pub(crate) const STREAMS: [&str; 5] = [
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Watch/Watch",
    "/v3electionpb.Election/Observe",
];

/// Counts calls by method. Clones share the counts; as a layer it wraps any gRPC service.
#[derive(Clone, Default)]
pub(crate) struct RpcCounter {
    calls: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl RpcCounter {
    pub(crate) fn new() -> RpcCounter {
        RpcCounter::default()
    }

    /// Calls of one method, by its name alone ("Txn") or its whole path.
    pub(crate) fn count(&self, method: &str) -> u64 {
        self.sum(|path| path == method || name(path) == method)
    }

    /// All calls but the long streams.
    pub(crate) fn unary_total(&self) -> u64 {
        self.sum(|path| !STREAMS.contains(&path))
    }

    /// The long streams opened.
    pub(crate) fn streams(&self) -> u64 {
        self.sum(|path| STREAMS.contains(&path))
    }

    pub(crate) fn reset(&self) {
        self.with(BTreeMap::clear);
    }

    fn sum(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        self.with(|calls| calls.iter().filter(|(path, _)| wanted(path)).map(|(_, n)| n).sum())
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<String, u64>) -> T) -> T {
        f(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// "2 Txn, 1 Watch": for the message of an assertion.
impl fmt::Display for RpcCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.with(|calls| calls.clone());
        let all: Vec<String> = calls.iter().map(|(path, n)| format!("{n} {}", name(path))).collect();
        f.write_str(&all.join(", "))
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl<S> Layer<S> for RpcCounter {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, counter: self.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    counter: RpcCounter,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let path = request.uri().path().to_owned();
        self.counter.with(|calls| *calls.entry(path).or_default() += 1);
        self.inner.call(request)
    }
}

#[tokio::test]
async fn calls_are_counted_by_method() {
    let counter = RpcCounter::new();
    let answer = async |_: Request<Body>| Ok::<_, std::convert::Infallible>(());
    let mut service = counter.layer(tower::service_fn(answer));
    let paths = ["/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Txn", "/etcdserverpb.Watch/Watch"];
    for path in paths {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a valid path");
        service.call(request).await.expect("infallible");
    }
    assert_eq!(counter.count("Txn"), 2);
    assert_eq!(counter.count("/etcdserverpb.Watch/Watch"), 1);
    assert_eq!((counter.unary_total(), counter.streams()), (2, 1));
    assert_eq!(counter.to_string(), "2 Txn, 1 Watch");
    counter.reset();
    assert_eq!(counter.unary_total(), 0);
}
