//! TLS: who is trusted, and who one is.

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, ErrorKind, TlsOptions, Txn};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::{Peer, assert_connect, failure, story, to};

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name, and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A fake behind TLS on loopback, and its `https://` endpoint.
async fn serve(config: ServerTlsConfig) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let server = Server::builder().tls_config(config).unwrap();
    let fake = FakeEtcd::start();
    let serving = server.serve_with_incoming(fake.service(), TcpIncoming::from(listener));
    tokio::spawn(serving);
    endpoint
}

fn identity((certificate, key): (String, String)) -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
}

#[tokio::test]
async fn a_server_of_a_trusted_ca() {
    let ca = Authority::new();
    let endpoint = serve(identity(ca.issue("127.0.0.1"))).await;
    let tls = TlsOptions::new().ca_certificate(ca.pem());
    let client = Client::builder().endpoints(endpoint.as_str()).tls(tls.clone()).connect().await;
    client.expect("a client").txn(Txn::new()).await.expect("an answer");

    let bare = endpoint.trim_start_matches("https://");
    let client =
        Client::builder().endpoints(bare).tls(tls).connect().await.expect("https goes without saying");
    assert!(format!("{client:?}").contains(&endpoint), "{client:?}");
}

#[tokio::test]
async fn a_server_of_another_ca() {
    let endpoint = serve(identity(Authority::new().issue("127.0.0.1"))).await;
    let tls = TlsOptions::new().ca_certificate(Authority::new().pem());
    let error = failure(to(&endpoint).tls(tls)).await;
    assert_connect(&error, &[&endpoint]);
    assert!(story(&error).contains("invalid peer certificate"), "{}", story(&error));

    // Nor do the system's roots know it, where there are any.
    let error = failure(to(&endpoint)).await;
    match error.kind() {
        ErrorKind::InvalidInput { what: "tls", why } => assert!(why.contains("native"), "{why}"),
        _ => assert_connect(&error, &[&endpoint]),
    }
}

#[tokio::test]
async fn a_server_of_another_name() {
    let ca = Authority::new();
    let endpoint = serve(identity(ca.issue("etcd.example"))).await;
    let tls = TlsOptions::new().ca_certificate(ca.pem());
    let error = failure(to(&endpoint).tls(tls.clone())).await;
    assert_connect(&error, &[&endpoint]);
    assert!(story(&error).contains("not valid for name"), "{}", story(&error));

    let named = tls.domain_name("etcd.example");
    Client::builder().endpoints(endpoint).tls(named).connect().await.expect("the name that was given");
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients() {
    let (ca, clients) = (Authority::new(), Authority::new());
    let config = identity(ca.issue("127.0.0.1")).client_ca_root(Certificate::from_pem(clients.pem()));
    let endpoint = serve(config).await;
    let tls = TlsOptions::new().ca_certificate(ca.pem());
    let error = failure(to(&endpoint).tls(tls.clone())).await;
    assert_connect(&error, &[&endpoint]);

    let (certificate, key) = clients.issue("a-client");
    let known = tls.identity(certificate, key.clone());
    assert!(!format!("{known:?}").contains(&key));
    let client = Client::builder().endpoints(endpoint).tls(known).connect().await;
    client.expect("a client").txn(Txn::new()).await.expect("an answer");
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_no_tls() {
    let ca = Authority::new().pem();
    for peer in [Peer::Silent, Peer::HangsUp, Peer::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n")] {
        let endpoint = peer.start().await.replace("http://", "https://");
        let error = failure(to(&endpoint).tls(TlsOptions::new().ca_certificate(ca.as_str()))).await;
        assert_connect(&error, &[&endpoint]);
    }
}

#[tokio::test]
async fn options_that_make_no_sense() {
    let ca = Authority::new();
    let (certificate, key) = ca.issue("a-client");
    let other_key = ca.issue("another").1;
    let trusted = || TlsOptions::new().ca_certificate(ca.pem());
    let https = "https://127.0.0.1:2379";
    for (endpoints, tls, named) in [
        (https, TlsOptions::new().ca_certificate("no PEM"), "tls"),
        (https, TlsOptions::new().ca_certificate(key.as_str()), "tls"),
        (https, trusted().identity(certificate.as_str(), other_key.as_str()), "tls"),
        (https, trusted().identity("no PEM", key.as_str()), "tls"),
        (https, trusted().domain_name("no name"), "tls"),
        ("http://127.0.0.1:2379", trusted(), "endpoints"),
        ("unix:/run/etcd", trusted(), "endpoints"),
    ] {
        let error = failure(to(endpoints).tls(tls)).await;
        let ErrorKind::InvalidInput { what, .. } = error.kind() else { panic!("{error:?}") };
        assert_eq!(*what, named, "{error}");
    }
}
