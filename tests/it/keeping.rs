//! How leases are kept alive, on the fake and its paused clock.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, LostReason, Session, SessionState};
use tokio::time::{Instant, sleep, sleep_until, timeout};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// The first to wake after a machine's sleep was the timer of a lease. That the machine had slept was noticed before the
/// timer was seen to, and setting it again, while it was none, took the task down, and with it every session.
#[tokio::test(start_paused = true)]
async fn a_timer_that_fires_first_after_a_sleep_is_seen_to() {
    let (fake, slept) = (FakeEtcd::start(), Arc::new(AtomicU64::new(0)));
    let told = slept.clone();
    let builder = Client::builder().service(fake.service());
    let client = builder.suspended_time(move || S(told.load(Ordering::SeqCst))).connect().await.unwrap();
    let session = Session::builder(&client).ttl(S(9)).open().await.unwrap();
    // The keep-alive is due after a third of the TTL.
    sleep(MS(2_999)).await;
    slept.store(1, Ordering::SeqCst);
    sleep(S(60)).await;
    assert!(session.is_valid(), "{session:?}");
    assert_eq!(fake.leases(), 1);
}

/// A lease was given up while its keep-alive was under way, and adopted again. The answer to the old keep-alive was taken
/// for that of the new one, and counted from when that was sent: the session was believed in for longer than the server
/// had promised.
#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_owner_proves_nothing() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    // It keeps the stream open.
    let _other = Session::open(&client).await.unwrap();
    let start = Instant::now();
    let first = Session::builder(&client).ttl(S(6)).open().await.unwrap();
    let late = fake.fault(On::response(Rpc::LeaseKeepAlive), Do::delay(MS(1_500)));
    sleep_until(start + MS(2_100)).await;
    // Renewed after two seconds, the lease ends after eight.
    let lease = first.orphan();
    late.remove();
    sleep_until(start + S(3)).await;
    fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    let adopted = timeout(S(5), Session::builder(&client).lease(lease).open()).await;
    sleep_until(start + MS(8_200)).await;
    assert!(fake.snapshot().lease(lease).is_none());
    let believed = matches!(&adopted, Ok(Ok(session)) if session.is_valid());
    assert!(!believed, "{}", fake.history());
}

/// The deadline had passed, and nobody had looked: the lease was adopted again before the task had seen to its timer.
/// The task took it for one that it kept already, then forgot both, and the adoption waited for ever.
#[tokio::test(start_paused = true)]
async fn a_lease_is_adopted_again_in_the_moment_of_its_deadline() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let first = Session::builder(&client).ttl(S(9)).open().await.unwrap();
    let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
    let late = first.remaining() + MS(100);
    pass(late);
    silent.remove();
    let again = Session::builder(&client).lease(first.lease()).open();
    let again = timeout(S(60), again).await.expect("it is told").unwrap();
    assert_eq!(first.lost().await, LostReason::Expired);
    sleep(S(60)).await;
    assert!(again.is_valid() && fake.leases() == 1, "{}", fake.history());
}

/// Whoever found out that the deadline had passed told all who watched the state, and waited for those who held a borrow
/// of it: for itself, where it held one.
#[test]
fn who_holds_a_borrow_of_the_state_can_ask_and_let_go() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
            let client = FakeEtcd::start().client();
            let open = || Session::builder(&client).ttl(S(9)).open();
            let (late, dropped) = (open().await.unwrap(), open().await.unwrap());
            let mut states = [late.state(), dropped.state()];
            {
                {
                    let _held = states[1].borrow();
                    drop(dropped);
                }
                let _held = states[0].borrow();
                // Keep-alives change nothing, and tell nobody.
                sleep(S(20)).await;
                assert!(late.is_valid());
                pass(S(60));
                assert!(!late.is_valid());
            }
            for (state, reason) in states.iter_mut().zip([LostReason::Expired, LostReason::Closed]) {
                let lost = state.wait_for(|state| *state == SessionState::Lost(reason));
                timeout(S(1), lost).await.expect("whoever watches is told").unwrap();
            }
        });
        done.send(()).unwrap();
    });
    // No clock that can be paused: the thread would not come back.
    is_done.recv_timeout(S(60)).expect("it waits for itself, or has failed");
}

/// The time passes, and nobody gets to see it yet.
fn pass(time: Duration) {
    let advance = std::pin::pin!(tokio::time::advance(time));
    let _ = advance.poll(&mut Context::from_waker(Waker::noop()));
}

/// Ten thousand leases woke the client, and wrote to the connection, five hundred times a second.
#[tokio::test(start_paused = true)]
async fn keep_alives_that_are_due_soon_go_out_together() {
    const SESSIONS: usize = 100;
    let fake = FakeEtcd::start();
    let (client, mut sessions) = (fake.client(), Vec::new());
    for _ in 0..SESSIONS {
        sessions.push(Session::builder(&client).ttl(S(60)).open().await.unwrap());
        sleep(MS(50)).await;
    }
    // Each has had its first, none its second.
    sleep(S(30)).await;
    let history = fake.history();
    let mut sent: Vec<_> = history.calls(Rpc::LeaseKeepAlive).map(|call| call.at).collect();
    assert_eq!(sent.len(), SESSIONS);
    sent.dedup();
    // Five seconds' worth of leases, each at most a second early.
    assert!(sent.len() <= 6, "{sent:?}");
    assert!(sessions.iter().all(Session::is_valid));
}

/// An overloaded server took seven seconds to open a stream. The client gave up after five and opened another, again and
/// again, and lost a lease of which forty seconds were left.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_slow_to_open_the_stream_keeps_a_lease() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(60)).open().await.unwrap();
    let slow = fake.fault(On::open(Rpc::LeaseKeepAlive), Do::delay(S(7)));
    sleep(S(600)).await;
    assert!(session.is_valid());
    assert_eq!(slow.hits(), 1, "it is opened once");
}

/// A user lost its rights on a dozen keys. Each lease with such a key ended the stream once, each time the client waited
/// longer before it opened another, and a lease beside them, which the server would have renewed, ran out.
#[tokio::test(start_paused = true)]
async fn many_leases_that_may_not_be_renewed_do_not_hold_up_another() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let mut refused = Vec::new();
    let mut renewed = Vec::new();
    // On both sides of the one that is renewed, whichever the client asks for first.
    for number in 0..41 {
        let session = Session::builder(&client).ttl(S(10)).open().await.unwrap();
        if number == 20 { renewed.push(session) } else { refused.push(session) }
    }
    let leases: Vec<i64> = refused.iter().map(Session::lease).collect();
    let is_refused = move |request: &pb::LeaseKeepAliveRequest| leases.contains(&request.id);
    let denied = tonic::Status::permission_denied("etcdserver: permission denied");
    let fault = fake.fault(On::rpc(Rpc::LeaseKeepAlive).matching(is_refused), Do::fail(denied));
    sleep(S(120)).await;
    assert!(renewed.iter().all(Session::is_valid));
    assert!(refused.iter().all(|session| !session.is_valid()));
    // Each is asked for more often as its end comes nearer, and not without a pause.
    assert!(fault.hits() <= 40 * 20, "{}", fault.hits());
}

/// The rights of a user were edited for half a second at the first keep-alive of its lease, and for as long at the second.
/// In between the server would have renewed it, but the client had not asked.
#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_between_two_turns_loses_no_lease() {
    let fake = FakeEtcd::start();
    let start = Instant::now();
    let session = Session::builder(&fake.client()).ttl(S(9)).open().await.unwrap();
    for turn in [2_900, 5_900] {
        sleep_until(start + MS(turn)).await;
        let denied = tonic::Status::permission_denied("etcdserver: permission denied");
        let fault = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::fail(denied));
        sleep(MS(500)).await;
        fault.remove();
    }
    sleep_until(start + S(60)).await;
    assert!(session.is_valid());
}
