//! Transactions that only compare, or only read serializably: one member may answer them from the past.

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RangeRequest, TxnRequest, request_op::Request};
use etcd_concurrency::{Client, Compare, ErrorKind, Mutex, Op, Txn};
use tonic::Status;

use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::queue::session;

/// True for what etcd has one member answer from whatever it has.
fn alone(txn: &TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn stale(key: &str) -> Op {
    RangeRequest { key: key.to_owned().into(), serializable: true, ..Default::default() }.into()
}

/// A holder asked whether it still held the lock, by a fenced transaction without operations, and a member that lagged
/// said yes: the lock was another's by then.
#[tokio::test(start_paused = true)]
async fn a_check_of_ownership_is_never_left_to_one_member() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let guard = Mutex::new(&session, "lock").unwrap().lock().await.unwrap();
    let asked = fake.fault(On::rpc(Rpc::Txn).matching(alone), Do::fail(Status::internal("from the past")));
    let key = std::str::from_utf8(guard.key()).unwrap().to_owned();
    guard.txn().commit().await.unwrap();
    guard.txn().success(stale(&key)).commit().await.unwrap();
    guard.txn().compare(Compare::missing("k")).commit().await.unwrap();
    guard.txn().compare(Compare::missing("k")).success(stale("k")).commit().await.unwrap();
    for txn in [
        Txn::new().compare(Compare::exists(key.clone())),
        Txn::new().compare(Compare::exists(key.clone())).success(stale(&key)),
        Txn::new().compare(Compare::exists(key.clone())).failure(stale(&key)),
    ] {
        assert!(session.client().txn(txn).await.unwrap().succeeded);
    }
    assert_eq!(asked.hits(), 0);
}

on_every_backend! {
    /// What is read beside the compares so that the cluster decides them costs no RPC and does not show.
    async fn compares_alone_are_answered_with_nothing_else(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        let session = session(&client).await;
        let guard = Mutex::new(&session, backend.key("lock")).unwrap().lock().await.unwrap();
        let key = backend.key("k");
        counter.reset();
        let reply = guard.txn().commit().await.unwrap();
        assert!(reply.succeeded && reply.responses.is_empty(), "{reply:?}");
        let reply = guard.txn().success(stale(&key)).commit().await.unwrap();
        assert!(reply.succeeded && reply.responses.len() == 1 && reply.kvs(0).unwrap().is_empty(), "{reply:?}");
        let reply = client.txn(Txn::new().compare(Compare::exists(key.clone()))).await.unwrap();
        assert!(!reply.succeeded && reply.responses.is_empty(), "{reply:?}");
        let reply = client.txn(Txn::new().compare(Compare::missing(key.clone())).success(stale(&key))).await.unwrap();
        assert!(reply.succeeded && reply.responses.len() == 1, "{reply:?}");
        assert_eq!(counter.to_string(), "4 Txn");
        client.txn(Txn::new().success(Op::delete(guard.key().clone()))).await.unwrap();
        let error = guard.txn().commit().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Lost(_)), "{error}");
    }
}

on_every_backend! {
    /// Of an empty prefix nothing could be read or compared: etcd was sent a range that begins with an empty key, which it
    /// refuses.
    async fn an_empty_prefix_is_every_key(backend: Backend) {
        let namespaced = Client::builder().service(backend.service()).namespace(backend.key("ns/"));
        let mut clients = vec![namespaced.connect().await.unwrap()];
        if backend.is_fake() {
            clients.push(backend.client());
        }
        for client in clients {
            let every = || Txn::new().compare(Compare::none_with_prefix(""));
            let none = client.txn(every().success(Op::get_prefix(""))).await.unwrap();
            assert!(none.succeeded && none.kvs(0).unwrap().is_empty());
            let put = Txn::new().success(Op::put("a", "")).success(Op::put("\u{10ffff}", ""));
            client.txn(put).await.unwrap();
            let some = client.txn(every().failure(Op::get_prefix(""))).await.unwrap();
            assert!(!some.succeeded && some.kvs(0).unwrap().len() == 2);
            let gone = client.txn(Txn::new().success(Op::delete_prefix(""))).await.unwrap();
            assert_eq!(gone.deleted(0), Some(2));
        }
    }
}
