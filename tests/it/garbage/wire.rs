//! Sending a fake anything at all. The fuzz target in `fuzz/` is made of this file, too.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use etcd_concurrency::fake::{FakeEtcd, Service};
use etcd_concurrency::{Compare, Op, Txn};
use http_body_util::{BodyExt, Full};
use tonic::body::Body;
use tower::ServiceExt;

/// What can be called. Not what switches authentication on: after that nobody would get far.
pub(crate) const PATHS: &[&str] = &[
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

/// Takes an input as requests in turn, and sees that the fake goes on as ever.
///
/// A request is a byte for its path, one for how it is sent (how long the answer is waited for, how many messages
/// there are, and whether they go without frames), and its messages, each a byte for its length and so many more.
pub(crate) async fn replay(mut input: &[u8]) {
    let fake = FakeEtcd::builder().history_limit(100).start();
    let service = fake.service();
    while let [path, how, rest @ ..] = input {
        input = rest;
        let mut body = BytesMut::new();
        for _ in 0..=how >> 5 & 3 {
            let [length, rest @ ..] = input else { break };
            let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            input = rest;
            if how >> 7 == 0 {
                frame(&mut body, message);
            } else {
                body.extend_from_slice(message);
            }
        }
        let path = PATHS[usize::from(*path) % PATHS.len()];
        send(&service, path, body.freeze(), Duration::from_millis(u64::from(how & 31))).await;
    }
    serves_as_ever(&fake).await;
}

/// Puts a message into a frame of its own.
pub(crate) fn frame(frames: &mut BytesMut, message: &[u8]) {
    frames.put_u8(0);
    frames.put_u32(u32::try_from(message.len()).expect("small"));
    frames.extend_from_slice(message);
}

/// Sends one request, and reads as much of the answer as comes in a moment. True if it ended with a status.
pub(crate) async fn send(service: &Service, path: &str, body: Bytes, moment: Duration) -> bool {
    let request = http::Request::post(format!("http://fake/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(body)))
        .expect("a request");
    let answer = async {
        let response = service.clone().oneshot(request).await.expect("the fake is there");
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

/// Fails unless the fake serves a client that knows nothing of all this, and has nothing left of the others.
pub(crate) async fn serves_as_ever(fake: &FakeEtcd) {
    let client = fake.client();
    let reply =
        client.txn(Txn::new().compare(Compare::missing("fresh")).success(Op::put("fresh", "1"))).await;
    assert!(reply.expect("an answer").succeeded);
    fake.until(|fake| fake.streams() == 0).await;
    assert_eq!(fake.watchers(), 0, "of streams that are gone");
}
