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
    let acts = sessions.each_ref().map(|session| session.clone());
    let [a, b, c] = acts;
    let acts = [
        spawn_local(reads(a, inside.clone())),
        spawn_local(writes(b, inside.clone())),
        spawn_local(reads(c, inside)),
    ];
    for act in acts {
        act.await.expect("it does not panic");
    }
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

async fn reads(session: Session, inside: Rc<Inside>) {
    let Ok(guard) = lock(&session).read().await else { return };
    inside.readers.set(inside.readers.get() + 1);
    assert_eq!(inside.writers.get(), 0, "one reads while another writes");
    sleep(Duration::from_millis(5)).await;
    inside.readers.set(inside.readers.get() - 1);
    drop(guard.unlock().await);
}

async fn writes(session: Session, inside: Rc<Inside>) {
    let Ok(guard) = lock(&session).write().await else { return };
    assert_eq!(
        (inside.readers.get(), inside.writers.replace(1)),
        (0, 0),
        "one writes while others are there"
    );
    sleep(Duration::from_millis(5)).await;
    inside.writers.set(0);
    drop(guard);
}
