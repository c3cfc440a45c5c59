//! Leaves its lease to itself, and adopts it again, at the same client or another.

use std::time::Duration;

use etcd_concurrency::Session;
use tokio::time::sleep;

use super::Actor;
use crate::checks::held;

pub(super) async fn act(actor: &mut Actor) {
    let mut next: Option<Session> = None;
    while actor.world.goes_on() {
        let session = match next.take() {
            Some(session) => session,
            None => match actor.open().await {
                Some(session) => session,
                None => {
                    actor.world.pause(&mut actor.rng, 500).await;
                    continue;
                }
            },
        };
        follow(actor, &session).await;
        if actor.rng.u8(0..4) > 0 {
            let id = session.orphan();
            if actor.rng.u8(0..4) == 0 {
                actor.client = actor.rng.usize(0..actor.world.nodes.len());
            }
            let longest = if actor.rng.bool() { 2 } else { 300 };
            actor.world.pause(&mut actor.rng, longest).await;
            let client = actor.client();
            let adopting = Session::builder(&client).lease(id).open();
            next = actor.world.wait("an adoption", &mut actor.rng, None, adopting).await.and_then(Result::ok);
        }
    }
}

/// It is valid no longer than the server keeps the lease.
async fn follow(actor: &mut Actor, session: &Session) {
    for _ in 0..actor.rng.usize(1..25) {
        held::believed(&actor.world, session);
        sleep(Duration::from_millis(actor.rng.u64(1..400))).await;
    }
}
