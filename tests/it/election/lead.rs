//! Leading whenever one can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{Client, Leadership, LostReason, Membership, Op, Session, Txn};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::election;
use crate::support::backend::on_every_backend;
use crate::support::queue::{queue, revoke, session, until_queue};

const S: fn(u64) -> Duration = Duration::from_secs;

/// Tells when it is dropped.
struct Ended(mpsc::UnboundedSender<&'static str>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send("ended");
    }
}

on_every_backend! {
    /// Seat after seat: lost to a deletion, lost with its lease; the work ends each time, and begins anew.
    async fn work_goes_on_over_lost_seats_and_sessions(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let (say, mut said) = mpsc::unbounded_channel();
        let terms = Arc::new(AtomicUsize::new(0));
        let election = election(&session, &name);
        let (counted, tell) = (terms.clone(), client.clone());
        let done = election.lead("me", move |leadership: Arc<Leadership>| {
            let (say, client) = (Ended(say.clone()), tell.clone());
            let term = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                let _say = say;
                assert!(leadership.is_valid());
                match term {
                    0 => drop(client.txn(Txn::new().success(Op::delete(leadership.key().clone()))).await),
                    1 | 2 => revoke(&client, leadership.session().lease()).await,
                    _ => return leadership.token(),
                }
                std::future::pending().await
            }
        });
        let token = done.await.unwrap();
        assert_eq!(terms.load(Ordering::SeqCst), 4);
        for _ in 0..4 {
            assert_eq!(said.recv().await, Some("ended"));
        }
        assert!(token > 0 && !session.is_valid());
        assert_eq!(queue(&client, &name).await, 0, "the seat was given up, and the session closed");
    }

    async fn a_closed_session_is_the_end(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let closing = session.clone();
        let standing = election(&session, &name);
        let led = standing.lead("me", move |_| {
            let session = closing.clone();
            async move {
                session.close().await.unwrap();
                std::future::pending::<()>().await
            }
        });
        assert_eq!(led.await.unwrap_err().lost_reason(), Some(LostReason::Closed));
        // And one that was closed before is no beginning.
        let error = election(&session, &name).lead("me", |_| async {}).await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
    }

    /// The work is told, ends by itself, and only then is the seat somebody else's for us to ask for.
    async fn cooperative_work_ends_before_the_next_campaign(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let (terms, working) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let election = election(&session, &name);
        let (counted, busy, tell) = (terms.clone(), working.clone(), client.clone());
        let done = election.lead_cooperative("me", move |leadership, told| {
            let (client, busy) = (tell.clone(), busy.clone());
            let term = counted.fetch_add(1, Ordering::SeqCst);
            assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two terms at once");
            async move {
                if term == 0 {
                    revoke(&client, leadership.session().lease()).await;
                    told.cancelled().await;
                    tokio::task::yield_now().await;
                }
                busy.fetch_sub(1, Ordering::SeqCst);
                term
            }
        });
        assert_eq!(done.await.unwrap(), 1);
        assert_eq!(working.load(Ordering::SeqCst), 0);
    }

    /// Two who lead whenever they can: each gets the seat when the other goes.
    async fn two_take_turns(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let inside = Arc::new(AtomicUsize::new(0));
        let term = |inside: Arc<AtomicUsize>| {
            move |leadership: Arc<Leadership>| {
                let inside = inside.clone();
                async move {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    leadership.token()
                }
            }
        };
        let lead = async |session: &Session| {
            let mut tokens = Vec::new();
            for _ in 0..10 {
                tokens.push(election(session, &name).lead("x", term(inside.clone())).await.unwrap());
            }
            tokens
        };
        let (a, b) = tokio::join!(lead(&a), lead(&b));
        let mut all = [a, b].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20, "each term has a token of its own");
    }

    /// The work kept clones of its leadership. After the first loss of the key the client never campaigned again: the clone
    /// held the session's turn.
    async fn a_clone_that_is_kept_is_in_the_way_of_no_later_term(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let kept = Arc::new(std::sync::Mutex::new(Vec::<Arc<Leadership>>::new()));
        let work = |kept: Arc<std::sync::Mutex<Vec<Arc<Leadership>>>>, client: Client| {
            move |leadership: Arc<Leadership>| {
                let term = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(leadership.clone());
                    kept.len()
                };
                let client = client.clone();
                async move {
                    if term % 4 != 0 {
                        drop(client.txn(Txn::new().success(Op::delete(leadership.key().clone()))).await);
                        std::future::pending::<()>().await;
                    }
                }
            }
        };
        let election = election(&session, &name);
        let led = election.lead("me", work(kept.clone(), client.clone()));
        tokio::time::timeout(S(60), led).await.expect("four terms").unwrap();
        let told = |told: CancellationToken| async move { told.cancelled().await };
        let again = work(kept.clone(), client.clone());
        let led = election.lead_cooperative("me", |leadership, token| {
            let work = again(leadership);
            async move {
                tokio::select! {
                    () = work => {}
                    () = told(token) => {}
                }
            }
        });
        tokio::time::timeout(S(60), led).await.expect("four terms").unwrap();
        let kept = std::mem::take(&mut *kept.lock().unwrap());
        assert_eq!(kept.len(), 8);
        assert!(kept.iter().all(|leadership| !leadership.is_valid()));
        assert_eq!(queue(&client, &name).await, 0);
        // Nor does it keep the seat when the future is dropped.
        let (leads, led) = tokio::sync::oneshot::channel();
        let mut leads = Some(leads);
        let leading = election.lead("me", |leadership| {
            leads.take().expect("one term").send(leadership).expect("somebody waits");
            std::future::pending::<()>()
        });
        let last = tokio::select! {
            led = leading => panic!("{led:?}"),
            leadership = led => leadership.unwrap(),
        };
        assert_eq!(last.lost().await, LostReason::Released);
        until_queue(&client, &name, 0).await;
    }

    async fn dropping_it_gives_the_seat_up(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let (leads, led) = tokio::sync::oneshot::channel();
        let mut leads = Some(leads);
        let election = election(&session, &name);
        let leading = election.lead("me", |_| {
            leads.take().expect("one term").send(()).expect("somebody waits");
            std::future::pending::<()>()
        });
        tokio::select! {
            led = leading => led.unwrap(),
            _ = led => {}
        }
        until_queue(&client, &name, 0).await;
        assert!(session.is_valid());
    }
}

/// Cut off from the server, the leader is told before another leads; healed, it campaigns again with a new session.
#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_comes_back() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(10)).open().await.unwrap();
    let rival = Session::open(&fake.client_for("b")).await.unwrap();
    let (say, mut said) = mpsc::unbounded_channel();
    let election_a = election(&session, "seat");
    let leading = tokio::spawn(async move {
        election_a
            .lead("a", move |leadership| {
                say.send(leadership.token()).unwrap();
                std::future::pending::<()>()
            })
            .await
    });
    let first = said.recv().await.unwrap();
    fake.partition("a");
    let next = election(&rival, "seat").campaign("b").await.unwrap();
    assert!(next.token() > first);
    assert!(!session.is_valid(), "it was told before");
    tokio::time::sleep(S(100)).await;
    fake.heal("a");
    fake.until(|fake| fake.snapshot().keys.len() == 2).await;
    next.resign().await.unwrap();
    assert!(said.recv().await.unwrap() > first);
    assert!(!leading.is_finished());
    leading.abort();
    fake.until(|fake| fake.snapshot().keys.is_empty()).await;
    drop((session, rival));
    fake.until(|fake| fake.leases() == 0).await;
}

/// What no repetition mends is not repeated.
#[tokio::test(start_paused = true)]
async fn a_refusal_ends_it() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    let fault = fake.fault(On::rpc(Rpc::Txn), Do::fail(refused));
    let error = election(&session, "seat").lead("a", |_| async {}).await.unwrap_err();
    assert_eq!(*error.kind(), etcd_concurrency::ErrorKind::PermissionDenied);
    assert_eq!(fault.hits(), 1);
}

/// What time mends is waited out, however often in a row it comes: a token that is refused while users are edited (twice
/// ended it), a full database, a balancer that has no server.
#[tokio::test(start_paused = true)]
async fn refusals_in_a_row_are_waited_out() {
    use tonic::Status;
    let said = [
        Status::unauthenticated("etcdserver: invalid auth token"),
        Status::invalid_argument("etcdserver: revision of auth store is old"),
        Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        Status::unavailable("grpc-status header missing, mapped from HTTP status code 502"),
        Status::unknown("grpc-status header missing, mapped from HTTP status code 500"),
    ];
    for status in said {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        let fault = fake.fault(On::rpc(Rpc::Txn).times(40), Do::fail(status.clone()));
        let election = election(&session, "seat");
        let led = tokio::time::timeout(S(600), election.lead("a", |_| async {})).await;
        led.unwrap_or_else(|_| panic!("{status}")).unwrap_or_else(|error| panic!("{status}: {error:?}"));
        assert_eq!(fault.hits(), 40, "{status}");
    }
}

/// A third party deletes each leader's key at once: it is not campaigned for forty times a second.
#[tokio::test(start_paused = true)]
async fn a_seat_that_never_lasts_is_asked_for_with_growing_pauses() {
    let fake = FakeEtcd::start();
    let (client, session) = (fake.client(), Session::open(&fake.client()).await.unwrap());
    let terms = Arc::new(AtomicUsize::new(0));
    let (counted, election) = (terms.clone(), election(&session, "seat"));
    let leading = election.lead("a", move |leadership| {
        counted.fetch_add(1, Ordering::SeqCst);
        let client = client.clone();
        async move {
            drop(client.txn(Txn::new().success(Op::delete(leadership.key().clone()))).await);
            std::future::pending::<()>().await
        }
    });
    tokio::time::timeout(S(60), leading).await.expect_err("it goes on");
    let terms = terms.load(Ordering::SeqCst);
    assert!((30..150).contains(&terms), "{terms}");
}

/// An outage of an hour: the pauses grow no longer than a second, and the seat is had right after it.
#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client()).await.unwrap();
    fake.stop().await;
    let election = election(&session, "seat");
    let leading =
        tokio::spawn(async move { election.lead("a", |_| async { tokio::time::Instant::now() }).await });
    tokio::time::sleep(S(3600)).await;
    let before = tokio::time::Instant::now();
    fake.restart().await.unwrap();
    let led = leading.await.unwrap().unwrap();
    assert!(led - before < S(15), "{:?}", led - before);
}

/// A candidate's session was lost to a partition, and its parent cancelled before another was opened: `lead` tried that
/// again once a second for ever, and the service did not shut down.
#[tokio::test(start_paused = true)]
async fn a_parent_that_is_cancelled_after_the_loss_is_the_end() {
    let fake = FakeEtcd::start();
    let parent = CancellationToken::new();
    let session =
        Session::builder(&fake.client_for("a")).ttl(S(10)).parent(parent.clone()).open().await.unwrap();
    let standing = election(&session, "seat");
    let leading = tokio::spawn(async move { standing.lead("me", |_| std::future::pending::<()>()).await });
    let resident = Membership::new(&session, "members").unwrap().remain("me").await.unwrap();
    fake.partition("a");
    assert_eq!(session.lost().await, LostReason::Expired);
    parent.cancel();
    fake.heal("a");
    let led = tokio::time::timeout(S(10), leading).await.expect("it ends").unwrap();
    assert_eq!(led.unwrap_err().lost_reason(), Some(LostReason::Closed));
    let ended = tokio::time::timeout(S(10), resident.ended()).await.expect("it ends");
    assert_eq!(ended.lost_reason(), Some(LostReason::Closed));
}
