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
    let acts = [spawn_local(gives_up), spawn_local(enters(b.clone())), spawn_local(enters(c.clone()))];
    for act in acts {
        act.await.expect("it does not panic");
    }
    world.settle().await;
    // Those who were there when it opened.
    let mut there = BTreeSet::new();
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
            assert!(there.len() >= 3, "it opened at {revision} with {} participants", there.len());
        }
    }
}

async fn enters(session: Session) {
    let barrier = DoubleBarrier::new(&session, "d", 3).expect("a name");
    // Where one gives up, it never opens.
    if let Ok(Ok(inside)) = timeout(Duration::from_secs(30), barrier.enter()).await {
        drop(timeout(Duration::from_secs(30), inside.leave()).await);
    }
}
