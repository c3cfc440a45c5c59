//! Holds a plain barrier, releases it, waits at it.

use std::time::Duration;

use etcd_concurrency::{Barrier, Session};
use tokio::time::{sleep, timeout};

use super::Actor;
use crate::checks::log::BARRIER;

pub(super) async fn act(actor: &mut Actor) {
    while let Some(session) = actor.session().await {
        let Ok(barrier) = Barrier::new(&session, BARRIER) else { return };
        match actor.rng.u8(0..3) {
            0 => hold(actor, &barrier, &session).await,
            _ => wait(actor, &barrier, &session).await,
        }
        actor.a_while().await;
    }
}

/// Who holds it releases it, whatever becomes of the session: it outlives that.
async fn hold(actor: &mut Actor, barrier: &Barrier, session: &Session) {
    let world = actor.world.clone();
    let holding = barrier.hold();
    let Some(Ok(())) = world.wait("a hold", &mut actor.rng, Some(session), holding).await else { return };
    let created =
        |world: &crate::world::World| world.fake.snapshot().get(BARRIER).map_or(0, |kv| kv.create_revision);
    // Or another's, by now: a release hits whoever holds it meanwhile.
    let ours = created(&world);
    world.count("barriers held");
    actor.a_while().await;
    // It may be given up on the way, which lets it go on; asking again is no error.
    for _ in 0..100 {
        let releasing = timeout(Duration::from_secs(10), barrier.release());
        let released = world.wait("the release of a barrier", &mut actor.rng, None, releasing).await;
        if let Some(Ok(Ok(()))) = released {
            if ours > 0 && created(&world) == ours {
                world.violate(format!("the barrier of {ours} was released, and is there"));
            }
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
    world.violate("a barrier cannot be released");
}

/// It was open at some moment of the wait.
async fn wait(actor: &mut Actor, barrier: &Barrier, session: &Session) {
    let world = actor.world.clone();
    let began = world.fake.revision();
    let waiting = barrier.wait();
    if let Some(Ok(())) = world.wait("a barrier", &mut actor.rng, Some(session), waiting).await {
        world.count("barriers passed");
        world.told.borrow_mut().passed.push((began, world.fake.revision()));
    }
}
