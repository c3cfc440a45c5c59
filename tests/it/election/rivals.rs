//! Go candidates and ours in one election, before the eyes of Go's observer and ours.

use std::path::Path;
use std::time::Duration;

use etcd_concurrency::{Client, Election, Op, Session, Txn, Watch};

use crate::support::etcd::{Etcd, Version};
use crate::support::poll::until;
use crate::support::rival::{Held, Order, Rival, assert_exclusive, inside};

/// Three of each, 50 terms each: 300 in all.
const EACH: usize = 3;
const TERMS: usize = 50;
const NAME: &str = "rivals/seat";
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_lead_in_turn_and_see_the_same_on_etcd_3_7() {
    compete(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_lead_in_turn_and_see_the_same_on_etcd_3_4() {
    compete(Version::V3_4).await;
}

async fn compete(version: Version) {
    let etcd = Etcd::start(version).await;
    let scratch = etcd.dir().join("leading");
    let order = Order {
        role: "candidate",
        endpoints: etcd.endpoint(),
        name: NAME,
        acquisitions: TERMS,
        scratch: &scratch,
    };
    let watching = Rival::start(Order { role: "observer", ..order });
    let client = Client::connect(etcd.endpoint()).await.expect("a client");
    let observing = tokio::spawn(observe(client.clone()));
    let theirs: Vec<Rival> = (0..EACH).map(|_| Rival::start(order)).collect();
    let ours: Vec<_> = (0..EACH)
        .map(|_| {
            let (endpoint, scratch) = (etcd.endpoint().to_owned(), scratch.clone());
            tokio::spawn(async move { lead(endpoint, &scratch).await })
        })
        .collect();

    let mut held = Vec::new();
    for ours in ours {
        held.extend(ours.await.expect("no overlap"));
    }
    for theirs in theirs {
        held.extend(theirs.finish(LONG).await);
    }
    assert_eq!(held.len(), 2 * EACH * TERMS);
    let saw = observing.await.expect("no error");
    let they_saw = until("all that Go's observer is to see", LONG, async || {
        let lines = watching.lines("saw ");
        (lines.len() >= saw.len()).then_some(lines)
    })
    .await;
    assert_eq!(saw, they_saw);
    held.sort_by_key(|held| held.entered);
    let led: Vec<_> = held.iter().map(|held| held.token.to_string()).collect();
    let mut leaders: Vec<_> = saw.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    leaders.dedup();
    assert_eq!(leaders, led, "every term was seen, and none that was none");
    assert_exclusive(held);
}

fn seen(observer: &str, revision: i64) -> String {
    format!("{NAME}-seen/{observer}/{revision}")
}

/// What `tests/go/rival` does as a candidate, with ours.
async fn lead(endpoint: String, scratch: &Path) -> Vec<Held> {
    let client = Client::connect(endpoint).await.expect("a client");
    let session = Session::builder(&client).ttl(Duration::from_secs(10)).open().await.expect("a session");
    let election = Election::new(&session, NAME).expect("a name");
    let mut held = Vec::new();
    for _ in 0..TERMS {
        let leadership = election.campaign("rust").await.expect("elected");
        let work = async {
            until_seen(&client, leadership.token()).await;
            let header = leadership.proclaim("rust again").await.expect("proclaimed");
            until_seen(&client, header.revision).await;
        };
        held.push(inside(scratch, leadership.token(), leadership.key(), work).await);
        leadership.resign().await.expect("resigned");
    }
    session.close().await.expect("closed");
    held
}

async fn until_seen(client: &Client, revision: i64) {
    for observer in ["go", "rust"] {
        // Watched from now on, then read: a watch that starts in the past would take 100 ms.
        let key = seen(observer, revision);
        let mut watcher = client.watch(Watch::key(&key));
        watcher.created().await.expect("a watch");
        let reply = client.txn(Txn::new().success(Op::get(key))).await.expect("a read");
        if reply.kvs(0).expect("a range").is_empty() {
            tokio::time::timeout(LONG, watcher.next()).await.expect("it is seen").expect("no error");
        }
    }
}

/// What `tests/go/rival` does as an observer, with ours, until all terms are over.
async fn observe(client: Client) -> Vec<String> {
    let session = Session::open(&client).await.expect("a session");
    let mut observer = Election::new(&session, NAME).expect("a name").observe();
    let mut saw = Vec::new();
    while saw.len() < 2 * 2 * EACH * TERMS {
        let Some(leader) = observer.next().await.expect("no end") else { continue };
        let value = String::from_utf8_lossy(&leader.value).into_owned();
        saw.push(format!("{} {} {value}", leader.token, leader.mod_revision));
        let put = Txn::new().success(Op::put(seen("rust", leader.mod_revision), ""));
        client.txn(put).await.expect("a write");
    }
    saw
}
