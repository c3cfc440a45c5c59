//! Two readers and a writer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::{RwLock, Session};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene { name: "rwlock", play: |world| Box::pin(play(world)), strikes: &[] };

/// How many read, and how many write.
#[derive(Default)]
struct Inside {
    readers: Cell<i32>,
    writers: Cell<i32>,
}

async fn play(world: Rc<World>) {
    let sessions = [world.session("a").await, world.session("b").await, world.session("c").await];
    world.gate.close();
    let inside = Rc::new(Inside::default());
    let [a, b, c] = sessions.each_ref().map(|session| Actor {
        world: world.clone(),
        lock: lock(session),
        inside: inside.clone(),
    });
    world.acts([spawn_local(reads(a)), spawn_local(writes(b)), spawn_local(reads(c))]).await;
    world.settle().await;
    let left = world.left(&["rw/"]);
    assert!(left.is_empty(), "keys without an owner: {left:?}");
    for session in &sessions {
        let guard = timeout(Duration::from_secs(60), lock(session).write()).await;
        let guard = guard.expect("the lock is free").expect("nothing fails any more");
        guard.unlock().await.expect("nothing fails any more");
    }
}

fn lock(session: &Session) -> RwLock {
    RwLock::new(session, "rw").expect("a name")
}

struct Actor {
    world: Rc<World>,
    lock: RwLock,
    inside: Rc<Inside>,
}

/// Reads, and lets go soon.
async fn reads(Actor { world, lock, inside }: Actor) {
    let guard = match lock.read().await {
        Ok(guard) => guard,
        Err(error) => return world.failed(&error),
    };
    inside.readers.set(inside.readers.get() + 1);
    assert_eq!(inside.writers.get(), 0, "one reads while another writes");
    sleep(Duration::from_millis(5)).await;
    inside.readers.set(inside.readers.get() - 1);
    if let Err(error) = guard.unlock().await {
        world.failed(&error);
    }
}

/// Writes until all is quiet, and drops its guard.
async fn writes(Actor { world, lock, inside }: Actor) {
    let guard = match lock.write().await {
        Ok(guard) => guard,
        Err(error) => return world.failed(&error),
    };
    world.is_first(guard.token(), "rw/");
    assert_eq!(
        (inside.readers.get(), inside.writers.replace(1)),
        (0, 0),
        "one writes while others are there"
    );
    world.quiet().await;
    inside.writers.set(0);
    drop(guard);
}
