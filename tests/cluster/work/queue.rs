//! One who puts numbered items into a queue, takes what is there, and acknowledges it.
//!
//! `put` or `doubtful`, then the item; `acking`, then `acked`, `returned` or `perhaps`, then the item.

use etcd_concurrency::{Client, Outcome, Queue};
use tokio::time::{Duration, timeout};

use super::{open, tell};

pub(super) async fn work(client: Client, number: usize) {
    let mut items = 0;
    loop {
        let session = open(&client).await;
        let queue = Queue::new(&session, "queue").expect("a name");
        while session.is_valid() {
            let item = format!("{number}-{items}");
            items += 1;
            match queue.enqueue(item.clone()).await {
                Ok(_) => tell("put", &item),
                Err(error) if error.outcome() == Outcome::NotApplied => {}
                Err(_) => tell("doubtful", &item),
            }
            match timeout(Duration::from_secs(2), queue.take()).await {
                Ok(Ok(job)) => {
                    let item = String::from_utf8_lossy(job.value()).into_owned();
                    tell("acking", &item);
                    match job.ack().await {
                        Ok(_) => tell("acked", &item),
                        Err(error) if error.outcome() == Outcome::NotApplied => tell("returned", &item),
                        Err(_) => tell("perhaps", &item),
                    }
                }
                Ok(Err(error)) => tell("trouble", &error.to_string()),
                Err(_) => {}
            }
        }
    }
}
