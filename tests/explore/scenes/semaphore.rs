//! Three clients that want one permit each, of two; and of one, once the semaphore is resized.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::{Semaphore, Session};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene {
    name: "semaphore",
    play: |world| Box::pin(play(world, true)),
    strikes: &[("a third party resizes it to one", |world| resize(world, 1))],
};

/// The same, where none lets go before all is quiet.
pub(crate) const KEPT: Scene = Scene {
    name: "semaphore-kept",
    play: |world| Box::pin(play(world, false)),
    strikes: &[("a third party resizes it to one", |world| resize(world, 1))],
};

fn resize(world: &World, permits: u32) {
    let (client, resized) = (world.fake.client_for("third"), world.since.clone());
    spawn_local(async move {
        let session = Session::open(&client).await.expect("nothing strikes the third party");
        let semaphore = Semaphore::new(&session, "s", 2).expect("a name");
        semaphore.resize(permits).await.expect("nothing strikes the third party");
        resized.set(Some(Instant::now()));
    });
}

/// Who has a permit, and since when no more were let go.
struct Out {
    permits: Cell<usize>,
    let_go: Cell<Instant>,
}

async fn play(world: Rc<World>, lets_go: bool) {
    let sessions = [world.session("a").await, world.session("b").await, world.session("c").await];
    world.gate.close();
    let out = Rc::new(Out { permits: Cell::new(0), let_go: Cell::new(Instant::now()) });
    let acts = sessions
        .each_ref()
        .map(|session| spawn_local(acquires(world.clone(), session.clone(), out.clone(), lets_go)));
    world.acts(acts).await;
    world.settle().await;
    let left: Vec<_> = world.left(&["s/"]).into_iter().filter(|key| !key.starts_with("s/limit")).collect();
    assert!(left.is_empty(), "keys without an owner: {left:?}");
    for session in &sessions {
        let permit = timeout(Duration::from_secs(60), semaphore(session).acquire()).await;
        let permit = permit.expect("all are free").expect("nothing fails any more");
        permit.release().await.expect("nothing fails any more");
    }
}

fn semaphore(session: &Session) -> Semaphore {
    Semaphore::new(session, "s", 2).expect("a name")
}

async fn acquires(world: Rc<World>, session: Session, out: Rc<Out>, lets_go: bool) {
    let began = Instant::now();
    let permit = match semaphore(&session).acquire().await {
        Ok(permit) => permit,
        Err(error) => return world.failed(&error),
    };
    out.permits.set(out.permits.get() + 1);
    // The larger of the limits that stood since there was room for more.
    let since = began.max(out.let_go.get());
    let limit = if world.since.get().is_some_and(|resized| resized < since) { 1 } else { 2 };
    assert!(out.permits.get() <= limit, "{} permits are out, of {limit}", out.permits.get());
    match lets_go {
        true => sleep(Duration::from_millis(5)).await,
        false => world.quiet().await,
    }
    out.permits.set(out.permits.get() - 1);
    out.let_go.set(Instant::now());
    if let Err(error) = permit.release().await {
        world.failed(&error);
    }
}
