//! The user's layers and services.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, ErrorKind, RawService, Session, Txn, Watch};
use http::{Request, Response};
use http_body_util::Full;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

/// Notes its name and the method, and passes on what it gets in types of its own, as the layers of tower-http do.
#[derive(Clone)]
struct Notes {
    name: &'static str,
    seen: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Noting<S>(S, Notes);

impl<S> Layer<S> for Notes {
    type Service = Noting<S>;

    fn layer(&self, inner: S) -> Noting<S> {
        Noting(inner, self.clone())
    }
}

impl<S> Service<Request<Body>> for Noting<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        use http_body_util::BodyExt;
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        self.1.seen.lock().unwrap().push(format!("{} {method}", self.1.name));
        let answer = self.0.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| body.map_err(Into::into).boxed_unsync())) })
    }
}

/// Answers for a server that has authentication disabled.
fn without_auth(inner: RawService) -> RawService {
    RawService::new(service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        async move {
            if request.uri().path().ends_with("/Authenticate") {
                let off = Status::failed_precondition("etcdserver: authentication is not enabled");
                return Ok(off.into_http());
            }
            inner.oneshot(request).await
        }
    }))
}

#[tokio::test]
async fn layers_see_every_request_the_first_added_first() {
    let seen = Arc::default();
    let notes = |name| Notes { name, seen: Arc::clone(&seen) };
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = Client::builder()
        .endpoints(serving.endpoint())
        .layer(notes("outer"))
        .layer(notes("inner"))
        .layer(tower::layer::layer_fn(without_auth))
        .user("root", "secret")
        .connect()
        .await
        .expect("a client");
    let session = Session::builder(&client).open().await.expect("a session");
    let mut watcher = client.watch(Watch::key("k"));
    watcher.created().await.expect("a watch");
    client.txn(Txn::new()).await.expect("an answer");
    client
        .kv_client()
        .range(pb::RangeRequest { key: "k".into(), ..Default::default() })
        .await
        .expect("an answer");
    session.close().await.expect("closed");

    let seen = seen.lock().unwrap();
    for method in ["Status", "Authenticate", "LeaseGrant", "Watch", "Txn", "Range", "LeaseRevoke"] {
        let at = |name| seen.iter().position(|note: &String| *note == format!("{name} {method}"));
        let (outer, inner) = (at("outer"), at("inner"));
        assert!(outer.is_some() && outer < inner, "{method}: {seen:?}");
    }
}

#[tokio::test]
async fn a_layers_refusal_is_the_calls_error() {
    let fake = FakeEtcd::start();
    let refusing = tower::layer::layer_fn(|_| {
        service_fn(async |_: Request<Body>| Err::<Response<Body>, _>(Status::permission_denied("not today")))
    });
    let client = Client::builder().service(fake.service()).layer(refusing).connect_lazy().unwrap();
    let error = client.txn(Txn::new()).await.expect_err("refused");
    assert_eq!(*error.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_service_that_is_never_ready_keeps_its_reason() {
    #[derive(Clone)]
    struct Closed;
    impl Service<Request<Body>> for Closed {
        type Response = Response<Body>;
        type Error = std::io::Error;
        type Future = std::future::Ready<Result<Response<Body>, std::io::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Err(std::io::Error::other("closed for good")))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let client = Client::from_service(Closed);
    let status = client.kv_client().range(pb::RangeRequest::default()).await.expect_err("closed");
    let source = std::error::Error::source(&status).expect("a source");
    assert!(source.downcast_ref::<std::io::Error>().is_some(), "{status:?}");
}

#[tokio::test]
async fn any_service_will_do() {
    let fake = FakeEtcd::start();
    // The fake's own routes, in this process.
    Client::from_service(fake.service()).txn(Txn::new()).await.expect("in process");
    // A channel of tonic's.
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let channel = tonic::transport::Endpoint::from_shared(serving.endpoint()).unwrap().connect_lazy();
    Client::from_service(channel).txn(Txn::new()).await.expect("over a channel");
    // Written by hand, with a body and an error of its own.
    let header = pb::ResponseHeader { revision: 7, ..Default::default() };
    let answer = pb::TxnResponse { header: Some(header), ..Default::default() }.encode_to_vec();
    let answer = Bytes::from([&[0, 0, 0, 0, answer.len() as u8], &answer[..]].concat());
    let by_hand = service_fn(move |request: Request<Body>| {
        assert_eq!(request.uri().path(), "/etcdserverpb.KV/Txn");
        let answer = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(Full::new(answer.clone()));
        std::future::ready(answer.map_err(BoxError::from))
    });
    let reply = Client::from_service(by_hand).txn(Txn::new()).await.expect("by hand");
    assert_eq!(reply.header.revision, 7);
    // And through the whole of `connect`.
    Client::builder().service(fake.service()).namespace("app/").connect().await.expect("it speaks etcd");
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_will_do() {
    let path = std::env::temp_dir().join(format!("etcd-concurrency-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let fake = FakeEtcd::start();
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (accepted, incoming) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(
        async move { while accepted.send(listener.accept().await.map(|(stream, _)| stream)).is_ok() {} },
    );
    let incoming = tokio_stream::wrappers::UnboundedReceiverStream::new(incoming);
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(fake.service(), incoming));
    for scheme in ["unix:", "unix://"] {
        let client = Client::connect(format!("{scheme}{}", path.display())).await.expect("a client");
        client.txn(Txn::new()).await.expect("an answer");
    }
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn connect_names_a_service_that_is_not_etcd() {
    let html = service_fn(async |_: Request<Body>| {
        Ok::<_, BoxError>(
            Response::builder().status(404).body(Full::new(Bytes::from_static(b"<html>"))).unwrap(),
        )
    });
    let error = Client::builder().service(html).connect().await.expect_err("no etcd");
    let ErrorKind::Protocol { detail } = error.kind() else { panic!("{error:?}") };
    assert!(detail.starts_with("the service"), "{detail}");
}
