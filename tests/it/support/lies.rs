//! A server that lies: its answers to transactions are changed on their way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, TxnResponse};
use etcd_concurrency::{Client, RawService};
use http::{Request, Response};
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;
use tower::{Service, ServiceExt};

type Lie = Arc<dyn Fn(&TxnRequest, &mut TxnResponse) + Send + Sync>;

/// A client of the fake that is lied to.
pub(crate) fn client(
    fake: &FakeEtcd,
    lie: impl Fn(&TxnRequest, &mut TxnResponse) + Send + Sync + 'static,
) -> Client {
    let inner = RawService::new(fake.service().map_err(|error| tonic::Status::from_error(error.into())));
    Client::from_service(Lying { inner, lie: Arc::new(lie) })
}

#[derive(Clone)]
struct Lying {
    inner: RawService,
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
        Box::pin(async move {
            if !request.uri().path().ends_with("/Txn") {
                return inner.call(request).await;
            }
            let (parts, body) = request.into_parts();
            let asked = body.collect().await.expect("a request").to_bytes();
            let question = TxnRequest::decode(&asked[5..]).expect("a transaction");
            let answer =
                inner.call(Request::from_parts(parts, Body::new(http_body_util::Full::new(asked)))).await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| frame.map_data(|data| told(&lie, &question, &data))))
            }))
        })
    }
}

/// The same message, with the lie in it.
fn told(lie: &Lie, question: &TxnRequest, data: &[u8]) -> Bytes {
    let mut answer = TxnResponse::decode(&data[5..]).expect("an answer in one piece");
    lie(question, &mut answer);
    let mut told = BytesMut::new();
    told.put_u8(0);
    told.put_u32(u32::try_from(answer.encoded_len()).expect("short"));
    answer.encode(&mut told).expect("room");
    told.freeze()
}
