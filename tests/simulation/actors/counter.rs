//! Adds to a counter, each time another number.

use etcd_concurrency::Counter;

use super::Actor;
use crate::checks::log::COUNTER;
use crate::checks::told::Fate;

pub(super) async fn act(actor: &mut Actor) {
    let Ok(counter) = Counter::new(&actor.client(), COUNTER) else { return };
    while actor.world.goes_on() {
        let delta = i64::try_from(actor.world.id()).unwrap_or(i64::MAX);
        actor.world.told.borrow_mut().added.insert(delta, Fate::Unknown);
        let sets = actor.rng.u8(0..4) == 0;
        let adding = async {
            if !sets {
                return counter.add(delta).await.map(|_| true);
            }
            let before = counter.get().await?;
            counter.compare_and_set(before, before + delta).await
        };
        let done = actor.world.wait("an addition", &mut actor.rng, None, adding).await;
        let fate = match done {
            Some(Ok(true)) => Fate::Done(None),
            Some(Ok(false)) => Fate::Refused,
            Some(Err(error)) => Fate::of(&error),
            None => Fate::Unknown,
        };
        if fate == Fate::Done(None) {
            actor.world.count("added");
        }
        actor.world.told.borrow_mut().added.insert(delta, fate);
        actor.a_while().await;
    }
}
