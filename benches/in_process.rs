//! What the crate itself costs, on the fake in this process: no network, no disk.
//!
//! `cargo bench --bench in_process`

use criterion::{Criterion, criterion_group, criterion_main};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Mutex, Op, Session, Stm, StmTxn, Txn, Watch};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The floor: one transaction through the client and the fake.
fn transaction(c: &mut Criterion) {
    let runtime = runtime();
    let client = runtime.block_on(async { FakeEtcd::start().client() });
    c.bench_function("transaction", |b| {
        b.to_async(&runtime).iter(|| client.txn(Txn::new().success(Op::put("key", "value"))));
    });
}

/// Two transactions, and what a lock does around them.
fn lock_cycle(c: &mut Criterion) {
    let runtime = runtime();
    let session =
        runtime.block_on(async { Session::open(&FakeEtcd::start().client()).await.expect("a session") });
    let mutex = Mutex::new(&session, "lock").expect("a name");
    c.bench_function("lock and unlock", |b| {
        b.to_async(&runtime)
            .iter(|| async { mutex.lock().await.expect("locked").unlock().await.expect("unlocked") });
    });
}

fn failed_try_lock(c: &mut Criterion) {
    let runtime = runtime();
    let (mutex, _held) = runtime.block_on(async {
        let client = FakeEtcd::start().client();
        let (a, b) = (Session::open(&client).await.expect("one"), Session::open(&client).await.expect("two"));
        let held = Mutex::new(&a, "lock").expect("a name").lock().await.expect("locked");
        (Mutex::new(&b, "lock").expect("a name"), held)
    });
    c.bench_function("failed try_lock", |b| {
        b.to_async(&runtime).iter(|| async { mutex.try_lock().await.expect_err("it is held") });
    });
}

fn session(c: &mut Criterion) {
    let runtime = runtime();
    let client = runtime.block_on(async { FakeEtcd::start().client() });
    c.bench_function("session opened and closed", |b| {
        b.to_async(&runtime).iter(|| async {
            Session::open(&client).await.expect("open").close().await.expect("closed");
        });
    });
}

/// What a session's clock takes to say whether the lease lives, which is asked before each write.
fn lease_clock(c: &mut Criterion) {
    let runtime = runtime();
    let session =
        runtime.block_on(async { Session::open(&FakeEtcd::start().client()).await.expect("a session") });
    c.bench_function("is_valid", |b| b.iter(|| session.is_valid()));
}

/// The sets that an STM keeps of what was read and written: a transfer, and what a hundred keys add.
fn stm(c: &mut Criterion) {
    let runtime = runtime();
    let stm = runtime.block_on(async { Stm::new(&FakeEtcd::start().client()) });
    c.bench_function("STM transfer", |b| {
        b.to_async(&runtime).iter(|| stm.run(|txn| transfer(txn, "a", "b")));
    });
    let keys: Vec<String> = (0..100).map(|n| format!("key/{n:03}")).collect();
    c.bench_function("STM over a hundred keys", |b| {
        b.to_async(&runtime).iter(|| {
            stm.run(|txn| {
                let keys = keys.clone();
                async move {
                    txn.get_many(keys.clone()).await?;
                    for key in keys {
                        txn.get(key.clone()).await?;
                        txn.put(key, "value")?;
                    }
                    Ok::<_, etcd_concurrency::Error>(())
                }
            })
        });
    });
}

async fn transfer(txn: StmTxn, from: &'static str, to: &'static str) -> etcd_concurrency::Result<()> {
    let (mine, yours) = (txn.get_parsed::<i64>(from).await?, txn.get_parsed::<i64>(to).await?);
    txn.put(from, (mine.unwrap_or(0) - 1).to_string())?;
    txn.put(to, (yours.unwrap_or(0) + 1).to_string())
}

/// From a write to the watcher's event, past the cursor that keeps track of revisions.
fn watched_write(c: &mut Criterion) {
    let runtime = runtime();
    let (client, mut watcher) = runtime.block_on(async {
        let client = FakeEtcd::start().client();
        let mut watcher = client.watch(Watch::key("key"));
        watcher.created().await.expect("a watcher");
        (client, watcher)
    });
    c.bench_function("write to a watcher's event", |b| {
        b.iter(|| {
            runtime.block_on(async {
                client.txn(Txn::new().success(Op::put("key", "value"))).await.expect("written");
                watcher.next().await.expect("an event")
            })
        });
    });
}

criterion_group!(benches, transaction, lock_cycle, failed_try_lock, session, lease_clock, stm, watched_write);
criterion_main!(benches);
