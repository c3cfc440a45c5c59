//! A double barrier of two, at which a third participant gives up.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::pb::mvccpb::event::EventType;
use etcd_concurrency::{DoubleBarrier, Session, Watch};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::play::{Scene, World};

pub(crate) const SCENE: Scene = Scene {
    name: "double-barrier",
    play: |world| Box::pin(play(world)),
    // It waits for that.
    strikes: &[("one of those who enter gives up", |_| ())],
};

async fn play(world: Rc<World>) {
    let [a, b, c] = [world.session("a").await, world.session("b").await, world.session("c").await];
    let mut events = world.fake.client_for("judge").watch(Watch::prefix("d/").from_revision(1));
    world.gate.close();
    let gives_up = {
        let world = world.clone();
        async move {
            let barrier = DoubleBarrier::new(&a, "d", 3).expect("a name");
            tokio::select! {
                biased;
                inside = barrier.enter() => drop(inside),
                () = world.struck() => {}
            }
        }
    };
    let others = [&b, &c].map(|session| spawn_local(enters(world.clone(), session.clone())));
    for act in [spawn_local(gives_up)].into_iter().chain(others) {
        act.await.expect("it does not panic");
    }
    world.settle().await;
    // Those who were there when it opened.
    let (mut there, mut has_opened) = (BTreeSet::new(), false);
    while let Ok(Ok(told)) = timeout(Duration::from_secs(1), events.next()).await {
        let mut opened = None;
        for event in told.events {
            let is_put = event.r#type() == EventType::Put;
            let kv = event.kv.expect("an event has a key");
            match (kv.key.starts_with(b"d/waiters/"), is_put) {
                (true, true) => _ = there.insert(kv.key),
                (true, false) => _ = there.remove(&kv.key),
                (false, true) if kv.key == "d/ready" => opened = Some(kv.mod_revision),
                (false, _) => {}
            }
        }
        if let Some(revision) = opened {
            has_opened = true;
            assert!(there.len() >= 3, "it opened at {revision} with {} participants", there.len());
        }
    }
    assert!(has_opened || world.has_failed(), "it never opened");
}

async fn enters(world: Rc<World>, session: Session) {
    let barrier = DoubleBarrier::new(&session, "d", 3).expect("a name");
    match timeout(Duration::from_secs(30), barrier.enter()).await {
        Ok(Ok(inside)) => match timeout(Duration::from_secs(30), inside.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => world.failed(&error),
            Err(_) => assert!(world.has_failed(), "all are to leave"),
        },
        Ok(Err(error)) => world.failed(&error),
        // Where one gives up, it never opens.
        Err(_) => assert!(world.has_failed(), "all are there"),
    }
}
