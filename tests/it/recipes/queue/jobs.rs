//! Items that are lent: acknowledged once, never lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_concurrency::{ErrorKind, Job, LostReason, Op, Queue, Session, Txn};
use tokio_util::sync::CancellationToken;

use super::{keys, queue, session, text, until_empty};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet, revoke, until_queue};

fn what(job: &Job) -> (String, u32) {
    (text(job.value()), job.deliveries())
}

async fn stands(client: &etcd_concurrency::Client, key: &str) -> Option<String> {
    let read = client.txn(Txn::new().success(Op::get(key.to_owned()))).await.unwrap();
    Some(text(read.kvs(0).unwrap().first()?.value.clone()))
}

fn at_most(session: &Session, name: &str, deliveries: u32) -> Queue {
    queue(session, name).max_deliveries(deliveries).unwrap()
}

on_every_backend! {
    async fn a_job_is_there_until_it_is_acknowledged(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (queue(&session(&client).await, &name), queue(&session(&client).await, &name));
        a.enqueue("first").await.unwrap();
        a.enqueue("second").await.unwrap();
        let first = a.take().await.unwrap();
        assert_eq!(what(&first), ("first".into(), 1));
        assert_eq!((b.len().await.unwrap(), keys(&client, &format!("{name}/items")).await), (1, 2));
        // The second is dequeued past the first, which is in hand.
        assert_eq!(b.peek().await.unwrap().map(text).as_deref(), Some("second"));
        assert_eq!(b.try_dequeue().await.unwrap().map(text).as_deref(), Some("second"));
        assert!(b.try_take().await.unwrap().is_none());
        let fence = first.fence().clone();
        first.ack().await.unwrap();
        assert_eq!(fence.lost().await, LostReason::Released);
        until_empty(&client, &name).await;
        until_queue(&client, &format!("{name}/returns"), 0).await;
    }

    /// The budget: take 2, ack 1, nack 1.
    async fn what_a_job_costs(backend: Backend) {
        let counter = RpcCounter::new();
        let queue = queue(&session(&backend.client_with(counter.clone())).await, &backend.key("q"));
        queue.enqueue("item").await.unwrap();
        counter.reset();
        let job = queue.take().await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
        job.nack().await.unwrap();
        assert_eq!(counter.unary_total(), 3, "{counter}");
        let job = queue.try_take().await.unwrap().unwrap();
        assert_eq!(counter.unary_total(), 5, "{counter}");
        job.ack().await.unwrap();
        quiet(&counter).await;
        assert_eq!((counter.unary_total(), counter.streams()), (6, 0), "{counter}");
    }

    async fn what_is_given_back_keeps_its_place_and_is_counted(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (queue(&session(&client).await, &name), queue(&session(&client).await, &name));
        for n in ["1", "2", "3"] {
            a.enqueue(n).await.unwrap();
        }
        let (one, two) = (a.take().await.unwrap(), a.take().await.unwrap());
        let token = one.token();
        one.nack().await.unwrap();
        drop(two);
        until("the drop", LONG, async || (b.len().await.unwrap() == 3).then_some(())).await;
        let one = b.take().await.unwrap();
        assert_eq!(what(&one), ("1".into(), 2));
        assert!(one.token() > token);
        let two = b.take().await.unwrap();
        assert_eq!(what(&two), ("2".into(), 2));
        let three = b.take().await.unwrap();
        assert_eq!(what(&three), ("3".into(), 1));
        for job in [three, one, two] {
            job.ack().await.unwrap();
        }
        until_empty(&client, &name).await;
    }

    /// The worker's session is lost: who waits is woken by the end of its claim, and the late worker is fenced off.
    async fn a_lost_workers_item_is_delivered_again(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        queue(&a, &name).enqueue("item").await.unwrap();
        let lost = queue(&a, &name).take().await.unwrap();
        let waiting = tokio::spawn({
            let queue = queue(&b, &name);
            async move { queue.take().await }
        });
        until_queue(&client, &format!("{name}/waiting"), 1).await;
        revoke(&client, a.lease()).await;
        let again = waiting.await.unwrap().unwrap();
        assert_eq!(what(&again), ("item".into(), 2));
        assert!(again.token() > lost.token());
        // What the late one would send if it did not know.
        let late = Txn::new().compare(lost.is_owner()).success(Op::put(backend.key("data"), "late"));
        assert!(!client.txn(late).await.unwrap().succeeded);
        let error = lost.ack().await.unwrap_err();
        assert!(error.lost_reason().is_some(), "{error}");
        assert!(again.txn().success(Op::put(backend.key("data"), "again")).commit().await.unwrap().succeeded);
        again.ack().await.unwrap();
        until_empty(&client, &name).await;
    }

    async fn a_closed_sessions_items_are_there_for_who_looks_later(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        queue(&a, &name).enqueue("item").await.unwrap();
        let held = queue(&a, &name).take().await.unwrap();
        a.close().await.unwrap();
        assert_eq!(held.lost().await, LostReason::Closed);
        assert_eq!(held.nack().await.unwrap_err().lost_reason(), Some(LostReason::Closed));
        let job = queue(&b, &name).try_take().await.unwrap().unwrap();
        assert_eq!(what(&job), ("item".into(), 2));
        job.ack().await.unwrap();
    }

    async fn an_acknowledgement_and_its_writes_are_one(backend: Backend) {
        let (name, data, client) = (backend.key("q"), backend.key("data"), backend.client());
        let queue = queue(&session(&client).await, &name);
        queue.enqueue("item").await.unwrap();
        queue.take().await.unwrap().ack_with([Op::put(data.clone(), "done")]).await.unwrap();
        assert_eq!(stands(&client, &data).await.as_deref(), Some("done"));
        until_empty(&client, &name).await;
        // Refused operations change nothing, and the item is there again.
        queue.enqueue("other").await.unwrap();
        let twice = [Op::put(data.clone(), "1"), Op::put(data.clone(), "2")];
        let error = queue.take().await.unwrap().ack_with(twice).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
        assert_eq!(stands(&client, &data).await.as_deref(), Some("done"));
        let again = queue.take().await.unwrap();
        assert_eq!(what(&again), ("other".into(), 2));
        // Behind the fence: the claim is gone, so is the right to write.
        client.txn(Txn::new().success(Op::delete(again.key().clone()))).await.unwrap();
        let error = again.ack_with([Op::put(data.clone(), "late")]).await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted), "{error}");
        assert_eq!(stands(&client, &data).await.as_deref(), Some("done"));
        assert_eq!(what(&queue.take().await.unwrap()).1, 3);
    }

    async fn an_item_that_nobody_can_do_goes_to_the_dead_letters(backend: Backend) {
        let (name, client) = (backend.key("q"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let queue = at_most(&a, &name, 2);
        assert!(matches!(queue.clone().max_deliveries(0).unwrap_err().kind(), ErrorKind::InvalidInput { .. }));
        queue.enqueue("poison").await.unwrap();
        queue.enqueue("good").await.unwrap();
        queue.take().await.unwrap().nack().await.unwrap();
        assert!(queue.dead_letters().await.unwrap().is_empty());
        // The worker dies with the last delivery: whoever looks next gives the item up.
        let last = at_most(&b, &name, 2).take().await.unwrap();
        assert_eq!(what(&last), ("poison".into(), 2));
        b.close().await.unwrap();
        let good = queue.take().await.unwrap();
        assert_eq!(what(&good), ("good".into(), 1));
        let letters = queue.dead_letters().await.unwrap();
        assert_eq!(letters.iter().map(|letter| text(&letter.value)).collect::<Vec<_>>(), ["poison"]);
        // A worker that gives the item back for the last time does it at once.
        good.nack().await.unwrap();
        queue.take().await.unwrap().nack().await.unwrap();
        let letters = queue.dead_letters().await.unwrap();
        assert_eq!(letters.iter().map(|letter| text(&letter.value)).collect::<Vec<_>>(), ["poison", "good"]);
        until_empty(&client, &name).await;

        assert!(queue.requeue(&letters[1]).await.unwrap());
        assert!(!queue.requeue(&letters[1]).await.unwrap());
        let job = queue.take().await.unwrap();
        assert_eq!(what(&job), ("good".into(), 1));
        job.ack().await.unwrap();
        assert!(queue.discard(&letters[0]).await.unwrap());
        assert!(!queue.discard(&letters[0]).await.unwrap() && queue.dead_letters().await.unwrap().is_empty());
        let other = super::queue(&a, &backend.key("other"));
        let error = other.discard(&letters[0]).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "letter", .. }), "{error}");
    }

    /// Workers that give up before they have the item do not wear it out.
    async fn a_take_that_was_dropped_is_no_delivery(backend: Backend) {
        crate::drops::take_time(&backend);
        let (name, client) = (backend.key("q"), backend.client());
        let queue = at_most(&session(&client).await, &name, 3);
        queue.enqueue("item").await.unwrap();
        for polls in 0..200 {
            let taken = crate::drops::at_most(polls, queue.take()).await;
            if let Some(job) = taken {
                assert_eq!(what(&job.unwrap()), ("item".into(), 1));
                return;
            }
            until("given back", LONG, async || (queue.len().await.unwrap() == 1).then_some(())).await;
        }
        panic!("never taken");
    }

    async fn what_is_done_with_a_job_is_done_though_nobody_waits(backend: Backend) {
        crate::drops::take_time(&backend);
        let (name, client) = (backend.key("q"), backend.client());
        let queue = queue(&session(&client).await, &name);
        let mut all_done = false;
        for polls in 0..200 {
            if all_done {
                return;
            }
            queue.enqueue("item").await.unwrap();
            let nacked = crate::drops::at_most(polls, queue.take().await.unwrap().nack()).await;
            until("given back", LONG, async || (queue.len().await.unwrap() == 1).then_some(())).await;
            let job = queue.take().await.unwrap();
            let acked = crate::drops::at_most(polls, job.ack()).await;
            // A future that was never polled was a job dropped.
            if polls == 0 {
                until("given back", LONG, async || (queue.len().await.unwrap() == 1).then_some(())).await;
                queue.take().await.unwrap().ack().await.unwrap();
            }
            until_empty(&client, &name).await;
            all_done = nacked.is_some() && acked.is_some();
        }
        panic!("never done");
    }

    /// Sixty-four workers on eight sessions, of which half give up now and then: each item is acknowledged once.
    async fn many_workers_acknowledge_each_item_once(backend: Backend) {
        let (name, observer) = (backend.key("q"), backend.client());
        let sender = queue(&session(&observer).await, &name);
        for n in 0..128 {
            sender.enqueue(n.to_string()).await.unwrap();
        }
        let (left, over) = (Arc::new(AtomicUsize::new(128)), CancellationToken::new());
        let mut workers = Vec::new();
        for _ in 0..8 {
            let session = session(&backend.client()).await;
            for w in 0..8 {
                let (queue, left, over) = (queue(&session, &name), left.clone(), over.clone());
                workers.push(tokio::spawn(async move {
                    let mut done = Vec::new();
                    while let Some(job) = over.run_until_cancelled(queue.take()).await {
                        let job = job.unwrap();
                        if w % 2 == 0 && job.deliveries() < 3 {
                            job.nack().await.unwrap();
                        } else {
                            done.push(text(job.value()));
                            job.ack().await.unwrap();
                            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                                over.cancel();
                            }
                        }
                    }
                    done
                }));
            }
        }
        let mut done = Vec::new();
        for worker in workers {
            done.extend(worker.await.unwrap());
        }
        done.sort_by_key(|item| item.parse::<u32>().unwrap());
        assert_eq!(done, (0..128).map(|n| n.to_string()).collect::<Vec<_>>());
        until_empty(&observer, &name).await;
    }
}
