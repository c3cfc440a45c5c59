//! What a server without space left does.

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, Compare, Op, Txn};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::backend::on_every_backend;
use crate::support::etcd::{Etcd, Version};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

on_every_backend! {
    /// With the alarm raised: what puts is refused and not applied, whichever branch would be taken; what only deletes is
    /// done. So locks can be released, and what a release also puts must be left out.
    async fn with_the_alarm_of_space_what_puts_is_refused_and_what_deletes_is_not(backend: Backend) {
        let backend = backend.alone().await;
        let client = backend.client();
        let (key, other) = (backend.key("key"), backend.key("other"));
        let grant = |id| pb::LeaseGrantRequest { ttl: 60, id };
        client.lease_client().lease_grant(grant(7)).await.expect("granted");
        client.txn(Txn::new().success(Op::put_with_lease(key.clone(), "value", 7))).await.expect("put");
        let member_id = id(&client).await;
        let alarm = |action: pb::alarm_request::AlarmAction| pb::AlarmRequest {
            action: action.into(),
            member_id,
            alarm: pb::AlarmType::Nospace.into(),
        };
        client.maintenance_client().alarm(alarm(pb::alarm_request::AlarmAction::Activate)).await.expect("raised");

        let there = || Compare::exists(key.clone());
        let both = Txn::new().success(Op::delete(key.clone())).success(Op::put(other.clone(), ""));
        let not_taken = Txn::new().compare(there()).success(Op::delete(key.clone())).failure(Op::put(other.clone(), ""));
        let write_again = pb::PutRequest { key: key.clone().into(), ignore_value: true, ..Default::default() };
        for (what, txn) in [
            ("a put", Txn::new().success(Op::put(other.clone(), ""))),
            ("a delete with a put", both),
            ("a put in the branch that is not taken", not_taken),
            ("a put without a value", Txn::new().success(Op::from(write_again))),
        ] {
            let refused = client.txn(txn).await.expect_err(what);
            println!("{what}: {refused}");
            assert!(refused.to_string().contains("space"), "{what}: {refused}");
        }
        // A put within a transaction within is counted since 3.7.1, and by later releases of 3.5 and 3.6; those before apply it.
        let inner = || Op::txn(Txn::new().success(Op::put(other.clone(), "")));
        let beside = Txn::new().success(inner()).success(Op::put(backend.key("beside"), ""));
        assert!(client.txn(beside).await.expect_err("a put at the top").to_string().contains("space"));
        let nested = client.txn(Txn::new().success(inner())).await;
        println!("a put within: {nested:?}");
        match backend.version() {
            Some(Version::V3_4) => {
                assert!(nested.expect("applied").succeeded);
                client.txn(Txn::new().success(Op::delete(other.clone()))).await.expect("deletes are done");
            }
            _ => assert!(nested.expect_err("a put within").to_string().contains("space")),
        }
        let refused = client.lease_client().lease_grant(grant(8)).await;
        let refused = refused.expect_err("a lease takes space");
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, NO_SPACE));
        let found = client.txn(Txn::new().success(Op::get(key.clone())).success(Op::get(other))).await.expect("a read");
        assert_eq!((found.kvs(0).unwrap().len(), found.kvs(1).unwrap().len()), (1, 0), "nothing was applied");

        let ours = Compare::create_revision(key.clone()).is(found.kvs(0).unwrap()[0].create_revision);
        let deleted = client.txn(Txn::new().compare(ours).success(Op::delete(key))).await.expect("deletes are done");
        assert!(deleted.succeeded);
        client.lease_client().lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.expect("revoked");
        client.maintenance_client().alarm(alarm(pb::alarm_request::AlarmAction::Deactivate)).await.expect("mended");
    }
}

async fn id(client: &Client) -> u64 {
    let status =
        client.maintenance_client().status(pb::StatusRequest {}).await.expect("a status").into_inner();
    status.header.expect("a header").member_id
}

/// A database that becomes full under many writers: some transactions are refused for it **and applied**, since the server
/// looks once before it proposes and again when it applies, and applies all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn some_of_those_refused_for_space_were_applied() {
    for version in Version::ALL {
        let etcd = Etcd::start_with(version, &["--quota-backend-bytes", "16777216"]).await;
        let client = Client::connect(etcd.endpoint()).await.expect("a client");
        let mut writers = JoinSet::new();
        for writer in 0..64 {
            let client = client.clone();
            writers.spawn(async move {
                let mut refused = Vec::new();
                for number in 0..20 {
                    let key = format!("{writer}/{number}");
                    let txn = Txn::new()
                        .compare(Compare::missing(key.clone()))
                        .success(Op::put(key.clone(), vec![7; 100_000]));
                    if let Err(error) = client.txn(txn).await {
                        assert!(error.to_string().contains("space"), "{error}");
                        refused.push(key);
                    }
                }
                refused
            });
        }
        let refused = writers.join_all().await.concat();
        let mut applied = 0;
        for key in &refused {
            let found = client.txn(Txn::new().success(Op::get(key.clone()))).await.expect("a read");
            applied += found.kvs(0).expect("a range").len();
        }
        println!("etcd {version}: of {} refused for space, {applied} were applied", refused.len());
    }
}
