//! Real etcd servers: alone, shared by all tests of this process, or three together.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_concurrency::pb::etcdserverpb::{StatusRequest, StatusResponse};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::port;
use super::supervisor::Supervisor;

const READY_WITHIN: Duration = Duration::from_secs(20);
/// How often a start is tried again when another process took one of its ports.
const TRIES: u32 = 5;

/// The versions that we promise to work with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Version {
    V3_4,
    V3_5,
    V3_6,
    V3_7,
}

impl Version {
    pub(crate) const ALL: [Version; 4] = [Version::V3_4, Version::V3_5, Version::V3_6, Version::V3_7];

    /// The server's binary, whether it is there or not: `etcd-3.7` in `$ETCD_BIN_DIR` or `target/etcd`.
    pub(crate) fn binary(self) -> PathBuf {
        let dir = std::env::var_os("ETCD_BIN_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/etcd"), PathBuf::from);
        dir.join(format!("etcd-{self}"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V3_4 => "3.4",
            Version::V3_5 => "3.5",
            Version::V3_6 => "3.6",
            Version::V3_7 => "3.7",
        })
    }
}

/// One server. Dropped: killed, its data removed.
///
/// Its verbs take `&self`, so that one task of a test can kill what another talks to, and block
/// for the milliseconds that a signal takes.
pub(crate) struct Etcd {
    version: Version,
    endpoint: String,
    server: Supervisor,
}

impl Etcd {
    /// A server of one's own.
    pub(crate) async fn start(version: Version) -> Etcd {
        Etcd::start_with(version, &[]).await
    }

    /// The same with more arguments, for example `&["--auth-token-ttl", "2"]`.
    pub(crate) async fn start_with(version: Version, args: &[&str]) -> Etcd {
        let mut all = Etcd::start_members(version, 1, args).await;
        all.pop().expect("one was asked for")
    }

    /// One server a version for all tests of this process: keep to keys of your own
    /// (`Backend::key`), and do not stop it, compact it or switch on its authentication.
    pub(crate) async fn shared(version: Version) -> &'static Etcd {
        static SHARED: [OnceCell<Etcd>; 4] = [const { OnceCell::const_new() }; 4];
        SHARED[version as usize].get_or_init(|| Etcd::start(version)).await
    }

    async fn start_members(version: Version, size: usize, args: &[&str]) -> Vec<Etcd> {
        let mut failure = String::new();
        for _ in 0..TRIES {
            let peers: Vec<Peer> = (0..size).map(|_| Peer::direct()).collect();
            let members = launch(version, &peers, args);
            let mut ready = Ok(());
            for member in &members {
                ready = ready.and(member.ready().await.map(drop));
            }
            match ready {
                Ok(()) => return members,
                Err(error) => failure = error,
            }
            if !failure.contains("address already in use") {
                break;
            }
        }
        panic!("{failure}");
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// `http://127.0.0.1:…`
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A plain gRPC channel, connected at its first use.
    pub(crate) fn channel(&self) -> Channel {
        channel(&self.endpoint)
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, tonic::Status> {
        let status = MaintenanceClient::new(self.channel()).status(StatusRequest {}).await?;
        Ok(status.into_inner())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// SIGKILL. On return it is gone; its port and data are kept for `restart`.
    pub(crate) fn kill(&self) {
        self.server.kill();
    }

    /// SIGSTOP: connections stay open and nobody answers.
    pub(crate) fn pause(&self) {
        self.server.pause();
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.server.resume();
    }

    /// Killed if it runs, then started on the same port and data, and waited for.
    pub(crate) async fn restart(&self) {
        self.relaunch();
        self.wait_ready().await;
    }

    /// `restart` without the wait: for a member whose cluster has no quorum yet.
    pub(crate) fn relaunch(&self) {
        self.server.restart();
    }

    /// Until it answers and knows a leader.
    pub(crate) async fn wait_ready(&self) {
        if let Err(error) = self.ready().await {
            panic!("{error}");
        }
    }

    /// The last lines that the server printed.
    pub(crate) fn log_tail(&self) -> String {
        self.server.tail()
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.server.dir()
    }

    async fn ready(&self) -> Result<StatusResponse, String> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut last = String::from("no answer");
        while Instant::now() < deadline {
            match timeout(Duration::from_secs(1), self.status()).await {
                Ok(Ok(status)) if status.leader != 0 => return Ok(status),
                Ok(Ok(_)) => last = "no leader".into(),
                Ok(Err(status)) => last = status.to_string(),
                Err(_) => last = "no answer".into(),
            }
            if let Some(code) = self.server.exit() {
                last = format!("it exited with {code}");
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        let (version, at, log) = (self.version, &self.endpoint, self.log_tail());
        Err(format!("etcd {version} at {at} is not ready: {last}; its log ends:\n{log}"))
    }
}

/// Members of one cluster, killed and restarted one by one.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Etcd>,
}

impl Cluster {
    pub(crate) async fn start(version: Version, size: usize) -> Cluster {
        Cluster { members: Etcd::start_members(version, size, &[]).await }
    }

    /// Members that reach each other as they are told to: through what stands before their ports.
    pub(crate) async fn start_behind(version: Version, peers: &[Peer]) -> Cluster {
        let members = launch(version, peers, &[]);
        for member in &members {
            member.wait_ready().await;
        }
        Cluster { members }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint.clone()).collect()
    }

    /// The index of the member that leads by its own word, once one does.
    pub(crate) async fn leader(&self) -> usize {
        super::poll::until("a member that leads", READY_WITHIN, async || {
            for (i, member) in self.members.iter().enumerate() {
                let status = timeout(Duration::from_secs(1), member.status()).await;
                if let Ok(Ok(status)) = status {
                    let own = status.header.map_or(0, |header| header.member_id);
                    if own != 0 && own == status.leader {
                        return Some(i);
                    }
                }
            }
            None
        })
        .await
    }
}

/// Where a member listens to the others, and where they find it.
pub(crate) struct Peer {
    pub(crate) listens: String,
    pub(crate) is_found: String,
}

impl Peer {
    fn direct() -> Peer {
        let listens = url(port::free());
        Peer { is_found: listens.clone(), listens }
    }
}

/// `http://127.0.0.1:…`
pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn launch(version: Version, peers: &[Peer], args: &[&str]) -> Vec<Etcd> {
    let binary = version.binary();
    assert!(
        binary.is_file(),
        "no etcd {version} at {}: `.ci/run servers` builds it, or ETCD_BIN_DIR names its folder",
        binary.display()
    );
    let cluster = peers.iter().enumerate().map(|(i, peer)| format!("m{i}={}", peer.is_found));
    let cluster = cluster.collect::<Vec<_>>().join(",");

    let start = |(i, peer): (usize, &Peer)| {
        let endpoint = url(port::free());
        let dir = Supervisor::new_dir(&format!("etcd-{version}"));
        let data = dir.join("data").display().to_string();
        let name = format!("m{i}");
        #[rustfmt::skip]
        let own = [
            "--name", &name,
            "--data-dir", &data,
            "--listen-client-urls", &endpoint,
            "--advertise-client-urls", &endpoint,
            "--listen-peer-urls", &peer.listens,
            "--initial-advertise-peer-urls", &peer.is_found,
            "--initial-cluster", &cluster,
        ];
        let binary = binary.display().to_string();
        let command = [&[binary.as_str()], own.as_slice(), args].concat();
        let server = Supervisor::start(dir, command);
        Etcd { version, endpoint, server }
    };
    peers.iter().enumerate().map(start).collect()
}

/// A plain gRPC channel to one endpoint, connected at its first use.
pub(crate) fn channel(endpoint: &str) -> Channel {
    Endpoint::from_shared(endpoint.to_owned()).expect("an endpoint is a URI").connect_lazy()
}
