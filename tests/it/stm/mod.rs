//! Software transactional memory.

mod api;
mod append;
mod bank;
mod budgets;
mod exactly_once;
mod faults;
mod isolation;
mod late;
mod workers;
mod writes;

use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Client, Error, Op, Stm, StmTxn, Txn};

use crate::support::backend::Backend;

/// What closures return that may be committed.
fn ok<T>(value: T) -> Result<T, Error> {
    Ok(value)
}

/// A key of this test's own, for as long as anybody wants it.
fn key(backend: &Backend, name: &str) -> &'static str {
    backend.key(name).leak()
}

/// What another client writes.
async fn put(client: &Client, key: &'static str, value: &'static str) -> i64 {
    client.txn(Txn::new().success(Op::put(key, value))).await.expect("a put").header.revision
}

async fn delete(client: &Client, key: &'static str) {
    client.txn(Txn::new().success(Op::delete(key))).await.expect("a delete");
}

async fn read(client: &Client, key: &'static str) -> Option<KeyValue> {
    let reply = client.txn(Txn::new().success(Op::get(key))).await.expect("a read");
    reply.kvs(0).expect("a range").first().cloned()
}

async fn value(client: &Client, key: &'static str) -> Option<String> {
    read(client, key).await.map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
}

/// Adds to a number.
async fn add(txn: StmTxn, key: &'static str, n: i64) -> Result<i64, Error> {
    let sum = txn.get_parsed(key).await?.unwrap_or(0) + n;
    txn.put(key, sum.to_string())?;
    Ok(sum)
}

/// What is spawned must be `Send`.
#[test]
fn a_run_can_be_spawned() {
    fn send<T: Send>(_: impl FnOnce(Stm) -> T) {}
    send(|stm| async move { stm.run(|txn| add(txn, "a", 1)).await });
    send(|stm| async move { stm.run(|txn| async move { ok(txn.get("a").await?) }).await });
    send(|stm| async move {
        let mut tries = 0;
        let body = |txn: StmTxn| {
            tries += 1;
            async move { txn.put("a", "1").map_err(Box::<dyn std::error::Error + Send + Sync>::from) }
        };
        stm.run(body).await
    });
}
