//! Takes that got no answer, and how they are settled: on the fake and its paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request, response_op::Response};
use etcd_concurrency::{ErrorKind, LostReason, Outcome, Queue, Session};
use tokio::time::{Instant, sleep, timeout};

use super::faults::{S, count, puts, session, until, until_clean};
use super::{queue, text};
use crate::support::lies;
use crate::support::requests::is_held;

/// Takes a dead letter away.
fn takes_letter(txn: &TxnRequest) -> bool {
    txn.success.iter().any(|op| match &op.request {
        Some(Request::RequestDeleteRange(delete)) => delete.key.starts_with(b"q/undelivered/"),
        _ => false,
    })
}

fn at_most(queue: Queue, deliveries: u32) -> Queue {
    queue.max_deliveries(deliveries).unwrap()
}

/// A take stood in the socket of a member that was stopped. It was applied when the client had settled it, and looked once
/// more, and forgotten it: no consumer had the item, and none got it while the session lived.
#[tokio::test(start_paused = true)]
async fn a_take_is_not_applied_after_it_was_settled() {
    for late in [S(14), S(40), S(3600)] {
        for dequeues in [true, false] {
            let fake = FakeEtcd::start();
            let session = session(&fake.client()).await;
            let queue = queue(&session, "q");
            queue.enqueue("item").await.unwrap();
            let straggler = fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")).once(), Do::delay(late));
            let cut = fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")), Do::vanish());
            let begun = Instant::now();
            match dequeues {
                true => drop(queue.dequeue().await.unwrap_err()),
                false => drop(queue.take().await.unwrap_err()),
            }
            cut.remove();
            assert_eq!(straggler.hits(), 1);
            tokio::time::sleep_until(begun + late + S(1)).await;
            assert_eq!((count(&fake, "claims"), count(&fake, "items")), (0, 1), "{}", fake.snapshot());
            let job = queue.take().await.unwrap();
            assert_eq!((text(job.value()), job.deliveries()), ("item".into(), 1));
            job.ack().await.unwrap();
            until_clean(&fake).await;
        }
    }
}

/// The reply of a take was lost, and the session closed: the item went with the lease, though no caller had it.
#[tokio::test(start_paused = true)]
async fn an_item_whose_take_got_no_answer_outlives_its_session() {
    for lost in [LoseReply::Hang, LoseReply::Error] {
        for dropped in [true, false] {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let other = queue(&b, "q");
            other.enqueue("first").await.unwrap();
            other.enqueue("second").await.unwrap();
            let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
            fake.fault(on, Do::lose_reply_by(lost.clone()));
            let taking = tokio::spawn({
                let queue = queue(&a, "q");
                async move { queue.dequeue().await }
            });
            until(&fake, |fake| count(fake, "claims") == 1).await;
            if dropped {
                taking.abort();
            }
            let begun = Instant::now();
            a.close().await.unwrap();
            assert!(begun.elapsed() < S(2), "it waits for no answer");
            if !dropped {
                let error = taking.await.unwrap().unwrap_err();
                let unknown = (Some(LostReason::Closed), Outcome::Unknown);
                assert_eq!((error.lost_reason(), error.outcome()), unknown);
            }
            assert_eq!((count(&fake, "claims"), fake.leases()), (0, 1), "{}", fake.snapshot());
            assert_eq!(text(other.dequeue().await.unwrap()), "first");
            assert_eq!(text(other.dequeue().await.unwrap()), "second");
            until_clean(&fake).await;
        }
    }
}

/// The same with a session that is let go without a word: its last handle is dropped.
#[tokio::test(start_paused = true)]
async fn an_item_whose_take_got_no_answer_outlives_a_dropped_session() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let other = queue(&b, "q");
    other.enqueue("item").await.unwrap();
    let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    fake.fault(on, Do::lose_reply_by(LoseReply::Hang));
    let taking = tokio::spawn(async move { queue(&a, "q").dequeue().await });
    until(&fake, |fake| count(fake, "claims") == 1).await;
    taking.abort();
    until(&fake, |fake| fake.leases() == 1).await;
    assert_eq!(text(other.try_dequeue().await.unwrap().expect("it is there")), "item");
}

/// A take was applied, and its reply lost. The lease was revoked by another client before the take was sent again, and took
/// the item along, which that attempt found gone: as if another consumer had been faster. Found by the simulation.
#[tokio::test(start_paused = true)]
async fn an_item_that_is_gone_at_the_second_attempt_comes_back() {
    for lost in [LoseReply::Error, LoseReply::Hang] {
        for dequeues in [true, false] {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let other = queue(&b, "q");
            other.enqueue("item").await.unwrap();
            let (take, again) =
                (|nth| On::rpc(Rpc::Txn).client("a").matching(puts("claims")).nth(nth), Hold::new());
            let first = fake.fault(take(1), Do::lose_reply_by(lost.clone()));
            fake.fault(take(2), Do::hold(&again));
            let taking = tokio::spawn({
                let queue = queue(&a, "q");
                async move {
                    if dequeues { queue.dequeue().await.map(drop) } else { queue.take().await.map(drop) }
                }
            });
            is_held(&again).await;
            assert!(fake.revoke_lease(a.lease()));
            again.release();
            assert_eq!(first.hits(), 1);
            let took = timeout(S(60), other.dequeue()).await;
            let took = took.unwrap_or_else(|_| panic!("it is not back: {}", fake.history()));
            assert_eq!(text(took.unwrap()), "item");
            let error = timeout(S(60), taking).await.unwrap().unwrap().unwrap_err();
            // What the first attempt bound to the lease is being saved, and may yet be lost.
            let told = if dequeues { Outcome::Unknown } else { Outcome::NotApplied };
            assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::Revoked), told));
            until_clean(&fake).await;
        }
    }
}

/// With two deliveries at most, an item was buried that no worker had ever seen: a take without an answer counted twice.
#[tokio::test(start_paused = true)]
async fn a_take_without_an_answer_is_no_delivery() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (at_most(queue(&a, "q"), 2), at_most(queue(&b, "q"), 2));
    other.enqueue("item").await.unwrap();
    for how in [Do::lose_reply(), Do::vanish(), Do::lose_reply_by(LoseReply::Hang), Do::cut()] {
        for dequeues in [false, true] {
            let fault = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), how.clone());
            match dequeues {
                true => drop(taker.dequeue().await.unwrap_err()),
                false => drop(taker.take().await.unwrap_err()),
            }
            fault.remove();
            sleep(S(5)).await;
            assert_eq!((count(&fake, "claims"), other.len().await.unwrap()), (0, 1));
        }
    }
    for deliveries in [1, 2] {
        let job = other.take().await.unwrap();
        assert_eq!(job.deliveries(), deliveries);
        job.nack().await.unwrap();
    }
    assert_eq!(other.dead_letters().await.unwrap().len(), 1);
    until_clean(&fake).await;
}

/// What is counted of an item goes where the item goes: it counted for the next one in its place, which was then delivered
/// more often than it should.
#[tokio::test(start_paused = true)]
async fn what_is_counted_of_an_item_goes_with_it() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let slow = fake.fault(On::rpc(Rpc::Txn).client("b").matching(puts("claims")), Do::delay_reply(S(1)));
    timeout(Duration::from_millis(500), other.take()).await.expect_err("the answer takes longer");
    slow.remove();
    until(&fake, |fake| count(fake, "returns") == 1 && count(fake, "claims") == 0).await;
    // The item's end never arrives, and then the session is lost.
    let on = On::rpc(Rpc::Txn).client("a").matching(crate::support::requests::deletes);
    let silent = fake.fault(on, Do::vanish());
    assert_eq!(text(taker.dequeue().await.unwrap()), "item");
    fake.expire_lease(a.lease());
    until_clean(&fake).await;
    silent.remove();
}

/// A moved letter's answer was lost, and another took the letter away: the caller was told that it was moved, and the item
/// was in no queue.
#[tokio::test(start_paused = true)]
async fn a_letter_that_another_takes_away_is_not_told_as_moved() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (mover, other) = (at_most(queue(&a, "q"), 1), at_most(queue(&b, "q"), 1));
    for known in [false, true] {
        for requeues in [true, false] {
            if known {
                // One that has written its slip before can tell.
                mover.enqueue("known").await.unwrap();
                other.dequeue().await.unwrap();
            }
            other.enqueue("item").await.unwrap();
            other.take().await.unwrap().nack().await.unwrap();
            let letter = other.dead_letters().await.unwrap().remove(0);
            let on = On::rpc(Rpc::Txn).client("a").matching(takes_letter).once();
            let lost = fake.fault(on, Do::vanish());
            let moving = tokio::spawn({
                let (mover, letter) = (mover.clone(), letter.clone());
                async move { if requeues { mover.requeue(&letter).await } else { mover.discard(&letter).await } }
            });
            sleep(S(1)).await;
            assert_eq!(lost.hits(), 1);
            assert!(other.discard(&letter).await.unwrap());
            match moving.await.unwrap() {
                Ok(moved) => assert!(known && !moved),
                Err(error) => assert!(!known && error.outcome() == Outcome::Unknown, "{error}"),
            }
            assert_eq!(other.len().await.unwrap(), 0);
        }
    }
}

/// An answer that is lost after the letter was moved or deleted is found out.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_requeue_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = at_most(queue(&session, "q"), 1);
    for lost in [LoseReply::Error, LoseReply::Hang] {
        queue.enqueue("item").await.unwrap();
        queue.take().await.unwrap().nack().await.unwrap();
        let letter = queue.dead_letters().await.unwrap().remove(0);
        let on = On::rpc(Rpc::Txn).matching(takes_letter).once();
        fake.fault(on, Do::lose_reply_by(lost.clone()));
        assert!(queue.requeue(&letter).await.unwrap());
        assert!(!queue.requeue(&letter).await.unwrap());
        assert_eq!(queue.len().await.unwrap(), 1);
        let job = queue.take().await.unwrap();
        assert_eq!((text(job.value()), job.deliveries()), ("item".into(), 1));
        job.nack().await.unwrap();
        let letter = queue.dead_letters().await.unwrap().remove(0);
        let on = On::rpc(Rpc::Txn).matching(takes_letter).once();
        fake.fault(on, Do::lose_reply_by(lost));
        assert!(queue.discard(&letter).await.unwrap());
        assert!(!queue.discard(&letter).await.unwrap());
    }
}

/// A server said for ever that there was more to look at, and the client asked it without a pause.
#[tokio::test(start_paused = true)]
async fn a_look_at_a_lying_server_ends() {
    let fake = FakeEtcd::start();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let client = lies::client(&fake, move |txn, answer| {
        if txn.success.len() == 3 && txn.compare.is_empty() {
            count.fetch_add(1, Ordering::Relaxed);
            if let Some(Response::ResponseRange(range)) = &mut answer.responses[2].response {
                range.more = true;
            }
        }
    });
    let queue = queue(&session(&client).await, "q");
    let error = timeout(S(60), queue.try_dequeue()).await.expect("it ends").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
    let error = timeout(S(60), queue.peek()).await.expect("it ends").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
    assert!(asked.load(Ordering::Relaxed) <= 32);
}

/// A job was dropped, and its claim could not be deleted before the session was lost at its deadline, of whose lease the server had
/// a while left. The client adopted the lease again, and the claim stayed for as long as that lived: no consumer got the item.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_dropped_goes_back_after_an_adoption() {
    let fake = FakeEtcd::start();
    let client = fake.client_for("a");
    let lost = Session::builder(&client).ttl(S(60)).margin(S(30)).open().await.unwrap();
    let taker = queue(&lost, "q");
    taker.enqueue("item").await.unwrap();
    let job = taker.take().await.unwrap();
    fake.partition("a");
    drop(job);
    assert_eq!(lost.lost().await, LostReason::Expired);
    sleep(S(1)).await;
    fake.heal("a");
    let adopted = Session::builder(&client).lease(lost.lease()).open().await.unwrap();
    until(&fake, |fake| count(fake, "claims") == 0).await;
    assert!(adopted.is_valid() && count(&fake, "items") == 1, "{}", fake.snapshot());
    assert_eq!(queue(&adopted, "q").take().await.unwrap().deliveries(), 2);
}

/// The same where the session was closed, and the server refused the unclaim and the revoke for a moment.
#[tokio::test(start_paused = true)]
async fn a_dropped_job_goes_back_where_its_close_was_refused() {
    let fake = FakeEtcd::start();
    let client = fake.client_for("a");
    let closed = session(&client).await;
    let taker = queue(&closed, "q");
    taker.enqueue("item").await.unwrap();
    let job = taker.take().await.unwrap();
    let denied = tonic::Status::permission_denied("etcdserver: permission denied");
    let refuses = fake.fault(On::rpc(Rpc::LeaseRevoke), Do::fail(denied));
    let down = fake.fault(On::rpc(Rpc::Txn).client("a"), Do::cut());
    drop(job);
    closed.close().await.unwrap_err();
    down.remove();
    refuses.remove();
    let adopted = Session::builder(&client).lease(closed.lease()).open().await.unwrap();
    let free = fake.until(|fake| count(fake, "claims") == 0);
    timeout(S(30), free).await.unwrap_or_else(|_| panic!("{}", fake.snapshot()));
    assert!(adopted.is_valid() && count(&fake, "items") == 1, "{}", fake.snapshot());
    assert_eq!(queue(&adopted, "q").take().await.unwrap().deliveries(), 2);
}

/// The answer to a take could not be read, and the take had been applied: the item stayed in no consumer's hand for as long as the
/// session lived, went with it, and each `close` failed.
#[tokio::test(start_paused = true)]
async fn a_take_whose_answer_cannot_be_read_is_settled() {
    for dequeues in [true, false] {
        let fake = FakeEtcd::start();
        let client = lies::client(&fake, |txn, answer| {
            if puts("claims")(txn) {
                answer.responses.clear();
            }
        });
        let (a, b) = (session(&client).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let taken = match dequeues {
            true => taker.try_dequeue().await.map(drop),
            false => taker.try_take().await.map(drop),
        };
        let error = taken.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        until(&fake, |fake| count(fake, "claims") == 0).await;
        a.close().await.expect("it is settled");
        assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
        until_clean(&fake).await;
    }
}
