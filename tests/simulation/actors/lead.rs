//! Leads over losses of seats and sessions, and keeps what it was given.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use etcd_concurrency::{Election, Leadership, Session};
use tokio::time::{Duration, sleep};

use super::Actor;
use crate::checks::held::{self, Mode};
use crate::checks::log::CAMPAIGN;
use crate::checks::orphans::InHand;

pub(super) async fn act(actor: &mut Actor, session: &Session) {
    let Ok(election) = Election::new(session, "election") else { return };
    let (world, kept) = (actor.world.clone(), Rc::<RefCell<Vec<Arc<Leadership>>>>::default());
    let (keeps, longest) = (actor.rng.bool(), actor.rng.u64(1..1_500));
    let work = |leadership: Arc<Leadership>| {
        let (world, kept) = (world.clone(), kept.clone());
        async move {
            let session = leadership.session().clone();
            let entered = held::enter(&world, "election", Mode::Alone, leadership.fence(), &session);
            let leaves = Leaves(&world, entered);
            let in_hand = InHand::of(&world, leadership.fence());
            if keeps {
                kept.borrow_mut().push(leadership);
            }
            sleep(Duration::from_millis(longest)).await;
            drop(leaves);
            drop(in_hand);
        }
    };
    let leading = election.lead(format!("{CAMPAIGN}{}", world.id()), work);
    if let Some(Ok(())) = world.wait("leading", &mut actor.rng, None, leading).await {
        world.count("led");
    }
    actor.a_while().await;
    drop(kept);
}

/// Work that is dropped leaves, too.
struct Leaves<'w>(&'w crate::world::World, Option<u64>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        held::leave(self.0, self.1);
    }
}
