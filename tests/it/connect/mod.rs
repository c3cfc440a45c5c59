//! Making a client: what goes wrong is typed, names the culprit, and is known in time.

use std::error::Error as StdError;
use std::net::Ipv4Addr;
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, ClientBuilder, Error, ErrorKind, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::port;

mod auth;
mod failover;
mod layers;
#[cfg(feature = "tls")]
mod tls;

/// For what the peer alone must not hold up.
const PATIENCE: Duration = Duration::from_millis(300);
/// For all else: a test fails by it, and never waits for it.
const LONG: Duration = Duration::from_secs(20);

/// What a peer does with a connection, that is no etcd.
#[derive(Clone, Copy)]
enum Peer {
    /// Reads, and says nothing.
    Silent,
    HangsUp,
    /// The same, once it has read something.
    HangsUpOnTheRequest,
    /// Says this, and then nothing.
    Says(&'static [u8]),
}

impl Peer {
    /// Its endpoint. It is there for as long as the test.
    async fn start(self) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.talk(stream));
            }
        });
        endpoint
    }

    async fn talk(self, mut stream: TcpStream) -> std::io::Result<()> {
        match self {
            Peer::Silent => {}
            Peer::HangsUp => return Ok(()),
            Peer::HangsUpOnTheRequest => return stream.read(&mut [0; 24]).await.map(drop),
            Peer::Says(bytes) => {
                stream.read_exact(&mut [0; 24]).await?;
                stream.write_all(bytes).await?;
            }
        }
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    }
}

/// What `connect` fails with, in time.
async fn failure(builder: ClientBuilder) -> Error {
    let connecting = timeout(LONG, builder.connect());
    connecting.await.expect("in time").expect_err("no client comes of this")
}

fn to(endpoints: &str) -> ClientBuilder {
    Client::builder().endpoints(endpoints).connect_timeout(PATIENCE)
}

/// The error and all its causes.
fn story(error: &Error) -> String {
    let mut story = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        story = format!("{story}: {cause}");
        next = cause.source();
    }
    story
}

fn assert_connect(error: &Error, named: &[&str]) {
    let ErrorKind::Connect { endpoint } = error.kind() else { panic!("{error:?}") };
    assert_eq!(*endpoint, named.join(", "));
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens() {
    let endpoint = format!("http://127.0.0.1:{}", port::free());
    let error = failure(to(&endpoint)).await;
    assert_connect(&error, &[&endpoint]);
    assert!(story(&error).contains("refused"), "{}", story(&error));
}

#[tokio::test]
async fn a_host_that_does_not_exist() {
    let error = failure(to("no-such-host.invalid:2379")).await;
    assert_connect(&error, &["http://no-such-host.invalid:2379"]);
}

#[tokio::test]
async fn a_peer_that_says_nothing() {
    let endpoint = Peer::Silent.start().await;
    let started = Instant::now();
    let error = failure(to(&endpoint)).await;
    assert_connect(&error, &[&endpoint]);
    assert!(story(&error).contains("did not answer"), "{}", story(&error));
    assert!(started.elapsed() < 10 * PATIENCE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_peer_that_hangs_up_at_once() {
    let endpoint = Peer::HangsUp.start().await;
    assert_connect(&failure(to(&endpoint)).await, &[&endpoint]);
}

#[tokio::test]
async fn a_peer_that_hangs_up_on_the_request() {
    let endpoint = Peer::HangsUpOnTheRequest.start().await;
    assert_connect(&failure(to(&endpoint)).await, &[&endpoint]);
}

#[tokio::test]
async fn a_peer_that_speaks_something_else() {
    let http1: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let ssh: &[u8] = b"SSH-2.0-OpenSSH_9.7\r\n";
    let noise: &[u8] = &[0xa5; 4096];
    for answer in [http1, ssh, noise] {
        let endpoint = Peer::Says(answer).start().await;
        let error = failure(to(&endpoint)).await;
        let ErrorKind::Protocol { detail } = error.kind() else { panic!("{error:?}") };
        assert!(detail.starts_with(&endpoint), "{detail}");
    }
}

#[tokio::test]
async fn a_grpc_server_that_is_not_etcd() {
    let routes = tonic::service::Routes::default().prepare();
    let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", incoming.local_addr().unwrap());
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(routes, incoming));
    let error = failure(to(&endpoint)).await;
    let ErrorKind::Protocol { detail } = error.kind() else { panic!("{error:?}") };
    assert!(detail.starts_with(&endpoint), "{detail}");
}

#[tokio::test]
async fn all_endpoints_that_failed_are_named() {
    let refused = format!("http://127.0.0.1:{}", port::free());
    let silent = Peer::Silent.start().await;
    let garbage = Peer::Says(&[0xa5; 4096]).start().await;
    let error = failure(to(&[&*refused, &*silent, &*garbage].join(","))).await;
    let ErrorKind::Connect { endpoint } = error.kind() else { panic!("{error:?}") };
    for named in [&refused, &silent, &garbage] {
        assert!(endpoint.contains(named.as_str()), "{endpoint} does not name {named}");
        assert!(story(&error).contains(&format!("{named}: ")), "{} says not why {named}", story(&error));
    }
}

#[tokio::test]
async fn one_good_endpoint_is_enough() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let refused = format!("http://127.0.0.1:{}", port::free());
    let silent = Peer::Silent.start().await;
    let good = serving.addr().to_string();
    // Wherever the rotation starts.
    for _ in 0..6 {
        let builder = to(&[&*refused, &*silent, &*good].join(","));
        timeout(LONG, builder.connect()).await.expect("in time").expect("one is good");
    }
}

#[tokio::test]
async fn endpoints_are_given_in_many_ways() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let bare = serving.addr().to_string();
    let url = serving.endpoint();
    Client::connect(bare.as_str()).await.expect("host and port");
    Client::connect(url.clone()).await.expect("a URL");
    Client::connect([bare.as_str(), url.as_str()]).await.expect("an array");
    Client::connect(vec![url.clone()]).await.expect("a list");
    let client = Client::connect(format!("{bare}, {url}")).await.expect("with commas");
    // One endpoint, in two spellings.
    assert_eq!(format!("{client:?}"), format!("Client {{ endpoints: [{url:?}], .. }}"));
}

#[tokio::test]
async fn bad_options_are_named_and_nothing_is_sent() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let good = listener.local_addr().unwrap().to_string();
    let with = || Client::builder().endpoints(good.as_str());
    let service = FakeEtcd::start().service();
    let bad = [
        (Client::builder(), "endpoints", "none"),
        (Client::builder().endpoints(""), "endpoints", "empty"),
        (Client::builder().endpoints(Vec::<String>::new()), "endpoints", "none"),
        (with().endpoints("not an endpoint"), "endpoints", "not an endpoint"),
        (with().endpoints("localhost"), "endpoints", "2379"),
        (with().service(service), "endpoints", "service"),
        (with().connect_timeout(Duration::ZERO), "connect_timeout", "zero"),
        (with().request_timeout(Duration::ZERO), "request_timeout", "zero"),
        (with().keep_alive_interval(Duration::ZERO), "keep_alive_interval", "zero"),
        (with().keep_alive_timeout(Duration::ZERO), "keep_alive_timeout", "zero"),
        (with().user("", "secret"), "user", "empty"),
        (with().token(""), "token", "empty"),
        (with().token("two\nlines"), "token", "header"),
        (with().token("t").user("root", "secret"), "token", "user"),
        (with().max_answer_size(0), "max_answer_size", "zero"),
        (with().endpoints("http://etcd.example:2379").user("root", "secret"), "endpoints", "etcd.example"),
        (with().endpoints("etcd.example:2379").token("secret"), "endpoints", "allow_plaintext_credentials"),
        #[cfg(feature = "tls")]
        (
            Client::builder().service(FakeEtcd::start().service()).tls(etcd_concurrency::TlsOptions::new()),
            "tls",
            "service",
        ),
        #[cfg(not(feature = "tls"))]
        (Client::builder().endpoints("https://127.0.0.1:2379"), "endpoints", "feature `tls`"),
    ];
    for (builder, named, word) in bad {
        assert!(!format!("{builder:?}").contains("secret"), "{builder:?}");
        for error in [failure(builder.clone()).await, builder.connect_lazy().expect_err("the same")] {
            let ErrorKind::InvalidInput { what, why } = error.kind() else { panic!("{error:?}") };
            assert!(*what == named && why.contains(word), "{error}");
        }
    }
    let connected = timeout(Duration::ZERO, listener.accept()).await;
    assert!(connected.is_err(), "somebody connected");
}

/// A user's password went over plain http to another host because an endpoint in a list had no `https://` before it.
#[tokio::test]
async fn a_password_goes_in_the_clear_only_where_that_is_asked_for() {
    let with = |endpoints: &str| Client::builder().endpoints(endpoints).user("root", "secret");
    for local in ["127.0.0.1:2379", "localhost:2379", "http://[::1]:2379", "unix:/run/etcd.sock"] {
        with(local).connect_lazy().expect(local);
    }
    for open in ["10.0.0.1:2379", "http://etcd:2379", "127.0.0.1:2379, http://etcd:2379"] {
        let error = with(open).connect_lazy().expect_err(open);
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "endpoints", .. }), "{error}");
        with(open).allow_plaintext_credentials(true).connect_lazy().expect(open);
        Client::builder().endpoints(open).connect_lazy().expect("nothing secret is sent");
    }
    #[cfg(feature = "tls")]
    {
        with("https://etcd:2379").connect_lazy().expect("in secret");
        with("https://etcd:2379, http://etcd:2379").connect_lazy().expect_err("half of it in the clear");
    }
    let service = FakeEtcd::start().service();
    Client::builder().service(service).user("root", "secret").connect_lazy().expect("its own concern");
}

/// What a server sends is not taken beyond a size, and the error says what it is and how to take it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_is_an_error_of_its_own() {
    use etcd_concurrency::{Op, Outcome, Txn};
    let fake = FakeEtcd::start();
    let client = Client::builder().service(fake.service()).max_answer_size(10_000).connect().await.unwrap();
    client.txn(Txn::new().success(Op::put("large", vec![b'x'; 9_000]))).await.unwrap();
    client.txn(Txn::new().success(Op::get("large"))).await.unwrap();
    client.txn(Txn::new().success(Op::put("large", vec![b'x'; 10_001]))).await.unwrap();
    let read_and_write = Txn::new().success(Op::get("large")).success(Op::put("k", "v"));
    let error = client.txn(read_and_write).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::AnswerTooLarge { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(fake.snapshot().get("k").is_some());
    let range =
        etcd_concurrency::pb::etcdserverpb::RangeRequest { key: "large".into(), ..Default::default() };
    client.kv_client().range(range.clone()).await.expect_err("the same of the generated clients");
    client.kv_client().max_decoding_message_size(100_000).range(range).await.expect("as was asked for");
}

/// A server's words, and what others wrote, reach a terminal or a log as text.
#[tokio::test(start_paused = true)]
async fn words_of_others_do_what_they_like_to_no_log() {
    use etcd_concurrency::fake::{Do, On, Rpc};
    use etcd_concurrency::{Op, Txn};
    let fake = FakeEtcd::start();
    let client = fake.client();
    let evil = "no\n2026-01-01 INFO all is well\r\u{1b}]0;owned\u{7}\u{1b}[2J";
    for code in [
        tonic::Code::Unavailable,
        tonic::Code::Unknown,
        tonic::Code::FailedPrecondition,
        tonic::Code::Aborted,
    ] {
        let fault = fake.fault(On::rpc(Rpc::Txn), Do::fail(tonic::Status::new(code, evil)));
        let error = client.txn(Txn::new().success(Op::put("k", "v"))).await.unwrap_err();
        fault.remove();
        for told in [error.to_string(), format!("{error:?}"), story(&error)] {
            assert!(!told.chars().any(char::is_control), "{told:?}");
        }
    }
}

#[tokio::test]
async fn times_without_end_overflow_no_clock() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let ever = Duration::MAX;
    let client = Client::builder()
        .endpoints(serving.endpoint())
        .connect_timeout(ever)
        .request_timeout(ever)
        .keep_alive_interval(ever)
        .keep_alive_timeout(ever);
    let client = client.connect().await.expect("a client");
    client.txn(etcd_concurrency::Txn::new()).await.expect("an answer");
}

#[test]
fn without_a_runtime_there_is_no_client() {
    let error = Client::builder().endpoints("127.0.0.1:2379").connect_lazy().expect_err("no runtime");
    assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "runtime", .. }), "{error}");
    let mut connecting = std::pin::pin!(Client::connect("127.0.0.1:2379"));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(error)) = connecting.as_mut().poll(&mut context) else {
        panic!("waits without a runtime");
    };
    assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "runtime", .. }), "{error}");
}

#[tokio::test]
async fn a_lazy_client_connects_by_its_first_call() {
    let address = format!("127.0.0.1:{}", port::free());
    let lazy = Client::builder().endpoints(address.as_str()).request_timeout(PATIENCE);
    let client = lazy.connect_lazy().expect("nothing is tried yet");
    let error = client.txn(etcd_concurrency::Txn::new()).await.expect_err("nobody listens");
    assert_connect(&error, &[&format!("http://{address}")]);

    let fake = FakeEtcd::start();
    let _serving = fake.serve(address.parse().unwrap()).await.unwrap();
    client.txn(etcd_concurrency::Txn::new()).await.expect("now somebody does");
}
