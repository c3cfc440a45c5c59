//! What goes wrong between a candidate and the server, on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{Client, Leadership, LostReason, Op, Outcome, Session, Txn};
use tokio::time::timeout;

use super::election;
use crate::support::requests::is_held;

const S: fn(u64) -> Duration = Duration::from_secs;

async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(S(60)).open().await.unwrap()
}

fn value(fake: &FakeEtcd) -> Option<String> {
    let snapshot = fake.snapshot();
    let kv = snapshot.keys.iter().find(|kv| kv.key.starts_with(b"seat/"))?;
    Some(String::from_utf8(kv.value.to_vec()).unwrap())
}

fn puts(value: &'static str) -> impl Fn(&TxnRequest) -> bool + Send + Sync + 'static {
    move |txn| {
        txn.success
            .iter()
            .any(|op| matches!(&op.request, Some(Request::RequestPut(put)) if put.value == value))
    }
}

/// A campaign whose reply is lost is repeated, and finds its own key with its own value.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_campaign_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    for lost in [LoseReply::Error, LoseReply::Hang] {
        fake.fault(On::rpc(Rpc::Txn).matching(puts("a")).once(), Do::lose_reply_by(lost));
        let leadership = election(&session, "seat").campaign("a").await.unwrap();
        assert_eq!(value(&fake).as_deref(), Some("a"));
        leadership.proclaim("b").await.unwrap();
        leadership.resign().await.unwrap();
        assert_eq!(value(&fake), None);
    }
}

/// A leadership that was resumed after its predecessor had proclaimed took the key for one that was never written: the first
/// proclamation was refused and sent again, and where one reply of that was lost it was Unknown.
#[tokio::test(start_paused = true)]
async fn the_first_proclamation_of_a_resumed_leadership_knows_the_last_before_it() {
    for lost in [None, Some(LoseReply::Error), Some(LoseReply::Hang)] {
        let fake = FakeEtcd::start();
        let before = session(&fake.client()).await;
        let leadership = election(&before, "seat").campaign("a").await.unwrap();
        for value in ["b", "c"] {
            leadership.proclaim(value).await.unwrap();
        }
        let (key, token) = (leadership.key().clone(), leadership.token());
        let after = Session::builder(&fake.client()).lease(before.orphan()).open().await.unwrap();
        drop(leadership);
        let resumed = election(&after, "seat").resume(&key, token).await.unwrap();
        let calls = fake.fault(On::rpc(Rpc::Txn), Do::delay(Duration::ZERO));
        let expected = if lost.is_some() { 2 } else { 1 };
        if let Some(lost) = lost {
            fake.fault(On::rpc(Rpc::Txn).matching(puts("d")).once(), Do::lose_reply_by(lost));
        }
        let written = fake.revision() + 1;
        assert_eq!(resumed.proclaim("d").await.unwrap().revision, written);
        assert_eq!((calls.seen(), fake.revision(), value(&fake).as_deref()), (expected, written, Some("d")));
        resumed.resign().await.unwrap();
    }
}

/// A campaign that found its key, and gave it its value or found that too, took the key for one that was never written: the
/// first proclamation was refused and sent again, and where one reply of that was lost it was Unknown.
#[tokio::test(start_paused = true)]
async fn the_first_proclamation_of_a_campaign_that_found_its_key_knows_the_last_before_it() {
    for (campaigns, given) in [("c", None), ("new", None), ("new", Some(LoseReply::Hang))] {
        for lost in [None, Some(LoseReply::Error), Some(LoseReply::Hang)] {
            let fake = FakeEtcd::start();
            let before = session(&fake.client()).await;
            let leadership = election(&before, "seat").campaign("a").await.unwrap();
            for value in ["b", "c"] {
                leadership.proclaim(value).await.unwrap();
            }
            let after = Session::builder(&fake.client()).lease(before.orphan()).open().await.unwrap();
            drop(leadership);
            if let Some(given) = given.clone() {
                fake.fault(On::rpc(Rpc::Txn).matching(puts(campaigns)).nth(2), Do::lose_reply_by(given));
            }
            let leadership = election(&after, "seat").campaign(campaigns).await.unwrap();
            assert_eq!(value(&fake).as_deref(), Some(campaigns));
            let calls = fake.fault(On::rpc(Rpc::Txn), Do::delay(Duration::ZERO));
            let expected = if lost.is_some() { 2 } else { 1 };
            if let Some(lost) = lost {
                fake.fault(On::rpc(Rpc::Txn).matching(puts("d")).once(), Do::lose_reply_by(lost));
            }
            let written = fake.revision() + 1;
            assert_eq!(leadership.proclaim("d").await.unwrap().revision, written);
            let seen = (calls.seen(), fake.revision(), value(&fake));
            assert_eq!(seen, (expected, written, Some("d".to_owned())), "{campaigns}");
            leadership.resign().await.unwrap();
        }
    }
}

/// A proclamation whose reply is lost was made: it is settled by reading it back, and made once.
#[tokio::test(start_paused = true)]
async fn the_reply_of_a_proclamation_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(puts("b")).once(), Do::lose_reply_by(lost));
        let before = fake.revision();
        let header = leadership.proclaim("b").await.unwrap();
        assert_eq!((fault.hits(), fake.revision(), header.revision), (1, before + 1, before + 1));
    }
    // And what follows knows what it left.
    leadership.proclaim("c").await.unwrap();
    assert_eq!(value(&fake).as_deref(), Some("c"));
}

/// A proclamation that straggles between members: the one after it is not covered by it.
#[tokio::test(start_paused = true)]
async fn a_late_proclamation_never_covers_a_newer_one() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    let late = fake.fault(On::rpc(Rpc::Txn).matching(puts("old")).once(), Do::delay(S(9)));
    // The caller gives up; the request is on its way.
    timeout(S(1), leadership.proclaim("old")).await.expect_err("it takes nine seconds");
    leadership.proclaim("new").await.unwrap();
    assert_eq!(late.hits(), 1);
    tokio::time::sleep(S(20)).await;
    assert_eq!(value(&fake).as_deref(), Some("new"));
    leadership.proclaim("newer").await.unwrap();
}

/// Nobody can tell what became of a proclamation: that is said, and the next one is made all the same.
#[tokio::test(start_paused = true)]
async fn a_proclamation_of_unknown_fate_is_told_as_that() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn), Do::lose_reply());
    let error = leadership.proclaim("b").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    assert!(leadership.is_valid());
    leadership.proclaim("c").await.unwrap();
    assert_eq!(value(&fake).as_deref(), Some("c"));
}

/// A proclamation was applied and not answered, and a transaction of the leader wrote the key before it was sent again. It was
/// written a second time, over the newer value; or, where that was refused, an error said that nothing had been applied.
#[tokio::test(start_paused = true)]
async fn a_proclamation_that_was_written_over_is_not_made_again() {
    for refused in [false, true] {
        let fake = FakeEtcd::start();
        let session = session(&fake.client()).await;
        let leadership = election(&session, "seat").campaign("a").await.unwrap();
        leadership.proclaim("before").await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).matching(puts("b")).once(), Do::lose_reply_by(LoseReply::Hang));
        let proclaiming = leadership.proclaim("b");
        tokio::pin!(proclaiming);
        timeout(S(1), &mut proclaiming).await.expect_err("the reply is lost");
        assert_eq!(value(&fake).as_deref(), Some("b"));
        writes(&leadership, "c").await;
        if refused {
            // Not the second attempt, which is answered that the key was written, but what comes after it.
            let status = tonic::Status::permission_denied("etcdserver: permission denied");
            fake.fault(On::rpc(Rpc::Txn).matching(puts("b")).nth(2), Do::fail(status));
        }
        let proclaimed = proclaiming.await;
        assert_eq!(value(&fake).as_deref(), Some("c"), "{proclaimed:?}");
        let error = proclaimed.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(leadership.is_valid());
        leadership.proclaim("d").await.unwrap();
        assert_eq!(value(&fake).as_deref(), Some("d"));
    }
}

/// Where the other write is the only one, the proclamation has not been made, nor can it be any more: it is made after it.
#[tokio::test(start_paused = true)]
async fn a_proclamation_that_was_not_made_is_made_after_another_write() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    let late = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts("b")).once(), Do::hold(&late));
    let proclaiming = leadership.proclaim("b");
    tokio::pin!(proclaiming);
    timeout(S(1), &mut proclaiming).await.expect_err("it is on its way");
    writes(&leadership, "c").await;
    proclaiming.await.unwrap();
    assert_eq!(value(&fake).as_deref(), Some("b"));
    writes(&leadership, "d").await;
    late.release();
    tokio::time::sleep(S(30)).await;
    assert_eq!(value(&fake).as_deref(), Some("d"));
}

/// The leader writes its own key by a transaction.
async fn writes(leadership: &Leadership, value: &'static str) {
    let put = Op::put_with_lease(leadership.key().clone(), value, leadership.session().lease());
    assert!(leadership.txn().success(put).commit().await.unwrap().succeeded);
}

/// The seat is lost between a proclamation's two attempts: whether the first was applied nobody knows.
#[tokio::test(start_paused = true)]
async fn a_seat_lost_in_mid_proclamation_is_no_claim_that_nothing_happened() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts("b")).once(), Do::lose_reply_by(LoseReply::Hang));
    let proclaiming = leadership.proclaim("b");
    tokio::pin!(proclaiming);
    timeout(S(1), &mut proclaiming).await.expect_err("the reply is lost");
    let key = leadership.key().clone();
    fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
    let error = proclaiming.await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(leadership.lost().await, LostReason::KeyDeleted);
}

/// etcd#22123: Go's Resign forgets the leadership after an error. Ours goes on until the seat is free.
#[tokio::test(start_paused = true)]
async fn a_resignation_that_fails_goes_on_in_the_background() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let leadership = election(&session, "seat").campaign("a").await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn), Do::cut());
    let error = leadership.resign().await.unwrap_err();
    assert!(error.lost_reason().is_none(), "{error}");
    assert_eq!(value(&fake).as_deref(), Some("a"));
    down.remove();
    fake.until(|fake| value(fake).is_none()).await;
    assert!(session.is_valid());
}

/// etcd#21128: Go's Campaign leaves its key behind after errors other than cancellation.
#[tokio::test(start_paused = true)]
async fn a_campaign_that_fails_leaves_no_key() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let leads = election(&a, "seat").campaign("a").await.unwrap();
    // Its watch is refused: the wait cannot go on.
    let refused = tonic::Status::permission_denied("etcdserver: permission denied");
    fake.fault(On::open(Rpc::Watch).client("b"), Do::fail(refused));
    election(&b, "seat").campaign("b").await.unwrap_err();
    fake.until(|fake| fake.snapshot().keys.len() == 1).await;
    assert!(leads.is_valid() && b.is_valid());
}

/// A process was started again, adopted its lease, and campaigned with its new address. While the campaign gave the new
/// value to the key that it had found, a proclamation of the process before arrived late. The campaign was told to have
/// succeeded, and all who observed it were sent to the old address.
#[tokio::test(start_paused = true)]
async fn a_campaign_that_finds_its_key_leads_with_its_own_value() {
    let fake = FakeEtcd::start();
    let before = session(&fake.client_for("before")).await;
    let left = election(&before, "seat").campaign("old").await.unwrap();
    let (key, token, lease) = (left.key().clone(), left.token(), before.orphan());
    let after = Session::builder(&fake.client_for("after")).lease(lease).open().await.unwrap();
    let on_its_way = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).client("after").matching(puts("new")).nth(2), Do::hold(&on_its_way));
    let campaigning = tokio::spawn({
        let election = election(&after, "seat");
        async move { election.campaign("new").await }
    });
    is_held(&on_its_way).await;
    let late = Op::put_with_lease(key, "late", lease);
    fake.client_for("before").txn(Txn::new().success(late)).await.unwrap();
    on_its_way.release();
    let leadership = timeout(S(5), campaigning).await.expect("in time").unwrap().unwrap();
    assert_eq!((value(&fake).as_deref(), leadership.token()), (Some("new"), token));
    leadership.proclaim("newer").await.unwrap();
    assert_eq!(value(&fake).as_deref(), Some("newer"));
}

/// The same where the key was deleted in the meantime, and put again by the process before: it is no key of the campaign's.
#[tokio::test(start_paused = true)]
async fn a_campaign_whose_key_is_deleted_as_it_is_given_its_value_has_lost() {
    let fake = FakeEtcd::start();
    let before = session(&fake.client_for("before")).await;
    let left = election(&before, "seat").campaign("old").await.unwrap();
    let (key, lease) = (left.key().clone(), before.orphan());
    let after = Session::builder(&fake.client_for("after")).lease(lease).open().await.unwrap();
    let on_its_way = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).client("after").matching(puts("new")).nth(2), Do::hold(&on_its_way));
    let campaigning = tokio::spawn({
        let election = election(&after, "seat");
        async move { election.campaign("new").await }
    });
    is_held(&on_its_way).await;
    let operator = fake.client_for("operator");
    operator.txn(Txn::new().success(Op::delete(key.clone()))).await.unwrap();
    operator.txn(Txn::new().success(Op::put_with_lease(key, "late", lease))).await.unwrap();
    on_its_way.release();
    let error = timeout(S(5), campaigning).await.expect("in time").unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
}
