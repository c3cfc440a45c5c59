//! What an answer of keys alone tells.

use etcd_concurrency::Client;
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::mvccpb::KeyValue;

use crate::support::backend::on_every_backend;
use crate::support::etcd::Version;

on_every_backend! {
    /// Whose key it is can be told from an answer of keys alone by its name, and its incarnation by its revisions; the
    /// lease is left out by etcd 3.7.
    async fn an_answer_of_keys_alone_tells_all_but_the_value_and_perhaps_the_lease(backend: Backend) {
        let client = backend.client();
        let key = backend.key("key");
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
        let lease = client.lease_client().lease_grant(grant).await.expect("granted").into_inner().id;
        let mut revisions = Vec::new();
        for _ in 0..2 {
            let put = pb::PutRequest { key: key.clone().into(), value: "value".into(), lease, ..Default::default() };
            let answer = client.kv_client().put(put).await.expect("put").into_inner();
            revisions.push(answer.header.expect("a header").revision);
        }
        let range = pb::RangeRequest { key: key.clone().into(), keys_only: true, ..Default::default() };
        for (how, kv) in [("range", alone(&client, &range).await), ("transaction", within(&client, &range).await)] {
            let told = (&kv.key[..], kv.create_revision, kv.mod_revision, kv.version, &kv.value[..]);
            assert_eq!(told, (key.as_bytes(), revisions[0], revisions[1], 2, &b""[..]), "{how}");
            let is_told = kv.lease == lease;
            assert!(is_told || kv.lease == 0, "{how}: {:x} for {lease:x}", kv.lease);
            if let Some(version) = backend.version() {
                println!("etcd {version}: keys alone, by a {how}: the lease is told: {is_told}");
                assert_eq!(is_told, version < Version::V3_7, "{how}");
            }
        }
        let whole = alone(&client, &pb::RangeRequest { keys_only: false, ..range.clone() }).await;
        assert_eq!((whole.lease, &whole.value[..]), (lease, &b"value"[..]));
        let revoke = pb::LeaseRevokeRequest { id: lease };
        client.lease_client().lease_revoke(revoke).await.expect("revoked");
    }
}

async fn alone(client: &Client, range: &pb::RangeRequest) -> KeyValue {
    client.kv_client().range(range.clone()).await.expect("a range").into_inner().kvs.remove(0)
}

async fn within(client: &Client, range: &pb::RangeRequest) -> KeyValue {
    let txn = etcd_concurrency::Txn::new().success(etcd_concurrency::Op::from(range.clone()));
    let reply = client.txn(txn).await.expect("a transaction");
    reply.kvs(0).expect("a range")[0].clone()
}
