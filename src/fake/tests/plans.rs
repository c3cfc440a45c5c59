//! Clients under drawn plans.

use super::*;
use crate::fake::FaultPlan;

const LENGTH: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(100);

/// Writes, reads, renews and watches, over and over, whatever comes of it.
async fn fumble(fake: FakeEtcd, name: &str) {
    let mut client = Client::of(&fake, name);
    for turn in 0.. {
        let attempt = async {
            client.grant(turn + 1, 3).await?;
            let (_asks, mut said) = client.watch_all().await?;
            let (_renewals, _renewed) = client.keep_alive(turn + 1).await?;
            client.kv.put(put(name, "", turn + 1)).await?;
            said.message().await
        };
        let outcome = tokio::time::timeout(TURN * 20, attempt).await;
        assert!(!matches!(outcome, Ok(Ok(None))), "no stream ends without a word");
        tokio::time::sleep(TURN).await;
    }
}

/// Lets a plan happen to whatever is at work.
async fn suffer(fake: &FakeEtcd, seed: u64, work: impl Future) {
    let plan = FaultPlan::drawn(seed, &["a", "b"], LENGTH);
    let happens = async {
        fake.run(&plan).await.expect("nothing listens");
        tokio::time::sleep(LENGTH).await;
    };
    tokio::select! {
        biased;
        () = happens => {}
        _ = work => panic!("it goes on for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_repeats_to_the_byte() {
    for seed in 0..4 {
        let run = async || {
            let fake = FakeEtcd::builder().seed(seed).start();
            let work = async { tokio::join!(fumble(fake.clone(), "a"), fumble(fake.clone(), "b")) };
            suffer(&fake, seed, work).await;
            fake.history().to_string()
        };
        let (first, again) = (run().await, run().await);
        assert!(first.lines().count() > 200, "{first}");
        for (index, (one, other)) in first.lines().zip(again.lines()).enumerate() {
            assert_eq!(one, other, "operation {index} of seed {seed}");
        }
        assert_eq!(first.len(), again.len(), "seed {seed}");
    }
}
