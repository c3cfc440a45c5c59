//! Users and tokens, on real servers.

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, ErrorKind, Op, Outcome, Txn, Watch};
use tokio::time::timeout;

use super::LONG;
use crate::support::count::RpcCounter;
use crate::support::etcd::{Etcd, Version};

fn write() -> Txn {
    Txn::new().success(Op::put("k", "v"))
}

fn read() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), ..Default::default() }
}

fn root(etcd: &Etcd) -> etcd_concurrency::ClientBuilder {
    Client::builder().endpoints(etcd.endpoint()).user("root", "secret")
}

/// Adds the user root and enables authentication.
async fn enable(etcd: &Etcd) {
    let client = Client::connect(etcd.endpoint()).await.unwrap();
    let mut auth = client.auth_client();
    let user =
        pb::AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(user).await.unwrap();
    // From 3.6 on it is there already.
    let _ = auth.role_add(pb::AuthRoleAddRequest { name: "root".into() }).await;
    let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
}

/// A server with authentication, of each version.
async fn servers() -> Vec<Etcd> {
    let mut servers = Vec::new();
    for version in Version::ALL {
        // A second and a little is the shortest life of a token that etcd knows.
        let etcd = Etcd::start_with(version, &["--auth-token-ttl", "1"]).await;
        enable(&etcd).await;
        servers.push(etcd);
    }
    servers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_user_logs_in_by_connect() {
    for etcd in servers().await {
        let version = etcd.version();
        let client = root(&etcd).connect().await.expect("the right password");
        client.txn(write()).await.expect("allowed");
        client.kv_client().range(read()).await.expect("allowed");
        let mut watcher = client.watch(Watch::key("k"));
        timeout(LONG, watcher.created()).await.expect("in time").expect("allowed");

        let wrong = Client::builder().endpoints(etcd.endpoint()).user("root", "wrong");
        let error = timeout(LONG, wrong.connect()).await.expect("in time").expect_err("wrong");
        assert!(matches!(error.kind(), ErrorKind::Unauthenticated { .. }), "{version}: {error:?}");
        assert_eq!(error.rpc(), Some("Auth/Authenticate"));
        let error = Client::builder()
            .endpoints(etcd.endpoint())
            .user("nobody", "secret")
            .connect_lazy()
            .unwrap()
            .txn(write())
            .await
            .expect_err("no such user");
        assert!(matches!(error.kind(), ErrorKind::Unauthenticated { .. }), "{version}: {error:?}");
        assert_eq!(error.outcome(), Outcome::NotApplied);

        // It is an etcd, whoever one is; but nobody in particular may do nothing.
        let nobody = Client::connect(etcd.endpoint()).await.expect("it speaks etcd");
        let error = nobody.txn(write()).await.expect_err("no user");
        assert!(matches!(error.kind(), ErrorKind::Unauthenticated { .. }), "{version}: {error:?}");
    }
}

/// Tokens that are void, one after another, under a hundred calls at a time and under a watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_token_that_is_void_is_replaced_once_for_all() {
    for etcd in servers().await {
        let version = etcd.version();
        let counter = RpcCounter::new();
        let client = root(&etcd).layer(counter.clone()).connect().await.unwrap();
        let other = root(&etcd).connect().await.unwrap();
        for round in 0..3 {
            counter.reset();
            // A new password voids all tokens of the user at once.
            let same = pb::AuthUserChangePasswordRequest {
                name: "root".into(),
                password: "secret".into(),
                ..Default::default()
            };
            other.auth_client().user_change_password(same).await.unwrap();
            let calls: Vec<_> = (0..100)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { client.txn(write()).await })
                })
                .collect();
            for call in calls {
                call.await.unwrap().unwrap_or_else(|error| panic!("{version}: {error:?}"));
            }
            assert_eq!(counter.count("Authenticate"), 1, "{version}, round {round}: {counter}");

            let mut watcher = client.watch(Watch::key("k"));
            timeout(LONG, watcher.created()).await.expect("in time").expect("allowed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_token_that_expired_is_replaced() {
    for etcd in servers().await {
        let version = etcd.version();
        let counter = RpcCounter::new();
        let client = root(&etcd).layer(counter.clone()).connect().await.unwrap();
        let given = {
            let login = pb::AuthenticateRequest { name: "root".into(), password: "secret".into() };
            client.auth_client().authenticate(login).await.unwrap().into_inner().token
        };
        let fixed = Client::builder().endpoints(etcd.endpoint()).token(given).connect().await.unwrap();
        fixed.txn(write()).await.expect("still valid");

        // What is tried here is the passing of time: the server counts it, and shows it by nothing else.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        counter.reset();
        client.txn(write()).await.unwrap_or_else(|error| panic!("{version}: {error:?}"));
        assert_eq!((counter.count("Authenticate"), counter.count("Txn")), (1, 2), "{version}: {counter}");

        let error = fixed.txn(write()).await.expect_err("the user's own token is never replaced");
        assert_eq!(*error.kind(), ErrorKind::InvalidToken, "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn authentication_is_enabled_and_disabled_under_a_client() {
    for version in Version::ALL {
        let etcd = Etcd::start(version).await;
        let counter = RpcCounter::new();
        let client = root(&etcd).layer(counter.clone()).connect().await.expect("no user wanted yet");
        client.txn(write()).await.expect("allowed");
        client.txn(write()).await.expect("allowed");
        assert_eq!(counter.count("Authenticate"), 1, "{version}: {counter}");

        enable(&etcd).await;
        client.txn(write()).await.unwrap_or_else(|error| panic!("{version}: {error:?}"));
        client.auth_client().auth_disable(pb::AuthDisableRequest {}).await.unwrap();
        client.txn(write()).await.unwrap_or_else(|error| panic!("{version}: {error:?}"));
    }
}
