//! Enters with others, and leaves with them.

use std::time::Duration;

use etcd_concurrency::{DoubleBarrier, Inside, Session};
use tokio::time::timeout;

use super::{Actor, locks};
use crate::checks::held::{self, Mode};
use crate::checks::log::{READY, TOGETHER, WAITERS, text};

pub(super) async fn act(actor: &mut Actor) {
    let id = actor.rng.u64(..);
    while let Some(session) = actor.session().await {
        let Ok(barrier) = DoubleBarrier::new(&session, "double", TOGETHER) else { return };
        actor.world.told.borrow_mut().callers.entry(session.lease()).or_default().insert(id);
        // There may be nobody to enter with.
        let patience = Duration::from_millis(actor.rng.u64(0..6_000));
        let entering = timeout(patience, barrier.enter());
        let entered = actor.world.wait("a round", &mut actor.rng, Some(&session), entering).await;
        if let Some(Ok(Ok(inside))) = entered {
            within(actor, inside, &session).await;
        }
        actor.a_while().await;
    }
}

async fn within(actor: &mut Actor, inside: Inside, session: &Session) {
    let world = actor.world.clone();
    let id = held::enter(&world, "double", Mode::Shared, inside.fence(), session);
    let ready = world.fake.snapshot().get(READY).map(|kv| kv.create_revision);
    actor.a_while().await;
    locks::write_behind(actor, (inside.fence(), 1), inside.txn(), session).await;
    actor.a_while().await;
    held::leave(&world, id);
    if actor.rng.u8(0..8) == 0 {
        return drop(inside);
    }
    let leaving = inside.leave();
    let left = world.wait("leaving together", &mut actor.rng, Some(session), leaving).await;
    // Where it was lost before it was in, it cannot say which round that was.
    let (Some(Ok(())), Some(_), Some(ready)) = (left, id, ready) else { return };
    world.count("left together");
    let inside =
        |key: &[u8], create_revision| key.starts_with(WAITERS.as_bytes()) && create_revision <= ready;
    let there = world.fake.snapshot().keys;
    if let Some(kv) = there.iter().find(|kv| inside(&kv.key, kv.create_revision)) {
        world.violate(format!("all had left the round of {ready}, and {} was inside", text(&kv.key)));
    }
}
