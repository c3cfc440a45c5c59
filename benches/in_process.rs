//! What the crate itself costs, on the fake in this process: no network, no disk.
//!
//! `cargo bench --bench in_process`

use criterion::{Criterion, criterion_group, criterion_main};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Mutex, Op, Session, Txn};
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

criterion_group!(benches, transaction, lock_cycle, failed_try_lock, session);
criterion_main!(benches);
