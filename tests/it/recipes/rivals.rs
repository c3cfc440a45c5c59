//! Go's recipes and ours on one name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_concurrency::{Barrier, Client, DoubleBarrier, RwLock};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::etcd::{Etcd, Version};
use crate::support::poll::until;
use crate::support::queue::session;
use crate::support::rival::{Order, Rival, inside};

const LONG: Duration = Duration::from_secs(60);
const ROUNDS: usize = 25;
const TURNS: usize = 50;

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

async fn said(rival: &Rival, what: &str) -> u128 {
    let line = until(what, LONG, async || rival.lines(what).pop()).await;
    line.parse().unwrap()
}

/// Go waits until we release, and we until Go does.
async fn at_one_gate(version: Version) {
    let etcd = Etcd::start(version).await;
    let client = Client::connect(etcd.endpoint()).await.unwrap();
    let gate = Barrier::new(&session(&client).await, "gate").unwrap();
    gate.hold().await.unwrap();
    let scratch = etcd.dir().join("scratch");
    let order =
        Order { role: "gate", endpoints: etcd.endpoint(), name: "gate", acquisitions: 1, scratch: &scratch };
    let rival = Rival::start(order);
    said(&rival, "waiting ").await;
    // However long it would take to pass: it does not.
    assert!(timeout(Duration::from_millis(300), said(&rival, "passed ")).await.is_err());
    let released = now();
    gate.release().await.unwrap();
    assert!(said(&rival, "passed ").await > released);
    said(&rival, "holding ").await;
    timeout(LONG, gate.wait()).await.unwrap().unwrap();
    let passed = now();
    assert!(said(&rival, "releasing ").await < passed);
    rival.finish(LONG).await;
}

/// Two of Go's and two of ours make up rounds of four: nobody is in before all came, nor out before all went.
async fn in_one_round(version: Version) {
    let etcd = Etcd::start(version).await;
    let scratch = etcd.dir().join("scratch");
    let order = Order {
        role: "together",
        endpoints: etcd.endpoint(),
        name: "round",
        acquisitions: ROUNDS,
        scratch: &scratch,
    };
    let theirs: Vec<_> = (0..2).map(|_| Rival::start(order)).collect();
    let ours: Vec<_> = (0..2)
        .map(|_| {
            let endpoint = etcd.endpoint().to_owned();
            tokio::spawn(async move {
                let client = Client::connect(endpoint).await.unwrap();
                let (session, mut rounds) = (session(&client).await, Vec::new());
                for round in 0..ROUNDS {
                    let barrier = DoubleBarrier::new(&session, format!("round/{round}"), 4).unwrap();
                    let came = now();
                    let inside = timeout(LONG, barrier.enter()).await.unwrap().unwrap();
                    let (entered, went) = (now(), now());
                    timeout(LONG, inside.leave()).await.unwrap().unwrap();
                    rounds.push([came, entered, went, now()]);
                }
                rounds
            })
        })
        .collect();
    let mut all = Vec::new();
    for ours in ours {
        all.push(ours.await.unwrap());
    }
    for theirs in &theirs {
        let lines = until("all of Go's rounds", LONG, async || {
            let lines = theirs.lines("round ");
            (lines.len() == ROUNDS).then_some(lines)
        })
        .await;
        let times = |line: &String| -> [u128; 4] {
            let times: Vec<_> = line.split(' ').skip(1).map(|when| when.parse().unwrap()).collect();
            times.try_into().unwrap()
        };
        all.push(lines.iter().map(times).collect());
    }
    for round in 0..ROUNDS {
        let of = |what: usize| all.iter().map(move |rounds| rounds[round][what]);
        assert!(of(0).max() <= of(1).min(), "somebody was in before all came");
        assert!(of(2).max() <= of(3).min(), "somebody was out before all went");
    }
}

/// Go's readers and writers and ours on one name: a writer's file and a reader's are never there at once.
async fn under_one_lock(version: Version) {
    let etcd = Etcd::start(version).await;
    let scratch = etcd.dir().join("scratch");
    let order = |role| Order {
        role,
        endpoints: etcd.endpoint(),
        name: "lock",
        acquisitions: TURNS,
        scratch: &scratch,
    };
    let theirs: Vec<_> =
        ["readers", "readers", "writers", "writers"].map(|role| Rival::start(order(role))).into();
    let mut ours = JoinSet::new();
    for n in 0..4 {
        let (endpoint, scratch) = (etcd.endpoint().to_owned(), scratch.clone());
        ours.spawn(async move {
            let client = Client::connect(endpoint).await.unwrap();
            let lock = RwLock::new(&session(&client).await, "lock").unwrap();
            for turn in 0..TURNS {
                if n % 2 == 0 {
                    let guard = lock.read().await.unwrap();
                    let own = scratch.with_file_name(format!("scratch.reader.{n}-{turn}"));
                    std::fs::File::create_new(&own).unwrap();
                    assert!(!scratch.exists(), "a reader beside a writer");
                    std::fs::remove_file(&own).unwrap();
                    guard.unlock().await.unwrap();
                } else {
                    let guard = lock.write().await.unwrap();
                    let work = async {
                        let all = std::fs::read_dir(scratch.parent().unwrap()).unwrap();
                        let readers = all.filter(|entry| {
                            let name = entry.as_ref().unwrap().file_name();
                            name.to_string_lossy().starts_with("scratch.reader.")
                        });
                        assert_eq!(readers.count(), 0, "a writer beside readers");
                    };
                    inside(&scratch, guard.token(), guard.key(), work).await;
                    guard.unlock().await.unwrap();
                }
            }
        });
    }
    while let Some(done) = timeout(LONG, ours.join_next()).await.expect("nobody waits for ever") {
        done.unwrap();
    }
    for theirs in theirs {
        theirs.finish(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_share_a_lock_on_etcd_3_7() {
    under_one_lock(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_share_a_lock_on_etcd_3_4() {
    under_one_lock(Version::V3_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_wait_at_one_gate_on_etcd_3_7() {
    at_one_gate(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_wait_at_one_gate_on_etcd_3_4() {
    at_one_gate(Version::V3_4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_make_up_a_round_on_etcd_3_7() {
    in_one_round(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_make_up_a_round_on_etcd_3_4() {
    in_one_round(Version::V3_4).await;
}
