//! One client takes an item for good, another in hand, and a third puts one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::{Outcome, Queue, Session};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene { name: "queue", play: |world| Box::pin(play(world)), strikes: &[] };

/// How often each item was had, and whether it may be had again, or is not known to be there.
#[derive(Default)]
struct Had {
    times: RefCell<BTreeMap<String, i32>>,
    in_doubt: RefCell<BTreeMap<String, bool>>,
}

async fn play(world: Rc<World>) {
    let [a, b, c] = [world.session("a").await, world.session("b").await, world.session("c").await];
    queue(&c).enqueue("first").await.expect("the gate is open");
    world.gate.close();
    let had = Rc::new(Had::default());
    let acts = [
        spawn_local(dequeues(world.clone(), a.clone(), had.clone())),
        spawn_local(takes(world.clone(), b.clone(), had.clone())),
        spawn_local(puts(world.clone(), c.clone(), had.clone())),
    ];
    for act in acts {
        act.await.expect("it does not panic");
    }
    world.settle().await;
    let rest = queue(&a);
    while let Some(item) = rest.try_dequeue().await.expect("nothing fails any more") {
        had.had(&String::from_utf8_lossy(&item));
    }
    for item in ["first", "second"] {
        let times = had.times.borrow().get(item).copied().unwrap_or_default();
        let in_doubt = had.in_doubt.borrow().get(item).copied().unwrap_or_default();
        assert!(times <= 1, "{item} was had {times} times");
        assert!(times == 1 || in_doubt, "{item} is lost");
    }
    let left = world.left(&["q/claims/", "q/items/", "q/returns/"]);
    assert!(left.is_empty(), "keys without an owner: {left:?}");
}

fn queue(session: &Session) -> Queue {
    Queue::new(session, "q").expect("a name")
}

impl Had {
    fn had(&self, item: &str) {
        *self.times.borrow_mut().entry(item.to_owned()).or_default() += 1;
    }

    fn in_doubt(&self, item: &str) {
        self.in_doubt.borrow_mut().insert(item.to_owned(), true);
    }
}

async fn dequeues(world: Rc<World>, session: Session, had: Rc<Had>) {
    match timeout(Duration::from_secs(60), queue(&session).dequeue()).await {
        Ok(Ok(item)) => had.had(&String::from_utf8_lossy(&item)),
        Ok(Err(error)) => world.failed(&error),
        // The other has both, or they are not put.
        Err(_) => {}
    }
}

async fn takes(world: Rc<World>, session: Session, had: Rc<Had>) {
    let job = match timeout(Duration::from_secs(60), queue(&session).take()).await {
        Ok(Ok(job)) => job,
        Ok(Err(error)) => return world.failed(&error),
        Err(_) => return,
    };
    let item = String::from_utf8_lossy(job.value()).into_owned();
    match job.ack().await {
        Ok(()) => had.had(&item),
        Err(error) => {
            world.failed(&error);
            if error.outcome() != Outcome::NotApplied {
                had.in_doubt(&item);
            }
        }
    }
}

async fn puts(world: Rc<World>, session: Session, had: Rc<Had>) {
    match queue(&session).enqueue("second").await {
        Ok(()) => {}
        Err(error) => {
            world.failed(&error);
            had.in_doubt("second");
        }
    }
}
