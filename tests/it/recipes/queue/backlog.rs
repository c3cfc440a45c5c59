//! What a long queue costs.

use etcd_concurrency::{Client, PriorityQueue, Queue, Session};
use tokio::task::JoinSet;
use tower::Layer;

use super::text;
use crate::support::answers::Answers;
use crate::support::backend::{Backend, on_fake};
use crate::support::count::RpcCounter;
use crate::support::queue::{quiet, session};

const ITEMS: u32 = 10_000;
const SIZE: usize = 1_000;

/// Of ten thousand items of a kilobyte each; and a tenth of them in ten priorities.
async fn fill(session: &Session) -> (Queue, PriorityQueue) {
    let (queue, urgent) = (Queue::new(session, "q").unwrap(), PriorityQueue::new(session, "p").unwrap());
    for first in (0..ITEMS).step_by(100) {
        let mut sending = JoinSet::new();
        for n in first..first + 100 {
            let (queue, urgent, value) = (queue.clone(), urgent.clone(), format!("{n:0SIZE$}"));
            sending.spawn(async move {
                queue.enqueue(value.clone()).await.unwrap();
                if n < ITEMS / 10 {
                    urgent.enqueue(value, n % 10).await.unwrap();
                }
            });
        }
        sending.join_all().await;
    }
    (queue, urgent)
}

/// A dequeue reads the first item, not those behind it: as many calls as of a queue of one, and few bytes more than the
/// item has. With jobs in hand, their keys come with each look, and still no value.
#[test]
fn a_dequeue_does_not_read_the_backlog() {
    on_fake(module_path!(), async |backend: Backend| {
        let (counter, answers) = (RpcCounter::new(), Answers::default());
        let client = Client::from_service(answers.layer(counter.layer(backend.service())));
        let (_filled, consumer) = (fill(&session(&backend.client()).await).await, session(&client).await);
        let (queue, urgent) =
            (Queue::new(&consumer, "q").unwrap(), PriorityQueue::new(&consumer, "p").unwrap());
        let cost = async |what: &str, calls: u64, bytes: u64| {
            quiet(&counter).await;
            let (made, read) = (counter.unary_total(), answers.take_bytes());
            println!("{what}: {made} calls, {read} bytes");
            assert!(made == calls && read <= bytes, "{what}: {counter}, {read} bytes");
            counter.reset();
        };
        counter.reset();
        answers.take_bytes();
        assert_eq!(queue.len().await.unwrap(), u64::from(ITEMS));
        cost("a count", 1, 200).await;
        // A look, the take, and the item's end.
        queue.dequeue().await.unwrap();
        cost("a dequeue", 3, SIZE as u64 + 500).await;
        // And a look at the first priority.
        assert!(text(urgent.dequeue().await.unwrap()).ends_with('0'));
        cost("an urgent dequeue", 4, SIZE as u64 + 1_000).await;
        urgent.dequeue().await.unwrap();
        cost("the next of its priority", 3, SIZE as u64 + 1_000).await;

        let mut jobs = Vec::new();
        for _ in 0..100 {
            jobs.push(queue.take().await.unwrap());
        }
        quiet(&counter).await;
        counter.reset();
        answers.take_bytes();
        let job = queue.take().await.unwrap();
        // Keys and claims of a hundred.
        cost("a take behind a hundred", 2, SIZE as u64 + 100 * 200).await;
        job.ack().await.unwrap();
        cost("its end", 1, 200).await;
    });
}
