//! Whatever is sent to the fake, it answers with a status and goes on serving.
//!
//! Requests of all RPCs are encoded, damaged at random, and dropped at random moments. `GARBAGE_SEED=x` replays a run,
//! `GARBAGE_REQUESTS=n` makes it so long.

mod wire;

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::{v3electionpb, v3lockpb};
use etcd_concurrency::{Compare, Op, Txn};
use fastrand::Rng;
use prost::Message;

use self::wire::{PATHS, send};
use crate::support::env;

#[tokio::test(start_paused = true)]
async fn nothing_that_is_sent_stops_the_fake() {
    let seed = env("GARBAGE_SEED").unwrap_or_else(|| fastrand::u64(..) >> 16);
    let requests = env("GARBAGE_REQUESTS").unwrap_or(5_000);
    println!("GARBAGE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let fake = FakeEtcd::builder().seed(seed).history_limit(1_000).start();
    let service = fake.service();
    let mut answered = 0;
    for _ in 0..requests {
        let path = PATHS[rng.usize(0..PATHS.len())];
        let (body, moment) = (body(&mut rng), Duration::from_millis(rng.u64(0..20)));
        answered += u32::from(send(&service, path, body, moment).await);
    }
    assert!(answered > 1_000, "only {answered} answers: too few to tell anything");

    wire::serves_as_ever(&fake).await;
}

/// What the fuzz target found worth keeping.
#[tokio::test(start_paused = true)]
async fn nor_does_anything_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/requests");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        wire::replay(&std::fs::read(&path).expect("a file")).await;
        inputs += 1;
    }
    assert!(inputs > 10, "only {inputs} inputs");
}

/// One message or a few, framed, and damaged more often than not.
fn body(rng: &mut Rng) -> Bytes {
    let mut frames = BytesMut::new();
    for _ in 0..rng.usize(1..4) {
        let mut message = message(rng);
        if rng.bool() {
            damage(&mut message, rng);
        }
        let start = frames.len();
        wire::frame(&mut frames, &message);
        // A frame's head can be ill, too: a flag, and a length.
        if rng.u32(0..100) == 0 {
            frames[start] = rng.u8(..);
        }
        if rng.u32(0..50) == 0 {
            frames[start + 4] = rng.u8(0..64);
        }
    }
    frames.freeze()
}

fn damage(message: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(0..=message.len());
        match rng.u32(0..4) {
            0 => message.truncate(at),
            1 => message.insert(at, rng.u8(..)),
            _ if at < message.len() => message[at] = rng.u8(..),
            _ => message.extend((0..rng.usize(0..9)).map(|_| rng.u8(..))),
        }
    }
}

/// A request that some RPC understands; the others are to make what they can of it.
fn message(rng: &mut Rng) -> Vec<u8> {
    let key = Bytes::from(vec![b'a' + rng.u8(0..4); rng.usize(0..3)]);
    let end = *rng.choice(&["", "\0", "b", "d"]).expect("one of them");
    let number = *rng.choice(&[0, 1, 2, 7, -1, i64::MAX, i64::MIN]).expect("one of them");
    let text = String::from_utf8_lossy(&key).into_owned();
    match rng.u32(0..11) {
        0 => pb::PutRequest { key, value: "v".into(), lease: number, prev_kv: true, ..Default::default() }
            .encode_to_vec(),
        1 => pb::RangeRequest {
            key,
            range_end: end.into(),
            limit: number,
            revision: number,
            ..Default::default()
        }
        .encode_to_vec(),
        2 => pb::DeleteRangeRequest { key, range_end: end.into(), prev_kv: true }.encode_to_vec(),
        3 => txn(key, rng, 0).encode_to_vec(),
        4 => pb::CompactionRequest { revision: number, physical: true }.encode_to_vec(),
        5 => pb::LeaseGrantRequest { ttl: number, id: number }.encode_to_vec(),
        6 => pb::LeaseKeepAliveRequest { id: number }.encode_to_vec(),
        7 => {
            use pb::watch_request::RequestUnion;
            let create = pb::WatchCreateRequest {
                key,
                range_end: end.into(),
                start_revision: number,
                watch_id: number,
                fragment: true,
                ..Default::default()
            };
            pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }.encode_to_vec()
        }
        8 => v3lockpb::LockRequest { name: key, lease: number }.encode_to_vec(),
        9 => v3electionpb::CampaignRequest { name: key, lease: number, value: "v".into() }.encode_to_vec(),
        _ => pb::AuthUserAddRequest { name: text.clone(), password: text, ..Default::default() }
            .encode_to_vec(),
    }
}

fn txn(key: Bytes, rng: &mut Rng, depth: u32) -> pb::TxnRequest {
    let mut txn = Txn::new().compare(Compare::exists(key.clone())).success(Op::put(key.clone(), "1"));
    txn = txn.failure(Op::get_prefix(key.clone())).failure(Op::delete(key.clone()));
    let mut request = pb::TxnRequest::from(txn);
    if depth < 3 && rng.bool() {
        let inner = pb::request_op::Request::RequestTxn(self::txn(key, rng, depth + 1));
        request.success.push(pb::RequestOp { request: Some(inner) });
    }
    request
}
