//! The test kit itself: servers that start, stop and leave nothing; networks that break.

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::kv_client::KvClient;
use etcd_concurrency::pb::etcdserverpb::{PutRequest, RangeRequest};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::{Layer, ServiceExt};

use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::etcd::{Cluster, Etcd, Version, channel};
use crate::support::part;
use crate::support::poll;
use crate::support::proxy::Proxy;
use crate::support::rival::{Order, Rival, assert_exclusive};
use crate::support::supervisor::Supervisor;

const SOON: Duration = Duration::from_secs(10);
/// How long silence must last to count as silence.
const SILENCE: Duration = Duration::from_millis(300);

on_every_backend! {
    async fn each_test_has_its_own_keys(backend: Backend) {
        let (key, other) = (backend.key("a"), backend.key("b"));
        assert!(key.starts_with(backend.prefix()) && other.starts_with(backend.prefix()));
        if backend.is_fake() {
            return; // Until the seam in `backend.rs` is closed.
        }
        let counter = RpcCounter::new();
        let service = counter.layer(backend.service());
        let mut kv = KvClient::new(service);
        kv.put(PutRequest { key: key.clone().into(), ..Default::default() }).await.expect("put");
        for (key, count) in [(key, 1), (other, 0)] {
            let request = RangeRequest { key: key.into(), ..Default::default() };
            let found = kv.range(request).await.expect("range").into_inner();
            assert_eq!(found.count, count);
        }
        assert_eq!(counter.to_string(), "1 Put, 2 Range");
    }
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn every_version_says_its_name() {
    for version in Version::ALL {
        let status = Etcd::shared(version).await.status().await.expect("status");
        assert!(status.version.starts_with(&format!("{version}.")), "{}", status.version);
    }
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_killed_server_comes_back_with_its_data() {
    for version in Version::ALL {
        let etcd = Etcd::start(version).await;
        put(etcd.channel(), "kept").await.expect("put");
        etcd.kill();
        let refused = put(etcd.channel(), "lost").await.expect_err("nobody listens");
        assert_eq!(refused.code(), Code::Unavailable);
        etcd.restart().await;
        assert!(exists(etcd.channel(), "kept").await, "etcd {version} forgot");
        assert!(!exists(etcd.channel(), "lost").await);
    }
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_paused_server_is_silent_and_goes_on() {
    let etcd = Etcd::start(Version::V3_7).await;
    put(etcd.channel(), "before").await.expect("put");
    etcd.pause();
    assert!(timeout(SILENCE, etcd.status()).await.is_err(), "a stopped process answered");
    etcd.resume();
    assert!(exists(etcd.channel(), "before").await);
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn arguments_reach_the_server() {
    let etcd = Etcd::start_with(Version::V3_7, &["--max-txn-ops", "7"]).await;
    assert!(etcd.log_tail().contains("etcd"));
    // On Linux the command line can be read as the kernel has it.
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", etcd.pid())).expect("cmdline");
    assert!(line.contains("--max-txn-ops\x007\x00"), "{line}");
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
#[should_panic(expected = "flag provided but not defined")]
async fn a_server_that_cannot_start_says_why() {
    Etcd::start_with(Version::V3_7, &["--no-such-flag"]).await;
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_cluster_outlives_its_leader() {
    let cluster = Cluster::start(Version::V3_7, 3).await;
    assert_eq!(cluster.endpoints().len(), 3);
    let first = cluster.leader().await;
    put(cluster.members[first].channel(), "kept").await.expect("put");
    cluster.members[first].kill();
    let second = poll::until("another leader", SOON, async || {
        let leader = cluster.leader().await;
        (leader != first).then_some(leader)
    })
    .await;
    assert!(exists(cluster.members[second].channel(), "kept").await);
    cluster.members[first].restart().await;
    assert!(exists(cluster.members[first].channel(), "kept").await);
}

/// A test process that is killed cannot run a destructor; its servers must go all the same.
#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_server_goes_with_its_test_process() {
    if part::is_played() {
        let etcd = Etcd::start(Version::V3_7).await;
        eprintln!("\nserving {} {}", etcd.endpoint(), etcd.dir().display());
        return std::future::pending().await;
    }
    let process = part::play("harness::a_server_goes_with_its_test_process", &[]);
    let line = part::line(&process, "serving ").await;
    let (endpoint, dir) = line.split_once(' ').expect("two words");
    put(channel(endpoint), "there").await.expect("put");
    assert!(std::path::Path::new(dir).is_dir());

    process.kill();
    let address = endpoint.trim_start_matches("http://");
    poll::until("the server and its data to be gone", SOON, async || {
        let gone = TcpStream::connect(address).await.is_err();
        (gone && !std::path::Path::new(dir).exists()).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_stalled_network_holds_everything_back() {
    let etcd = Etcd::shared(Version::V3_7).await;
    let proxy = Proxy::start(etcd.endpoint()).await;
    let through = channel(&proxy.endpoint());
    put(through.clone(), "stall/before").await.expect("put");

    proxy.stall();
    let held = tokio::spawn(put(through.clone(), "stall/during"));
    assert!(timeout(SILENCE, put(through, "stall/too")).await.is_err());
    assert!(!exists(etcd.channel(), "stall/during").await, "a stalled request arrived");
    assert!(!held.is_finished() && proxy.connections() > 0);

    proxy.resume();
    held.await.expect("no panic").expect("held back, then answered");
    assert!(exists(etcd.channel(), "stall/during").await);
}

#[tokio::test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_cut_network_fails_what_is_under_way_and_serves_what_comes() {
    let etcd = Etcd::shared(Version::V3_7).await;
    let mut proxy = Proxy::start(etcd.endpoint()).await;
    let through = channel(&proxy.endpoint());
    put(through.clone(), "cut/before").await.expect("put");
    assert_eq!(proxy.connections(), 1);

    proxy.stall();
    let held = tokio::spawn(put(through.clone(), "cut/during"));
    tokio::task::yield_now().await;
    proxy.cut();
    held.await.expect("no panic").expect_err("its connection was cut");
    proxy.resume();
    put(through.clone(), "cut/after").await.expect("on a new connection");

    proxy.refuse().await;
    put(through.clone(), "refuse/open").await.expect("open connections go on");
    proxy.cut();
    // The first may still have been on its way through the connection that was cut.
    poll::until("a refusal", SOON, async || {
        let error = put(through.clone(), "refuse/none").await.err()?;
        (error.code() == Code::Unavailable).then_some(())
    })
    .await;
    let lonely = Endpoint::from_shared(proxy.endpoint()).expect("a URI").connect().await;
    lonely.expect_err("nobody listens");

    proxy.accept().await;
    put(channel(&proxy.endpoint()), "refuse/after").await.expect("accepted again");
}

/// The judge of the exclusion tests: Go's own mutex must pass before it.
#[tokio::test]
#[ignore = "needs a real etcd (`.ci/run servers` builds it) and Go"]
async fn two_go_rivals_exclude_each_other() {
    let etcd = Etcd::start(Version::V3_7).await;
    // In the server's folder, which is removed with it.
    let scratch = etcd.dir().join("inside");
    let rival = || {
        let endpoints = etcd.endpoint();
        Rival::start(Order { role: "mutex", endpoints, name: "rivals", acquisitions: 20, scratch: &scratch })
    };
    let (first, second) = (rival(), rival());
    let held = [first.finish(6 * SOON).await, second.finish(6 * SOON).await].concat();
    assert_eq!(held.len(), 40);
    assert_exclusive(held);

    // And it does tell: a file that should not be there is somebody inside.
    std::fs::write(&scratch, "").expect("writable");
    let third = rival();
    let code = poll::until("its end", SOON, async || third.process().exit()).await;
    assert_eq!(code, 3, "{}", third.process().tail());
}

#[tokio::test]
async fn a_failed_poll_says_what_it_waited_for() {
    let never = async || -> Option<()> { None };
    let poll = tokio::spawn(async move { poll::until("rain", SILENCE, never).await });
    let panic = poll.await.expect_err("it never comes").into_panic();
    let message = panic.downcast_ref::<String>().expect("a formatted message");
    assert!(message.contains("rain"), "{message}");
}

#[test]
fn two_processes_of_one_test_have_two_folders() {
    assert_ne!(Supervisor::new_dir("a"), Supervisor::new_dir("a"));
}

async fn put(channel: Channel, key: &'static str) -> Result<(), tonic::Status> {
    let request = PutRequest { key: key.into(), ..Default::default() };
    KvClient::new(channel).put(request).await.map(drop)
}

async fn exists(channel: Channel, key: &'static str) -> bool {
    let mut channel = channel;
    // Ready first: a fresh channel to a server that has just started again.
    channel.ready().await.expect("connects");
    let request = RangeRequest { key: key.into(), count_only: true, ..Default::default() };
    KvClient::new(channel).range(request).await.expect("range").into_inner().count == 1
}
