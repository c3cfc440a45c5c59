//! How old the answers of a member may be that lags: which transactions it answers by itself.

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, Compare, Op, Txn};
use pb::kv_client::KvClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;

use crate::fault::isolate;
use crate::support::etcd::{Cluster, Etcd, Version};
use crate::world::World;

const KEY: &str = "lag";
const TRIES: usize = 20;

/// What is asked beside the compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    SerializableRange,
    Range,
    /// In the branch for failure alone.
    RangeOnFailure,
    CountOnly,
}

const ALL: [Beside; 5] =
    [Beside::Nothing, Beside::SerializableRange, Beside::Range, Beside::RangeOnFailure, Beside::CountOnly];

impl Beside {
    fn ask(self, value: &str) -> pb::TxnRequest {
        let range = pb::RangeRequest {
            key: KEY.into(),
            serializable: self == Beside::SerializableRange,
            count_only: self == Beside::CountOnly,
            ..Default::default()
        };
        let compare = Txn::new().compare(Compare::value(KEY).is(value.to_owned()));
        match self {
            Beside::Nothing => compare,
            Beside::RangeOnFailure => compare.failure(Op::from(range)),
            _ => compare.success(Op::from(range.clone())).failure(Op::from(range)),
        }
        .into()
    }
}

/// A check of ownership by compares alone that meets a member which stood still was answered with the past, 17 times of
/// 20. With a linearizable range inside, in either branch, the member asks the others first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn compares_alone_are_answered_from_the_past_by_a_member_that_stood_still() {
    for version in Version::ALL {
        let cluster = Cluster::start(version, 3).await;
        let leader = cluster.leader().await;
        let (leader, follower) = (&cluster.members[leader], &cluster.members[(leader + 1) % 3]);
        let client = Client::connect(leader.endpoint()).await.expect("a client");
        let channels = ALL.map(|_| follower.channel());
        let mut past = [0; ALL.len()];
        for number in 0..TRIES {
            let (before, after) = (format!("{number} before"), format!("{number} after"));
            put(&client, &before).await;
            for channel in &channels {
                has(follower, &before).await;
                // Its connection stands.
                KvClient::new(channel.clone())
                    .range(pb::RangeRequest { key: KEY.into(), ..Default::default() })
                    .await
                    .expect("a range");
            }
            follower.pause();
            put(&client, &after).await;
            let asked = ALL.iter().zip(&channels).map(|(beside, channel)| {
                let (mut kv, ask) = (KvClient::new(channel.clone()), beside.ask(&before));
                tokio::spawn(async move { kv.txn(ask).await })
            });
            let asked: Vec<_> = asked.collect();
            // What was asked lies in its socket when it goes on: how long that takes is of no weight.
            sleep(Duration::from_millis(50)).await;
            follower.resume();
            for (past, answer) in past.iter_mut().zip(asked) {
                let answer = answer.await.expect("no panic").expect("an answer").into_inner();
                *past += usize::from(answer.succeeded);
            }
        }
        let told: Vec<_> = ALL.iter().zip(past).collect();
        println!("etcd {version}: of {TRIES}, answered from the past: {told:?}");
        for (beside, past) in told {
            let may_be = matches!(beside, Beside::Nothing | Beside::SerializableRange);
            assert!(may_be || past == 0, "{beside:?} was answered from the past {past} times on {version}");
        }
    }
}

/// One that is cut off answers from the past for as long as it is cut off: with `hasleader` until it misses its leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn compares_alone_are_answered_from_the_past_by_a_member_that_is_cut_off() {
    for version in Version::ALL {
        let world = World::start(version, 3).await;
        let leader = world.cluster.leader().await;
        let cut_off = (leader + 1) % 3;
        let member = &world.cluster.members[cut_off];
        let client = Client::connect(world.cluster.members[leader].endpoint()).await.expect("a client");
        put(&client, "before").await;
        has(member, "before").await;
        isolate(&world, cut_off);
        put(&client, "after").await;
        let begun = Instant::now();
        for has_leader in [true, false] {
            for beside in ALL {
                let mut last = None;
                let mut end = String::from("still is");
                let limit = Instant::now() + Duration::from_millis(2_500);
                while Instant::now() < limit {
                    let mut ask = Request::new(beside.ask("before"));
                    if has_leader {
                        ask.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
                    }
                    let answer =
                        timeout(Duration::from_secs(1), KvClient::new(member.channel()).txn(ask)).await;
                    match answer {
                        Ok(Ok(answer)) if answer.get_ref().succeeded => last = Some(begun.elapsed()),
                        Ok(Ok(_)) => panic!("it cannot know of the present"),
                        Ok(Err(status)) => {
                            end = status.message().to_owned();
                            break;
                        }
                        Err(_) => {
                            end = "no answer within 1 s".into();
                            break;
                        }
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                println!(
                    "etcd {version}: hasleader {has_leader}, {beside:?}: answered from the past until {last:?}, then: {end}"
                );
                let may_be = matches!(beside, Beside::Nothing | Beside::SerializableRange);
                assert!(may_be || last.is_none(), "{beside:?} was answered from the past");
            }
        }
    }
}

async fn put(client: &Client, value: &str) {
    client.txn(Txn::new().success(Op::put(KEY, value.to_owned()))).await.expect("put");
}

/// Waits until a member has this value itself.
async fn has(member: &Etcd, value: &str) {
    let range = pb::RangeRequest { key: KEY.into(), serializable: true, ..Default::default() };
    crate::support::poll::until("the member has it", Duration::from_secs(10), async || {
        let found = KvClient::new(member.channel()).range(range.clone()).await.ok()?.into_inner();
        found.kvs.first().is_some_and(|kv| *kv.value == *value.as_bytes()).then_some(())
    })
    .await;
}
