//! A real etcd, with its data in memory, and what it counts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

pub(crate) struct Server {
    process: Child,
    address: String,
    data: PathBuf,
}

impl Server {
    pub(crate) fn start(etcd: &Path) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let data = root.join(format!("etcd-compare-{}", std::process::id()));
        let [client, peer] = [free_port()?, free_port()?];
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let process = Command::new(etcd)
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .args(["--quota-backend-bytes", "4294967296"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { process, address: client["http://".len()..].to_owned(), data };
        let start = Instant::now();
        while !server.get("/health").is_ok_and(|health| health.contains("true")) {
            if start.elapsed() > Duration::from_secs(30) {
                return Err("etcd does not start".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Unary calls by method, and messages on streams, since the start.
    pub(crate) fn calls(&self) -> Result<BTreeMap<String, f64>> {
        let mut calls = BTreeMap::new();
        for line in self.get("/metrics")?.lines() {
            let Some(labels) = line.strip_prefix("grpc_server_msg_received_total{") else { continue };
            let (labels, count) = labels.split_once("} ").ok_or("a metric without a number")?;
            let method = label(labels, "grpc_method").ok_or("a metric without a method")?;
            *calls.entry(method.to_owned()).or_default() += count.trim().parse::<f64>()?;
        }
        Ok(calls)
    }

    /// What of it is in memory, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").ok_or("an answer without a body")?.1.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn label<'l>(labels: &'l str, name: &str) -> Option<&'l str> {
    labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
