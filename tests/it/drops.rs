//! Futures dropped at every await point leave nothing behind.
//!
//! Each body is run again and again, dropped after its first poll, its second, its third…, until it gets to its end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use etcd_concurrency::fake::{Do, On};
use etcd_concurrency::pb::etcdserverpb::LeaseLeasesRequest;
use etcd_concurrency::{Client, Election, Leadership, Mutex, Op, Session, Txn};

use crate::support::backend::{Backend, on_every_backend};
use crate::support::poll::until;
use crate::support::queue::queue;

const LONG: Duration = Duration::from_secs(30);
/// More than any of these futures is polled.
pub(crate) const MANY: usize = 200;

/// Polls a future at most `polls` times, then drops it.
pub(crate) async fn at_most<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// In process everything is answered at once: on the fake, requests and answers take a moment each, so that there is
/// something to drop in between.
pub(crate) fn take_time(backend: &Backend) {
    if let Some(fake) = backend.fake() {
        fake.fault(On::any(), Do::delay(Duration::from_millis(1)));
        fake.fault(On::any(), Do::delay_reply(Duration::from_millis(1)));
    }
}

/// The tasks of this runtime. On the fake's, which has one thread, all of them are known.
pub(crate) fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Waits until nothing is left of a name: no key, and on the fake no watch and no task.
pub(crate) async fn nothing_left(backend: &Backend, observer: &Client, name: &str, polls: usize) {
    thread_local!(static USUAL: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) });
    if backend.is_fake() && USUAL.get().is_none() {
        // Keep-alives go out from a third of the TTL on, and their stream counts: a watch stream that lingers takes the
        // rounds there.
        tokio::time::sleep(LONG).await;
    }
    until(&format!("nothing left after {polls} polls"), LONG, async || {
        let clean = queue(observer, name).await == 0 && backend.watchers().is_none_or(|n| n == 0);
        // After the first round, which dropped a future that was never polled, and a lock that was taken and released.
        let usual = USUAL.get().unwrap_or_else(tasks);
        if clean {
            USUAL.set(Some(usual));
        }
        (clean && (!backend.is_fake() || tasks() <= usual)).then_some(())
    })
    .await;
}

on_every_backend! {
    async fn an_uncontended_lock(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("lock"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let mutex = Mutex::new(&session, &name).unwrap();
        for polls in 0..MANY {
            if let Some(guard) = at_most(polls, mutex.lock()).await {
                guard.unwrap().unlock().await.unwrap();
                nothing_left(&backend, &observer, &name, polls).await;
                // A server on another core may answer within a poll.
                assert!(polls >= 2 || !backend.is_fake());
                return session.close().await.unwrap();
            }
            // Waits for what the dropped one left to the background.
            mutex.lock().await.unwrap().unlock().await.unwrap();
            nothing_left(&backend, &observer, &name, polls).await;
        }
        panic!("never locked");
    }

    /// With a holder, and with one who leaves while the dropped one waits.
    async fn a_contended_lock(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("lock"), backend.client());
        let (a, b) = (Session::open(&observer).await.unwrap(), Session::open(&backend.client()).await.unwrap());
        let (first, second) = (Mutex::new(&a, &name).unwrap(), Mutex::new(&b, &name).unwrap());
        for polls in 0..MANY {
            let held = first.lock().await.unwrap();
            let token = held.token();
            let release = async {
                until("the second to queue up", LONG, async || {
                    (queue(&observer, &name).await == 2).then_some(())
                })
                .await;
                held.unlock().await.unwrap();
            };
            let waited = async {
                tokio::join!(at_most(polls, second.lock()), async {
                    // The first leaves once the second queues up, or never did.
                    let _ = tokio::time::timeout(Duration::from_millis(300), release).await;
                })
                .0
            };
            if let Some(guard) = waited.await {
                let guard = guard.unwrap();
                assert!(guard.token() > token);
                guard.unlock().await.unwrap();
                nothing_left(&backend, &observer, &name, polls).await;
                assert!(polls >= 3);
                return;
            }
            nothing_left(&backend, &observer, &name, polls).await;
        }
        panic!("never locked");
    }

    async fn a_try_lock(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("lock"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let mutex = Mutex::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let tried = at_most(polls, mutex.try_lock()).await;
            let done = tried.is_some();
            if let Some(guard) = tried {
                guard.unwrap().unlock().await.unwrap();
            }
            // Waits for what the dropped one left to the background.
            mutex.lock().await.unwrap().unlock().await.unwrap();
            nothing_left(&backend, &observer, &name, polls).await;
            if done {
                return;
            }
        }
        panic!("never locked");
    }

    async fn an_unlock(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("lock"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let mutex = Mutex::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let guard = mutex.lock().await.unwrap();
            let done = at_most(polls, guard.unlock()).await;
            nothing_left(&backend, &observer, &name, polls).await;
            if let Some(done) = done {
                return done.unwrap();
            }
        }
        panic!("never unlocked");
    }

    /// An `open` that nobody waited for leaves no lease: its id is only seen by counting them.
    async fn an_open(backend: Backend) {
        let backend = backend.alone().await;
        take_time(&backend);
        let observer = backend.client();
        for polls in 0..MANY {
            let opened = at_most(polls, Session::builder(&backend.client()).open()).await;
            let done = opened.is_some();
            if let Some(session) = opened {
                session.unwrap().close().await.unwrap();
            }
            until(&format!("no lease left after {polls} polls"), LONG, async || {
                let leases = observer.lease_client().lease_leases(LeaseLeasesRequest {}).await.unwrap();
                leases.into_inner().leases.is_empty().then_some(())
            })
            .await;
            if done {
                return;
            }
        }
        panic!("never opened");
    }

    async fn waiting_for_a_loss(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("lock"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let guard = Mutex::new(&session, &name).unwrap().lock().await.unwrap();
        for polls in 1..10 {
            let lost = at_most(polls, guard.lost());
            // Nothing wakes it a second time while the lock stands: the drop is the timeout's.
            let _ = tokio::time::timeout(Duration::from_millis(50), lost).await;
            assert!(guard.is_valid());
        }
        guard.unlock().await.unwrap();
        nothing_left(&backend, &observer, &name, 10).await;
    }

    async fn an_uncontended_campaign(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let elected = at_most(polls, election.campaign("value")).await;
            let done = elected.is_some();
            if let Some(leadership) = elected {
                leadership.unwrap().resign().await.unwrap();
            }
            // Waits for what the dropped one left to the background.
            election.campaign("value").await.unwrap().resign().await.unwrap();
            nothing_left(&backend, &observer, &name, polls).await;
            if done {
                return;
            }
        }
        panic!("never elected");
    }

    /// The key of an earlier process is found, and is given another value.
    async fn a_campaign_that_finds_its_key(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let key = format!("{name}/{:x}", session.lease());
            observer.txn(Txn::new().success(Op::put_with_lease(key, "old", session.lease()))).await.unwrap();
            let elected = at_most(polls, election.campaign("value")).await;
            let done = elected.is_some();
            if let Some(leadership) = elected {
                leadership.unwrap().resign().await.unwrap();
            }
            election.campaign("value").await.unwrap().resign().await.unwrap();
            nothing_left(&backend, &observer, &name, polls).await;
            if done {
                return;
            }
        }
        panic!("never elected");
    }

    async fn what_a_leader_does(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let leadership = election.campaign("value").await.unwrap();
            let proclaimed = at_most(polls, leadership.proclaim("dropped")).await;
            // Whatever became of it, the next one is made.
            leadership.proclaim("newest").await.unwrap();
            assert_eq!(election.leader().await.unwrap().unwrap().value, "newest");
            let resigned = at_most(polls, leadership.resign()).await;
            nothing_left(&backend, &observer, &name, polls).await;
            if let (Some(proclaimed), Some(resigned)) = (proclaimed, resigned) {
                proclaimed.unwrap();
                return resigned.unwrap();
            }
        }
        panic!("never done");
    }

    /// A process that comes back and thinks better of it leaves the seat as it was, or free.
    async fn a_return_to_the_seat(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let key = format!("{name}/{:x}", session.lease());
            let put = Txn::new().success(Op::put_with_lease(key.clone(), "old", session.lease()));
            let token = observer.txn(put).await.unwrap().header.revision;
            let resumed = at_most(polls, election.resume(&key, token)).await;
            let done = resumed.is_some();
            if let Some(leadership) = resumed {
                leadership.unwrap().resign().await.unwrap();
            } else {
                // The seat still is what it was: the turn must be free again.
                election.resume(&key, token).await.unwrap().resign().await.unwrap();
            }
            nothing_left(&backend, &observer, &name, polls).await;
            if done {
                return;
            }
        }
        panic!("never back");
    }

    async fn an_observation(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let mut following = election.observe();
            let seen = at_most(polls, following.next()).await;
            drop(following);
            nothing_left(&backend, &observer, &name, polls).await;
            if let Some(seen) = seen {
                return assert_eq!(seen.unwrap(), None);
            }
        }
        panic!("never seen");
    }

    async fn leading(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("seat"), backend.client());
        let session = Session::open(&backend.client()).await.unwrap();
        let election = Election::new(&session, &name).unwrap();
        for polls in 0..MANY {
            let work = |leadership: Arc<Leadership>| async move { drop(leadership.proclaim("busy").await) };
            let led = at_most(polls, election.lead("value", work)).await;
            let done = led.is_some();
            election.campaign("value").await.unwrap().resign().await.unwrap();
            nothing_left(&backend, &observer, &name, polls).await;
            if done {
                return led.unwrap().unwrap();
            }
        }
        panic!("never led");
    }
}
