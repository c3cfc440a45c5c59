//! Members that are killed, and tokens that expire, while somebody waits.

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, Mutex, Session, SessionState};

use crate::support::etcd::{Cluster, Etcd, Version};
use crate::support::poll::until;
use crate::support::queue::queue;

const LONG: Duration = Duration::from_secs(30);

async fn until_queue(client: &Client, name: &str, len: usize) {
    until(&format!("{len} keys under {name}"), LONG, async || {
        (queue(client, name).await == len).then_some(())
    })
    .await;
}

/// Each member in turn is killed while one client holds a lock and another waits for it: both live on through the two
/// that are left, and the lock changes hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_member_is_killed_with_two_others_left() {
    let cluster = Cluster::start(Version::V3_7, 3).await;
    let holder_client = Client::connect(cluster.endpoints()).await.unwrap();
    let waiter_client = Client::connect(cluster.endpoints()).await.unwrap();
    let ttl = Duration::from_secs(15);
    let holder = Session::builder(&holder_client).ttl(ttl).open().await.unwrap();
    let waiter = Session::builder(&waiter_client).ttl(ttl).open().await.unwrap();
    for (round, member) in cluster.members.iter().enumerate() {
        let name = format!("outage/{round}");
        let held = Mutex::new(&holder, &name).unwrap().lock().await.unwrap();
        let mutex = Mutex::new(&waiter, &name).unwrap();
        let waiting = tokio::spawn(async move { mutex.lock().await });
        until_queue(&holder_client, &name, 2).await;
        member.kill();

        held.unlock().await.expect("released through the others");
        let guard = waiting.await.unwrap().expect("taken through the others");
        guard.unlock().await.unwrap();
        member.restart().await;
    }
    // Keep-alives went on, too.
    for session in [&holder, &waiter] {
        let mut state = session.state();
        let active = state.wait_for(|state| *state == SessionState::Active);
        tokio::time::timeout(LONG, active).await.expect("in time").unwrap();
        session.close().await.unwrap();
    }
}

/// All members stop for a while shorter than the TTL: nobody loses anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_server_is_restarted_while_one_waits() {
    let etcd = Etcd::start(Version::V3_7).await;
    let client = Client::connect(etcd.endpoint()).await.unwrap();
    let (holder, waiter) = (Session::open(&client).await.unwrap(), Session::open(&client).await.unwrap());
    let held = Mutex::new(&holder, "restart/lock").unwrap().lock().await.unwrap();
    let mutex = Mutex::new(&waiter, "restart/lock").unwrap();
    let waiting = tokio::spawn(async move { mutex.lock().await });
    until_queue(&client, "restart/lock", 2).await;
    etcd.kill();
    etcd.restart().await;
    held.unlock().await.unwrap();
    let guard = tokio::time::timeout(LONG, waiting).await.expect("in time").unwrap().unwrap();
    guard.unlock().await.unwrap();
}

async fn tokens_expire_in_mid_wait(version: Version) {
    let etcd = Etcd::start_with(version, &["--auth-token-ttl", "1"]).await;
    let plain = Client::connect(etcd.endpoint()).await.unwrap();
    enable_auth(&plain).await;
    let client = async || {
        let builder = Client::builder().endpoints(etcd.endpoint()).user("root", "secret");
        builder.connect().await.unwrap()
    };
    let (a, b) = (client().await, client().await);
    let ttl = Duration::from_secs(3);
    let holder = Session::builder(&a).ttl(ttl).open().await.unwrap();
    let waiter = Session::builder(&b).ttl(ttl).open().await.unwrap();
    let held = Mutex::new(&holder, "auth/lock").unwrap().lock().await.unwrap();
    let mutex = Mutex::new(&waiter, "auth/lock").unwrap();
    let waiting = tokio::spawn(async move { mutex.lock().await });
    until_queue(&a, "auth/lock", 2).await;
    // Three lives of a token, and more than the sessions' TTL.
    let over = tokio::time::Instant::now() + Duration::from_secs(4);
    tokio::time::sleep_until(over).await;
    assert!(holder.is_valid() && waiter.is_valid() && !waiting.is_finished());
    assert!(held.is_valid());
    held.unlock().await.unwrap();
    let guard = tokio::time::timeout(LONG, waiting).await.expect("in time").unwrap().unwrap();
    tokio::time::sleep_until(over + Duration::from_secs(2)).await;
    // Its own key is watched with a token fetched anew.
    let lost = tokio::time::timeout(Duration::from_millis(200), guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    guard.unlock().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn tokens_expire_in_mid_wait_on_etcd_3_5() {
    tokens_expire_in_mid_wait(Version::V3_5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn tokens_expire_in_mid_wait_on_etcd_3_7() {
    tokens_expire_in_mid_wait(Version::V3_7).await;
}

/// A user `root` with the password `secret`, and auth switched on.
async fn enable_auth(client: &Client) {
    let mut auth = client.auth_client();
    let user =
        pb::AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(user).await.unwrap();
    auth.role_add(pb::AuthRoleAddRequest { name: "root".into() }).await.unwrap();
    let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
}
