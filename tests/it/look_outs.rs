//! Looking out for keys that come late, while streams cannot be opened, rights are refused, and sessions end.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::TxnRequest;
use etcd_concurrency::{LostReason, Mutex, RwLock, Semaphore, Session};
use tokio::time::{sleep, timeout};

use crate::support::requests::{deletes, puts};

const S: fn(u64) -> Duration = Duration::from_secs;

/// The keys that hang on leases.
fn leased(fake: &FakeEtcd) -> usize {
    fake.snapshot().keys.iter().filter(|kv| kv.lease != 0).count()
}

/// A lock is taken and released, whose first request stays on the way.
async fn straggler(fake: &FakeEtcd, session: &Session, drawn: bool) -> Hold {
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&hold));
    match drawn {
        true => RwLock::new(session, "a").unwrap().write().await.unwrap().unlock().await.unwrap(),
        false => Mutex::new(session, "a").unwrap().lock().await.unwrap().unlock().await.unwrap(),
    }
    assert_eq!((hold.held(), leased(fake)), (1, 0));
    hold
}

fn reads(txn: &TxnRequest) -> bool {
    txn.compare.is_empty() && !puts(txn) && !deletes(txn)
}

fn denied() -> Do {
    Do::fail(tonic::Status::permission_denied("etcdserver: permission denied"))
}

/// A request for a lock was applied after its session was lost and before the same client adopted the lease. The key was taken
/// for another client's, and stayed for as long as the adopter lived.
#[tokio::test(start_paused = true)]
async fn what_comes_late_between_a_loss_and_an_adoption_goes() {
    for drawn in [false, true] {
        let fake = FakeEtcd::start();
        let client = fake.client();
        let builder = Session::builder(&client).ttl(S(600)).margin(S(300));
        let session = builder.clone().open().await.unwrap();
        let hold = straggler(&fake, &session, drawn).await;
        let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
        assert_eq!(session.lost().await, LostReason::Expired);
        let before = fake.revision();
        hold.release();
        fake.until(|fake| fake.revision() > before).await;
        sleep(S(30)).await;
        silent.remove();
        let adopter = builder.lease(session.lease()).open().await.unwrap();
        timeout(S(5), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
        assert!(adopter.is_valid());
        Mutex::new(&adopter, "a").unwrap().try_lock().await.unwrap().unlock().await.unwrap();
    }
}

/// The stream of watches could not be opened, through a proxy that does not let it pass, say. A key that came late was never
/// told of, and stayed for as long as the session lived.
#[tokio::test(start_paused = true)]
async fn a_late_key_goes_while_no_watch_can_be_opened() {
    for drawn in [false, true] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        fake.fault(On::open(Rpc::Watch), Do::cut());
        let hold = straggler(&fake, &session, drawn).await;
        sleep(S(600)).await;
        let before = fake.revision();
        hold.release();
        timeout(S(150), fake.until(|fake| fake.revision() > before && leased(fake) == 0))
            .await
            .expect("taken away");
        assert!(session.is_valid());
    }
}

/// The same where the stream is lost later, and where the revision is not known from which on there is to be watched.
#[tokio::test(start_paused = true)]
async fn a_key_without_an_owner_goes_while_no_watch_can_be_opened() {
    let fake = FakeEtcd::start();
    let session = Session::open(&fake.client_for("a")).await.unwrap();
    let (guard, reading) = (Mutex::new(&session, "a").unwrap(), RwLock::new(&session, "a").unwrap());
    let (guard, reading) = (guard.lock().await.unwrap(), reading.read().await.unwrap());
    let late = straggler_of_another_name(&fake, &session).await;
    let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), denied());
    fake.fault(On::open(Rpc::Watch), Do::cut());
    fake.cut_streams("a");
    drop((guard, reading));
    sleep(S(30)).await;
    refused.remove();
    late.release();
    timeout(S(150), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
    assert!(session.is_valid());
}

async fn straggler_of_another_name(fake: &FakeEtcd, session: &Session) -> Hold {
    let hold = Hold::new();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::hold(&hold));
    Mutex::new(session, "b").unwrap().lock().await.unwrap().unlock().await.unwrap();
    // Its watch is there.
    sleep(S(10)).await;
    hold
}

/// A key came late, or its guard was dropped, while an operator edited roles: reading it or deleting it was refused once. It
/// was not asked for again, and stayed for as long as the session lived.
#[tokio::test(start_paused = true)]
async fn a_key_whose_delete_was_refused_for_a_moment_goes() {
    for (late, drawn) in [(true, false), (true, true), (false, false), (false, true)] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        let refuse = || {
            [
                fake.fault(On::rpc(Rpc::Txn).matching(deletes), denied()),
                fake.fault(On::rpc(Rpc::Txn).matching(reads), denied()),
            ]
        };
        let refused = if late {
            let hold = straggler(&fake, &session, drawn).await;
            let refused = refuse();
            hold.release();
            fake.until(|fake| leased(fake) == 1).await;
            refused
        } else if drawn {
            let guard = RwLock::new(&session, "a").unwrap().read().await.unwrap();
            let refused = refuse();
            drop(guard);
            refused
        } else {
            let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
            let refused = refuse();
            drop(guard);
            refused
        };
        sleep(S(600)).await;
        let hits: u64 = refused.iter().map(|refused| refused.hits()).sum();
        assert!((1..=24).contains(&hits), "{hits}: what is refused is repeated seldom");
        refused.iter().for_each(|refused| refused.remove());
        let gone = timeout(S(150), fake.until(|fake| leased(fake) == 0)).await;
        gone.unwrap_or_else(|_| panic!("late: {late}, drawn: {drawn}; {}", fake.snapshot()));
        assert!(session.is_valid());
    }
}

/// A lock had been asked for twice, as the first attempt got no answer, so that its key was looked out for while it had its owner.
/// The release was refused while an operator edited roles, and the key was not known to have lost its owner: it stayed for as
/// long as the session lived.
#[tokio::test(start_paused = true)]
async fn a_release_that_is_refused_after_an_unanswered_ask_is_made_good_once_it_is_allowed() {
    for recipe in ["mutex", "rwlock", "semaphore"] {
        let fake = FakeEtcd::start();
        let session = Session::open(&fake.client()).await.unwrap();
        fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::vanish());
        let guard: Box<dyn std::any::Any + Send> = match recipe {
            "mutex" => Box::new(Mutex::new(&session, "a").unwrap().lock().await.unwrap()),
            "rwlock" => Box::new(RwLock::new(&session, "a").unwrap().write().await.unwrap()),
            _ => Box::new(Semaphore::new(&session, "a", 2).unwrap().acquire().await.unwrap()),
        };
        let refused = fake.fault(On::rpc(Rpc::Txn).matching(deletes), denied());
        drop(guard);
        sleep(S(300)).await;
        assert!(refused.hits() > 0 && leased(&fake) == 1);
        refused.remove();
        let gone = timeout(S(150), fake.until(|fake| leased(fake) == 0)).await;
        gone.unwrap_or_else(|_| panic!("{recipe}; {}", fake.snapshot()));
        assert!(session.is_valid());
    }
}

/// A guard could not be released before its session was lost. What looked out for its key from then on began to count the
/// TTL of the lease when that was over.
#[tokio::test(start_paused = true)]
async fn nothing_is_looked_out_for_once_the_lease_is_over() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client_for("a")).ttl(S(60)).open().await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    fake.partition("a");
    drop(guard);
    assert_eq!(session.lost().await, LostReason::Expired);
    sleep(S(30)).await;
    fake.heal("a");
    let calls = [Rpc::Txn, Rpc::Range, Rpc::Watch];
    let calls = calls.map(|rpc| fake.fault(On::rpc(rpc), Do::delay(Duration::ZERO)));
    sleep(S(35)).await;
    assert_eq!((fake.leases(), fake.watchers()), (0, 0));
    sleep(S(300)).await;
    assert_eq!(calls.map(|calls| calls.seen()), [0, 0, 0], "nothing can come");
}

/// The server refused, a few times, to say whether a lost lease was gone, as an operator edited roles; then the client adopted it.
/// When it was lost again those refusals counted for the new ones, and what was to delete a key gave up at once.
#[tokio::test(start_paused = true)]
async fn a_refused_look_before_an_adoption_decides_nothing_after_it() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let builder = Session::builder(&client).ttl(S(600)).margin(S(300));
    let mut session = builder.clone().open().await.unwrap();
    let guard = Mutex::new(&session, "a").unwrap().lock().await.unwrap();
    let down = fake.fault(On::rpc(Rpc::Txn), Do::cut());
    drop(guard);
    for _ in 0..2 {
        let silent = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::vanish());
        assert_eq!(session.lost().await, LostReason::Expired);
        let refused = fake.fault(On::rpc(Rpc::LeaseTimeToLive), denied());
        while refused.hits() < 5 {
            // A new leader keeps the lease for another TTL.
            fake.leader_loss(Duration::ZERO);
            sleep(S(30)).await;
        }
        refused.remove();
        silent.remove();
        session = builder.clone().lease(session.lease()).open().await.unwrap();
    }
    down.remove();
    timeout(S(30), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
    assert!(session.is_valid());
}

/// A put that got no answer was to be taken back when its session was closed, and the server refused that. While the client tried to
/// adopt the lease again, and was not answered yet, the key was read again and again without a pause.
#[tokio::test(start_paused = true)]
async fn a_put_that_is_taken_back_after_a_close_waits_for_an_adoption_without_asking() {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::builder(&client).ttl(S(600)).open().await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts), Do::lose_reply());
    let away = fake.fault(On::rpc(Rpc::Txn).matching(reads), Do::cut());
    Mutex::new(&session, "a").unwrap().lock().await.unwrap_err();
    let refused = fake.fault(On::rpc(Rpc::LeaseRevoke), denied());
    session.close().await.unwrap_err();
    let slow = fake.fault(On::rpc(Rpc::LeaseKeepAlive), Do::delay(S(5)));
    let adopting = tokio::spawn(Session::builder(&client).lease(session.lease()).open());
    sleep(S(1)).await;
    away.remove();
    let asked = fake.fault(On::rpc(Rpc::Txn).matching(reads), Do::delay(Duration::from_millis(1)));
    sleep(S(3)).await;
    assert!(asked.hits() <= 3, "{} reads in three seconds", asked.hits());
    let adopter = adopting.await.unwrap().unwrap();
    timeout(S(30), fake.until(|fake| leased(fake) == 0)).await.expect("taken away");
    assert!(adopter.is_valid());
    [lost, refused, slow].iter().for_each(|fault| fault.remove());
}

/// What looked out for the late key of an orphaned lease asked a cluster that was gone for as long as the client lived.
#[tokio::test(start_paused = true)]
async fn a_look_out_ends_where_the_cluster_is_gone() {
    let fake = FakeEtcd::start();
    let session = Session::builder(&fake.client()).ttl(S(600)).open().await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(puts).once(), Do::vanish());
    Mutex::new(&session, "a").unwrap().lock().await.unwrap().unlock().await.unwrap();
    session.orphan();
    let gone = [Rpc::LeaseTimeToLive, Rpc::Txn, Rpc::Range].map(|rpc| fake.fault(On::rpc(rpc), Do::cut()));
    let asked = || gone.iter().map(|gone| gone.hits()).sum::<u64>();
    const DAY: u64 = 86_400;
    sleep(S(DAY)).await;
    let (begun, before) = (asked(), fake.watchers());
    assert!(begun > 100 && before == 0, "{begun} {before}");
    sleep(S(DAY)).await;
    assert_eq!(asked(), begun);
}
