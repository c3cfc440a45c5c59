//! What the table and the cursor take for granted, held against real servers: etcd 3.4, 3.5, 3.6 and 3.7.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tower::ServiceExt;

use super::{Hub, Watch};
use crate::error::{ErrorKind, Result};
use crate::pb::authpb::Permission;
use crate::pb::etcdserverpb as pb;
use crate::transport::namespace::Namespace;
use crate::transport::{Limits, RawService, Transport};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;

/// One etcd, of which a test may make what it likes.
#[derive(Clone)]
struct Etcd(Channel);

struct Wire {
    requests: UnboundedSender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Etcd {
    fn new() -> Self {
        let endpoint = std::env::var("ETCD_ENDPOINT").expect("ETCD_ENDPOINT");
        // As the client's own connections: hyper's default is too small for the answers to ten thousand creates.
        let endpoint = Channel::from_shared(endpoint).expect("an endpoint");
        Self(endpoint.initial_connection_window_size(128 << 20).connect_lazy())
    }

    fn hub(&self, namespace: &'static str) -> Hub {
        let service = ServiceExt::<http::Request<Body>>::map_err(self.0.clone(), |error| {
            tonic::Status::from_error(error.into())
        });
        let limits = Limits { request_timeout: Duration::from_secs(10), answer: 32 << 20 };
        let service = RawService::new(service);
        Hub::new(Transport::new(service, None, Namespace::new(namespace), limits), Handle::current())
    }

    async fn put(&self, key: &str, bytes: usize) -> i64 {
        let request =
            pb::PutRequest { key: key.to_owned().into(), value: vec![0; bytes].into(), ..Default::default() };
        let answer = KvClient::new(self.0.clone()).put(request).await.expect("a put");
        answer.into_inner().header.expect("a header").revision
    }

    async fn compact(&self, revision: i64) {
        let request = pb::CompactionRequest { revision, physical: true };
        KvClient::new(self.0.clone()).compact(request).await.expect("a compaction");
    }

    /// Opens a stream with these first requests: servers send no head before they are asked something.
    async fn open(&self, token: Option<&str>, first: Vec<pb::WatchRequest>) -> Wire {
        let (requests, receiver) = unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        if let Some(token) = token {
            request.metadata_mut().insert("token", token.parse().expect("a token"));
        }
        first.into_iter().for_each(|request| requests.send(request).expect("it is open"));
        let answers = WatchClient::new(self.0.clone()).watch(request).await.expect("a stream").into_inner();
        Wire { requests, answers }
    }

    async fn token(&self, user: &str) -> String {
        let request = pb::AuthenticateRequest { name: user.into(), password: user.into() };
        let answer = AuthClient::new(self.0.clone()).authenticate(request).await;
        answer.expect("a token").into_inner().token
    }

    /// Enables authentication: `root` may do anything, `user` may read `user/`.
    async fn enable_auth(&self) {
        let mut auth = AuthClient::new(self.0.clone());
        for name in ["root", "user"] {
            let user =
                pb::AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
            auth.user_add(user).await.expect("a user");
            auth.role_add(pb::AuthRoleAddRequest { name: name.into() }).await.expect("a role");
            let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
            auth.user_grant_role(grant).await.expect("granted");
        }
        let perm = Some(Permission { key: "user/".into(), range_end: "user0".into(), ..Default::default() });
        let grant = pb::AuthRoleGrantPermissionRequest { name: "user".into(), perm };
        auth.role_grant_permission(grant).await.expect("granted");
        auth.auth_enable(pb::AuthEnableRequest {}).await.expect("enabled");
    }

    async fn disable_auth(&self) {
        let token = self.token("root").await;
        let mut auth = AuthClient::new(self.0.clone());
        let mut request = Request::new(pb::AuthDisableRequest {});
        request.metadata_mut().insert("token", token.parse().expect("a token"));
        auth.auth_disable(request).await.expect("disabled");
        for name in ["root", "user"] {
            auth.user_delete(pb::AuthUserDeleteRequest { name: name.into() }).await.expect("deleted");
            auth.role_delete(pb::AuthRoleDeleteRequest { role: name.into() }).await.expect("deleted");
        }
    }
}

impl Wire {
    /// The next answer that is no report.
    async fn answer(&mut self) -> pb::WatchResponse {
        loop {
            let answer = self.answers.message().await.expect("no error").expect("no end");
            if answer.created || answer.canceled || !answer.events.is_empty() {
                return answer;
            }
        }
    }

    async fn expect_created(&mut self, id: i64) {
        let answer = self.answer().await;
        assert_eq!((answer.watch_id, answer.created, answer.canceled), (id, true, false), "{answer:?}");
        assert!(answer.header.is_some_and(|header| header.revision > 0));
    }

    async fn expect_refused(&mut self, reason: &str) {
        let answer = self.answer().await;
        assert_eq!((answer.watch_id, answer.created, answer.canceled), (-1, true, true), "{answer:?}");
        assert_eq!(answer.cancel_reason, reason);
    }

    fn ask(&self, request: pb::WatchRequest) {
        self.requests.send(request).expect("it is open");
    }
}

fn create(watch_id: i64, key: &str, range_end: &str, start_revision: i64) -> pb::WatchRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision,
        watch_id,
        fragment: true,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn cancel(watch_id: i64) -> pb::WatchRequest {
    let cancel = pb::WatchCancelRequest { watch_id };
    pb::WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }
}

#[tokio::test]
#[ignore = "needs a real etcd: ETCD_ENDPOINT"]
async fn creates_are_answered_in_order_and_a_refusal_has_no_id() {
    let etcd = Etcd::new();
    let creates =
        [create(7, "a", "", 0), create(7, "b", "", 0), create(9, "z", "b", 0), create(10, "c", "", 0)];
    let mut wire = etcd.open(None, creates.into()).await;
    wire.expect_created(7).await;
    wire.expect_refused("mvcc: duplicate watch ID provided on the WatchStream").await;
    wire.expect_refused("mvcc: watcher range is empty").await;
    wire.expect_created(10).await;
    // A cancel that follows its create at once is done after it; one of an unknown id is not answered.
    for request in [create(11, "d", "", 0), cancel(11), cancel(99), create(12, "", "\0", 0)] {
        wire.ask(request);
    }
    wire.expect_created(11).await;
    let cancelled = wire.answer().await;
    assert_eq!((cancelled.watch_id, cancelled.created, cancelled.canceled), (11, false, true));
    wire.expect_created(12).await;
    let revision = etcd.put("any key", 1).await;
    assert_eq!(wire.answer().await.events[0].kv.as_ref().expect("a key").mod_revision, revision);
}

#[tokio::test]
#[ignore = "needs a real etcd: ETCD_ENDPOINT"]
async fn a_compacted_start_is_created_and_then_cancelled_at_revision_zero() {
    let etcd = Etcd::new();
    let revision = etcd.put("compacted", 1).await;
    etcd.put("compacted", 1).await;
    etcd.compact(revision + 1).await;
    let mut wire = etcd.open(None, vec![create(1, "compacted", "", revision)]).await;
    wire.expect_created(1).await;
    let answer = wire.answer().await;
    assert_eq!((answer.watch_id, answer.canceled, answer.compact_revision), (1, true, revision + 1));
    assert_eq!(answer.header.expect("a header").revision, 0);
}

#[tokio::test]
#[ignore = "needs a real etcd: ETCD_ENDPOINT"]
async fn a_refusal_leaves_the_stream_as_it_is_and_names_what_is_wrong() {
    let etcd = Etcd::new();
    etcd.enable_auth().await;
    let outcome = tokio::spawn({
        let etcd = etcd.clone();
        async move {
            let mine = || vec![create(1, "user/a", "", 0)];
            let empty = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
            etcd.open(None, mine()).await.expect_refused(empty).await;
            let invalid = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
            etcd.open(Some("rubbish.1"), mine()).await.expect_refused(invalid).await;
            let token = etcd.token("user").await;
            let creates = [create(1, "user/a", "", 0), create(2, "other", "", 0), create(3, "user/b", "", 0)];
            let mut wire = etcd.open(Some(&token), creates.into()).await;
            wire.expect_created(1).await;
            wire.expect_refused("rpc error: code = PermissionDenied desc = etcdserver: permission denied")
                .await;
            wire.expect_created(3).await;
        }
    })
    .await;
    etcd.disable_auth().await;
    outcome.expect("all as it should be");
}

#[tokio::test]
#[ignore = "needs a real etcd: ETCD_ENDPOINT"]
async fn the_hub_watches_a_real_server() -> Result<()> {
    let etcd = Etcd::new();
    let before = etcd.put("hub/before", 1).await;
    let hub = etcd.hub("hub/");
    let mut watcher = hub.watch(Watch::key("a").and(Watch::prefix("b/").no_put()));
    assert!(watcher.created().await? >= before);
    etcd.put("hub/b/x", 1).await;
    let revision = etcd.put("hub/a", 1).await;
    let events = watcher.next().await?;
    assert_eq!((events.target, events.revision), (0, revision));
    assert_eq!(events.events[0].kv.as_ref().expect("a key").key, "a");

    // More than a message holds, in fragments, from the past; and to a reader that is too slow for it.
    let first = etcd.put("hub/big", 1_000_000).await;
    for _ in 0..30 {
        etcd.put("hub/big", 1_000_000).await;
    }
    let mut big = hub.watch(Watch::key("big").from_revision(first).buffer(2));
    big.created().await?;
    etcd.put("hub/a", 1).await;
    assert_eq!(watcher.next().await?.target, 0, "the slow one stalls nobody");
    let mut revisions = Vec::new();
    while revisions.len() < 31 {
        let events = big.next().await?.events;
        revisions.extend(events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision));
    }
    assert_eq!(revisions, (first..first + 31).collect::<Vec<_>>());

    etcd.compact(first + 20).await;
    let mut compacted = hub.watch(Watch::key("big").from_revision(first));
    let error = compacted.next().await.expect_err("compacted");
    assert_eq!(*error.kind(), ErrorKind::Compacted { revision: first + 20 });
    Ok(())
}

#[tokio::test]
#[ignore = "needs a real etcd: ETCD_ENDPOINT"]
async fn ten_thousand_waiters_on_a_real_server() -> Result<()> {
    let etcd = Etcd::new();
    let hub = etcd.hub("many/");
    let mut watchers: Vec<_> = (0..10_000)
        .map(|n| hub.watch(Watch::key(format!("own/{n}")).and_key(format!("before/{n}"))))
        .collect();
    for watcher in &mut watchers {
        // It takes a second for all, of which a busy machine may make many.
        timeout(Duration::from_secs(60), watcher.created()).await.expect("in time")?;
    }
    for n in [0, 4_999, 9_999] {
        etcd.put(&format!("many/before/{n}"), 1).await;
        let events = timeout(Duration::from_secs(60), watchers[n].next()).await.expect("in time")?;
        assert_eq!(events.target, 1);
    }
    Ok(())
}
