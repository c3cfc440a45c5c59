//! Go's `concurrency.Mutex` and ours on one name.

use std::path::PathBuf;
use std::time::Duration;

use etcd_concurrency::{Client, Mutex, Session};

use crate::support::etcd::{Etcd, Version};
use crate::support::rival::{Held, Order, Rival, assert_exclusive, inside};

/// Four of each, 125 acquisitions each: 1,000 in all.
const EACH: usize = 4;
const TIMES: usize = 125;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_exclude_each_other_on_etcd_3_7() {
    compete(Version::V3_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd and Go: `.ci/run servers` builds it"]
async fn go_and_we_exclude_each_other_on_etcd_3_4() {
    compete(Version::V3_4).await;
}

async fn compete(version: Version) {
    let etcd = Etcd::start(version).await;
    let (name, scratch) = ("rivals/lock", etcd.dir().join("inside"));
    let order =
        Order { role: "mutex", endpoints: etcd.endpoint(), name, acquisitions: TIMES, scratch: &scratch };
    let theirs: Vec<Rival> = (0..EACH).map(|_| Rival::start(order)).collect();
    let ours: Vec<_> =
        (0..EACH).map(|_| tokio::spawn(contend(etcd.endpoint().to_owned(), name, scratch.clone()))).collect();

    let mut held = Vec::new();
    for ours in ours {
        held.extend(ours.await.expect("no overlap"));
    }
    for theirs in theirs {
        held.extend(theirs.finish(Duration::from_secs(120)).await);
    }
    assert_eq!(held.len(), 2 * EACH * TIMES);
    assert_exclusive(held);
}

/// What `tests/go/rival` does, with ours.
async fn contend(endpoint: String, name: &'static str, scratch: PathBuf) -> Vec<Held> {
    let client = Client::connect(endpoint).await.expect("a client");
    let session = Session::builder(&client).ttl(Duration::from_secs(10)).open().await.expect("a session");
    let mutex = Mutex::new(&session, name).expect("a name");
    let mut held = Vec::new();
    for _ in 0..TIMES {
        let guard = mutex.lock().await.expect("the lock");
        held.push(inside(&scratch, guard.token(), guard.key(), async {}).await);
        guard.unlock().await.expect("released");
    }
    session.close().await.expect("closed");
    held
}
