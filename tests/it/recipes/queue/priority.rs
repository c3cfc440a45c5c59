//! Queues in which the urgent come first.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{ErrorKind, Op, PriorityQueue, Session, Txn};
use tokio::time::sleep;

use super::drops::takes_are_slow;
use super::{session, text, until_empty};
use crate::drops::at_most;
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, until_queue};
use crate::support::requests::{deletes, puts};

fn queue(session: &Session, name: &str) -> PriorityQueue {
    PriorityQueue::new(session, name).expect("a good name")
}

on_every_backend! {
    async fn the_urgent_come_first_and_equals_in_their_order(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (queue(&session(&client).await, &name), queue(&session(&client).await, &name));
        let sent = [("g", u32::MAX), ("d", 10), ("e", 10), ("b", 9), ("a", 0), ("f", 10), ("c", 9)];
        for (n, (value, priority)) in sent.into_iter().enumerate() {
            (if n % 2 == 0 { &a } else { &b }).enqueue(value, priority).await.unwrap();
        }
        assert_eq!(b.peek().await.unwrap().map(text).as_deref(), Some("a"));
        for (n, expected) in ["a", "b", "c", "d", "e", "f", "g"].into_iter().enumerate() {
            assert_eq!(b.len().await.unwrap(), 7 - n as u64);
            let item = if n % 2 == 0 { b.dequeue().await.unwrap() } else { a.try_dequeue().await.unwrap().unwrap() };
            assert_eq!(text(item), expected);
        }
        assert!(a.is_empty().await.unwrap() && a.try_dequeue().await.unwrap().is_none());
        until_empty(&client, &name).await;
        let error = PriorityQueue::new(a.session(), "").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }), "{error}");
    }

    /// What is in hand is passed over, whole priorities of it too; what is given back is as urgent as before.
    async fn what_is_given_back_is_as_urgent_as_before(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (queue(&session(&client).await, &name), queue(&session(&client).await, &name));
        for (value, priority) in [("1a", 1), ("1b", 1), ("2a", 2), ("3a", 3), ("3b", 3)] {
            a.enqueue(value, priority).await.unwrap();
        }
        let (one_a, one_b, two) = (a.take().await.unwrap(), b.take().await.unwrap(), a.take().await.unwrap());
        let three = b.take().await.unwrap();
        assert_eq!([&one_a, &one_b, &two, &three].map(|job| text(job.value())), ["1a", "1b", "2a", "3a"]);
        assert_eq!(b.peek().await.unwrap().map(text).as_deref(), Some("3b"));
        one_b.nack().await.unwrap();
        one_a.nack().await.unwrap();
        for expected in ["1a", "1b", "3b"] {
            let job = b.take().await.unwrap();
            assert_eq!(text(job.value()), expected);
            job.ack().await.unwrap();
        }
        two.ack().await.unwrap();
        three.ack().await.unwrap();
        until_empty(&client, &name).await;
    }

    /// One RPC more for a change of priority where many items have the new one, none where one alone has it, or while it stays.
    async fn what_it_costs(backend: Backend) {
        let counter = RpcCounter::new();
        let queue = queue(&session(&backend.client_with(counter.clone())).await, &backend.key("q"));
        for (value, priority) in [("a", 1), ("b", 1), ("c", 2)] {
            queue.enqueue(value, priority).await.unwrap();
        }
        for (value, cost) in [("a", 3), ("b", 2), ("c", 2)] {
            counter.reset();
            let job = queue.take().await.unwrap();
            assert_eq!((text(job.value()), counter.unary_total()), (value.into(), cost), "{counter}");
            job.ack().await.unwrap();
            assert_eq!(counter.unary_total(), cost + 1, "{counter}");
        }
        quiet(&counter).await;
    }

    async fn a_waiting_consumer_is_woken(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (queue(&session(&client).await, &name), queue(&session(&client).await, &name));
        let waiting = tokio::spawn(async move { b.take().await });
        until_queue(&client, &format!("{name}/waiting"), 1).await;
        a.enqueue("item", 7).await.unwrap();
        let job = waiting.await.unwrap().unwrap();
        assert_eq!((text(job.value()), job.deliveries()), ("item".into(), 1));
    }

    async fn a_dead_letter_keeps_its_priority(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let queue = queue(&session(&client).await, &name).max_deliveries(1).unwrap();
        queue.enqueue("urgent", 1).await.unwrap();
        queue.enqueue("later", 2).await.unwrap();
        queue.take().await.unwrap().nack().await.unwrap();
        let letters = queue.dead_letters().await.unwrap();
        assert_eq!((letters.len(), queue.len().await.unwrap()), (1, 1));
        assert!(queue.requeue(&letters[0]).await.unwrap());
        assert!(!queue.discard(&letters[0]).await.unwrap());
        assert_eq!(text(queue.dequeue().await.unwrap()), "urgent");
        assert_eq!(text(queue.dequeue().await.unwrap()), "later");
    }

    async fn a_dequeue_that_is_dropped_loses_nothing(backend: Backend) {
        takes_are_slow(&backend);
        let (name, client) = (backend.key("q"), backend.client());
        let sender = queue(&session(&client).await, &name);
        for (value, priority) in [("c", 3), ("a", 1), ("b", 1)] {
            sender.enqueue(value, priority).await.unwrap();
        }
        for polls in 0..200 {
            // Closing the session waits for the end of a dropped take, which no read does.
            let session = session(&client).await;
            let queue = queue(&session, &name);
            if let Some(item) = at_most(polls, queue.dequeue()).await {
                assert_eq!(text(item.unwrap()), "a");
                assert_eq!(text(queue.dequeue().await.unwrap()), "b");
                return assert_eq!(text(queue.dequeue().await.unwrap()), "c");
            }
            until("given back", LONG, async || (queue.len().await.unwrap() == 3).then_some(())).await;
            session.close().await.unwrap();
            assert_eq!(sender.len().await.unwrap(), 3);
            assert_eq!(sender.peek().await.unwrap().map(text).as_deref(), Some("a"));
        }
        panic!("never dequeued");
    }

    /// Sixty-four tasks on eight sessions: each item once, and each consumer alone finds the urgent first.
    async fn many_tasks_get_each_item_once(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let mut tasks = Vec::new();
        for s in 0..8u32 {
            let queue = queue(&session(&backend.client()).await, &name);
            for t in 0..8u32 {
                let queue = queue.clone();
                tasks.push(tokio::spawn(async move {
                    let mut got = Vec::new();
                    for n in 0..3 {
                        queue.enqueue(format!("{s}/{t}/{n}"), (s + t + n) % 5).await.unwrap();
                        got.push(text(queue.dequeue().await.unwrap()));
                    }
                    got
                }));
            }
        }
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!((count, all.len()), (192, 192));
        until_empty(&client, &name).await;
    }
}

/// A consumer was slower than another one, on a queue where each item had a priority of its own: after each of its looks the other
/// took the first item, so that each look met another first priority than the one that it read. It went on looking, and failed with
/// an error of the server's protocol after sixteen looks.
#[tokio::test(start_paused = true)]
async fn a_consumer_of_many_priorities_gets_its_turn_beside_a_quicker_one() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (slow, quick) = (queue(&a, "q"), queue(&b, "q"));
    for priority in 0..40 {
        quick.enqueue(priority.to_string(), priority).await.unwrap();
    }
    let looks = fake.fault(
        On::rpc(Rpc::Txn).client("a").matching(|txn| !puts(txn) && !deletes(txn)),
        Do::delay_reply(Duration::from_secs(1)),
    );
    let taking = tokio::spawn(async move { slow.try_dequeue().await });
    let mut seen = 0;
    while !taking.is_finished() {
        if looks.hits() > seen {
            seen = looks.hits();
            quick.dequeue().await.unwrap();
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(taking.await.unwrap().unwrap().is_some(), "after {seen} looks");
    assert!(seen <= 2, "{seen} looks");
}

/// Another client had put an item below the queue's name that has no priority: each look failed with an error of the server's protocol.
#[tokio::test(start_paused = true)]
async fn an_item_without_a_priority_stops_no_consumer() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for place in ["odd", "odder"] {
        fake.client().txn(Txn::new().success(Op::put(format!("q/items/{place}"), place))).await.unwrap();
    }
    queue.enqueue("item", 7).await.unwrap();
    assert_eq!(queue.peek().await.unwrap().map(text).as_deref(), Some("item"));
    for expected in ["item", "odd", "odder"] {
        assert_eq!(queue.try_dequeue().await.unwrap().map(text).as_deref(), Some(expected));
    }
    assert_eq!(queue.try_dequeue().await.unwrap(), None);
    // One that stands before all others does not make the oldest of them the next.
    for (item, priority) in [("later", 7), ("sooner", 1)] {
        queue.enqueue(item, priority).await.unwrap();
    }
    fake.client().txn(Txn::new().success(Op::put("q/items/!odd", "odd"))).await.unwrap();
    for expected in ["odd", "sooner", "later"] {
        assert_eq!(queue.try_dequeue().await.unwrap().map(text).as_deref(), Some(expected));
    }
}
