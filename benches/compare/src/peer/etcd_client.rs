//! The `etcd-client` crate, with the locks and elections that the server keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, LockOptions, ProclaimOptions, ResignOptions};

use super::measure::{Future, Gap, Held, Op, Plan, name, op};
use crate::Result;
use crate::works::Task;

pub(super) async fn plan(endpoint: &str, task: &Task) -> Result<Plan> {
    let mut ops = Vec::new();
    let mut first = Client::connect([endpoint], None).await?;
    match task.kind.as_str() {
        "lock" => {
            let lease = first.lease_grant(60, None).await?.id();
            for _ in 0..task.workers {
                ops.push(lock(first.clone(), name("lock"), lease));
            }
        }
        "handover" => {
            let (gap, name) = (Gap::new(), name("lock"));
            for _ in 0..task.workers {
                let mut client =
                    if task.shared { first.clone() } else { Client::connect([endpoint], None).await? };
                let lease = client.lease_grant(60, None).await?.id();
                ops.push(hand_over(client, name.clone(), lease, gap.clone(), task.hold));
            }
        }
        "campaign" => {
            let lease = first.lease_grant(60, None).await?.id();
            ops.push(campaign(first, name("election"), lease));
        }
        "failover-close" => ops.push(fail_over(first, false)),
        "failover-expiry" => ops.push(fail_over(first, true)),
        "proclaim" => ops.push(proclaim(first).await?),
        "sessions" => return Ok(Plan::Sessions(sessions(first, task.workers))),
        other => return Err(format!("not done: {other}").into()),
    }
    Ok(Plan::Cycles(ops, None))
}

fn lock(client: Client, name: String, lease: i64) -> Op {
    op(move || {
        let (mut client, name) = (client.clone(), name.clone());
        async move {
            let start = Instant::now();
            let locked = client.lock(name, Some(LockOptions::new().with_lease(lease))).await?;
            client.unlock(locked.key()).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

fn hand_over(client: Client, name: String, lease: i64, gap: Gap, hold: u64) -> Op {
    op(move || {
        let (mut client, name, gap) = (client.clone(), name.clone(), gap.clone());
        async move {
            let locked = client.lock(name, Some(LockOptions::new().with_lease(lease))).await?;
            let waited = gap.acquired();
            if hold > 0 {
                tokio::time::sleep(Duration::from_millis(hold)).await;
            }
            gap.releasing();
            client.unlock(locked.key()).await?;
            Ok(waited)
        }
    })
}

fn campaign(client: Client, name: String, lease: i64) -> Op {
    op(move || {
        let (mut client, name) = (client.clone(), name.clone());
        async move {
            let start = Instant::now();
            let won = client.campaign(name, "me", lease).await?;
            let leader = won.leader().ok_or("no leader")?.clone();
            client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

fn fail_over(client: Client, expires: bool) -> Op {
    const TTL: i64 = 2;
    op(move || {
        let mut client = client.clone();
        async move {
            let name = name("election");
            let begin = Instant::now();
            let (leader, other) =
                (client.lease_grant(TTL, None).await?.id(), client.lease_grant(60, None).await?.id());
            client.campaign(name.clone(), "leader", leader).await?;
            let mut waiting = client.clone();
            let waiting =
                tokio::spawn(
                    async move { waiting.campaign(name, "other", other).await.map(|_| Instant::now()) },
                );
            let start = if expires {
                begin + Duration::from_secs(TTL.try_into()?)
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let start = Instant::now();
                client.lease_revoke(leader).await?;
                start
            };
            let won = waiting.await??;
            client.lease_revoke(other).await?;
            Ok(Some(won.saturating_duration_since(start)))
        }
    })
}

async fn proclaim(mut client: Client) -> Result<Op> {
    let name = name("election");
    let lease = client.lease_grant(60, None).await?.id();
    let won = client.campaign(name.clone(), "0", lease).await?;
    let leader = won.leader().ok_or("no leader")?.clone();
    let mut observer = client.observe(name).await?;
    observer.message().await?.ok_or("the observer has ended")?;
    let observer = Arc::new(tokio::sync::Mutex::new(observer));
    Ok(op(move || {
        let (mut client, leader, observer) = (client.clone(), leader.clone(), observer.clone());
        async move {
            let start = Instant::now();
            let value = format!("news {}", fastrand::u64(..));
            client.proclaim(value, Some(ProclaimOptions::new().with_leader(leader))).await?;
            observer.lock().await.message().await?.ok_or("the observer has ended")?;
            Ok(Some(start.elapsed()))
        }
    }))
}

/// Each lease has a stream of its own, as the crate offers it, and its turn every 20 s.
fn sessions(mut client: Client, count: usize) -> Box<dyn FnOnce() -> Future<Held>> {
    Box::new(move || {
        Box::pin(async move {
            for n in 0..count {
                let lease = client.lease_grant(60, None).await?.id();
                let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
                let first = Duration::from_millis(20_000 * n as u64 / count as u64);
                tokio::spawn(async move {
                    tokio::time::sleep(first).await;
                    let mut turns = tokio::time::interval(Duration::from_secs(20));
                    loop {
                        turns.tick().await;
                        keeper.keep_alive().await?;
                        answers.message().await?.ok_or("the keep-alive has ended")?;
                    }
                    #[allow(unreachable_code, reason = "it says what the task fails with")]
                    Result::Ok(())
                });
            }
            Ok(Box::new(client) as Held)
        })
    })
}
