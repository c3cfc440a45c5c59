//! Acknowledgements that get no answer, on the fake and its paused clock.

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::RangeRequest;
use etcd_concurrency::{ErrorKind, LostReason, Op, Outcome, Txn};
use tokio::time::{sleep, timeout};

use super::faults::{S, count, puts, session, until, until_clean};
use super::{queue, text};
use crate::support::requests::deletes;

#[tokio::test(start_paused = true)]
async fn the_reply_of_an_acknowledgement_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for (n, lost) in [LoseReply::Error, LoseReply::Hang].into_iter().enumerate() {
        queue.enqueue("item").await.unwrap();
        let job = queue.take().await.unwrap();
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::lose_reply_by(lost.clone()));
        let before = fake.revision();
        job.ack_with([Op::put("data", n.to_string())]).await.unwrap();
        assert_eq!((fault.hits(), fake.revision()), (1, before + 1));
        until_clean(&fake).await;

        queue.enqueue("item").await.unwrap();
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(deletes).once(), Do::lose_reply_by(lost));
        queue.take().await.unwrap().nack().await.unwrap();
        assert_eq!(fault.hits(), 1);
        let again = queue.take().await.unwrap();
        assert_eq!(again.deliveries(), 2);
        again.ack().await.unwrap();
        until_clean(&fake).await;
    }
}

/// The server is away for longer than anybody waits: the acknowledgement is made when it is back.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_fails_goes_on_in_the_background() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for lost in [Do::lose_reply(), Do::cut()] {
        queue.enqueue("item").await.unwrap();
        let job = queue.take().await.unwrap();
        let down = fake.fault(On::rpc(Rpc::Txn), lost);
        let error = job.ack().await.unwrap_err();
        assert!(error.lost_reason().is_none(), "{error}");
        down.remove();
        until_clean(&fake).await;
        assert!(session.is_valid());
    }
}

/// The acknowledgement is cut off before it is applied, the lease revoked behind the worker's back, and another
/// worker done with the item when the repeated one arrives: the first must not believe that it was its own. The item's
/// events tell that it was not.
#[tokio::test(start_paused = true)]
async fn anothers_acknowledgement_is_not_taken_for_ones_own() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (late, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("item").await.unwrap();
    let job = late.take().await.unwrap();
    let vanishes = fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::vanish());
    // The session's own keep-alives come every ten seconds: it is the acknowledgement that asks, after five.
    let acking = tokio::spawn(job.ack());
    until(&fake, |_| vanishes.hits() == 1).await;
    fake.revoke_lease(a.lease());
    other.take().await.unwrap().ack().await.unwrap();
    let error = acking.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
    assert_eq!(error.lost_reason(), Some(LostReason::Revoked));
}

/// The same when it was applied: then the session ends, and all that can be said is that nobody knows.
#[tokio::test(start_paused = true)]
async fn the_session_ends_while_an_acknowledgement_is_under_way() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    queue(&b, "q").enqueue("item").await.unwrap();
    let job = queue(&a, "q").take().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes), Do::lose_reply_by(LoseReply::Hang));
    let acking = tokio::spawn(job.ack());
    until(&fake, |fake| count(fake, "items") == 0).await;
    a.close().await.unwrap();
    let error = acking.await.unwrap().unwrap_err();
    assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::Closed), Outcome::Unknown));
    assert!(queue(&b, "q").try_take().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_reply_of_a_take_on_loan_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for lost in [LoseReply::Error, LoseReply::Hang] {
        queue.enqueue("item").await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")).once(), Do::lose_reply_by(lost));
        let job = queue.take().await.unwrap();
        assert_eq!((text(job.value()), job.deliveries()), ("item".into(), 1));
        let claim = fake.snapshot().get(job.key()).unwrap().clone();
        assert_eq!((claim.create_revision, claim.lease), (job.token(), session.lease()));
        job.ack().await.unwrap();
        until_clean(&fake).await;
    }
}

/// A partitioned worker: its item is delivered again once the server has ended its lease, and it knows before.
#[tokio::test(start_paused = true)]
async fn a_partitioned_worker_knows_before_another_has_its_item() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    queue(&a, "q").enqueue("item").await.unwrap();
    let job = queue(&a, "q").take().await.unwrap();
    let again = tokio::spawn({
        let queue = queue(&b, "q");
        async move { (queue.take().await, tokio::time::Instant::now()) }
    });
    until(&fake, |fake| count(fake, "waiting") == 1).await;
    fake.partition("a");
    assert_eq!(job.lost().await, LostReason::Expired);
    let lost = tokio::time::Instant::now();
    let error = job.ack().await.unwrap_err();
    assert_eq!((error.lost_reason(), lost.elapsed()), (Some(LostReason::Expired), S(0)));
    let (job, taken) = timeout(S(120), again).await.unwrap().unwrap();
    assert_eq!(job.unwrap().deliveries(), 2);
    assert!(taken > lost);
}

/// The server had too many requests for as long as an acknowledgement was waited for. It was told as not applied, and went on in
/// the background, where it was applied: a worker that had its word for it did the work again.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_goes_on_does_not_say_that_it_was_not_applied() {
    let busy = tonic::Status::resource_exhausted("etcdserver: too many requests");
    let denied = tonic::Status::permission_denied("etcdserver: permission denied");
    for how in ["ack", "ack with a put", "nack", "last nack"] {
        for (status, goes_on) in [(&busy, true), (&denied, how.ends_with("nack"))] {
            let fake = FakeEtcd::start();
            let session = session(&fake.client()).await;
            let most = if how == "last nack" { 1 } else { 9 };
            let queue = queue(&session, "q").max_deliveries(most).unwrap();
            queue.enqueue("item").await.unwrap();
            let job = queue.take().await.unwrap();
            let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), Do::fail(status.clone()));
            let error = match how {
                "ack" => job.ack().await,
                "ack with a put" => job.ack_with([Op::put("data", "done")]).await,
                _ => job.nack().await,
            }
            .unwrap_err();
            let told = if goes_on { Outcome::Unknown } else { Outcome::NotApplied };
            assert_eq!((error.outcome(), error.lost_reason()), (told, None), "{how}, {status}");
            refused.remove();
            sleep(S(30)).await;
            assert_eq!(count(&fake, "claims"), 0, "{how}: {}", fake.snapshot());
            // An acknowledgement that was refused gives the item back.
            let is_free = how == "nack" || !goes_on;
            assert_eq!(queue.try_take().await.unwrap().is_some(), is_free, "{how}");
            assert_eq!(fake.snapshot().get("data").is_some(), goes_on && how == "ack with a put");
        }
    }
}

/// A worker had a job for longer than the server keeps its history, and the reply to its acknowledgement was lost. What became of the
/// claim was asked for from the take on: that was compacted, and the worker could not be told.
#[tokio::test(start_paused = true)]
async fn an_ack_of_a_long_job_is_found_after_a_compaction() {
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let fake = FakeEtcd::start();
        let session = session(&fake.client_for("a")).await;
        let queue = queue(&session, "q");
        queue.enqueue("item").await.unwrap();
        let job = queue.take().await.unwrap();
        for _ in 0..5 {
            fake.client().txn(Txn::new().success(Op::put("other", ""))).await.unwrap();
        }
        fake.compact(fake.revision()).unwrap();
        assert_eq!(queue.len().await.unwrap(), 0);
        let on = On::rpc(Rpc::Txn).client("a").matching(deletes).once();
        let fault = fake.fault(on, Do::lose_reply_by(lost));
        job.ack().await.expect("it was applied");
        assert_eq!(fault.hits(), 1);
    }
}

/// An acknowledgement was to read, at once, what the server had compacted: it was not applied, and never would be. It was told as
/// unknown, and sent again in the background without end; the item stayed in hand until the session ended.
#[tokio::test(start_paused = true)]
async fn an_acknowledgement_with_a_read_of_the_compacted_past_gives_the_item_back() {
    for busy in [false, true] {
        let fake = FakeEtcd::start();
        let session = session(&fake.client()).await;
        let queue = queue(&session, "q");
        queue.enqueue("item").await.unwrap();
        let job = queue.take().await.unwrap();
        fake.compact(fake.revision()).unwrap();
        let past = RangeRequest { key: "data".into(), revision: 1, ..Default::default() };
        let too_many = tonic::Status::resource_exhausted("etcdserver: too many requests");
        let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), Do::fail(too_many));
        if !busy {
            refused.remove();
        }
        let error = job.ack_with([Op::from(past), Op::put("data", "done")]).await.unwrap_err();
        if busy {
            // It goes on in the background, where it meets the other refusal.
            assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
            refused.remove();
        } else {
            assert!(matches!(error.kind(), ErrorKind::Compacted { .. }), "{error}");
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
        until(&fake, |fake| count(fake, "claims") == 0).await;
        assert!(fake.snapshot().get("data").is_none());
        assert_eq!(queue.try_take().await.unwrap().expect("it is free").deliveries(), 2);
    }
}
