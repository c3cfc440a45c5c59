//! Answers of another cluster, or of this one as it was: endpoints that were mixed up, a backup that was restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb::{LeaseGrantRequest, ResponseHeader};
use etcd_concurrency::{
    Barrier, Client, Election, ErrorKind, LostReason, Membership, Mutex, Op, Outcome, Session, Stm, StmTxn,
    Txn, Watch,
};
use http_body_util::BodyExt;
use prost::Message;
use tokio::time::timeout;
use tonic::body::Body;
use tower::{ServiceExt, service_fn};

use crate::support::queue::session;

/// Two servers behind one address: the first until `turn`, then the second.
#[derive(Clone)]
struct Two {
    fakes: [FakeEtcd; 2],
    second: Arc<AtomicBool>,
    /// The second is of another cluster.
    foreign: bool,
}

impl Two {
    fn new(foreign: bool) -> Self {
        Self { fakes: [FakeEtcd::start(), FakeEtcd::start()], second: Arc::default(), foreign }
    }

    fn turn(&self, second: bool) {
        self.second.store(second, Ordering::SeqCst);
    }

    /// The second knows of a session's lease, too.
    async fn restored_has(&self, session: &Session) {
        let lease = LeaseGrantRequest { id: session.lease(), ttl: 30 };
        self.fakes[1].client().lease_client().lease_grant(lease).await.unwrap();
    }

    fn client(&self) -> Client {
        let two = self.clone();
        let service = service_fn(move |request: http::Request<Body>| {
            let second = two.second.load(Ordering::SeqCst);
            let (service, foreign) = (two.fakes[usize::from(second)].service_for("c"), second && two.foreign);
            async move {
                let answer = service.oneshot(request).await?;
                Ok::<_, tower::BoxError>(if foreign { answer.map(of_another_cluster) } else { answer })
            }
        });
        Client::from_service(service)
    }
}

/// Gives each message of an answer another cluster's id.
fn of_another_cluster(body: Body) -> Body {
    let header = ResponseHeader { cluster_id: 42, ..Default::default() }.encode_to_vec();
    with(body, [&[0x0a, u8::try_from(header.len()).unwrap()][..], &header].concat())
}

/// Gives each message of an answer more fields. One that comes twice counts as it came last.
fn with(body: Body, more: Vec<u8>) -> Body {
    Body::new(body.map_frame(move |frame| {
        frame.map_data(|mut data| {
            let mut all = BytesMut::new();
            while data.len() >= 5 {
                let length = u32::from_be_bytes(data[1..5].try_into().unwrap()) as usize;
                let message = data.split_to(5 + length);
                all.extend_from_slice(&[0]);
                all.extend_from_slice(&u32::try_from(length + more.len()).unwrap().to_be_bytes());
                all.extend_from_slice(&message[5..]);
                all.extend_from_slice(&more);
            }
            Bytes::from(all)
        })
    }))
}

fn put(value: &'static str) -> Txn {
    Txn::new().success(Op::put("k", value))
}

fn get() -> Txn {
    Txn::new().success(Op::get("k"))
}

/// A cluster was restored from a backup under an open client: what it had acknowledged since was gone, the token of a
/// lock fell, and nothing said a word.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_restored_from_a_backup_is_told_of() {
    let two = Two::new(false);
    let client = two.client();
    let session = session(&client).await;
    for _ in 0..10 {
        client.txn(put("new")).await.unwrap();
    }
    two.turn(true);
    let error = client.txn(put("again")).await.unwrap_err();
    let ErrorKind::RevisionsLost { seen, found, .. } = error.kind() else { panic!("{error}") };
    assert_eq!((*seen, *found, error.outcome()), (11, 2, Outcome::Applied));
    let error = Mutex::new(&session, "m").unwrap().try_lock().await.unwrap_err();
    // The backup does not have the lease at all.
    assert!(
        error.lost_reason().is_some() || matches!(error.kind(), ErrorKind::RevisionsLost { .. }),
        "{error}"
    );
}

/// The same where the backup has the session's lease: the session ends with its own reason.
#[tokio::test(start_paused = true)]
async fn a_session_does_not_outlive_the_revisions_that_its_cluster_lost() {
    let two = Two::new(false);
    let client = two.client();
    let session = session(&client).await;
    two.restored_has(&session).await;
    for _ in 0..10 {
        client.txn(put("new")).await.unwrap();
    }
    two.turn(true);
    let error = Mutex::new(&session, "m").unwrap().lock().await.unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::RevisionsLost), "{error}");
    assert_eq!(session.lost().await, LostReason::RevisionsLost);
}

/// A run was told so, by a read or by its commit, and the guard that fenced it went on believing.
#[tokio::test(start_paused = true)]
async fn an_stm_that_finds_revisions_lost_ends_its_session() {
    for (reads, fenced) in [(true, true), (false, true), (false, false)] {
        let two = Two::new(false);
        let client = two.client();
        let session = session(&client).await;
        let guard = Mutex::new(&session, "m").unwrap().lock().await.unwrap();
        for _ in 0..10 {
            client.txn(put("new")).await.unwrap();
        }
        // It knows of the lease: else that is what ends the session.
        two.restored_has(&session).await;
        let stm = Stm::new(&client);
        let stm = if fenced { stm.fenced(&guard) } else { stm.exactly_once(&session) };
        two.turn(true);
        let body = |txn: StmTxn| async move {
            if reads {
                txn.get("k").await?;
            }
            txn.put("k", "late")
        };
        let error = stm.run(body).await.unwrap_err();
        assert_eq!(session.lost().await, LostReason::RevisionsLost, "{reads} {fenced}: {error}");
        assert!(!guard.is_valid());
    }
}

/// A fenced write was told that the cluster had lost revisions, and the guard went on believing.
#[tokio::test(start_paused = true)]
async fn a_fenced_write_that_finds_revisions_lost_ends_the_session() {
    let two = Two::new(false);
    let client = two.client();
    let session = session(&client).await;
    let guard = Mutex::new(&session, "m").unwrap().lock().await.unwrap();
    for _ in 0..10 {
        client.txn(put("new")).await.unwrap();
    }
    two.turn(true);
    let error = guard.txn().success(Op::put("k", "late")).commit().await.unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::RevisionsLost), "{error}");
    assert!(!guard.is_valid());
    assert_eq!(session.lost().await, LostReason::RevisionsLost);
}

/// One of the endpoints was another cluster's: half of the writes went there, and nothing said a word.
#[tokio::test(start_paused = true)]
async fn what_another_cluster_answers_is_an_error_with_both_ids() {
    let two = Two::new(true);
    let client = two.client();
    client.txn(put("ours")).await.unwrap();
    two.turn(true);
    let error = client.txn(put("theirs")).await.unwrap_err();
    let ErrorKind::ClusterMismatch { expected, found, .. } = error.kind() else { panic!("{error}") };
    assert_eq!((*found, error.outcome()), (42, Outcome::Applied));
    assert_ne!(*expected, 42);
    assert_eq!(two.fakes[1].snapshot().value("k"), Some("theirs".as_bytes()));
    two.turn(false);
    assert_eq!(client.txn(get()).await.unwrap().first_value(), b"ours");
}

/// Another cluster knows nothing of a session's lease, and what it says of it was believed: the session was lost.
#[tokio::test(start_paused = true)]
async fn another_cluster_ends_no_session_and_no_watch() {
    let two = Two::new(true);
    let client = two.client();
    let session = Session::builder(&client).ttl(Duration::from_secs(60)).open().await.unwrap();
    let mut watcher = client.watch(Watch::key("k"));
    watcher.created().await.unwrap();
    client.txn(put("1")).await.unwrap();
    watcher.next().await.unwrap();
    two.turn(true);
    two.fakes[0].cut("c");
    tokio::time::sleep(Duration::from_secs(3)).await;
    two.fakes[1].client().txn(put("theirs")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    two.turn(false);
    client.txn(put("2")).await.unwrap();
    let events = watcher.next().await.unwrap();
    assert_eq!(events.events[0].kv.as_ref().unwrap().value, "2");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(session.is_valid());
}

trait FirstValue {
    fn first_value(&self) -> &[u8];
}

impl FirstValue for etcd_concurrency::TxnReply {
    fn first_value(&self) -> &[u8] {
        &self.kvs(0).unwrap()[0].value
    }
}

/// The cluster of a client that only read was restored from a backup that has its session's lease. Each read failed, and
/// the session went on; those who followed an election or a group read again and again, and were told nothing.
#[tokio::test(start_paused = true)]
async fn a_read_that_finds_revisions_lost_ends_the_session() {
    for read in 0..6 {
        let two = Two::new(false);
        let (client, restored) = (two.client(), two.fakes[1].client());
        let session = session(&client).await;
        let lease = etcd_concurrency::pb::etcdserverpb::LeaseGrantRequest { id: session.lease(), ttl: 30 };
        restored.lease_client().lease_grant(lease).await.unwrap();
        let election = Election::new(&session, "election").unwrap();
        let group = Membership::new(&session, "group").unwrap();
        let barrier = Barrier::new(&session, "barrier").unwrap();
        for _ in 0..10 {
            client.txn(put("new")).await.unwrap();
        }
        two.turn(true);
        let reading = async {
            match read {
                0 => election.leader().await.map(drop),
                1 => election.contenders().await.map(drop),
                2 => election.observe().next().await.map(drop),
                3 => group.list().await.map(drop),
                4 => group.changes().next().await.map(drop),
                _ => barrier.wait().await,
            }
        };
        let error = timeout(Duration::from_secs(2), reading).await.expect("at once").unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::RevisionsLost), "{read}: {error}");
        assert!(!session.is_valid(), "{read}");
    }
}

/// The same in the midst of what is followed: where the candidates were to be read anew, as the watch had been compacted.
#[tokio::test(start_paused = true)]
async fn an_observer_that_finds_revisions_lost_is_told() {
    let two = Two::new(false);
    let (client, restored) = (two.client(), two.fakes[1].client());
    let session = session(&client).await;
    let lease = etcd_concurrency::pb::etcdserverpb::LeaseGrantRequest { id: session.lease(), ttl: 30 };
    restored.lease_client().lease_grant(lease).await.unwrap();
    let mut observer = Election::new(&session, "election").unwrap().observe();
    assert_eq!(observer.next().await.unwrap(), None);
    for _ in 0..10 {
        client.txn(put("new")).await.unwrap();
    }
    for _ in 0..5 {
        restored.txn(put("restored")).await.unwrap();
    }
    two.fakes[1].compact(two.fakes[1].revision()).unwrap();
    two.turn(true);
    two.fakes[0].cut_streams("c");
    let told = timeout(Duration::from_secs(130), observer.next()).await.expect("by the next look");
    assert_eq!(told.unwrap_err().lost_reason(), Some(LostReason::RevisionsLost));
}
