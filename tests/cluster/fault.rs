//! What goes wrong, and for how long.

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
    MoveLeader,
    IsolateLeader,
    MinorityClient,
    SlowLinks,
    Compact,
}

impl Fault {
    pub(crate) const ALL: [Fault; 9] = [
        Fault::Nothing,
        Fault::KillMember,
        Fault::PauseMember,
        Fault::PauseClient,
        Fault::MoveLeader,
        Fault::IsolateLeader,
        Fault::MinorityClient,
        Fault::SlowLinks,
        Fault::Compact,
    ];

    /// Happens once, and is over at the end. These sleeps are the fault: nothing is waited for.
    pub(crate) async fn strike(self, world: &World, rng: &mut Rng) {
        let a_while = Duration::from_millis(rng.u64(500..6_000));
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
                // Every other time one that holds a lock just now, and often for longer than its lease lasts.
                let any = &world.workers[rng.usize(0..world.workers.len())];
                let client = match rng.u8(0..4) {
                    0 => holder(world, "lock").await.unwrap_or(any),
                    1 => holder(world, GO).await.unwrap_or(any),
                    _ => any,
                };
                client.process.pause();
                sleep(Duration::from_millis(rng.u64(500..2 * u64::try_from(TTL.as_millis()).unwrap()))).await;
                client.process.resume();
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

/// One who holds the lock, if one of this kind gets it within seconds.
async fn holder<'a>(world: &'a World, kind: &str) -> Option<&'a Worker> {
    let holds = |worker: &&Worker| {
        let last = worker.process.output();
        worker.kind == kind && last.lines().next_back().is_some_and(|line| line.starts_with("entered "))
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
fn isolate(world: &World, member: usize) {
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
