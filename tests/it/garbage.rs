//! Whatever is sent to the fake, it answers with a status and goes on serving.
//!
//! Requests of all RPCs are encoded, damaged at random, and dropped at random moments. `GARBAGE_SEED=x` replays a run,
//! `GARBAGE_REQUESTS=n` makes it so long.

use std::str::FromStr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::{v3electionpb, v3lockpb};
use etcd_concurrency::{Compare, Op, Txn};
use fastrand::Rng;
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::body::Body;
use tower::ServiceExt;

const PATHS: &[&str] = &[
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/RangeStream",
    "etcdserverpb.KV/Put",
    "etcdserverpb.KV/DeleteRange",
    "etcdserverpb.KV/Txn",
    "etcdserverpb.KV/Compact",
    "etcdserverpb.Watch/Watch",
    "etcdserverpb.Lease/LeaseGrant",
    "etcdserverpb.Lease/LeaseRevoke",
    "etcdserverpb.Lease/LeaseKeepAlive",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Lease/LeaseLeases",
    "etcdserverpb.Cluster/MemberAdd",
    "etcdserverpb.Cluster/MemberRemove",
    "etcdserverpb.Cluster/MemberUpdate",
    "etcdserverpb.Cluster/MemberList",
    "etcdserverpb.Cluster/MemberPromote",
    "etcdserverpb.Maintenance/Alarm",
    "etcdserverpb.Maintenance/Status",
    "etcdserverpb.Maintenance/Defragment",
    "etcdserverpb.Maintenance/Hash",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Maintenance/Snapshot",
    "etcdserverpb.Maintenance/MoveLeader",
    "etcdserverpb.Maintenance/Downgrade",
    "etcdserverpb.Auth/Authenticate",
    "etcdserverpb.Auth/AuthStatus",
    "etcdserverpb.Auth/UserAdd",
    "etcdserverpb.Auth/UserGet",
    "etcdserverpb.Auth/UserList",
    "etcdserverpb.Auth/UserDelete",
    "etcdserverpb.Auth/UserChangePassword",
    "etcdserverpb.Auth/UserGrantRole",
    "etcdserverpb.Auth/UserRevokeRole",
    "etcdserverpb.Auth/RoleAdd",
    "etcdserverpb.Auth/RoleGet",
    "etcdserverpb.Auth/RoleList",
    "etcdserverpb.Auth/RoleDelete",
    "etcdserverpb.Auth/RoleGrantPermission",
    "etcdserverpb.Auth/RoleRevokePermission",
    "v3lockpb.Lock/Lock",
    "v3lockpb.Lock/Unlock",
    "v3electionpb.Election/Campaign",
    "v3electionpb.Election/Proclaim",
    "v3electionpb.Election/Leader",
    "v3electionpb.Election/Observe",
    "v3electionpb.Election/Resign",
    "etcdserverpb.KV/NoSuchMethod",
];

#[tokio::test(start_paused = true)]
async fn nothing_that_is_sent_stops_the_fake() {
    let seed = env("GARBAGE_SEED").unwrap_or_else(|| fastrand::u64(..) >> 16);
    let requests = env("GARBAGE_REQUESTS").unwrap_or(5_000);
    println!("GARBAGE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let fake = FakeEtcd::builder().seed(seed).history_limit(1_000).start();
    let mut answered = 0;
    for _ in 0..requests {
        let path = PATHS[rng.usize(0..PATHS.len())];
        answered += u32::from(send(&fake, path, body(&mut rng), &mut rng).await);
    }
    assert!(answered > 1_000, "only {answered} answers: too few to tell anything");

    // It serves as ever, a client that knows nothing of all this among the rest.
    let client = fake.client();
    let reply =
        client.txn(Txn::new().compare(Compare::missing("fresh")).success(Op::put("fresh", "1"))).await;
    assert!(reply.expect("an answer").succeeded);
    fake.until(|fake| fake.streams() == 0).await;
    assert_eq!(fake.watchers(), 0, "of streams that are gone");
}

/// Sends one request, and reads as much of the answer as comes in a moment. True if it ended with a status.
async fn send(fake: &FakeEtcd, path: &str, body: Bytes, rng: &mut Rng) -> bool {
    let request = http::Request::post(format!("http://fake/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(body)))
        .expect("a request");
    let moment = Duration::from_millis(rng.u64(0..20));
    let answer = async {
        let response = fake.service().oneshot(request).await.expect("the fake is there");
        assert_eq!(response.status(), 200, "{path}");
        let head = response.headers().clone();
        let body = response.into_body().collect().await;
        let Ok(body) = body else { return };
        let status = head.get("grpc-status").or_else(|| body.trailers()?.get("grpc-status"));
        let status = status.unwrap_or_else(|| panic!("{path}: no status")).to_str().expect("a number");
        let code: i32 = status.parse().expect("a number");
        assert!((0..=16).contains(&code), "{path}: {code}");
    };
    // What waits (a watch, a lock that is held) is dropped in the middle.
    tokio::time::timeout(moment, answer).await.is_ok()
}

/// One message or a few, framed, and damaged more often than not.
fn body(rng: &mut Rng) -> Bytes {
    let mut frames = BytesMut::new();
    for _ in 0..rng.usize(1..4) {
        let mut message = message(rng);
        if rng.bool() {
            damage(&mut message, rng);
        }
        frames.put_u8(if rng.u32(0..100) == 0 { rng.u8(..) } else { 0 });
        let length = u32::try_from(message.len()).expect("small");
        frames.put_u32(if rng.u32(0..50) == 0 { rng.u32(0..64) } else { length });
        frames.extend_from_slice(&message);
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

fn env<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}
