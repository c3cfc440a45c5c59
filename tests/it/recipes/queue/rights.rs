//! Rights that a worker has not for a while, as operators edit users and roles: on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{Op, Outcome, Queue, Session};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::faults::{S, count, puts, session, until};
use super::queue;

const WAYS: [&str; 8] = [
    "ack",
    "ack with a put",
    "nack",
    "last nack",
    "dropped",
    "last dropped",
    "dropped take",
    "unanswered take",
];

fn denied() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

/// All but what takes an item, so that what settles a take is met, too.
fn settles(txn: &TxnRequest) -> bool {
    !puts("claims")(txn)
}

/// Ends a job, or a take, in this way. What it does is refused with this, from before that on.
async fn refused(fake: &FakeEtcd, a: &Session, how: &str, refusal: Status) -> etcd_concurrency::fake::Fault {
    let taker = taker(a, how);
    let refuses = || fake.fault(On::rpc(Rpc::Txn).client("a").matching(settles), Do::fail(refusal.clone()));
    if how.ends_with("take") {
        let unheard = match how {
            "dropped take" => Do::delay_reply(S(1)),
            _ => Do::lose_reply(),
        };
        let answer = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), unheard);
        let taking = tokio::spawn(async move { taker.take().await });
        until(fake, |fake| count(fake, "claims") == 1).await;
        let refused = refuses();
        taking.abort();
        sleep(S(1)).await;
        answer.remove();
        return refused;
    }
    let job = taker.take().await.unwrap();
    let refused = refuses();
    match how {
        "ack" => assert_eq!(job.ack().await.unwrap_err().outcome(), Outcome::NotApplied),
        "ack with a put" => {
            let error = job.ack_with([Op::put("data", "done")]).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
        "nack" | "last nack" => assert_eq!(job.nack().await.unwrap_err().outcome(), Outcome::Unknown),
        _ => drop(job),
    }
    refused
}

fn taker(session: &Session, how: &str) -> Queue {
    queue(session, "q").max_deliveries(if how.starts_with("last") { 1 } else { 9 }).unwrap()
}

/// A worker had no right to the queue for a moment, as its roles were edited. One refusal was enough: what it had in hand, and had
/// acknowledged in vain, given back or dropped, stayed in hand until its session ended, though it had been told that the item was
/// given back.
#[tokio::test(start_paused = true)]
async fn an_item_in_hand_is_given_back_once_the_right_is_there_again() {
    let failed = Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password");
    for how in WAYS {
        for (refusal, lasts) in
            [(denied(), 1), (failed.clone(), 30), (denied(), 400)].map(|(status, s)| (status, S(s)))
        {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let other = taker(&b, how);
            other.enqueue("item").await.unwrap();
            let refused = refused(&fake, &a, how, refusal).await;
            sleep(lasts).await;
            assert_eq!(count(&fake, "claims"), 1, "{how}");
            assert!((1..120).contains(&refused.hits()), "{how}: {}", refused.hits());
            refused.remove();
            // The longer it was refused, the rarer it is tried.
            let again = timeout(lasts.max(S(16)) / 4, fake.until(|fake| count(fake, "claims") == 0)).await;
            assert!(again.is_ok(), "{how}, {lasts:?}: {}", fake.snapshot());
            assert!(a.is_valid() && fake.snapshot().get("data").is_none());
            if how.starts_with("last") {
                assert_eq!((count(&fake, "items"), count(&fake, "undelivered")), (0, 1), "{how}");
                continue;
            }
            let job = other.try_take().await.unwrap().expect(how);
            assert_eq!(job.deliveries(), if how.ends_with("take") { 1 } else { 2 }, "{how}");
        }
    }
}

/// A right that does not come back is not asked for without end; nor one that the end of the lease has made needless, and closing the
/// session waits for it no longer than for anything else.
#[tokio::test(start_paused = true)]
async fn a_right_that_never_comes_is_asked_for_no_longer_than_the_lease_stands() {
    for how in WAYS {
        for closed in [false, true] {
            let fake = FakeEtcd::start();
            let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
            let other = taker(&b, how);
            other.enqueue("item").await.unwrap();
            let refused = refused(&fake, &a, how, denied()).await;
            if closed {
                timeout(S(11), a.close()).await.expect("in time").expect("what is lent is not lost");
                assert_eq!(count(&fake, "claims"), 0, "{how}");
                sleep(S(60)).await;
            } else {
                sleep(S(1200)).await;
            }
            let hits = refused.hits();
            assert!(hits < 120, "{how}: {hits}");
            sleep(Duration::from_secs(3600)).await;
            assert_eq!(refused.hits(), hits, "{how}, {closed}");
        }
    }
}
