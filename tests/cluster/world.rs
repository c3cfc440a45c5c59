//! Three members, their network, and the processes that work on them.

use std::collections::HashMap;

use crate::net::{Net, Node};
use crate::support::etcd::{Cluster, Peer, Version, url};
use crate::support::port;
use crate::support::supervisor::Supervisor;
use crate::work;

/// So many bytes have the last lines of any worker.
const LATELY: u64 = 64 * 1024;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) net: Net,
    /// The members' ids.
    pub(crate) ids: Vec<u64>,
    pub(crate) workers: Vec<Worker>,
}

/// A process that works, on a way of its own to each member.
pub(crate) struct Worker {
    pub(crate) kind: &'static str,
    pub(crate) process: Supervisor,
}

impl World {
    pub(crate) async fn start(version: Version, size: usize) -> World {
        let mut net = Net::new();
        let mut peers = Vec::new();
        for member in 0..size {
            let listens = url(port::free());
            let is_found = url(net.link(None, Node::Member(member), &listens).await);
            peers.push(Peer { listens, is_found });
        }
        let cluster = Cluster::start_behind(version, &peers).await;
        let mut ids = Vec::new();
        for member in &cluster.members {
            let status = member.status().await.expect("it is ready");
            ids.push(status.header.expect("a header").member_id);
        }
        net.know(ids.iter().copied().zip(0..).collect::<HashMap<_, _>>());
        World { cluster, net, ids, workers: Vec::new() }
    }

    /// The endpoints of one who is not part of the network.
    pub(crate) fn endpoints(&self) -> String {
        self.cluster.endpoints().join(",")
    }

    pub(crate) async fn work(&mut self, kind: &'static str) {
        let client = Node::Client(self.workers.len());
        let mut endpoints = Vec::new();
        for (member, etcd) in self.cluster.members.iter().enumerate() {
            endpoints.push(url(self.net.link(Some(client), Node::Member(member), etcd.endpoint()).await));
        }
        let process = work::start(kind, self.workers.len(), &endpoints.join(","));
        self.workers.push(Worker { kind, process });
    }

    /// What all workers of a kind have printed, whole lines only, by worker.
    pub(crate) fn told(&self, kind: &str) -> Vec<Vec<String>> {
        let workers = self.workers.iter().filter(|worker| worker.kind == kind);
        workers.map(|worker| lines(&worker.process.output())).collect()
    }

    /// The same, but only the last of it: for who looks again and again.
    pub(crate) fn told_lately(&self, kind: &str) -> Vec<Vec<String>> {
        let workers = self.workers.iter().filter(|worker| worker.kind == kind);
        workers.map(|worker| lines(&worker.process.end_of_output(LATELY))).collect()
    }

    /// That none has ended: they work until they are told not to.
    pub(crate) fn assert_all_work(&self) {
        for worker in &self.workers {
            let ended = worker.process.exit();
            assert_eq!(ended, None, "a {} has ended:\n{}", worker.kind, worker.process.tail());
        }
    }
}

fn lines(output: &str) -> Vec<String> {
    let whole = output.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| line.trim_end().to_owned()).collect()
}
