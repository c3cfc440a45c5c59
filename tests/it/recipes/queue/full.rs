//! Items that a put alone can save, while the server's database is full: on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{ErrorKind, LostReason, Op, Outcome, Queue};
pub(super) use pb::alarm_request::AlarmAction;
use tokio::time::{sleep, timeout};

use super::faults::{S, count, puts, session, until, until_clean};
use super::{queue, text};

pub(super) async fn alarm(fake: &FakeEtcd, action: AlarmAction) {
    let (action, alarm) = (action.into(), pb::AlarmType::Nospace.into());
    let request = pb::AlarmRequest { action, member_id: 1, alarm };
    fake.client().maintenance_client().alarm(request).await.unwrap();
}

/// The items of the queue, and nothing else.
async fn holds(fake: &FakeEtcd, queue: &Queue, item: &str) {
    until(fake, |fake| count(fake, "items") == 1 && count(fake, "claims") == 0 && fake.leases() == 1).await;
    assert_eq!(queue.try_dequeue().await.unwrap().map(text).as_deref(), Some(item));
    until_clean(fake).await;
    sleep(S(1200)).await;
    assert_eq!(count(fake, "items"), 0, "it comes once: {}", fake.snapshot());
}

/// A dequeue's future was dropped when the take had been applied. The database was full, so that the item could not be put
/// back, and `close` revoked the lease, to which the item was bound: it was gone, though no caller had had it. Operators
/// make space by a compaction.
#[tokio::test(start_paused = true)]
async fn an_item_of_a_dropped_dequeue_outlives_its_session_and_a_full_database() {
    for answered in [Do::delay_reply(S(1)), Do::lose_reply_by(LoseReply::Hang), Do::lose_reply()] {
        for compacted in [false, true] {
            for closed in [true, false] {
                let fake = FakeEtcd::start();
                let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
                let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
                other.enqueue("item").await.unwrap();
                let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
                let fault = fake.fault(on, answered.clone());
                let taking = tokio::spawn(async move { taker.dequeue().await });
                until(&fake, |fake| count(fake, "claims") == 1).await;
                alarm(&fake, AlarmAction::Activate).await;
                taking.abort();
                sleep(S(3)).await;
                fault.remove();
                if closed {
                    let error = a.close().await.expect_err("an item is unsaved");
                    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::NoSpace, Outcome::Unknown));
                } else {
                    fake.expire_lease(a.lease());
                }
                until(&fake, |fake| fake.leases() == 1).await;
                assert_eq!(count(&fake, "items"), 0, "it went with the lease");
                sleep(S(5)).await;
                if compacted {
                    fake.compact(fake.revision()).unwrap();
                }
                // Longer than what may pass is waited for.
                sleep(S(3600)).await;
                alarm(&fake, AlarmAction::Deactivate).await;
                // By then it is tried once in a minute or two.
                sleep(S(150)).await;
                holds(&fake, &other, "item").await;
                a.close().await.expect("all is saved");
            }
        }
    }
}

/// The same with the session still open: the item goes back to its place once there is space.
#[tokio::test(start_paused = true)]
async fn an_item_goes_back_to_its_place_once_there_is_space() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    queue.enqueue("first").await.unwrap();
    queue.enqueue("second").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")).once(), Do::delay_reply(S(1)));
    timeout(Duration::from_millis(500), queue.dequeue()).await.expect_err("the answer takes longer");
    alarm(&fake, AlarmAction::Activate).await;
    sleep(S(3600)).await;
    alarm(&fake, AlarmAction::Deactivate).await;
    sleep(S(5)).await;
    assert_eq!(count(&fake, "claims"), 0);
    assert_eq!(text(queue.dequeue().await.unwrap()), "first");
    assert_eq!(text(queue.dequeue().await.unwrap()), "second");
    session.close().await.unwrap();
}

/// What is lent is never lost, whatever is refused meanwhile: the letter of a last delivery, and an acknowledgement that puts.
#[tokio::test(start_paused = true)]
async fn what_is_lent_outlives_a_full_database() {
    for closed in [false, true] {
        for what in ["dropped", "nack", "last nack", "ack with a put", "ack"] {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let most = if what == "last nack" { 1 } else { 9 };
            let [taker, other] = [&a, &b].map(|session| queue(session, "q").max_deliveries(most).unwrap());
            other.enqueue("item").await.unwrap();
            let job = taker.take().await.unwrap();
            alarm(&fake, AlarmAction::Activate).await;
            match what {
                "dropped" => drop(job),
                "nack" => job.nack().await.expect("it only deletes"),
                "ack" => job.ack().await.expect("it only deletes"),
                "last nack" => assert_eq!(*job.nack().await.unwrap_err().kind(), ErrorKind::NoSpace),
                _ => assert_eq!(
                    *job.ack_with([Op::put("data", "")]).await.unwrap_err().kind(),
                    ErrorKind::NoSpace
                ),
            }
            if closed {
                a.close().await.expect("no item is lost with it");
            }
            sleep(S(60)).await;
            alarm(&fake, AlarmAction::Deactivate).await;
            sleep(S(60)).await;
            assert_eq!(count(&fake, "claims"), 0, "{what}: {}", fake.snapshot());
            let letters = || other.dead_letters();
            match (what, closed) {
                ("last nack", _) => {
                    assert!(other.try_take().await.unwrap().is_none());
                    assert_eq!(letters().await.unwrap().len(), 1);
                }
                ("ack", _) | ("ack with a put", false) => assert!(other.try_take().await.unwrap().is_none()),
                _ => assert_eq!(text(other.try_take().await.unwrap().expect(what).value()), "item"),
            }
        }
    }
}

/// The reply of a take was lost, and the server away until the lease had ended: the item went with it.
#[tokio::test(start_paused = true)]
async fn an_item_of_an_unanswered_take_comes_back_after_the_lease_has_ended() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let on = On::rpc(Rpc::Txn).client("a").matching(puts("claims"));
    let fault = fake.fault(on, Do::lose_reply_by(LoseReply::Hang));
    let taking = tokio::spawn(async move { taker.dequeue().await });
    until(&fake, |fake| count(fake, "claims") == 1).await;
    fake.partition("a");
    let error = taking.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(a.lost().await, LostReason::Expired);
    until(&fake, |fake| fake.leases() == 1).await;
    assert_eq!((count(&fake, "items"), count(&fake, "claims")), (0, 0));
    fault.remove();
    fake.heal("a");
    holds(&fake, &other, "item").await;
}

/// Jobs whose last delivery this was were dropped while the database was full: a letter of each is to be put, and each was sent again
/// about every second, for as long as it was full.
#[tokio::test(start_paused = true)]
async fn dropped_jobs_do_not_flood_a_server_without_space() {
    const JOBS: usize = 20;
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q").max_deliveries(1).unwrap();
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        queue.enqueue("item").await.unwrap();
        jobs.push(queue.take().await.unwrap());
    }
    let full = tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
    let refused = fake.fault(On::rpc(Rpc::Txn).matching(puts("undelivered")), Do::fail(full));
    drop(jobs);
    sleep(S(3600)).await;
    let each = refused.hits() / JOBS as u64;
    assert!((10..120).contains(&each), "{each} in an hour");
    refused.remove();
    // By then each is tried once in a minute or two.
    sleep(S(150)).await;
    assert_eq!((count(&fake, "claims"), queue.dead_letters().await.unwrap().len()), (0, JOBS));
}
