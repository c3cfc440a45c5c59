//! What goes wrong in a round, one thing at a time.

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RequestOp, TxnRequest, WatchResponse, request_op::Request};
use etcd_concurrency::{LostReason, Op, Result, Txn};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{S, all_inside, barrier, enter, leave};
use crate::support::count::RpcCounter;
use crate::support::queue::session;
use crate::support::requests::released_unseen;

fn writes(txn: &TxnRequest) -> bool {
    !txn.compare.is_empty()
}

/// Of each of the eight writes of a round. Where the reply to one's leaving was lost, the next attempt finds no key: one has
/// left, and all others have, and it cannot be told whether one was taken for gone before. It was taken for one's own
/// leaving, also where another client had deleted the key and the others were let out while one was inside.
#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_no_matter() {
    for lost in [LoseReply::Error, LoseReply::Hang] {
        for nth in 1..=8 {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let fault =
                fake.fault(On::rpc(Rpc::Txn).matching(writes).nth(nth), Do::lose_reply_by(lost.clone()));
            let mut inside = all_inside(&[barrier(&a, "round", 2), barrier(&b, "round", 2)]).await;
            let last = leave(inside.pop().unwrap());
            sleep(S(10)).await;
            assert!(!last.is_finished(), "let out while the other is inside");
            let first = leave(inside.pop().unwrap());
            for (left, unseen) in [(last, nth == 6), (first, nth == 8)] {
                match unseen {
                    true => released_unseen(left.await.unwrap()),
                    false => left.await.unwrap().unwrap(),
                }
            }
            assert_eq!(fault.hits(), u64::from(nth < 8 || fault.hits() > 0), "{nth}");
            assert!(fake.snapshot().keys.is_empty(), "{nth}: {}", fake.snapshot());
        }
    }
}

/// A request that comes long after it was given up leaves no caller in the barrier for good.
#[tokio::test(start_paused = true)]
async fn a_late_entry_leaves_no_ghost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    fake.fault(On::rpc(Rpc::Txn).matching(writes).once(), Do::delay(S(9)));
    barrier(&session, "round", 1).enter().await.unwrap().leave().await.unwrap();
    sleep(S(5)).await;
    timeout(S(20), fake.until(|fake| fake.snapshot().keys.is_empty())).await.unwrap();
    assert!(session.is_valid());
}

/// Both waits, over broken streams and compacted histories.
#[test]
fn the_waits_survive_cuts_and_compaction() {
    crate::support::backend::on_fake(module_path!(), async |backend| {
        let fake = backend.fake().unwrap();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (a, b) = (barrier(&a, "round", 2), barrier(&b, "round", 2));
        let away = async |stall: bool| {
            sleep(S(1)).await;
            let away = fake.fault(On::open(Rpc::Watch).client("a"), Do::cut());
            if stall {
                fake.stall_streams("a");
                away.remove();
            } else {
                fake.cut_streams("a");
            }
            away
        };
        let back = async |away: etcd_concurrency::fake::Fault| {
            fake.client().txn(Txn::new().success(Op::put("noise", "1"))).await.unwrap();
            fake.compact(fake.revision()).unwrap();
            away.remove();
        };
        for stall in [false, true] {
            let waiting = enter(&backend, &a, "round", 1).await;
            let gone = away(stall).await;
            let second = b.enter().await.unwrap();
            back(gone).await;
            let first = timeout(S(60), waiting).await.unwrap().unwrap().unwrap();
            // The first waits for the second, or the other way round.
            let left = leave(first);
            let gone = away(stall).await;
            second.leave().now_or_wait().await;
            back(gone).await;
            timeout(S(60), left).await.unwrap().unwrap().unwrap();
            fake.until(|fake| fake.watchers() == 0).await;
        }
    });
}

trait NowOrWait {
    async fn now_or_wait(self);
}

impl<F: Future<Output = Result<()>> + Send + 'static> NowOrWait for F {
    /// Starts it, and lets it go on.
    async fn now_or_wait(self) {
        let task = tokio::spawn(self);
        sleep(S(1)).await;
        drop(task);
    }
}

/// The third of three was about to open, and one of the others went: the barrier opened with two.
#[tokio::test(start_paused = true)]
async fn who_goes_as_the_last_one_comes_is_not_counted() {
    let fake = FakeEtcd::start();
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(session(&fake.client()).await);
    }
    let enter = |n: usize| {
        let barrier = barrier(&sessions[n], "round", 3);
        tokio::spawn(async move { barrier.enter().await })
    };
    let there = |fake: &FakeEtcd| fake.snapshot().keys.len();
    let goes = enter(0);
    fake.until(|fake| there(fake) == 1).await;
    let stays = enter(1);
    fake.until(|fake| there(fake) == 2).await;
    let opening = Hold::new();
    let opens = |txn: &TxnRequest| {
        let is_ready = |op: &RequestOp| matches!(&op.request, Some(Request::RequestPut(put)) if put.key == "round/ready");
        txn.success.iter().any(is_ready)
    };
    fake.fault(On::rpc(Rpc::Txn).matching(opens).once(), Do::hold(&opening));
    let third = enter(2);
    fake.until(|_| opening.held() == 1).await;
    fake.revoke_lease(sessions[0].lease());
    assert_eq!(goes.await.unwrap().unwrap_err().lost_reason(), Some(LostReason::Revoked));
    opening.release();
    sleep(S(1)).await;
    assert!(!stays.is_finished() && !third.is_finished(), "a round of three was opened by two");
    let (another, stays, third) = (enter(3).await.unwrap(), stays.await.unwrap(), third.await.unwrap());
    drop((another.unwrap(), stays.unwrap(), third.unwrap()));
}

/// The key of one who waited was deleted before the round was opened, by another in its place. It was told of the opening
/// first, and was inside as one too many.
#[tokio::test(start_paused = true)]
async fn who_was_not_counted_is_not_inside() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client()).await, session(&fake.client_for("b")).await);
    let waits = barrier(&b, "round", 2);
    let waits = tokio::spawn(async move { waits.enter().await });
    fake.until(|fake| fake.watchers() == 2).await;
    sleep(S(1)).await;
    let own = fake.snapshot().keys[0].key.clone();
    let late = Hold::new();
    let of_own = {
        let own = own.clone();
        move |told: &WatchResponse| {
            told.events.iter().any(|event| event.kv.as_ref().is_some_and(|kv| kv.key == own))
        }
    };
    fake.fault(On::response(Rpc::Watch).client("b").matching(of_own), Do::hold(&late).alone());
    fake.client().txn(Txn::new().success(Op::delete(own))).await.unwrap();
    let two = all_inside(&[barrier(&a, "round", 2), barrier(&a, "round", 2)]).await;
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
    drop(two);
}

/// A thousand enter and leave: each for two RPCs, one of them for three on either way.
#[test]
fn a_thousand_enter_and_leave() {
    crate::support::backend::on_fake(module_path!(), async |backend| {
        const ALL: u32 = 1000;
        let counter = RpcCounter::new();
        let session = session(&backend.client_with(counter.clone())).await;
        counter.reset();
        let barriers: Vec<_> = (0..ALL).map(|_| barrier(&session, "round", ALL)).collect();
        let inside = all_inside(&barriers).await;
        // The last reads who they all are: a key of another shape is none of them.
        assert_eq!((counter.unary_total(), counter.streams()), (2 * 1000 + 2, 1), "{counter}");
        counter.reset();
        for left in inside.into_iter().map(leave).collect::<Vec<_>>() {
            left.await.unwrap().unwrap();
        }
        assert!((2 * 1000..=2 * 1000 + 1).contains(&counter.unary_total()), "{counter}");
        assert!(backend.fake().unwrap().snapshot().keys.is_empty());
    });
}

/// The reply to the leaving of the last one was lost, and it was its own: the ready key would have gone along. Where that
/// is there, another client had deleted its key, and the others were let out before.
#[tokio::test(start_paused = true)]
async fn a_key_that_another_client_deleted_is_told_of_by_the_ready_key() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let inside = barrier(&session, "round", 1).enter().await.unwrap();
    let deletes = |txn: &TxnRequest| {
        let is_delete = |op: &RequestOp| matches!(op.request, Some(Request::RequestDeleteRange(_)));
        txn.success.iter().any(is_delete)
    };
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::vanish());
    let own = inside.key().clone();
    let left = leave(inside);
    fake.until(|_| lost.hits() == 1).await;
    fake.client().txn(Txn::new().success(Op::delete(own))).await.unwrap();
    assert_eq!(left.await.unwrap().unwrap_err().lost_reason(), Some(LostReason::KeyDeleted));
    assert!(fake.snapshot().keys.is_empty());
}

/// More than are compared: what is read of them is one key, which may be of another shape.
#[tokio::test(start_paused = true)]
async fn among_many_keys_of_other_shapes_do_not_take_part() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let client = fake.client();
    let put = |key: &str| client.txn(Txn::new().success(Op::put(format!("round/waiters/{key}"), "")));
    put("config").await.unwrap();
    let mut barriers: Vec<_> = (0..121).map(|_| barrier(&session, "round", 121)).collect();
    for round in 0..2 {
        let last = barriers.pop().unwrap();
        let entering: Vec<_> = barriers
            .iter()
            .map(|barrier| {
                let barrier = barrier.clone();
                tokio::spawn(async move { barrier.enter().await })
            })
            .collect();
        sleep(S(5)).await;
        put(&format!("owner{round}")).await.unwrap();
        assert!(!entering.iter().any(JoinHandle::is_finished), "let in without the last");
        let mut inside = vec![timeout(S(5), last.enter()).await.expect("in time").unwrap()];
        for entering in entering {
            inside.push(timeout(S(5), entering).await.expect("in time").unwrap().unwrap());
        }
        for left in inside.into_iter().map(leave).collect::<Vec<_>>() {
            timeout(S(30), left).await.expect("in time").unwrap().unwrap();
        }
        barriers.push(last);
    }
}
