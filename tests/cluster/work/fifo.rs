//! One who puts items into a queue and takes them off it, some at once, and tells each call: see `record.rs`.

use std::time::Duration;

use etcd_concurrency::{Client, Queue, Session};
use tokio::time::{sleep, timeout};

use super::open;
use super::record::{Recorder, Round};

/// About a hundred calls, of all tasks. The checker looks through ever more orders the more there are, as it is told late which
/// of two items that were put at once was the first.
const ROUND: Duration = Duration::from_secs(2);
/// Between two calls, on average half of it.
const PAUSE_MS: u64 = 120;

pub(super) async fn calls(client: Client, mut record: Recorder) {
    let first = i64::try_from(record.client() + 1).expect("few") * 100_000_000;
    let mut items = first..;
    let mut random = fastrand::Rng::new();
    loop {
        let session = open(&client).await;
        while session.is_valid() {
            round(&session, &mut record, &mut items, &mut random).await;
        }
    }
}

async fn round(
    session: &Session,
    record: &mut Recorder,
    items: &mut impl Iterator<Item = i64>,
    random: &mut fastrand::Rng,
) {
    let round = Round::of(ROUND);
    let name = round.name("fifo");
    let queue = Queue::new(session, &name).expect("a name");
    while round.is_on() && session.is_valid() {
        let is_known = match random.u8(..8) {
            0..4 => {
                let item = items.next().expect("there is no end of it");
                let call = record.call(&name, "enqueue", &[item]);
                match queue.enqueue(item.to_string()).await {
                    Ok(()) => {
                        call.ok(&[]);
                        true
                    }
                    Err(error) => call.failed(&error),
                }
            }
            4 => {
                // One in twenty may be dropped in the midst of it.
                let patience = if random.u8(..20) == 0 {
                    Duration::from_micros(random.u64(..20_000))
                } else {
                    round.rest()
                };
                let call = record.call(&name, "dequeue", &[]);
                match timeout(patience, queue.dequeue()).await {
                    Ok(Ok(item)) => {
                        call.ok(&[number(&item)]);
                        true
                    }
                    // What it may have had comes back some time.
                    Ok(Err(error)) => {
                        call.failed(&error);
                        false
                    }
                    Err(_) => {
                        call.given_up();
                        false
                    }
                }
            }
            _ => {
                let call = record.call(&name, "dequeue", &[]);
                match queue.try_dequeue().await {
                    Ok(item) => {
                        let item: Vec<i64> = item.iter().map(|item| number(item)).collect();
                        call.ok(&item);
                        true
                    }
                    Err(error) => {
                        call.failed(&error);
                        false
                    }
                }
            }
        };
        if !is_known {
            round.end().await;
        }
        sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
    }
}

pub(crate) fn number(item: &[u8]) -> i64 {
    std::str::from_utf8(item).ok().and_then(|item| item.parse().ok()).expect("a number")
}
