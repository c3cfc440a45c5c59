//! Several endpoints: requests rotate, and go elsewhere when one is in trouble.

use std::net::SocketAddr;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc, Serving};
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, ErrorKind, Op, Outcome, Txn, Watch};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::{LONG, Peer};
use crate::support::count::RpcCounter;
use crate::support::etcd::{Cluster, Etcd, Version};
use crate::support::poll::until;
use crate::support::port;
use crate::support::proxy::Proxy;

/// Three members of one cluster: one store, and each is a client of its own name to it, so that it can be told who
/// served a request.
struct Members {
    fake: FakeEtcd,
    serving: Vec<Option<Serving>>,
    addresses: Vec<SocketAddr>,
}

impl Members {
    async fn start() -> Self {
        let mut members = Self { fake: FakeEtcd::start(), serving: Vec::new(), addresses: Vec::new() };
        for index in 0..3 {
            members.addresses.push(SocketAddr::from(([127, 0, 0, 1], port::free())));
            members.serving.push(None);
            members.restart(index).await;
        }
        members
    }

    async fn restart(&mut self, index: usize) {
        let name = index.to_string();
        let address = self.addresses[index];
        self.serving[index] = Some(self.fake.serve_as(&name, address).await.expect("its port is free"));
    }

    /// Its connections break, and nobody listens any more.
    async fn kill(&mut self, index: usize) {
        self.serving[index] = None;
        let address = self.addresses[index];
        until("a closed port", LONG, async || tokio::net::TcpStream::connect(address).await.err()).await;
    }

    fn endpoints(&self) -> Vec<String> {
        self.addresses.iter().map(SocketAddr::to_string).collect()
    }

    /// How many of `calls` writes each member serves.
    async fn shares(&self, client: &Client, calls: usize) -> Vec<u64> {
        use etcd_concurrency::fake::{Do, On, Rpc};
        let count = |index: usize| {
            // Seen, and let through.
            self.fake.fault(On::rpc(Rpc::Txn).client(&index.to_string()), Do::delay(Duration::ZERO))
        };
        let counts: Vec<_> = (0..3).map(count).collect();
        for _ in 0..calls {
            client.txn(write()).await.expect("served by one or another");
        }
        counts
            .into_iter()
            .map(|count| {
                count.remove();
                count.hits()
            })
            .collect()
    }
}

fn write() -> Txn {
    Txn::new().success(Op::put("k", "v"))
}

#[tokio::test]
async fn requests_rotate() {
    let members = Members::start().await;
    let client = Client::connect(members.endpoints()).await.unwrap();
    assert_eq!(members.shares(&client, 30).await, [10, 10, 10]);
}

#[tokio::test]
async fn with_one_endpoint_killed_the_others_serve_and_writes_go_on() {
    let mut members = Members::start().await;
    let client = Client::connect(members.endpoints()).await.unwrap();
    members.shares(&client, 6).await;
    for killed in 0..3 {
        members.kill(killed).await;
        // Not even a write that may not be repeated fails: it is known that it was not sent.
        let shares = members.shares(&client, 30).await;
        assert_eq!(shares[killed], 0);
        assert_eq!(shares.iter().sum::<u64>(), 30);

        members.restart(killed).await;
        until("requests to a member that came back", LONG, async || {
            (members.shares(&client, 3).await[killed] > 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_write_under_way_when_its_endpoint_is_killed_is_unknown_and_not_repeated() {
    use etcd_concurrency::fake::{Do, On, Rpc};
    let mut members = Members::start().await;
    let client = Client::connect(members.endpoints()).await.unwrap();
    let held = members.fake.fault(On::rpc(Rpc::Txn), Do::delay_reply(Duration::from_secs(3600)));
    let writing = tokio::spawn({
        let client = client.clone();
        async move { client.txn(write()).await }
    });
    until("the write at a member", LONG, async || (held.hits() > 0).then_some(())).await;
    for index in 0..3 {
        members.kill(index).await;
    }
    let error = timeout(LONG, writing).await.expect("in time").unwrap().expect_err("its reply is lost");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Disconnected, Outcome::Unknown));
    assert_eq!(held.hits(), 1);
}

#[tokio::test]
async fn a_member_without_a_leader_is_left_for_another() {
    use etcd_concurrency::fake::{Do, On, Rpc};
    let members = Members::start().await;
    let client = Client::connect(members.endpoints()).await.unwrap();
    let no_leader = || Do::fail(Status::unavailable("etcdserver: no leader"));
    let faults = ["0", "1"].map(|name| members.fake.fault(On::rpc(Rpc::Txn).client(name), no_leader()));
    let started = Instant::now();
    for _ in 0..10 {
        client.txn(write()).await.expect("the third has a leader");
    }
    assert!(faults.iter().all(|fault| fault.hits() == 1), "each is asked once and then avoided");
    assert!(
        started.elapsed() < Duration::from_millis(400),
        "no pause before another: {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_silent_endpoint_is_left_by_whoever_gives_up_on_it() {
    let members = Members::start().await;
    let mut endpoints = members.endpoints();
    endpoints[0] = Peer::Silent.start().await;
    let client = Client::builder().endpoints(endpoints).connect_lazy().unwrap();
    // The generated clients have no deadline; the caller's own must do.
    let mut gave_up = 0;
    for _ in 0..12 {
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let mut kv = client.kv_client();
        match timeout(Duration::from_millis(1100), kv.range(range)).await {
            Ok(answer) => drop(answer.expect("served")),
            Err(_) => gave_up += 1,
        }
    }
    assert_eq!(gave_up, 1);
}

/// A member whose store was stuck, or a proxy before one that was gone, answered gRPC's health check and nothing else. Each
/// time it left a read without an answer it was asked for its health, taken for sound, and had the next read in its turn:
/// every third read of the client took the time of two.
#[tokio::test]
async fn a_member_that_answers_nothing_but_its_health_check_is_avoided() {
    let members = Members::start().await;
    let client = Client::connect(members.endpoints()).await.unwrap();
    let stuck = members.fake.fault(On::rpc(Rpc::Range).client("0"), Do::vanish());
    for _ in 0..30 {
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        match timeout(Duration::from_millis(1100), client.kv_client().range(range).into_future()).await {
            Ok(answer) => drop(answer.expect("served")),
            // A slow machine takes longer for the thirty than the first marks last.
            Err(_) => assert!(stuck.hits() <= 5, "it is avoided for half a second, one, two, four"),
        }
        // The look at its health takes a moment.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(stuck.hits() > 0, "requests rotate");
}

/// A connection goes dead with nobody on it: no ping is sent, no error comes. The next request finds out, and the
/// one after it has another connection.
#[tokio::test]
async fn a_dead_connection_is_replaced() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gate = Proxy::start(&serving.endpoint()).await;
    let client = Client::builder().endpoints(gate.endpoint()).request_timeout(Duration::from_secs(3));
    let client = client.connect().await.unwrap();
    assert_eq!(gate.connections(), 1);
    gate.stall();
    let range = || pb::RangeRequest { key: "k".into(), ..Default::default() };
    let asked = timeout(Duration::from_millis(1100), client.kv_client().range(range()).into_future()).await;
    assert!(asked.is_err(), "nothing passes");
    gate.resume();
    client.kv_client().range(range()).await.expect("answered");
    assert_eq!(gate.connections(), 1, "the old one is closed, the new one open");
}

/// A server had so much to do that it answered nothing within a second. Callers gave up, and each of them replaced the
/// connection: the server got a new one from every client every second, on top of all else.
#[tokio::test]
async fn a_slow_server_is_not_connected_to_anew_by_all_who_give_up_on_it() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gate = Proxy::start(&serving.endpoint()).await;
    let client = Client::builder().endpoints(gate.endpoint()).connect().await.unwrap();
    // Old connections live on as long as a stream uses them, so each new one can be seen.
    let mut watches = Vec::new();
    fake.fault(On::rpc(Rpc::Range), Do::delay(Duration::from_secs(60)));
    for _ in 0..3 {
        let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let asked = timeout(Duration::from_millis(1100), client.kv_client().range(range).into_future()).await;
        assert!(asked.is_err(), "it is busy");
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let create = pb::WatchRequest { request_union: Some(create) };
        let stream = client.watch_client().watch(tokio_stream::iter([create])).await.unwrap();
        watches.push(stream);
    }
    assert_eq!(gate.connections(), 1);
}

/// A connection that is dead for good is replaced by one that has answered, while callers give up one after another.
#[tokio::test]
async fn a_connection_that_stays_dead_is_replaced_in_the_background() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gate = Proxy::start(&serving.endpoint()).await;
    let client = Client::builder().endpoints(gate.endpoint()).connect().await.unwrap();
    gate.stall();
    let range = || pb::RangeRequest { key: "k".into(), ..Default::default() };
    for _ in 0..2 {
        let asked =
            timeout(Duration::from_millis(1100), client.kv_client().range(range()).into_future()).await;
        assert!(asked.is_err(), "nothing passes");
    }
    gate.resume();
    timeout(LONG, client.kv_client().range(range())).await.expect("in time").expect("answered");
}

/// The same with a stream on it, whose owner waits and sends nothing: the pings find out.
#[tokio::test]
async fn a_dead_connection_under_a_stream_is_found_by_pings() {
    let fake = FakeEtcd::start();
    let serving = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gate = Proxy::start(&serving.endpoint()).await;
    let client = Client::builder()
        .endpoints(gate.endpoint())
        .keep_alive_interval(Duration::from_millis(200))
        .keep_alive_timeout(Duration::from_millis(200))
        .connect()
        .await
        .unwrap();
    let mut watcher = client.watch(Watch::key("k"));
    watcher.created().await.unwrap();
    gate.stall();
    until("a new connection", LONG, async || (gate.connections() != 1).then_some(())).await;
    gate.resume();
    client.txn(write()).await.unwrap();
    timeout(LONG, watcher.next()).await.expect("in time").expect("over another stream");
}

/// Ten callers of a host that does not answer wait for one timeout, not for ten.
#[tokio::test]
async fn callers_of_a_host_that_does_not_answer_wait_together() {
    let full = full_backlog().await;
    let timeout = Duration::from_millis(500);
    let client = Client::builder().endpoints(full.as_str()).connect_timeout(timeout).connect_lazy().unwrap();
    let started = Instant::now();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mut kv = client.kv_client();
            tokio::spawn(async move { kv.range(pb::RangeRequest::default()).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().expect_err("nobody answers");
    }
    assert!(started.elapsed() < 3 * timeout, "{:?}", started.elapsed());
}

/// A listener that never accepts, with its queue full: what a host is like that drops packets.
async fn full_backlog() -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) =
        timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        queued.push(connected.unwrap());
    }
    // For as long as the process lives.
    std::mem::forget((listener, queued));
    address.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_killed_member_of_a_real_cluster_is_left_for_the_others() {
    for version in [Version::V3_4, Version::V3_7] {
        let cluster = Cluster::start(version, 3).await;
        let client = Client::connect(cluster.endpoints()).await.unwrap();
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        for killed in [follower, leader] {
            cluster.members[killed].kill();
            let mut slowest = Duration::ZERO;
            for _ in 0..30 {
                let started = Instant::now();
                match client.txn(write()).await {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "{version}: {error}"),
                }
                slowest = slowest.max(started.elapsed());
            }
            assert!(slowest < LONG / 2, "{version}: {slowest:?}");
            cluster.members[killed].restart().await;
        }
    }
}

/// etcd closes connections that are pinged while no request is open, or too often: by its third look, 18 s on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn pings_are_not_too_many_for_etcd() {
    let mut clients = Vec::new();
    for version in Version::ALL {
        let etcd = Etcd::start(version).await;
        let (busy, idle) = (RpcCounter::new(), Proxy::start(etcd.endpoint()).await);
        let streaming = Client::builder().endpoints(etcd.endpoint()).layer(busy.clone());
        let streaming = streaming.connect().await.unwrap();
        let mut watcher = streaming.watch(Watch::key("k"));
        watcher.created().await.unwrap();
        let idling = Client::connect(idle.endpoint()).await.unwrap();
        clients.push((etcd, busy, watcher, idle, idling));
    }
    // What is tried here is that nothing happens.
    tokio::time::sleep(Duration::from_secs(26)).await;
    for (etcd, busy, _, idle, _) in &clients {
        assert_eq!((busy.streams(), idle.connections()), (1, 1), "{}: {busy}", etcd.version());
    }
}
