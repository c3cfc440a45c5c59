//! What the fake costs: a transaction beside a bare service that answers the same without a store, ten thousand
//! watchers on one prefix, its start, and (printed) the memory that keys and the history take.
//!
//! `cargo bench --bench fake`

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb::kv_client::KvClient;
use etcd_concurrency::pb::etcdserverpb::kv_server::{Kv, KvServer};
use etcd_concurrency::pb::etcdserverpb::*;
use etcd_concurrency::{Op, Txn, Watch};
use tokio::runtime::{Builder, Runtime};
use tonic::{Request, Response, Status};

/// Answers each transaction with the same, and knows nothing else.
struct Bare;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for Bare {
    type RangeStreamStream = tokio_stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range(&self, _: Request<RangeRequest>) -> Answer<RangeResponse> {
        Err(Status::unimplemented("range"))
    }
    async fn range_stream(&self, _: Request<RangeRequest>) -> Answer<Self::RangeStreamStream> {
        Err(Status::unimplemented("range_stream"))
    }
    async fn put(&self, _: Request<PutRequest>) -> Answer<PutResponse> {
        Err(Status::unimplemented("put"))
    }
    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Answer<DeleteRangeResponse> {
        Err(Status::unimplemented("delete_range"))
    }
    async fn txn(&self, _: Request<TxnRequest>) -> Answer<TxnResponse> {
        let put = response_op::Response::ResponsePut(PutResponse::default());
        let header = Some(ResponseHeader { revision: 7, ..Default::default() });
        let responses = vec![ResponseOp { response: Some(put) }];
        Ok(Response::new(TxnResponse { header, succeeded: true, responses }))
    }
    async fn compact(&self, _: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        Err(Status::unimplemented("compact"))
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn put() -> TxnRequest {
    Txn::new().success(Op::put("key", "value")).into()
}

fn transactions(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("transaction");
    let bare = KvClient::new(tonic::service::Routes::new(KvServer::new(Bare)));
    group.bench_function("bare service", |b| {
        b.to_async(&runtime).iter(|| {
            let mut client = bare.clone();
            async move { client.txn(put()).await.expect("an answer") }
        });
    });
    let fake = KvClient::new(FakeEtcd::builder().history_limit(0).start().service());
    group.bench_function("fake without a history", |b| {
        b.to_async(&runtime).iter(|| {
            let mut client = fake.clone();
            async move { client.txn(put()).await.expect("an answer") }
        });
    });
    let fake = KvClient::new(FakeEtcd::start().service());
    group.bench_function("fake", |b| {
        b.to_async(&runtime).iter(|| {
            let mut client = fake.clone();
            async move { client.txn(put()).await.expect("an answer") }
        });
    });
}

/// One put, and its event at each of ten thousand watchers.
fn watchers(c: &mut Criterion) {
    const MANY: usize = 10_000;
    let runtime = runtime();
    let (client, mut watchers) = runtime.block_on(async {
        let client = FakeEtcd::start().client();
        let mut watchers: Vec<_> = (0..MANY).map(|_| client.watch(Watch::prefix("watched/"))).collect();
        for watcher in &mut watchers {
            watcher.created().await.expect("created");
        }
        (client, watchers)
    });
    let mut group = c.benchmark_group("watchers");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("one put to 10,000", |b| {
        b.iter_custom(|times| {
            runtime.block_on(async {
                let started = Instant::now();
                for _ in 0..times {
                    client.txn(Txn::new().success(Op::put("watched/key", "value"))).await.expect("a put");
                    for watcher in &mut watchers {
                        black_box(watcher.next().await.expect("an event"));
                    }
                }
                started.elapsed()
            })
        });
    });
}

fn start(c: &mut Criterion) {
    let runtime = runtime();
    c.bench_function("start and first answer", |b| {
        b.to_async(&runtime).iter(|| async {
            KvClient::new(FakeEtcd::start().service()).txn(put()).await.expect("an answer")
        });
    });
}

/// No time to measure: prints what a hundred thousand keys take, with one version each, and what their history does.
/// The first of all, since it would not see what reuses the memory that others have left.
fn memory(_: &mut Criterion) {
    const KEYS: usize = 100_000;
    let runtime = runtime();
    let fill = |history: usize| {
        let before = resident()?;
        let fake = FakeEtcd::builder().history_limit(history).start();
        let mut client = KvClient::new(fake.service());
        runtime.block_on(async {
            for n in 0..KEYS {
                let txn = Txn::new().success(Op::put(format!("keys/{n:08}"), "a value of twenty b."));
                client.txn(TxnRequest::from(txn)).await.expect("a put");
            }
        });
        Some((resident()?.saturating_sub(before), fake))
    };
    let (Some((keys, _one)), Some((both, _other))) = (fill(0), fill(KEYS)) else { return };
    let history = both.saturating_sub(keys);
    eprintln!("memory: {KEYS} keys take {} MiB, {} bytes each", keys >> 20, keys / KEYS);
    eprintln!(
        "memory: {KEYS} operations of history take {} MiB, {} bytes each",
        history >> 20,
        history / KEYS
    );
}

/// The memory of this process, in bytes, where the system tells.
fn resident() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

criterion_group!(benches, memory, start, transactions, watchers);
criterion_main!(benches);
