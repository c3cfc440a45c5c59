//! Counts latches down, one after the other, and waits for them.

use etcd_concurrency::{CountDownLatch, Session};

use super::Actor;
use crate::checks::log::{LATCH_COUNT, LATCHES};
use crate::checks::told::Fate;

pub(super) async fn act(actor: &mut Actor) {
    let mut name = String::new();
    while let Some(session) = actor.session().await {
        // All are at the same one for a while, and it is open before they leave it, as a rule.
        if name.is_empty() || actor.rng.u8(0..4) == 0 {
            name = format!("{LATCHES}{}", actor.world.id() / 20);
        }
        let Ok(latch) = CountDownLatch::new(&session, &name, LATCH_COUNT) else { return };
        match actor.rng.bool() {
            true => count_down(actor, &latch, &name, &session).await,
            false => wait(actor, &latch, &name, &session).await,
        }
        actor.a_while().await;
    }
}

async fn count_down(actor: &mut Actor, latch: &CountDownLatch, name: &str, session: &Session) {
    let counting = latch.count_down();
    let fate = match actor.world.wait("a count-down", &mut actor.rng, Some(session), counting).await {
        Some(Ok(left)) => {
            actor.world.count("counted down");
            if left == 0 {
                opened(actor, name);
            }
            Fate::Done(None)
        }
        Some(Err(error)) => Fate::of(&error),
        None => Fate::Unknown,
    };
    actor.world.told.borrow_mut().counted.entry(name.to_owned()).or_default().push(fate);
}

async fn wait(actor: &mut Actor, latch: &CountDownLatch, name: &str, session: &Session) {
    let patience = std::time::Duration::from_millis(actor.rng.u64(0..3_000));
    let waiting = tokio::time::timeout(patience, latch.wait());
    if let Some(Ok(Ok(()))) = actor.world.wait("a latch", &mut actor.rng, Some(session), waiting).await {
        opened(actor, name);
    }
}

/// Nobody resets it: from now on it is open.
fn opened(actor: &Actor, name: &str) {
    let prefix = format!("{name}/down/");
    let downs = actor.world.fake.snapshot().keys;
    let downs = downs.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes())).count();
    if downs < LATCH_COUNT as usize {
        actor.world.violate(format!("{name} is open, and was counted down {downs} times"));
    }
}
