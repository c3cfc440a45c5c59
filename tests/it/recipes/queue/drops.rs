//! Futures of a queue dropped at every await point: no item is lost, none comes twice, none leaves its place.

use std::time::Duration;

use etcd_concurrency::fake::{Do, On, Rpc};
use etcd_concurrency::{Client, Queue, Session};

use super::faults::puts;
use super::{queue, text};
use crate::drops::{at_most, take_time, tasks};
use crate::support::backend::{Backend, on_every_backend};
use crate::support::poll::until;
use crate::support::queue::{queue as keys, session};

const LONG: Duration = Duration::from_secs(30);
/// More than any of these futures is polled.
const MANY: usize = 200;

/// Waits until what was dropped has left so many items, and nothing else: no claim, place or watch, and on the fake
/// no task.
async fn only_items_left(backend: &Backend, observer: &Client, name: &str, items: usize, polls: usize) {
    thread_local!(static USUAL: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) });
    until(&format!("{items} items and nothing else after {polls} polls"), LONG, async || {
        let count = async |kind: &str| keys(observer, &format!("{name}/{kind}")).await;
        let clean = count("items").await == items
            && count("claims").await == 0
            && count("waiting").await == 0
            && backend.watchers().is_none_or(|n| n == 0);
        // After the first round, which dropped a future that was never polled.
        let usual = USUAL.get().unwrap_or_else(tasks);
        if clean {
            USUAL.set(Some(usual));
        }
        (clean && (!backend.is_fake() || tasks() <= usual)).then_some(())
    })
    .await;
}

/// All takes time, and a take is applied after reads that were sent later: a real server answers those first.
pub(super) fn takes_are_slow(backend: &Backend) {
    take_time(backend);
    if let Some(fake) = backend.fake() {
        fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")), Do::delay(Duration::from_millis(2)));
    }
}

/// Waits for the end of every take of a session, also of one that was dropped: nothing that is read tells that none is under way.
async fn settled(session: Session) {
    session.close().await.unwrap();
}

/// The queue holds these, in this order, and gives them out.
async fn holds(queue: &Queue, expected: &[&str]) {
    for expected in expected {
        assert_eq!(queue.try_dequeue().await.unwrap().map(text).as_deref(), Some(*expected));
    }
    assert_eq!(queue.try_dequeue().await.unwrap(), None);
}

/// Starts what a client keeps running: the stream of watches, and the sender's slip.
async fn warm_up(queue: &Queue) {
    let (waited, sent) = tokio::join!(queue.dequeue(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        queue.enqueue("warm").await
    });
    sent.unwrap();
    assert_eq!(text(waited.unwrap()), "warm");
}

on_every_backend! {
    async fn a_dequeue_of_an_item_that_is_there(backend: Backend) {
        takes_are_slow(&backend);
        let (name, observer) = (backend.key("q"), backend.client());
        let sender = queue(&session(&backend.client()).await, &name);
        warm_up(&sender).await;
        sender.enqueue("first").await.unwrap();
        sender.enqueue("second").await.unwrap();
        for polls in 0..MANY {
            let session = session(sender.session().client()).await;
            let queue = queue(&session, &name);
            if let Some(item) = at_most(polls, queue.dequeue()).await {
                assert_eq!(text(item.unwrap()), "first");
                assert!(polls >= 3 || !backend.is_fake());
                return holds(&queue, &["second"]).await;
            }
            only_items_left(&backend, &observer, &name, 2, polls).await;
            settled(session).await;
            assert_eq!(sender.peek().await.unwrap().map(text).as_deref(), Some("first"));
        }
        panic!("never dequeued");
    }

    async fn a_try_dequeue(backend: Backend) {
        takes_are_slow(&backend);
        let (name, observer) = (backend.key("q"), backend.client());
        let sender = queue(&session(&backend.client()).await, &name);
        warm_up(&sender).await;
        sender.enqueue("first").await.unwrap();
        sender.enqueue("second").await.unwrap();
        for polls in 0..MANY {
            let session = session(sender.session().client()).await;
            let queue = queue(&session, &name);
            if let Some(item) = at_most(polls, queue.try_dequeue()).await {
                assert_eq!(item.unwrap().map(text).as_deref(), Some("first"));
                return holds(&queue, &["second"]).await;
            }
            only_items_left(&backend, &observer, &name, 2, polls).await;
            settled(session).await;
            assert_eq!(sender.peek().await.unwrap().map(text).as_deref(), Some("first"));
        }
        panic!("never dequeued");
    }

    /// The item comes while the dropped one waits, or after.
    async fn a_dequeue_that_waits(backend: Backend) {
        takes_are_slow(&backend);
        let (name, observer) = (backend.key("q"), backend.client());
        let (waiters, sender) = (backend.client(), queue(&session(&observer).await, &name));
        let warm = queue(&session(&waiters).await, &name);
        warm_up(&warm).await;
        warm_up(&sender).await;
        for polls in 0..MANY {
            let session = session(&waiters).await;
            let waiter = queue(&session, &name);
            let waited = tokio::join!(at_most(polls, waiter.dequeue()), async {
                let stands = async {
                    while keys(&observer, &format!("{name}/waiting")).await == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    // On the way to the watch, or behind it.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                let _ = tokio::time::timeout(Duration::from_millis(100), stands).await;
                sender.enqueue("item").await.unwrap();
            });
            if let (Some(item), ()) = waited {
                assert_eq!(text(item.unwrap()), "item");
                only_items_left(&backend, &observer, &name, 0, polls).await;
                assert!(polls >= 5);
                return;
            }
            only_items_left(&backend, &observer, &name, 1, polls).await;
            settled(session).await;
            holds(&sender, &["item"]).await;
        }
        panic!("never dequeued");
    }

    async fn an_enqueue(backend: Backend) {
        take_time(&backend);
        let (name, observer) = (backend.key("q"), backend.client());
        let queue = queue(&session(&backend.client()).await, &name);
        warm_up(&queue).await;
        for polls in 0..MANY {
            let done = at_most(polls, queue.enqueue("item")).await;
            // It goes on in the background, where it was begun at all: once.
            only_items_left(&backend, &observer, &name, usize::from(polls > 0), polls).await;
            holds(&queue, if polls > 0 { &["item"] } else { &[] }).await;
            if let Some(done) = done {
                return done.unwrap();
            }
        }
        panic!("never enqueued");
    }
}
