//! What holds for every wait: who is lost, and how; what breaks on the way.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Fault, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::CompactionRequest;
use etcd_concurrency::{Client, ErrorKind, LostReason, Op, Outcome, Session, Txn};
use tokio::time::timeout;
use tower::Layer;

use super::table::Wait;
use super::world::keys;
use crate::support::backend::{Backend, on_every_backend};
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::proxy::Proxy;
use crate::support::queue::{LONG, quiet, revoke, session};

const S: fn(u64) -> Duration = Duration::from_secs;

/// A waiter's way to the server, which can be broken.
enum Way {
    Fake(FakeEtcd, Option<Fault>),
    Real(Box<Proxy>),
}

impl Way {
    async fn new(backend: &Backend) -> Way {
        match (backend.fake(), backend.endpoint()) {
            (Some(fake), _) => Way::Fake(fake.clone(), None),
            (None, endpoint) => Way::Real(Box::new(Proxy::start(endpoint.expect("a real server")).await)),
        }
    }

    async fn client(&self, counter: &RpcCounter) -> Client {
        let builder = Client::builder().layer(counter.clone());
        match self {
            Way::Fake(fake, _) => builder.service(fake.service_for("waiter")),
            Way::Real(proxy) => builder.endpoints(proxy.endpoint()),
        }
        .connect()
        .await
        .expect("a client")
    }

    /// What there was is broken; a new one can be had at once.
    fn cut(&self) {
        match self {
            Way::Fake(fake, _) => fake.cut_streams("waiter"),
            Way::Real(proxy) => proxy.cut(),
        }
    }

    /// Broken, until it is back.
    async fn away(&mut self) {
        match self {
            Way::Fake(fake, away) => {
                *away = Some(fake.fault(On::open(Rpc::Watch).client("waiter"), Do::cut()))
            }
            Way::Real(proxy) => proxy.refuse().await,
        }
        self.cut();
    }

    async fn back(&mut self) {
        match self {
            Way::Fake(_, away) => away.take().expect("it was away").remove(),
            Way::Real(proxy) => proxy.accept().await,
        }
    }
}

on_every_backend! {
    /// The first of three who wait closes its session, and the lease of the one in the middle is revoked: both are told
    /// why, and the last goes on when its turn comes, not before. (Who waits for a round with others is counted, and has
    /// tests of its own.)
    async fn who_is_lost_while_it_waits_is_told_and_in_nobodys_way(backend: Backend) {
        let observer = backend.client();
        for wait in Wait::ALL.into_iter().filter(|wait| *wait != Wait::Round) {
            let (name, holder) = (backend.key(&format!("{wait:?}")), session(&observer).await);
            let making_way = wait.hold(&holder, &name, 3).await.unwrap();
            let (mut sessions, mut waiting) = (Vec::new(), Vec::new());
            for place in 1..=3 {
                let counter = RpcCounter::new();
                let client = backend.client_with(counter.clone());
                // Nobody but its keep-alive tells a session that has no key.
                let session = Session::builder(&client).ttl(S(6)).open().await.unwrap();
                waiting.push(wait.stand(&session, &counter, &observer, &name, (place, 3)).await);
                sessions.push(session);
            }
            sessions[0].close().await.unwrap();
            let error = waiting.remove(0).await.unwrap().expect_err("the first is lost");
            assert_eq!(error.lost_reason(), Some(LostReason::Closed), "{wait:?}: {error}");
            revoke(&observer, sessions[1].lease()).await;
            let lost = timeout(LONG, waiting.remove(0)).await.expect("told in time").unwrap();
            let error = lost.expect_err("the one in the middle is lost");
            assert_eq!(error.lost_reason(), Some(LostReason::Revoked), "{wait:?}: {error}");
            assert!(!waiting[0].is_finished(), "{wait:?}: it is not its turn");
            let _made_way = making_way.await.unwrap();
            timeout(LONG, waiting.remove(0)).await.expect("in time").unwrap().expect("its turn");
        }
    }

    async fn who_holds_a_lock_and_is_lost_makes_way(backend: Backend) {
        let (observer, counter) = (backend.client(), RpcCounter::new());
        let next = session(&backend.client_with(counter.clone())).await;
        for wait in Wait::LOCKS {
            let (name, holder) = (backend.key(&format!("{wait:?}")), session(&observer).await);
            let held = wait.hold(&holder, &name, 1).await.unwrap();
            let waiting = wait.stand(&next, &counter, &observer, &name, (1, 1)).await;
            assert!(!waiting.is_finished(), "{wait:?}");
            revoke(&observer, holder.lease()).await;
            timeout(LONG, waiting).await.expect("in time").unwrap().expect("its turn");
            let error = held.await.expect_err("it holds nothing");
            assert!(error.lost_reason().is_some(), "{wait:?}: {error}");
        }
    }

    /// The connection of those who wait breaks; it breaks again, and what they wait for happens, and is compacted, before
    /// they are back.
    async fn waits_survive_cuts_and_compaction(backend: Backend) {
        let backend = backend.alone().await;
        let (observer, counter) = (backend.client(), RpcCounter::new());
        let mut way = Way::new(&backend).await;
        let (holder, waiter) = (session(&observer).await, session(&way.client(&counter).await).await);
        let (mut making_way, mut waiting) = (Vec::new(), Vec::new());
        for wait in Wait::ALL {
            let name = backend.key(&format!("{wait:?}"));
            making_way.push(wait.hold(&holder, &name, 1).await.unwrap());
            waiting.push((wait, wait.stand(&waiter, &counter, &observer, &name, (1, 1)).await));
        }
        let streams = counter.count("Watch");
        way.cut();
        until("a new stream", LONG, async || (counter.count("Watch") > streams).then_some(())).await;
        quiet(&counter).await;
        for (wait, waiting) in &waiting {
            assert!(!waiting.is_finished(), "{wait:?}: nothing happened");
        }
        way.away().await;
        // In tasks, since who makes up a round waits until all know of it.
        let making_way = making_way.into_iter().map(tokio::spawn).collect::<Vec<_>>();
        until("all to have happened", LONG, async || {
            let round = keys(&observer, &backend.key(&format!("{:?}/ready", Wait::Round))).await == 1;
            let done = making_way.iter().filter(|making_way| making_way.is_finished()).count();
            (round && done + 1 >= Wait::ALL.len()).then_some(())
        }).await;
        let noise = Txn::new().success(Op::put(backend.key("noise"), "1"));
        let revision = observer.txn(noise).await.unwrap().header.revision;
        let compaction = CompactionRequest { revision, physical: false };
        observer.kv_client().compact(compaction).await.unwrap();
        way.back().await;
        for (wait, waiting) in waiting {
            let waited = timeout(S(60), waiting).await.unwrap_or_else(|_| panic!("{wait:?} still waits"));
            waited.unwrap().unwrap_or_else(|error| panic!("{wait:?}: {error}"));
        }
        for made_way in making_way {
            made_way.await.unwrap().unwrap();
        }
    }
}

/// A client of the fake, and its sessions: one that holds, and one that waits.
async fn two(fake: &FakeEtcd, counter: &RpcCounter) -> (Session, Session) {
    let waiter = Client::from_service(counter.layer(fake.service_for("waiter")));
    (session(&fake.client_for("holder")).await, session(&waiter).await)
}

/// A stream that is silent for a while is another; and an event that old servers can lose at the edge of a compaction
/// is made up for by looking, now and then.
#[tokio::test(start_paused = true)]
async fn what_a_stream_does_not_tell_is_found_in_the_end() {
    for wait in Wait::ALL {
        for stalls in [true, false] {
            let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
            let (holder, waiter) = two(&fake, &counter).await;
            let making_way = wait.hold(&holder, "x", 1).await.unwrap();
            let waiting = wait.stand(&waiter, &counter, &fake.client(), "x", (1, 1)).await;
            if stalls {
                fake.stall_streams("waiter");
            } else {
                fake.fault(On::response(Rpc::Watch).client("waiter").once(), Do::vanish());
            }
            let making_way = tokio::spawn(making_way);
            let waited = timeout(S(130), waiting).await;
            waited.unwrap_or_else(|_| panic!("{wait:?} still waits")).unwrap().unwrap();
            making_way.await.unwrap().unwrap();
        }
    }
}

/// The server answered no read of a client for minutes, while its streams stood. Each who waited looked after its
/// predecessor once in that time, as it does every minute or two, and that look ended the wait, and lost the place.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_ends_no_wait() {
    for wait in Wait::ALL {
        let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
        let (holder, waiter) = two(&fake, &counter).await;
        let making_way = wait.hold(&holder, "x", 1).await.unwrap();
        let waiting = wait.stand(&waiter, &counter, &fake.client(), "x", (1, 1)).await;
        let refuse = |rpc| {
            let away = Do::fail(tonic::Status::unavailable("etcdserver: no leader"));
            fake.fault(On::rpc(rpc).client("waiter"), away)
        };
        let refused = [refuse(Rpc::Txn), refuse(Rpc::Range)];
        tokio::time::sleep(S(300)).await;
        assert!(!waiting.is_finished(), "{wait:?}: {:?}", waiting.await.unwrap().map(drop));
        assert!(refused.iter().any(|refused| refused.hits() > 0), "{wait:?} did not look");
        // Some take what they waited for by a write; to the others their turn comes meanwhile.
        let late = if matches!(wait, Wait::Item | Wait::Urgent) { S(1) } else { S(0) };
        let making_way = tokio::spawn(async move {
            tokio::time::sleep(late).await;
            making_way.await
        });
        tokio::time::sleep(if late.is_zero() { S(30) } else { S(0) }).await;
        refused.iter().for_each(Fault::remove);
        let waited = timeout(S(60), waiting).await;
        waited.unwrap_or_else(|_| panic!("{wait:?} still waits")).unwrap().unwrap();
        making_way.await.unwrap().unwrap();
    }
}

/// Watches could not be opened, through a proxy that kept their stream to itself, say, while all else went well: a waiter
/// waited for the acknowledgement of its watch for as long as its session lasted, and did not look for itself.
#[tokio::test(start_paused = true)]
async fn one_whose_watch_never_begins_looks_for_itself() {
    for wait in Wait::ALL {
        let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
        let (holder, waiter) = two(&fake, &counter).await;
        fake.fault(On::open(Rpc::Watch).client("waiter"), Do::cut());
        let making_way = wait.hold(&holder, "x", 1).await.unwrap();
        let waiting = wait.stand(&waiter, &counter, &fake.client(), "x", (1, 1)).await;
        let looks = counter.unary_total();
        tokio::time::sleep(S(600)).await;
        let looks = counter.unary_total() - looks - counter.count("KeepAlive");
        assert!(!waiting.is_finished(), "{wait:?}");
        assert!(looks <= 40, "{wait:?} looks too often: {counter}");
        let making_way = tokio::spawn(making_way);
        let waited = timeout(S(260), waiting).await;
        waited.unwrap_or_else(|_| panic!("{wait:?} still waits")).unwrap().unwrap();
        making_way.await.unwrap().unwrap();
    }
}

/// Of each transaction in the whole of a wait, of who holds and of who waits, the reply is lost once: in the end all is
/// as if none had been.
#[tokio::test(start_paused = true)]
async fn the_reply_to_any_transaction_is_lost() {
    for wait in Wait::ALL {
        for lost in [LoseReply::Error, LoseReply::Hang] {
            let mut replies = 0;
            for client in ["holder", "waiter"] {
                for nth in 1.. {
                    if !loses(wait, client, nth, lost.clone()).await {
                        break;
                    }
                    replies += 1;
                }
            }
            assert!(replies >= 2, "{wait:?}: there is more to it than {replies} transactions");
            println!("{wait:?}: {replies} replies lost");
        }
    }
}

/// Whether there was such a reply.
async fn loses(wait: Wait, client: &str, nth: u64, lost: LoseReply) -> bool {
    let told = format!("{wait:?}, reply {nth} to {client}, {lost:?}");
    let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
    let (holder, waiter) = two(&fake, &counter).await;
    let fault = fake.fault(On::rpc(Rpc::Txn).client(client).nth(nth), Do::lose_reply_by(lost));
    let making_way = wait.hold(&holder, "x", 1).await.expect(&told);
    let waiting = wait.stand(&waiter, &counter, &fake.client(), "x", (1, 1)).await;
    let (made_way, waited) = tokio::join!(making_way, waiting);
    // Where the reply to a release was lost, the next attempt finds no key, and cannot tell whose doing that was.
    for done in [made_way.map(drop), waited.unwrap().map(drop)] {
        if let Err(error) = done {
            let unseen = (error.kind(), error.outcome()) == (&ErrorKind::Fenced, Outcome::Unknown);
            assert!(unseen && fault.hits() > 0, "{told}: {error}");
        }
    }
    assert!(holder.is_valid() && waiter.is_valid(), "{told}");
    let clean = |fake: &FakeEtcd| {
        let last = ["x/limit", "x/ready", "x/count", "x/down/", "x/senders/"];
        let gone = |key: &[u8]| !last.iter().any(|last| key.starts_with(last.as_bytes()));
        !fake.snapshot().keys.iter().any(|kv| gone(&kv.key)) && fake.watchers() == 0
    };
    let left = timeout(S(60), fake.until(clean)).await;
    assert!(left.is_ok(), "{told}: left {}", fake.snapshot());
    for session in [holder, waiter] {
        session.close().await.unwrap();
    }
    assert_eq!(fake.snapshot().keys.len(), wait.leaves(), "{told}: {}", fake.snapshot());
    fault.hits() > 0
}
