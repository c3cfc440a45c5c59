use std::convert::Infallible;
use std::net::SocketAddr;

use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::service_fn;

use super::*;
use crate::pb::etcdserverpb as pb;

/// A client with ten thousand waiters on two keys each was told of all its watches at once, before it had read any of
/// it. h2 took the many small messages for an attack and closed the connection; the watches were made anew on the
/// next one, in as large a burst, and so on for half a minute, with every other call of the client cut off each time.
#[tokio::test]
async fn a_burst_of_small_messages_does_not_cost_the_connection() {
    const MESSAGES: usize = 40_000;
    let (sent, mut all_sent) = mpsc::unbounded_channel();
    // Each in a frame of its own, as etcd sends them.
    let member = service_fn(move |_: Request<tonic::body::Body>| {
        let sent = sent.clone();
        let messages = (1..=MESSAGES).map(move |n| {
            if n == MESSAGES {
                let _ = sent.send(());
            }
            let header = pb::ResponseHeader { revision: 1, ..Default::default() };
            let message =
                pb::WatchResponse { header: Some(header), watch_id: n as i64, ..Default::default() };
            let message = prost::Message::encode_to_vec(&message);
            let prefix = [0, 0, 0, 0, u8::try_from(message.len()).expect("a short message")];
            Ok::<_, Infallible>(Frame::data(Bytes::from([&prefix[..], &message].concat())))
        });
        let body = tonic::body::Body::new(StreamBody::new(tokio_stream::iter(messages)));
        let answer =
            Response::builder().header("content-type", "application/grpc").body(body).expect("an answer");
        async { Ok::<_, Infallible>(answer) }
    });
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("listening");
    let url = format!("http://{}", incoming.local_addr().expect("an address"));
    tokio::spawn(Server::builder().serve_with_incoming(member, incoming));

    let second = Duration::from_secs(1);
    let options = Options {
        connect_timeout: second,
        keep_alive_interval: 10 * second,
        keep_alive_timeout: 10 * second,
    };
    let endpoint = Endpoint::from_shared(url.clone()).expect("a URL");
    let mut client = pb::watch_client::WatchClient::new(Dialer::new(&url, endpoint, &options).lazy());
    let mut answers = client.watch(tokio_stream::pending()).await.expect("a stream").into_inner();
    timeout(20 * second, all_sent.recv()).await.expect("all fit into the stream's window");
    for n in 1..=MESSAGES {
        let answer =
            answers.next().await.expect("goes on").unwrap_or_else(|error| panic!("after {n}: {error:?}"));
        assert_eq!(answer.watch_id, n as i64);
    }
}

/// A name had the addresses of two members, and the first one's host dropped packets: the client waited for it as long as
/// it waits for any connection, gave up, began with it again the next time, and never came to the second.
#[tokio::test]
async fn a_name_is_reached_by_its_second_address_while_the_first_drops_packets() {
    let full = tokio::net::TcpSocket::new_v4().expect("a socket");
    full.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let full = full.listen(1).expect("listening");
    let first = full.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(first)).await {
        queued.push(connected.expect("queued"));
    }
    let second = SocketAddr::from(([127, 0, 0, 2], first.port()));
    let _listener = tokio::net::TcpListener::bind(second).await.expect("the port is free at this address");

    let resolver = service_fn(move |_: Name| async move { Ok::<_, Infallible>([first, second].into_iter()) });
    let second_long = Duration::from_secs(1);
    let options = Options {
        connect_timeout: second_long,
        keep_alive_interval: second_long,
        keep_alive_timeout: second_long,
    };
    let uri = format!("http://members:{}", first.port()).parse().expect("a URI");
    let connected = Tcp::with_resolver(resolver, &options).oneshot(uri).await.expect("the second accepts");
    assert_eq!(connected.inner().peer().expect("an address"), second);
}
