//! Those who use the crate, each in a loop, in all ways there are.

mod adopter;
mod barrier;
mod counter;
mod latch;
mod lead;
mod locks;
mod members;
mod queue;
mod rounds;
mod stm;

use std::rc::Rc;

use etcd_concurrency::{Client, Session};
use fastrand::Rng;

use crate::plan::{self, Kind};
use crate::world::World;

pub(crate) use queue::drain;

/// One of them.
struct Actor {
    world: Rc<World>,
    client: usize,
    slot: usize,
    rng: Rng,
}

/// Acts until the world says that it is over.
pub(crate) async fn act(world: Rc<World>, plan: plan::Actor) {
    let (client, slot, rng) = (plan.client, plan.slot, Rng::with_seed(plan.seed));
    let actor = Actor { world: world.clone(), client, slot, rng };
    world.unless_frozen(client, actor.act(plan.kind)).await;
}

impl Actor {
    async fn act(mut self, kind: Kind) {
        // Boxed: without optimization the stack has room for every kind's future otherwise, moved several times over.
        match kind {
            Kind::Mutex | Kind::Election | Kind::RwLock | Kind::Semaphore | Kind::MultiLock => {
                Box::pin(locks::act(&mut self, kind)).await;
            }
            Kind::Stm => Box::pin(stm::act(&mut self)).await,
            Kind::Counter => Box::pin(counter::act(&mut self)).await,
            Kind::Queue => Box::pin(queue::act(&mut self)).await,
            Kind::Rounds => Box::pin(rounds::act(&mut self)).await,
            Kind::Latch => Box::pin(latch::act(&mut self)).await,
            Kind::Members => Box::pin(members::act(&mut self)).await,
            Kind::Adopter => Box::pin(adopter::act(&mut self)).await,
            Kind::Barrier => Box::pin(barrier::act(&mut self)).await,
        }
    }

    fn client(&self) -> Client {
        self.world.nodes[self.client].client.clone()
    }

    /// A session that is not known to be lost: the slot's, or a new one. None when it is over.
    async fn session(&mut self) -> Option<Session> {
        while self.world.goes_on() {
            if let Some(session) = self.world.session(self.client, self.slot).filter(Session::is_valid) {
                return Some(session);
            }
            match self.open().await {
                Some(session) => self.world.set_session(self.client, self.slot, session),
                None => self.world.pause(&mut self.rng, 500).await,
            }
        }
        None
    }

    async fn open(&mut self) -> Option<Session> {
        let (client, ttl) = (self.client(), self.world.setup.ttl);
        let opening = Session::builder(&client).ttl(ttl).open();
        self.world.wait("a session", &mut self.rng, None, opening).await?.ok()
    }

    /// How long one does something.
    async fn a_while(&mut self) {
        let longest = if self.rng.bool() { 100 } else { 1_500 };
        self.world.pause(&mut self.rng, longest).await;
    }
}
