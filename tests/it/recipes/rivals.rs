//! Go's recipes and ours on one name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_concurrency::{Barrier, Client, DoubleBarrier};
use tokio::time::timeout;

use crate::support::etcd::{Etcd, Version};
use crate::support::poll::until;
use crate::support::queue::session;
use crate::support::rival::{Order, Rival};

const LONG: Duration = Duration::from_secs(60);
const ROUNDS: usize = 25;

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
