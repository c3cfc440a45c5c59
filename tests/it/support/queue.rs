//! What a queue of sessions looks like from outside.

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::LeaseRevokeRequest;
use etcd_concurrency::{Client, Op, Session, Txn};

use super::count::RpcCounter;
use super::poll::until;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A session that no slow machine loses.
pub(crate) async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(Duration::from_secs(30)).open().await.expect("a session")
}

/// How many keys there are under a name.
pub(crate) async fn queue(client: &Client, name: &str) -> usize {
    let read = Txn::new().success(Op::get_prefix(format!("{name}/")));
    let reply = client.txn(read).await.expect("a read");
    reply.kvs(0).expect("a range").len()
}

pub(crate) async fn until_queue(client: &Client, name: &str, len: usize) {
    until(&format!("{len} keys under {name}"), LONG, async || {
        (queue(client, name).await == len).then_some(())
    })
    .await;
}

/// Returns once a client has made no call for a while.
pub(crate) async fn quiet(counter: &RpcCounter) {
    let (mut last, mut same) = (counter.unary_total(), 0);
    until("quiet", LONG, async || {
        let now = counter.unary_total();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same >= 30).then_some(())
    })
    .await;
}

/// Ends a lease behind its session's back.
pub(crate) async fn revoke(client: &Client, lease: i64) {
    client.lease_client().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoked");
}
