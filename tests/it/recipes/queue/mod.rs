//! Queues: on the fake and on every real version, from the same bodies.

mod acks;
mod adopted;
mod backlog;
mod by_hand;
mod closing;
mod compacted;
mod drops;
mod faults;
mod full;
mod gone;
mod herd;
mod jobs;
mod model;
mod priority;
mod rights;
mod saved;
mod settled;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_concurrency::{Client, Error, ErrorKind, LostReason, Op, Outcome, Queue, Session, Txn};
use tokio::task::JoinHandle;

use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, queue as keys, quiet, revoke, session, until_queue};

fn queue(session: &Session, name: &str) -> Queue {
    Queue::new(session, name).expect("a good name")
}

fn text(value: impl AsRef<[u8]>) -> String {
    String::from_utf8(value.as_ref().to_vec()).expect("text")
}

/// Waits for an item in a task, and returns once it stands in line.
async fn wait(
    queue: &Queue,
    observer: &Client,
    name: &str,
    place: usize,
) -> JoinHandle<Result<String, Error>> {
    let queue = queue.clone();
    let waiting = tokio::spawn(async move { queue.dequeue().await.map(text) });
    until_queue(observer, &format!("{name}/waiting"), place).await;
    waiting
}

/// Waits until neither items nor claims are left.
async fn until_empty(observer: &Client, name: &str) {
    until_queue(observer, &format!("{name}/items"), 0).await;
    until_queue(observer, &format!("{name}/claims"), 0).await;
}

on_every_backend! {
    async fn items_come_out_in_the_order_in_which_they_went_in(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let (a, b) = (queue(&a, &name), queue(&b, &name));
        for n in 0..20 {
            let sender = if n % 3 == 0 { &a } else { &b };
            sender.enqueue(n.to_string()).await.unwrap();
        }
        assert_eq!(a.peek().await.unwrap().map(text).as_deref(), Some("0"));
        for n in 0..20 {
            let taker = if n % 2 == 0 { &a } else { &b };
            assert_eq!(taker.len().await.unwrap(), 20 - n);
            let item = if n % 5 == 0 { taker.try_dequeue().await.unwrap().unwrap() } else { taker.dequeue().await.unwrap() };
            assert_eq!(text(item), n.to_string());
        }
        assert_eq!((a.try_dequeue().await.unwrap(), a.peek().await.unwrap()), (None, None));
        assert!(b.is_empty().await.unwrap());
        until_empty(&client, &name).await;
    }

    /// A name is no prefix: Go's queue `job` eats `job2`.
    async fn a_queue_reaches_into_no_other(backend: Backend) {
        let session = session(&backend.client()).await;
        let (one, other) = (queue(&session, &backend.key("job")), queue(&session, &backend.key("job2")));
        other.enqueue("theirs").await.unwrap();
        assert_eq!(one.try_dequeue().await.unwrap(), None);
        assert_eq!(one.len().await.unwrap(), 0);
        one.enqueue("ours").await.unwrap();
        assert_eq!(text(one.dequeue().await.unwrap()), "ours");
        assert_eq!(text(other.dequeue().await.unwrap()), "theirs");
        let error = Queue::new(&session, "").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }), "{error}");
    }

    /// The budget: enqueue 1, a dequeue 2 and 1 in the background, len 1.
    async fn what_it_costs(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        let queue = queue(&session(&client).await, &backend.key("q"));
        queue.enqueue("first").await.unwrap();
        counter.reset();
        for _ in 0..5 {
            queue.enqueue("again").await.unwrap();
        }
        assert_eq!((counter.unary_total(), counter.count("Txn")), (5, 5), "{counter}");
        counter.reset();
        queue.dequeue().await.unwrap();
        assert!((2..=3).contains(&counter.unary_total()), "{counter}");
        quiet(&counter).await;
        assert_eq!(counter.unary_total(), 3, "{counter}");
        queue.try_dequeue().await.unwrap().unwrap();
        quiet(&counter).await;
        assert_eq!(counter.unary_total(), 6, "{counter}");
        assert_eq!(queue.len().await.unwrap(), 4);
        assert_eq!(counter.unary_total(), 7, "{counter}");
        assert_eq!(counter.streams(), 0, "{counter}");
    }

    async fn who_waits_is_served_in_the_order_of_asking(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let sender = queue(&session(&client).await, &name);
        let mut waiting = Vec::new();
        for place in 1..6 {
            let consumer = queue(&session(&client).await, &name);
            waiting.push(wait(&consumer, &client, &name, place).await);
        }
        for n in 0..5 {
            sender.enqueue(n.to_string()).await.unwrap();
        }
        for (n, waiting) in waiting.into_iter().enumerate() {
            assert_eq!(waiting.await.unwrap().unwrap(), n.to_string());
        }
        until_empty(&client, &name).await;
        until_queue(&client, &format!("{name}/waiting"), 0).await;
    }

    /// A consumer that waits makes no RPC; the item that comes costs it one before it has it.
    async fn a_waiting_consumer_is_woken_by_the_item_itself(backend: Backend) {
        let backend = backend.alone().await;
        let (name, counter) = (backend.key("q"), RpcCounter::new());
        let (observer, counted) = (backend.client(), backend.client_with(counter.clone()));
        let consumer = queue(&session(&counted).await, &name);
        let sender = queue(&session(&observer).await, &name);
        let waiting = wait(&consumer, &observer, &name, 1).await;
        until("the consumer's watch", LONG, async || (counter.count("Watch") == 1).then_some(())).await;
        quiet(&counter).await;
        counter.reset();
        sender.enqueue("item").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), "item");
        quiet(&counter).await;
        // The take; then, in the background, the item's end and the place's.
        assert_eq!((counter.unary_total(), counter.count("Txn")), (3, 3), "{counter}");
        until_empty(&observer, &name).await;
    }

    /// Sixty-four tasks on eight sessions send and take: each item once.
    async fn many_tasks_on_few_sessions_get_each_item_once(backend: Backend) {
        let (name, observer) = (backend.key("q"), backend.client());
        let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let mut tasks = Vec::new();
        for s in 0..8 {
            let session = session(&backend.client()).await;
            let shared = queue(&session, &name);
            for t in 0..8 {
                let (queue, seen) = (shared.clone(), seen.clone());
                tasks.push(tokio::spawn(async move {
                    for n in 0..4 {
                        if t % 2 == 0 {
                            queue.enqueue(format!("{s}/{t}/{n}")).await.unwrap();
                        } else {
                            let item = text(queue.dequeue().await.unwrap());
                            *seen.lock().unwrap().entry(item).or_default() += 1;
                        }
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 128);
        assert!(seen.values().all(|times| *times == 1), "{seen:?}");
        until_empty(&observer, &name).await;
    }

    /// The waiting place, the claims and the slips go; items stay.
    async fn what_is_left_of_a_queue_when_its_handles_are_gone(backend: Backend) {
        let (name, observer) = (backend.key("q"), backend.client());
        let session = session(&backend.client()).await;
        let one = queue(&session, &name);
        one.enqueue("kept").await.unwrap();
        one.enqueue("taken").await.unwrap();
        assert_eq!(text(one.dequeue().await.unwrap()), "kept");
        assert_eq!(keys(&observer, &format!("{name}/senders")).await, 1);
        drop(one);
        until_queue(&observer, &name, 1).await;
        session.close().await.unwrap();
        let later = self::session(&observer).await;
        assert_eq!(text(queue(&later, &name).dequeue().await.unwrap()), "taken");
    }

    /// The item belongs to the session from the take on, and what is deleted in the background goes with it.
    async fn an_item_goes_with_the_session_that_took_it(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        queue(&b, &name).enqueue("item").await.unwrap();
        assert_eq!(text(queue(&a, &name).dequeue().await.unwrap()), "item");
        a.close().await.unwrap();
        until_empty(&client, &name).await;
        assert_eq!(queue(&b, &name).try_dequeue().await.unwrap(), None);
    }

    async fn a_consumer_whose_session_ends_is_told_at_once(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let first = wait(&queue(&a, &name), &client, &name, 1).await;
        let second = wait(&queue(&b, &name), &client, &name, 2).await;
        b.close().await.unwrap();
        let error = second.await.unwrap().unwrap_err();
        assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::Closed), Outcome::NotApplied));
        revoke(&client, a.lease()).await;
        // Nobody tells the session but its keep-alive, so it is asked.
        let error = queue(&a, &name).enqueue("item").await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Revoked), "{error}");
        let error = first.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Revoked), "{error}");
        let error = queue(&b, &name).try_dequeue().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed), "{error}");
        assert_eq!(keys(&client, &name).await, 0);
    }

    /// The first in line dies; the next takes over.
    async fn the_first_in_line_dies_and_the_next_is_served(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b, c) = (session(&client).await, session(&client).await, session(&client).await);
        let first = wait(&queue(&a, &name), &client, &name, 1).await;
        let second = wait(&queue(&b, &name), &client, &name, 2).await;
        a.close().await.unwrap();
        first.await.unwrap().unwrap_err();
        queue(&c, &name).enqueue("item").await.unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "item");
    }

    /// Items that somebody deletes by hand are passed over.
    async fn an_item_deleted_by_hand_is_passed_over(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let queue = queue(&session(&client).await, &name);
        queue.enqueue("first").await.unwrap();
        client.txn(Txn::new().success(Op::delete_prefix(format!("{name}/items/")))).await.unwrap();
        queue.enqueue("second").await.unwrap();
        assert_eq!(text(queue.dequeue().await.unwrap()), "second");
        let timed_out = tokio::time::timeout(Duration::from_millis(200), queue.dequeue()).await;
        assert!(timed_out.is_err());
        until_queue(&client, &format!("{name}/waiting"), 0).await;
    }
}
