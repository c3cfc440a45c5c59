//! A server that lies: its answers are changed on their way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseTimeToLiveResponse, RangeResponse, TxnRequest,
    TxnResponse,
};
use etcd_concurrency::{Client, RawService};
use http::{Request, Response};
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;
use tower::{Service, ServiceExt};

/// Makes of a message, and the request that it answers, what is told.
type Lie = Arc<dyn Fn(&[u8], &[u8]) -> Vec<u8> + Send + Sync>;

/// A client of the fake that is lied to in the answers to transactions.
pub(crate) fn client(
    fake: &FakeEtcd,
    lie: impl Fn(&TxnRequest, &mut TxnResponse) + Send + Sync + 'static,
) -> Client {
    lying(fake, "/Txn", move |asked, answer| {
        let asked = TxnRequest::decode(asked).expect("a transaction");
        let mut answer = TxnResponse::decode(answer).expect("an answer in one piece");
        lie(&asked, &mut answer);
        answer.encode_to_vec()
    })
}

/// The same, in the answers to reads.
pub(crate) fn of_ranges(fake: &FakeEtcd, lie: impl Fn(&mut RangeResponse) + Send + Sync + 'static) -> Client {
    lying(fake, "/Range", move |_, answer| {
        let mut answer = RangeResponse::decode(answer).expect("an answer in one piece");
        lie(&mut answer);
        answer.encode_to_vec()
    })
}

/// The same, in the answers to grants.
pub(crate) fn of_grants(
    fake: &FakeEtcd,
    lie: impl Fn(&mut LeaseGrantResponse) + Send + Sync + 'static,
) -> Client {
    lying(fake, "/LeaseGrant", move |_, answer| {
        let mut answer = LeaseGrantResponse::decode(answer).expect("an answer in one piece");
        lie(&mut answer);
        answer.encode_to_vec()
    })
}

/// A client that asks a member of the past for leases: it knows of none.
pub(crate) fn knows_no_lease(fake: &FakeEtcd) -> Client {
    lying(fake, "/LeaseTimeToLive", |_, answer| {
        let answer = LeaseTimeToLiveResponse::decode(answer).expect("an answer in one piece");
        let lie = LeaseTimeToLiveResponse { ttl: -1, granted_ttl: 0, keys: Vec::new(), ..answer };
        lie.encode_to_vec()
    })
}

/// The same, where it knows of all that were ever granted.
pub(crate) fn knows_all_leases(fake: &FakeEtcd) -> Client {
    lying(fake, "/LeaseTimeToLive", |_, answer| {
        let answer = LeaseTimeToLiveResponse::decode(answer).expect("an answer in one piece");
        LeaseTimeToLiveResponse { ttl: 20, granted_ttl: 30, ..answer }.encode_to_vec()
    })
}

/// The same, where it renews a lease that has ended: so many times.
pub(crate) fn renews_what_has_ended(fake: &FakeEtcd, times: usize) -> Client {
    let lies = AtomicUsize::new(0);
    lying(fake, "/LeaseKeepAlive", move |_, answer| {
        let mut answer = LeaseKeepAliveResponse::decode(answer).expect("an answer in one piece");
        if answer.ttl <= 0 && lies.fetch_add(1, Ordering::Relaxed) < times {
            answer.ttl = 60;
        }
        answer.encode_to_vec()
    })
}

fn lying(
    fake: &FakeEtcd,
    method: &'static str,
    lie: impl Fn(&[u8], &[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> Client {
    let inner = RawService::new(fake.service().map_err(|error| tonic::Status::from_error(error.into())));
    Client::from_service(Lying { inner, method, lie: Arc::new(lie) })
}

#[derive(Clone)]
struct Lying {
    inner: RawService,
    method: &'static str,
    lie: Lie,
}

impl Service<Request<Body>> for Lying {
    type Response = Response<Body>;
    type Error = <RawService as Service<Request<Body>>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ready = self.inner.clone();
        let (mut inner, lie) = (std::mem::replace(&mut self.inner, ready), self.lie.clone());
        let method = self.method;
        Box::pin(async move {
            if !request.uri().path().ends_with(method) {
                return inner.call(request).await;
            }
            let (mut request, mut question) = (request, Bytes::new());
            // A stream has no end that could be waited for.
            if method != "/LeaseKeepAlive" {
                let (parts, body) = request.into_parts();
                let asked = body.collect().await.expect("a request").to_bytes();
                question = asked.slice(5..);
                request = Request::from_parts(parts, Body::new(http_body_util::Full::new(asked)));
            }
            let answer = inner.call(request).await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| frame.map_data(|data| told(&lie, &question, &data))))
            }))
        })
    }
}

/// The same message, with the lie in it.
fn told(lie: &Lie, question: &[u8], data: &[u8]) -> Bytes {
    let answer = lie(question, &data[5..]);
    let mut told = BytesMut::new();
    told.put_u8(0);
    told.put_u32(u32::try_from(answer.len()).expect("short"));
    told.put_slice(&answer);
    told.freeze()
}
