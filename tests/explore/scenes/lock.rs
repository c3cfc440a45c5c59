//! Two clients that lock one mutex, and unlock it or drop their guard.

use std::cell::Cell;
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

/// When all is delivered, no key is left, and the lock can be had, by a token above all before.
async fn is_free_in_the_end(world: &World, sessions: &[Session]) {
    world.settle().await;
    let left = world.left(&["m/"]);
    assert!(left.is_empty(), "keys without an owner: {left:?}");
    for session in sessions {
        let guard = timeout(Duration::from_secs(60), mutex(session).lock()).await;
        let guard = guard.expect("the lock is free").expect("nothing fails any more");
        world.granted(guard.token());
        guard.unlock().await.expect("nothing fails any more");
        assert!(session.is_valid());
    }
}

fn mutex(session: &Session) -> Mutex {
    Mutex::new(session, "m").expect("a name")
}
