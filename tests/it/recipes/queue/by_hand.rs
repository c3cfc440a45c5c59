//! Keys of a queue that a third party deletes, and what its users are told and do then: on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, LoseReply, On, Rpc};
use etcd_concurrency::{Job, LostReason, Op, Outcome, Queue, Session, Txn};
use tokio::time::{sleep, timeout};

use super::faults::{S, count, puts, session, until, until_clean};
use super::{queue, text};
use crate::support::requests::deletes;

async fn delete(fake: &FakeEtcd, prefixes: &[&str]) {
    let deletes = prefixes.iter().map(|prefix| Op::delete_prefix(prefix.to_string()));
    fake.client().txn(deletes.fold(Txn::new(), Txn::success)).await.unwrap();
}

/// A dequeue was dropped, and its give-back is on the way: the session that took the item, and another's queue.
pub(super) async fn on_its_way_back() -> (FakeEtcd, Session, Queue) {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::delay_reply(S(1)));
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::delay(S(3)));
    timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
    sleep(S(1)).await;
    (fake, a, other)
}

/// A dequeue was dropped, and its give-back was on the way when an operator deleted the claim: the next consumer had the item,
/// and was done with it, when it was put again, and came a second time. And an item that the operator deleted came back.
#[tokio::test(start_paused = true)]
async fn an_item_is_not_put_again_after_its_claim_was_deleted() {
    for alive in [true, false] {
        for with_item in [false, true] {
            let (fake, a, other) = on_its_way_back().await;
            match with_item {
                true => delete(&fake, &["q/claims/", "q/items/"]).await,
                false => {
                    delete(&fake, &["q/claims/"]).await;
                    assert_eq!(text(other.dequeue().await.unwrap()), "item");
                }
            }
            until_clean(&fake).await;
            if !alive && !with_item {
                fake.revoke_lease(a.lease());
            }
            sleep(S(60)).await;
            assert_eq!(count(&fake, "items"), 0, "{alive} {with_item}: {}", fake.snapshot());
        }
    }
}

/// A give-back was applied and its reply lost: the next consumer was done with the item when the give-back was repeated.
#[tokio::test(start_paused = true)]
async fn an_item_that_was_given_back_is_not_put_again() {
    for closed in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::delay_reply(S(1)));
        let lost = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).times(3), Do::lose_reply());
        timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
        assert_eq!(text(other.dequeue().await.unwrap()), "item");
        if closed {
            a.close().await.unwrap();
        }
        until(&fake, |_| lost.hits() == 3).await;
        sleep(S(60)).await;
        assert_eq!(count(&fake, "items"), 0, "{}", fake.snapshot());
    }
}

/// An operator deleted the claim alone, and the session ended before the item was given back: it was bound to the lease still.
#[tokio::test(start_paused = true)]
async fn an_item_whose_claim_was_deleted_outlives_the_session() {
    let (fake, a, other) = on_its_way_back().await;
    delete(&fake, &["q/claims/"]).await;
    fake.revoke_lease(a.lease());
    assert_eq!(count(&fake, "items"), 0);
    until(&fake, |fake| count(fake, "items") == 1).await;
    assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
    until_clean(&fake).await;
}

/// A job that is to be ended in this way.
async fn in_hand(fake: &FakeEtcd, session: &Session, how: &str) -> Job {
    fake.client().txn(Txn::new().success(Op::put("old", ""))).await.unwrap();
    let taker = queue(session, "q").max_deliveries(if how == "last nack" { 1 } else { 9 }).unwrap();
    taker.enqueue("item").await.unwrap();
    taker.take().await.unwrap()
}

/// The reply to its end is lost.
fn loses_the_reply(fake: &FakeEtcd) -> Fault {
    let once = On::rpc(Rpc::Txn).client("a").matching(deletes).once();
    fake.fault(once, Do::lose_reply_by(LoseReply::Hang))
}

/// Ends a job in this way.
async fn end(how: &str, job: Job) -> etcd_concurrency::Result<()> {
    match how {
        "ack" => job.ack().await,
        "ack with a put" => job.ack_with([Op::get("x"), Op::put("data", "done")]).await,
        "ack with a delete" => job.ack_with([Op::delete("old")]).await,
        "ack with a txn" => job.ack_with([Op::txn(Txn::new().success(Op::put("data", "done")))]).await,
        _ => job.nack().await,
    }
}

/// The first attempt of an acknowledgement never arrived; an operator deleted the claim, another consumer had the item, and
/// the second attempt found both gone: the worker was told that the item was its own to the end. It said so also where
/// the item went to the dead letters instead.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_what_another_had_is_no_success() {
    for how in ["ack", "ack with a put", "ack with a delete", "ack with a txn", "last nack"] {
        for then in ["acknowledged", "in hand", "buried"] {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            fake.client().txn(Txn::new().success(Op::put("old", ""))).await.unwrap();
            let taker = queue(&a, "q").max_deliveries(if how == "last nack" { 1 } else { 9 }).unwrap();
            let other: Queue = match then {
                "buried" => queue(&b, "q").max_deliveries(1).unwrap(),
                _ => queue(&b, "q"),
            };
            other.enqueue("item").await.unwrap();
            let job = taker.take().await.unwrap();
            let lost = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::vanish());
            let ending = tokio::spawn(end(how, job));
            until(&fake, |_| lost.hits() == 1).await;
            delete(&fake, &["q/claims/"]).await;
            let taken = other.try_take().await.unwrap();
            let mut kept = None;
            match then {
                "acknowledged" => taken.unwrap().ack().await.unwrap(),
                "in hand" => kept = taken,
                _ => assert!(taken.is_none()),
            }
            let ended = ending.await.unwrap();
            if (how, then) == ("last nack", "buried") {
                ended.expect("it is where it was to go");
                continue;
            }
            let error = ended.unwrap_err();
            let told = (Some(LostReason::KeyDeleted), Outcome::NotApplied);
            assert_eq!((error.lost_reason(), error.outcome()), told, "{how}, {then}");
            assert!(fake.snapshot().get("data").is_none() && fake.snapshot().get("old").is_some());
            assert_eq!(other.dead_letters().await.unwrap().len(), usize::from(then == "buried"));
            drop(kept);
        }
    }
}

/// It was applied, and the reply lost: that is told, whatever it was made with. An operation that leaves no trace of its own
/// cannot be found again.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_whose_reply_was_lost_is_found() {
    for how in ["ack", "ack with a put", "ack with a delete", "ack with a txn", "nack", "last nack"] {
        for revoked in [false, true] {
            let fake = FakeEtcd::start();
            let a = session(&fake.client_for("a")).await;
            let job = in_hand(&fake, &a, how).await;
            let lost = loses_the_reply(&fake);
            let ending = tokio::spawn(end(how, job));
            until(&fake, |_| lost.hits() == 1).await;
            if revoked {
                // The session does not know before its next keep-alive.
                fake.revoke_lease(a.lease());
            }
            let ended = ending.await.unwrap();
            match how {
                "ack with a txn" => assert_eq!(ended.unwrap_err().outcome(), Outcome::Unknown),
                // The lease's end has the same effect.
                "nack" if revoked => assert_eq!(ended.unwrap_err().outcome(), Outcome::Unknown),
                _ => ended.unwrap_or_else(|error| panic!("{how}, {revoked}: {error}")),
            }
        }
    }
}

/// The lease was revoked by a third party, or the sender's slip deleted, and the session did not know yet: the sender was
/// told that the server does not speak etcd's protocol.
#[tokio::test(start_paused = true)]
async fn a_senders_slip_that_is_gone_is_told_as_what_it_is() {
    for revoked in [true, false] {
        for what in ["enqueue", "requeue", "discard"] {
            let fake = FakeEtcd::start();
            let session = session(&fake.client()).await;
            let queue = queue(&session, "q").max_deliveries(1).unwrap();
            queue.enqueue("item").await.unwrap();
            queue.take().await.unwrap().nack().await.unwrap();
            let letter = queue.dead_letters().await.unwrap().remove(0);
            let silent = fake.fault(On::response(Rpc::LeaseKeepAlive), Do::vanish());
            match revoked {
                true => assert!(fake.revoke_lease(session.lease())),
                false => delete(&fake, &["q/senders/"]).await,
            }
            let sent = match what {
                "enqueue" => queue.enqueue("other").await,
                "requeue" => queue.requeue(&letter).await.map(|moved| assert!(moved)),
                _ => queue.discard(&letter).await.map(|gone| assert!(gone)),
            };
            match revoked {
                true => {
                    let error = sent.unwrap_err();
                    let told = (Some(LostReason::Revoked), Outcome::NotApplied);
                    assert_eq!((error.lost_reason(), error.outcome()), told, "{what}: {error}");
                    assert_eq!(count(&fake, "items"), 0);
                }
                false => {
                    sent.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(count(&fake, "items"), usize::from(what != "discard"));
                    assert_eq!(count(&fake, "undelivered"), usize::from(what == "enqueue"));
                }
            }
            silent.remove();
        }
    }
}

/// An operator deleted the item of a job. The acknowledgement was applied all the same, with what was to be done at once, and
/// its reply was lost: the worker was told that nothing was applied, since the item had gone before.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_an_item_that_was_deleted_before_is_found() {
    for how in ["ack", "ack with a put", "ack with a delete", "ack with a txn", "last nack"] {
        let fake = FakeEtcd::start();
        let a = session(&fake.client_for("a")).await;
        let job = in_hand(&fake, &a, how).await;
        delete(&fake, &["q/items/"]).await;
        loses_the_reply(&fake);
        match end(how, job).await {
            Err(error) if how == "ack with a txn" => assert_eq!(error.outcome(), Outcome::Unknown),
            ended => ended.unwrap_or_else(|error| panic!("{how}: {error}, {:?}", error.outcome())),
        }
    }
}

/// An operator deleted the item of a job, and later the claim; the acknowledgement in between never arrived. The worker was
/// told that it was applied, where what it was to delete had been missing when the item was deleted.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_deletes_what_was_missing_is_no_success_by_that() {
    for (put_before, put_later) in [(false, false), (false, true), (true, true)] {
        let fake = FakeEtcd::start();
        let a = session(&fake.client_for("a")).await;
        let put = || async { fake.client().txn(Txn::new().success(Op::put("old", ""))).await.unwrap() };
        let taker = queue(&a, "q");
        taker.enqueue("item").await.unwrap();
        let job = taker.take().await.unwrap();
        if put_before {
            put().await;
        }
        delete(&fake, &["q/items/"]).await;
        let vanishes = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::vanish());
        let ending = tokio::spawn(end("ack with a delete", job));
        until(&fake, |_| vanishes.hits() == 1).await;
        if put_later {
            put().await;
        }
        delete(&fake, &["q/claims/"]).await;
        let error = ending.await.unwrap().expect_err("it was not applied");
        let told = if put_later { Outcome::NotApplied } else { Outcome::Unknown };
        assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::KeyDeleted), told));
    }
}

/// A take was applied and not answered, and an operator deleted its claim before that was found out: the item stayed bound to the
/// taker's lease, waited in line all the same, and went when the session ended, though no consumer had had it.
#[tokio::test(start_paused = true)]
async fn an_item_of_an_unanswered_take_whose_claim_was_deleted_outlives_the_session() {
    for second in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
        let on = if second { on.once() } else { on };
        let unheard = fake.fault(on, Do::lose_reply_by(LoseReply::Hang));
        let taking = tokio::spawn(async move { taker.dequeue().await });
        until(&fake, |fake| count(fake, "claims") == 1).await;
        delete(&fake, &["q/claims/"]).await;
        if second {
            // The second attempt is answered when its caller has gone.
            taking.abort();
        } else {
            assert_eq!(taking.await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
        }
        sleep(S(30)).await;
        unheard.remove();
        a.close().await.unwrap();
        assert_eq!(count(&fake, "items"), 1, "{second}: {}", fake.snapshot());
        assert_eq!(other.try_dequeue().await.unwrap().map(text).as_deref(), Some("item"));
        until_clean(&fake).await;
    }
}

/// A dequeue had given the item to its caller, and an operator deleted the claim before the delete of the item, in the background, had
/// arrived. The delete was refused for the claim's sake, and that was taken for done: the item stood in the queue, free, and the next
/// consumer was given it, too.
#[tokio::test(start_paused = true)]
async fn an_item_that_was_dequeued_goes_although_its_claim_was_deleted_by_hand() {
    for written in [false, true] {
        let fake = FakeEtcd::start();
        let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
        let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
        other.enqueue("item").await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::delay(S(3)));
        assert_eq!(text(taker.dequeue().await.unwrap()), "item");
        match written {
            // The claim stands: it is the taker's to delete all the same.
            true => {
                let key = fake
                    .snapshot()
                    .keys
                    .iter()
                    .find(|kv| kv.key.starts_with(b"q/items/"))
                    .unwrap()
                    .key
                    .clone();
                fake.client().txn(Txn::new().success(Op::put(key, "by hand"))).await.unwrap();
            }
            false => delete(&fake, &["q/claims/"]).await,
        }
        until_clean(&fake).await;
        assert_eq!(other.try_dequeue().await.unwrap(), None);
        assert!(a.is_valid());
    }
}

/// Where another consumer has taken the item in between, the late delete takes nothing away from that one.
#[tokio::test(start_paused = true)]
async fn the_delete_of_an_item_that_was_dequeued_takes_none_from_the_next() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::delay(S(3)));
    taker.dequeue().await.unwrap();
    delete(&fake, &["q/claims/"]).await;
    let job = other.take().await.unwrap();
    sleep(S(10)).await;
    assert_eq!((count(&fake, "items"), count(&fake, "claims")), (1, 1), "{}", fake.snapshot());
    job.ack().await.expect("it is in hand");
    until_clean(&fake).await;
}
