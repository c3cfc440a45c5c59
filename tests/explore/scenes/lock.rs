//! Two clients that lock one mutex, and unlock it or drop their guard.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::{Mutex, Session};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene { name: "lock", play: |world| Box::pin(play(world)), strikes: &[] };

/// The same, where a third party deletes the keys while both are there.
pub(crate) const DELETED: Scene = Scene {
    name: "lock-deleted",
    play: |world| Box::pin(holds(world)),
    strikes: &[("a third party deletes all keys of the lock", |world| world.delete_prefix("m/"))],
};

/// The same as the first, where what a watch is yet to be told of is compacted.
pub(crate) const COMPACTED: Scene = Scene {
    name: "lock-compacted",
    play: |world| Box::pin(play(world)),
    strikes: &[("all that has happened is compacted", World::compact)],
};

/// The same as the second, where a third party ends the lease of the first in the line.
pub(crate) const ENDED: Scene = Scene {
    name: "lock-ended",
    play: |world| Box::pin(holds(world)),
    strikes: &[("a third party ends the lease of the first", |world| world.end_lease_of_first("m/"))],
};

/// A holder that is orphaned, and whose lease the same client adopts, beside one that waits.
pub(crate) const ADOPTED: Scene =
    Scene { name: "lock-adopted", play: |world| Box::pin(adopts(world)), strikes: &[] };

async fn play(world: Rc<World>) {
    let (a, b) = (world.session("a").await, world.session("b").await);
    world.gate.close();
    let holders = Rc::new(Cell::new(0));
    let acts = [
        spawn_local(locks(world.clone(), a.clone(), holders.clone(), true)),
        spawn_local(locks(world.clone(), b.clone(), holders, false)),
    ];
    world.acts(acts).await;
    is_free_in_the_end(&world, &[a, b]).await;
}

/// Locks, and unlocks soon or drops its guard later; an error ends it.
async fn locks(world: Rc<World>, session: Session, holders: Rc<Cell<i32>>, unlocks: bool) {
    let guard = match mutex(&session).lock().await {
        Ok(guard) => guard,
        Err(error) => return world.failed(&error),
    };
    world.granted(guard.token());
    world.is_first(guard.token(), "m/");
    assert_eq!(holders.replace(1), 0, "two hold the lock");
    match unlocks {
        true => {
            sleep(Duration::from_millis(5)).await;
            holders.set(0);
            if let Err(error) = guard.unlock().await {
                world.failed(&error);
            }
        }
        false => {
            world.quiet().await;
            holders.set(0);
            drop(guard);
        }
    }
}

async fn holds(world: Rc<World>) {
    let (a, b) = (world.session("a").await, world.session("b").await);
    world.gate.close();
    let valid = Rc::new(Cell::new(0));
    let acts = [&a, &b].map(|session| {
        let (world, mutex, valid) = (world.clone(), mutex(session), valid.clone());
        spawn_local(async move {
            let guard = match mutex.lock().await {
                Ok(guard) => guard,
                Err(error) => return world.failed(&error),
            };
            // It is watched, and all that was on its way is told.
            tokio::select! {
                biased;
                _ = guard.lost() => return,
                () = world.quiet() => {}
            }
            if guard.is_valid() {
                valid.set(valid.get() + 1);
                assert_eq!(valid.get(), 1, "two guards are valid, when all is told");
                sleep(Duration::from_secs(1)).await;
                valid.set(valid.get() - 1);
            }
        })
    });
    world.acts(acts).await;
    is_free_in_the_end(&world, &[a, b]).await;
}

async fn adopts(world: Rc<World>) {
    let (a, b) = (world.session("a").await, world.session("b").await);
    world.gate.close();
    let (holders, adopted) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None)));
    let acts = [
        spawn_local(locks(world.clone(), b.clone(), holders.clone(), true)),
        spawn_local(gives_on(world.clone(), a, holders, adopted.clone())),
    ];
    world.acts(acts).await;
    let sessions: Vec<Session> = adopted.take().into_iter().chain([b]).collect();
    is_free_in_the_end(&world, &sessions).await;
}

/// Locks, lets its session go without the key, adopts its lease, and takes the lock up again, or anew; then unlocks it.
async fn gives_on(
    world: Rc<World>,
    session: Session,
    holders: Rc<Cell<i32>>,
    adopted: Rc<RefCell<Option<Session>>>,
) {
    let guard = match mutex(&session).lock().await {
        Ok(guard) => guard,
        Err(error) => return world.failed(&error),
    };
    world.granted(guard.token());
    world.is_first(guard.token(), "m/");
    assert_eq!(holders.replace(1), 0, "two hold the lock");
    let (client, token) = (session.client().clone(), guard.token());
    let lease = session.orphan();
    drop(guard);
    let adopter = match Session::builder(&client).lease(lease).open().await {
        Ok(adopter) => adopter,
        Err(error) => return world.failed(&error),
    };
    *adopted.borrow_mut() = Some(adopter.clone());
    match mutex(&adopter).lock().await {
        Ok(again) => {
            assert_eq!(again.token(), token, "what was held with the lease is taken up");
            holders.set(0);
            if let Err(error) = again.unlock().await {
                world.failed(&error);
            }
        }
        Err(error) => world.failed(&error),
    }
}

/// When all is delivered, no key is left, and the lock can be had, by a token above all before.
async fn is_free_in_the_end(world: &World, sessions: &[Session]) {
    world.settle().await;
    let left = world.left(&["m/"]);
    assert!(left.is_empty(), "keys without an owner: {left:?}");
    for session in sessions {
        let guard = timeout(Duration::from_secs(60), mutex(session).lock()).await;
        let guard = match guard.expect("the lock is free") {
            // Its lease was ended, of which it is told by its first request after that.
            Err(error) if error.lost_reason().is_some() && world.is_struck() => continue,
            guard => guard.expect("nothing fails any more"),
        };
        world.granted(guard.token());
        guard.unlock().await.expect("nothing fails any more");
        assert!(session.is_valid());
    }
}

fn mutex(session: &Session) -> Mutex {
    Mutex::new(session, "m").expect("a name")
}
