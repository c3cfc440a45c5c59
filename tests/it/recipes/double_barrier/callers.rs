//! What is counted are callers, each of them once.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RequestOp, TxnRequest, request_op::Request};
use etcd_concurrency::{DoubleBarrier, ErrorKind, Inside, Op, Result, Txn};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{S, all_inside, barrier, leave};
use crate::support::queue::session;
use crate::support::requests::{is_held, puts};

const SOON: Duration = Duration::from_secs(1);

fn deletes(txn: &TxnRequest) -> bool {
    let delete = |op: &RequestOp| matches!(op.request, Some(Request::RequestDeleteRange(_)));
    txn.success.iter().all(delete) && !txn.success.is_empty()
}

fn enters(barrier: &DoubleBarrier) -> JoinHandle<Result<Inside>> {
    let barrier = barrier.clone();
    tokio::spawn(async move { barrier.enter().await })
}

async fn waiting(fake: &FakeEtcd, there: usize) {
    let count = |fake: &FakeEtcd| {
        fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(b"round/waiters/")).count()
    };
    fake.until(|fake| count(fake) == there).await;
}

/// A caller gave up waiting, and came again before the server was told: its two keys made up a round of two, and it was
/// inside alone.
#[tokio::test(start_paused = true)]
async fn who_gave_up_and_comes_again_is_counted_once() {
    let fake = FakeEtcd::start();
    let caller = barrier(&session(&fake.client()).await, "round", 2);
    fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::delay(S(2)));
    assert!(timeout(Duration::from_millis(100), caller.enter()).await.is_err());
    assert!(timeout(SOON, caller.enter()).await.is_err(), "inside alone");
    sleep(S(3)).await;
    // It is not in the way of a round, either.
    let another = barrier(&session(&fake.client()).await, "round", 2);
    let two = timeout(S(30), all_inside(&[caller, another])).await.expect("two");
    drop(two);
    fake.until(|fake| fake.snapshot().keys.iter().all(|kv| !kv.key.starts_with(b"round/waiters/"))).await;
}

/// A caller lost its session while it waited, opened another, and came again before the first one's lease had ended on the
/// server: it was inside alone.
#[tokio::test(start_paused = true)]
async fn who_comes_again_with_another_session_is_counted_once() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let before = session(&client).await;
    let lost = enters(&barrier(&before, "round", 2));
    waiting(&fake, 1).await;
    sleep(SOON).await;
    fake.fault(On::rpc(Rpc::LeaseRevoke), Do::delay(S(9)));
    let closing = tokio::spawn(async move { before.close().await });
    lost.await.unwrap().unwrap_err();
    let caller = barrier(&session(&client).await, "round", 2);
    assert!(timeout(SOON, caller.enter()).await.is_err(), "inside alone");
    drop(closing);
}

/// Requests of a caller that got no answer were applied late: each put a key, and a round of three was opened with two.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_applied_late_counts_for_no_one() {
    for nth in 1..=3 {
        let fake = FakeEtcd::start();
        let sessions = [session(&fake.client_for("p")).await, session(&fake.client_for("o")).await];
        let [caller, other] = sessions.each_ref().map(|session| barrier(session, "round", 3));
        // A round is being left, so that the caller has to wait for its end.
        let mut inside = all_inside(&[other.clone(), other.clone(), other.clone()]).await;
        let last = leave(inside.pop().unwrap());
        waiting(&fake, 2).await;
        let late = Hold::new();
        fake.fault(On::rpc(Rpc::Txn).client("p").matching(puts).nth(nth), Do::hold(&late));
        // What looks out for late requests is slow to take away what they put.
        fake.fault(On::rpc(Rpc::Txn).client("p").matching(deletes), Do::delay(S(3)));
        let caller = enters(&caller);
        // An attempt without an answer is given up, and made again.
        sleep(S(20)).await;
        for inside in inside {
            drop(leave(inside));
        }
        last.await.unwrap().unwrap();
        sleep(S(20)).await;
        waiting(&fake, 1).await;
        late.release();
        sleep(Duration::from_millis(100)).await;
        let second = enters(&other);
        sleep(SOON).await;
        assert!(!second.is_finished() && !caller.is_finished(), "request {nth}: a round of three with two");
        let third = enters(&other);
        for inside in [caller, second, third] {
            drop(timeout(S(30), inside).await.expect("three").unwrap().unwrap());
        }
    }
}

/// What a caller that gave up had sent is applied an hour later: it counts for nothing, and stays for no longer.
#[tokio::test(start_paused = true)]
async fn a_caller_that_gave_up_does_not_come_back() {
    for nth in 1..=2 {
        let fake = FakeEtcd::start();
        let caller = barrier(&session(&fake.client_for("p")).await, "round", 2);
        let late = Hold::new();
        fake.fault(On::rpc(Rpc::Txn).client("p").matching(puts).nth(nth), Do::hold(&late));
        assert!(timeout(SOON, caller.enter()).await.is_err());
        sleep(S(3600)).await;
        fake.fault(On::rpc(Rpc::Txn).client("p").matching(deletes), Do::delay(S(3)));
        late.release();
        sleep(Duration::from_millis(100)).await;
        let other = barrier(&session(&fake.client()).await, "round", 2);
        assert!(
            timeout(SOON, other.enter()).await.is_err(),
            "request {nth}: let in with a caller that had given up"
        );
        timeout(S(30), fake.until(|fake| fake.snapshot().keys.is_empty())).await.expect("nothing is left");
    }
}

/// A participant's key had been put in one transaction with the ready key: for one reason it counted as inside and for another
/// it did not, and who came asked again and again without a pause.
#[tokio::test(start_paused = true)]
async fn a_key_of_the_ready_keys_own_revision_is_inside() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("p")).await;
    let both = Txn::new().success(Op::put("round/waiters/5", "")).success(Op::put("round/ready", ""));
    fake.client().txn(both).await.unwrap();
    let asked = fake.fault(On::rpc(Rpc::Txn).client("p"), Do::delay(Duration::from_millis(1)));
    let caller = barrier(&session, "round", 2);
    let waits = enters(&caller);
    sleep(S(30)).await;
    assert!(!waits.is_finished() && asked.hits() <= 3, "{} RPCs", asked.hits());
    let over = Txn::new().success(Op::delete("round/waiters/5")).success(Op::delete("round/ready"));
    fake.client().txn(over).await.unwrap();
    let other = timeout(S(30), caller.enter()).await.expect("another round").unwrap();
    drop((other, timeout(S(30), waits).await.expect("another round").unwrap().unwrap()));
}

/// A caller moved in before its watch had begun, and the round began before that, too: it heard of it a minute or two later,
/// and kept the others from leaving.
#[tokio::test(start_paused = true)]
async fn a_watch_that_begins_late_lets_its_caller_in() {
    let fake = FakeEtcd::start();
    let [p, o] = [session(&fake.client_for("p")).await, session(&fake.client_for("o")).await];
    let unwatched = fake.fault(On::open(Rpc::Watch).client("p"), Do::cut());
    let waits = enters(&barrier(&p, "round", 2));
    waiting(&fake, 1).await;
    sleep(SOON).await;
    let other = timeout(SOON, barrier(&o, "round", 2).enter()).await.expect("two").unwrap();
    sleep(SOON).await;
    unwatched.remove();
    drop((other, timeout(S(20), waits).await.expect("told").unwrap().unwrap()));
}

/// Requests of a client that are held: those that put something, by their number.
fn held(fake: &FakeEtcd, client: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<Hold> {
    let hold = |nth| {
        let hold = Hold::new();
        fake.fault(On::rpc(Rpc::Txn).client(client).matching(puts).nth(nth), Do::hold(&hold));
        hold
    };
    numbers.into_iter().map(hold).collect()
}

/// How many of these were let in, when the others were told that they are too many.
async fn let_in(entering: Vec<JoinHandle<Result<Inside>>>) -> usize {
    let mut inside = Vec::new();
    for entering in entering {
        match timeout(S(30), entering).await.expect("let in, or told").unwrap() {
            Ok(one) => inside.push(one),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::TooManyClients { .. }), "{error}"),
        }
    }
    inside.len()
}

/// One saw that it was the last who was missing, and moved in as such; another had moved in meanwhile, and was the last as well.
/// Both were inside, and with the first three in a round of two.
#[tokio::test(start_paused = true)]
async fn one_who_moves_in_as_the_last_is_no_third() {
    let fake = FakeEtcd::start();
    let [x, a, c] = ["x", "a", "c"].map(|name| (name, fake.client_for(name)));
    let enter = async |client| enters(&barrier(&session(client).await, "round", 2));
    let holds = held(&fake, x.0, [2, 3]);
    let late = held(&fake, c.0, [2]);
    let mut entering = vec![enter(&x.1).await];
    is_held(&holds[0]).await;
    entering.push(enter(&a.1).await);
    waiting(&fake, 1).await;
    sleep(Duration::from_millis(100)).await;
    entering.push(enter(&c.1).await);
    is_held(&late[0]).await;
    holds[0].release();
    is_held(&holds[1]).await;
    late[0].release();
    sleep(Duration::from_millis(100)).await;
    holds[1].release();
    assert_eq!(let_in(entering).await, 2);
}

/// One was too many, and the reply that told it so was lost. It found its key beside the ready key, and took itself for let in:
/// four in a round of three.
#[tokio::test(start_paused = true)]
async fn one_too_many_whose_reply_was_lost_is_not_let_in() {
    let fake = FakeEtcd::start();
    let [a, b, x, y] = ["a", "b", "x", "y"].map(|name| (name, fake.client_for(name)));
    let enter = async |client| enters(&barrier(&session(client).await, "round", 3));
    let mut entering = vec![enter(&a.1).await];
    waiting(&fake, 1).await;
    let last = held(&fake, x.0, [2, 3]);
    let more = held(&fake, y.0, [2, 3]);
    fake.fault(On::rpc(Rpc::Txn).client(y.0).matching(puts).nth(2), Do::lose_reply());
    for client in [&x.1, &y.1] {
        entering.push(enter(client).await);
    }
    is_held(&last[0]).await;
    is_held(&more[0]).await;
    entering.push(enter(&b.1).await);
    waiting(&fake, 2).await;
    last[0].release();
    is_held(&last[1]).await;
    more[0].release();
    waiting(&fake, 4).await;
    is_held(&more[1]).await;
    last[1].release();
    sleep(Duration::from_millis(100)).await;
    more[1].release();
    assert_eq!(let_in(entering).await, 3);
}
