//! One who adds to a counter, reads it and sets it, some at once, and tells each call: see `record.rs`.

use std::time::Duration;

use etcd_concurrency::{Client, Counter};
use tokio::time::sleep;

use super::record::{Recorder, Round};

const ROUND: Duration = Duration::from_secs(5);
/// Between two calls, on average half of it.
const PAUSE_MS: u64 = 80;

pub(super) async fn calls(client: Client, mut record: Recorder) {
    let mut random = fastrand::Rng::new();
    loop {
        let round = Round::of(ROUND);
        let name = round.name("counter");
        // Of its own: those of one process would take turns.
        let counter = Counter::new(&client, &name).expect("a name");
        let mut known = 0;
        while round.is_on() {
            // Such that few sums come out twice.
            let drawn = random.i64(-1_000_000..1_000_000);
            let call;
            let result = match random.u8(..8) {
                0 => {
                    call = record.call(&name, "get", &[]);
                    counter.get().await
                }
                1 | 2 => {
                    let expected = if random.bool() { known } else { drawn };
                    call = record.call(&name, "set", &[expected, drawn]);
                    counter.compare_and_set(expected, drawn).await.map(i64::from)
                }
                _ => {
                    call = record.call(&name, "add", &[drawn]);
                    counter.add(drawn).await
                }
            };
            match result {
                Ok(result) => {
                    call.ok(&[result]);
                    known = result;
                }
                Err(error) => {
                    if !call.failed(&error) {
                        round.end().await;
                    }
                }
            }
            sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
        }
    }
}
