//! What a resident that leaves says where the others may see it once more.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::{Op, Outcome, Session, Txn};
use tokio::time::{sleep, timeout};

use super::{S, group};
use crate::support::queue::session;
use crate::support::requests::{is_held, puts};

/// A resident whose join had got no answer was left before the next one, or while that was under way: that was Ok, and then the
/// first came, and the others saw it join, and leave once more.
#[tokio::test(start_paused = true)]
async fn a_resident_that_left_between_two_joins_says_that_the_first_may_come() {
    for next_is_under_way in [false, true] {
        let fake = FakeEtcd::start();
        let session = session(&fake.client_for("resident")).await;
        let resident = group(&session, "group").remain("a").await.unwrap();
        let comes_back = || On::rpc(Rpc::Txn).client("resident").matching(puts);
        let hold = Hold::new();
        let held = fake.fault(comes_back(), Do::hold(&hold));
        let key = resident.fence().expect("it is here").key().clone();
        fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
        while hold.held() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(S(9)).await;
        held.remove();
        let next = fake.fault(comes_back(), Do::delay(S(3)));
        // In the pause, which is of 25 ms at least.
        sleep(if next_is_under_way { S(2) } else { Duration::from_millis(1_003) }).await;
        assert_eq!((hold.held(), next.hits()), (2, u64::from(next_is_under_way)));
        let error = timeout(S(11), resident.leave()).await.expect("in time").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(fake.snapshot().keys.is_empty());
        let left = fake.revision();
        hold.release();
        timeout(S(5), fake.until(|fake| fake.revision() > left)).await.expect("the first has come");
        timeout(S(5), fake.until(|fake| fake.snapshot().keys.is_empty())).await.expect("it is taken away");
        assert!(session.is_valid());
    }
}

/// A resident was left, and while it waited for a join its session's deadline passed, or that had passed before: that was Ok,
/// as the session was lost. The server had the lease for a moment more, and the member was seen.
#[tokio::test(start_paused = true)]
async fn a_resident_whose_session_is_lost_while_it_leaves_says_so() {
    for joins in [false, true] {
        let fake = FakeEtcd::start();
        let builder = Session::builder(&fake.client_for("resident")).ttl(S(10)).margin(S(1));
        let session = builder.open().await.unwrap();
        let resident = group(&session, "group").remain("a").await.unwrap();
        fake.fault(On::rpc(Rpc::LeaseKeepAlive).client("resident"), Do::vanish());
        let hold = Hold::new();
        if joins {
            fake.fault(On::rpc(Rpc::Txn).client("resident").matching(puts), Do::hold(&hold));
            let key = resident.fence().expect("it is here").key().clone();
            fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
            is_held(&hold).await;
        } else {
            session.lost().await;
            assert_eq!(fake.snapshot().keys.len(), 1);
        }
        let error = timeout(S(11), resident.leave()).await.expect("in time").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(!session.is_valid() && fake.leases() > 0);
        if joins {
            let left = fake.revision();
            hold.release();
            timeout(S(1), fake.until(|fake| fake.revision() > left)).await.expect("it has come");
        }
        timeout(S(5), fake.until(|fake| fake.snapshot().keys.is_empty())).await.expect("with the lease");
    }
}

/// Nothing is in doubt any more once the lease is gone that the join was to be held with: the session that the resident had opened
/// is revoked as it leaves, and the server has ended the others.
#[tokio::test(start_paused = true)]
async fn a_resident_that_left_with_its_own_session_is_not_seen_again() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client_for("resident")).await;
    let resident = group(&session, "group").remain("a").await.unwrap();
    fake.expire_lease(session.lease());
    session.lost().await;
    let (is_here, back) = (|fake: &FakeEtcd| fake.snapshot().keys.len() == 1, S(5));
    timeout(back, fake.until(is_here)).await.expect("it is back");
    sleep(S(1)).await;
    let hold = Hold::new();
    let held = fake.fault(On::rpc(Rpc::Txn).client("resident").matching(puts).times(2), Do::hold(&hold));
    let key = resident.fence().expect("it is here").key().clone();
    fake.client().txn(Txn::new().success(Op::delete(key))).await.unwrap();
    sleep(S(12)).await;
    assert_eq!((held.hits(), resident.fence().is_some()), (2, true), "it is here by another join");
    timeout(S(11), resident.leave()).await.expect("in time").unwrap();
    let left = fake.revision();
    hold.release();
    sleep(S(60)).await;
    assert_eq!((fake.revision(), fake.leases()), (left, 0));
}
