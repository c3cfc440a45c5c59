//! What goes wrong, and for how long.

use std::ops::Range;
use std::time::Duration;

use etcd_concurrency::Client;
use etcd_concurrency::pb::etcdserverpb as pb;
use fastrand::Rng;
use pb::maintenance_client::MaintenanceClient;
use tokio::time::{sleep, timeout};

use crate::net::Node;
use crate::work::{GO, TTL};
use crate::world::{Worker, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    KillMember,
    PauseMember,
    PauseClient,
    /// Both at once, or one after the other begins.
    PauseBoth,
    MoveLeader,
    IsolateLeader,
    MinorityClient,
    SlowLinks,
    Compact,
}

impl Fault {
    pub(crate) const ALL: [Fault; 10] = [
        Fault::Nothing,
        Fault::KillMember,
        Fault::PauseMember,
        Fault::PauseClient,
        Fault::PauseBoth,
        Fault::MoveLeader,
        Fault::IsolateLeader,
        Fault::MinorityClient,
        Fault::SlowLinks,
        Fault::Compact,
    ];

    /// Happens once, and is over at the end. These sleeps are the fault: nothing is waited for.
    pub(crate) async fn strike(self, world: &World, stops: &Stops, rng: &mut Rng) {
        let a_while = stops.member(rng);
        let members = world.cluster.members.len();
        let member = rng.usize(0..members);
        match self {
            Fault::Nothing => sleep(a_while).await,
            Fault::KillMember => {
                world.cluster.members[member].kill();
                sleep(a_while).await;
                world.cluster.members[member].restart().await;
            }
            Fault::PauseMember => {
                world.cluster.members[member].pause();
                sleep(a_while).await;
                world.cluster.members[member].resume();
            }
            Fault::PauseClient => {
                let client = a_client(world, rng).await;
                client.process.pause();
                sleep(stops.client(rng)).await;
                client.process.resume();
            }
            Fault::PauseBoth => {
                let client = a_client(world, rng).await;
                let (first, between) = (rng.bool(), a_while.mul_f64(rng.f64()));
                let member = &world.cluster.members[member];
                if first {
                    member.pause()
                } else {
                    client.process.pause()
                }
                sleep(between).await;
                if first {
                    client.process.pause()
                } else {
                    member.pause()
                }
                sleep(a_while - between).await;
                if first {
                    member.resume()
                } else {
                    client.process.resume()
                }
                sleep(between).await;
                if first { client.process.resume() } else { member.resume() }
            }
            Fault::MoveLeader => {
                let leader = world.cluster.leader().await;
                let to = world.ids[(leader + 1 + rng.usize(0..members - 1)) % members];
                let mut maintenance = MaintenanceClient::new(world.cluster.members[leader].channel());
                // It may have moved by itself meanwhile.
                let moving = maintenance.move_leader(pb::MoveLeaderRequest { target_id: to });
                drop(timeout(Duration::from_secs(5), moving).await);
            }
            Fault::IsolateLeader => {
                let leader = world.cluster.leader().await;
                isolate(world, leader);
                sleep(a_while).await;
                world.net.heal();
            }
            Fault::MinorityClient => {
                isolate(world, member);
                let client = Node::Client(rng.usize(0..world.workers.len()));
                for other in (0..members).filter(|other| *other != member) {
                    world.net.part(client, Node::Member(other));
                }
                sleep(a_while).await;
                world.net.heal();
            }
            Fault::SlowLinks => {
                world.net.slow(Duration::from_millis(rng.u64(5..150)));
                sleep(a_while).await;
                world.net.heal();
            }
            Fault::Compact => compact(world, member).await,
        }
        sleep(Duration::from_millis(rng.u64(0..2_000))).await;
    }
}

/// For how long members and clients stand still.
pub(crate) struct Stops(Option<Range<u64>>);

impl Stops {
    /// As `CLUSTER_STOP` says, in seconds.
    pub(crate) fn told() -> Stops {
        let told = std::env::var("CLUSTER_STOP").ok();
        Stops(told.map(|told| {
            let (least, most) = told.split_once('-').expect("CLUSTER_STOP is like 20-60");
            let millis = |seconds: &str| seconds.parse::<u64>().expect("seconds") * 1_000;
            millis(least)..millis(most)
        }))
    }

    fn member(&self, rng: &mut Rng) -> Duration {
        Duration::from_millis(rng.u64(self.0.clone().unwrap_or(500..6_000)))
    }

    /// Often for longer than its lease lasts.
    fn client(&self, rng: &mut Rng) -> Duration {
        let twice = 2 * u64::try_from(TTL.as_millis()).expect("seconds");
        Duration::from_millis(rng.u64(self.0.clone().unwrap_or(500..twice)))
    }
}

/// Any, but every other time one that holds a lock just now.
async fn a_client<'a>(world: &'a World, rng: &mut Rng) -> &'a Worker {
    let any = &world.workers[rng.usize(0..world.workers.len())];
    match rng.u8(0..4) {
        0 => holder(world, "lock").await.unwrap_or(any),
        1 => holder(world, GO).await.unwrap_or(any),
        _ => any,
    }
}

/// One who holds the lock, if one of this kind gets it within seconds.
async fn holder<'a>(world: &'a World, kind: &str) -> Option<&'a Worker> {
    let holds = |worker: &&Worker| {
        let last = || worker.process.end_of_output(4096);
        worker.kind == kind && last().lines().next_back().is_some_and(|line| line.starts_with("entered "))
    };
    let found = async {
        loop {
            if let Some(worker) = world.workers.iter().find(holds) {
                return worker;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), found).await.ok()
}

/// From the other members; its clients still reach it.
pub(crate) fn isolate(world: &World, member: usize) {
    for other in (0..world.cluster.members.len()).filter(|other| *other != member) {
        world.net.part(Node::Member(member), Node::Member(other));
    }
}

async fn compact(world: &World, member: usize) {
    let member = &world.cluster.members[member];
    let Ok(client) = Client::connect(member.endpoint()).await else { return };
    let compacting = async {
        let head =
            client.kv_client().range(pb::RangeRequest { key: "none".into(), ..Default::default() }).await?;
        let revision = head.into_inner().header.map_or(0, |header| header.revision);
        client.kv_client().compact(pb::CompactionRequest { revision, physical: false }).await?;
        client.maintenance_client().defragment(pb::DefragmentRequest {}).await
    };
    // Another may have compacted as far.
    drop(timeout(Duration::from_secs(10), compacting).await);
}
