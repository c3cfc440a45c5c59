//! What is still under way when a session is orphaned or dropped, and what of it comes late.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, LoseReply, On, Rpc};
use etcd_concurrency::{Election, LostReason, Mutex, Queue, RwLock, Session};
use tokio::time::{sleep, timeout};

use crate::support::requests::{deletes, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

/// The keys that hang on leases.
fn leased(fake: &FakeEtcd) -> usize {
    fake.snapshot().keys.iter().filter(|kv| kv.lease != 0).count()
}

/// Holds the next put until it is released.
fn straggler(fake: &FakeEtcd) -> Hold {
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&hold));
    hold
}

/// A session was orphaned, and adopted again at the same client. A request for a lock that had been given up was applied
/// after that: the key stood in the line for as long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn what_comes_late_after_an_adoption_by_the_same_client_goes() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let hold = straggler(&fake);
    drop(Mutex::new(&session, "a").unwrap().lock().await.unwrap());
    let adopter = Session::builder(&client).lease(session.orphan()).open().await.unwrap();
    sleep(S(3600)).await;
    let guard = Mutex::new(&adopter, "a").unwrap().lock().await.unwrap();
    sleep(S(60)).await;
    assert!(guard.is_valid(), "it has an owner");
    guard.unlock().await.unwrap();
    let before = fake.revision();
    hold.release();
    timeout(S(5), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
        .await
        .expect("taken away");
    assert!(adopter.is_valid());
}

/// A leader's session was adopted at the same client while its leadership was still in hand: it is to be taken up, and what
/// looks out for a late request leaves it alone.
#[tokio::test(start_paused = true)]
async fn a_leadership_is_resumed_while_a_late_request_is_looked_out_for() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::open(&client).await.unwrap();
    let hold = straggler(&fake);
    let before = Election::new(&session, "a").unwrap().campaign("x").await.unwrap();
    let adopter = Session::builder(&client).lease(session.orphan()).open().await.unwrap();
    let election = Election::new(&adopter, "a").unwrap();
    let leadership = election.resume(before.key(), before.token()).await.unwrap();
    drop(before);
    hold.release();
    sleep(S(600)).await;
    assert!(leadership.is_valid());
    leadership.resign().await.unwrap();
    assert_eq!(leased(&fake), 0);
}

/// A worker dropped a job, or a consumer took an item off, and the session was orphaned at once: the claim stayed for as
/// long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn what_was_done_with_an_item_before_the_session_was_orphaned_is_done() {
    for take in [false, true] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client_for("a")).await.unwrap();
        let queue = Queue::new(&session, "q").unwrap();
        queue.enqueue("x").await.unwrap();
        if take {
            let job = queue.take().await.unwrap();
            fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::cut());
            drop(job);
        } else {
            fake.fault(On::rpc(Rpc::Txn).client("a").matching(deletes).once(), Do::cut());
            queue.dequeue().await.unwrap();
        }
        drop(queue);
        let lease = session.orphan();
        let adopter = Session::builder(&fake.client_for("b")).lease(lease).open().await.unwrap();
        sleep(S(60)).await;
        let queue = Queue::new(&adopter, "q").unwrap();
        assert_eq!(queue.try_dequeue().await.unwrap().is_some(), take);
    }
}

/// The future of a dequeue was dropped, and then the session, while no server answered: the lease was revoked before the take
/// was settled, and the item went with it.
#[tokio::test(start_paused = true)]
async fn a_take_under_way_is_settled_before_a_dropped_session_is_revoked() {
    let fake = FakeEtcd::start();
    let other = Session::open(&fake.client_for("b")).await.unwrap();
    let others = Queue::new(&other, "q").unwrap();
    others.enqueue("x").await.unwrap();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts).once(), Do::delay(S(1)));
    let queue = Queue::new(&session, "q").unwrap();
    timeout(Duration::from_millis(500), queue.dequeue()).await.expect_err("not answered yet");
    let down = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts), Do::cut());
    drop((queue, session));
    sleep(S(25)).await;
    down.remove();
    timeout(S(30), fake.until(|fake| fake.leases() == 1)).await.expect("revoked");
    assert!(others.try_dequeue().await.unwrap().is_some());
}

/// As above, where two sessions were on the lease: the one that took waited for nothing, since it was not the last; the
/// last had no take under way, and revoked at once.
#[tokio::test(start_paused = true)]
async fn a_take_under_way_is_settled_whichever_session_on_the_lease_ends_it() {
    for end in ["drop", "close", "adopter"] {
        let fake = FakeEtcd::start();
        let other = Session::open(&fake.client_for("b")).await.unwrap();
        let others = Queue::new(&other, "q").unwrap();
        others.enqueue("x").await.unwrap();
        let client = fake.client_for("a");
        let mut first = Session::open(&client).await.unwrap();
        let session = match end {
            "adopter" => first.clone(),
            _ => Session::builder(&client).lease(first.lease()).open().await.unwrap(),
        };
        let unanswered = On::rpc(Rpc::Txn).client("a").matching(puts).once();
        fake.fault(unanswered, Do::lose_reply_by(LoseReply::Hang));
        let queue = Queue::new(&session, "q").unwrap();
        timeout(Duration::from_millis(500), queue.dequeue()).await.expect_err("not answered yet");
        let down = fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts), Do::cut());
        if end == "adopter" {
            first = Session::builder(&client).lease(session.clone().orphan()).open().await.unwrap();
        }
        drop((queue, session));
        let close = first.clone();
        let closing = tokio::spawn(async move {
            match end {
                "drop" => Ok(()),
                _ => close.close().await,
            }
        });
        drop(first);
        sleep(S(8)).await;
        down.remove();
        timeout(S(30), fake.until(|fake| fake.leases() == 1)).await.expect("revoked");
        closing.await.unwrap().unwrap();
        assert!(others.try_dequeue().await.unwrap().is_some(), "{end}");
    }
}

/// A session was lost to a partition that its lease outlived, and the lease adopted again at the same client. The place of
/// one who had waited, and a lock that was released in the partition, stayed for as long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn what_was_left_in_a_partition_goes_when_the_lease_is_adopted_again() {
    let fake = FakeEtcd::start();
    let other = Session::open(&fake.client_for("b")).await.unwrap();
    let held = Mutex::new(&other, "held").unwrap().lock().await.unwrap();
    let client = fake.client_for("a");
    let builder = Session::builder(&client).ttl(S(60)).margin(S(30));
    let session = builder.clone().open().await.unwrap();
    let dropped = RwLock::new(&session, "dropped").unwrap().write().await.unwrap();
    let wait = |name: &'static str| {
        let session = session.clone();
        async move { RwLock::new(&session, name).unwrap().write().await.map(drop) }
    };
    let waits_behind = RwLock::new(&other, "waited").unwrap().write().await.unwrap();
    let in_line = tokio::spawn(wait("waited"));
    let mutex = Mutex::new(&session, "held").unwrap();
    let in_turn = tokio::spawn(async move { mutex.lock().await.map(drop) });
    sleep(S(1)).await;
    fake.partition("a");
    drop(dropped);
    assert_eq!(session.lost().await, LostReason::Expired);
    in_line.await.unwrap().unwrap_err();
    in_turn.await.unwrap().unwrap_err();
    fake.heal("a");
    let adopter = builder.lease(session.lease()).open().await.unwrap();
    let lease = adopter.lease();
    timeout(S(5), fake.until(|fake| fake.snapshot().keys.iter().all(|kv| kv.lease != lease)))
        .await
        .expect("taken away");
    drop((held, waits_behind));
    assert!(adopter.is_valid());
}
