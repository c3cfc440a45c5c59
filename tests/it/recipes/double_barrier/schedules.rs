//! Participants, and everything that goes wrong.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::pb::mvccpb::{Event, KeyValue, event::EventType};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{S, all_inside, barrier, leave};
use crate::recipes::world::{World, explore, open, patience};

/// Participants that come and go, some of them in the middle, and everything that goes wrong: who was let in was let in
/// with as many there as make up a round, and who was let out, when no caller of its round was there any more.
#[test]
fn random_schedules() {
    explore(async |world: World| {
        let mut actors = JoinSet::new();
        let callers = Callers::default();
        for actor in 0..7 {
            let (world, callers) = (world.clone(), callers.clone());
            actors.spawn(async move { act(world, callers, actor).await });
        }
        actors.join_all().await;
        world.recorded(world.revision()).await;
        all_differ(&world.between(0, world.revision()), &callers.lock().unwrap());
        let gone = world
            .fake
            .until(|fake| !fake.snapshot().keys.iter().any(|kv| kv.key.starts_with(b"round/waiters/")));
        timeout(S(120), gone).await.expect("no caller is left inside");
        // And it is as good as new.
        let session = open(&world.fake.client()).await;
        let trio: Vec<_> = (0..3).map(|_| barrier(&session, "round", 3)).collect();
        let inside = timeout(S(30), all_inside(&trio)).await.expect("a last round");
        for left in inside.into_iter().map(leave).collect::<Vec<_>>() {
            timeout(S(30), left).await.expect("its end").unwrap().unwrap();
        }
    });

    async fn act(world: World, callers: Callers, actor: usize) {
        let (mut rng, client) = (world.rng(actor), world.client(actor));
        let mut session = open(&client).await;
        for _ in 0..10 {
            if !session.is_valid() {
                session = open(&client).await;
            }
            let (barrier, limit, from) =
                (barrier(&session, "round", 3), patience(&mut rng), world.revision());
            callers.lock().unwrap().insert(session.lease(), actor);
            let entered = timeout(limit, barrier.enter()).await;
            let window = (from, world.revision());
            if let Ok(Ok(inside)) = entered {
                let three = |keys: &[_]| keys.len() >= 3;
                assert!(
                    world.held_between(window, "round/waiters/", three).await,
                    "let in alone: {window:?}"
                );
                sleep(Duration::from_millis(rng.u64(0..1_000))).await;
                let (limit, token, from) = (patience(&mut rng), inside.token(), world.revision());
                let left = timeout(limit, inside.leave()).await;
                let window = (from, world.revision());
                if let Ok(Ok(())) = left {
                    world.recorded(window.1).await;
                    let ready = world.between(token, window.1);
                    let ready = ready.iter().find_map(|event| {
                        let kv = event.kv.as_ref()?;
                        (kv.key == "round/ready" && kv.create_revision > 0).then_some(kv.mod_revision)
                    });
                    let ready = ready.expect("the round began");
                    let over = |keys: &[etcd_concurrency::pb::mvccpb::KeyValue]| {
                        keys.iter().all(|kv| kv.create_revision > ready)
                    };
                    assert!(
                        world.held_between(window, "round/waiters/", over).await,
                        "let out early: {window:?}"
                    );
                }
            }
            sleep(Duration::from_millis(rng.u64(0..1_500))).await;
        }
    }
}

/// Whose leases they are.
type Callers = Arc<Mutex<HashMap<i64, usize>>>;

/// A round is made up of the keys that stand as it begins: each is another caller's. A caller that had given up and come again
/// was counted twice.
fn all_differ(events: &[Event], callers: &HashMap<i64, usize>) {
    let mut there: HashMap<Bytes, KeyValue> = HashMap::new();
    for event in events {
        let kv = event.kv.clone().unwrap();
        match event.r#type() {
            EventType::Delete => drop(there.remove(&kv.key)),
            EventType::Put => drop(there.insert(kv.key.clone(), kv.clone())),
        }
        if kv.key != "round/ready" || event.r#type() == EventType::Delete {
            continue;
        }
        let named: Vec<i64> =
            std::str::from_utf8(&kv.value).unwrap().split(' ').flat_map(str::parse).collect();
        let let_in = |waiter: &&KeyValue| {
            let created = waiter.create_revision;
            waiter.key.starts_with(b"round/waiters/")
                && (named.contains(&created) || created == kv.mod_revision)
        };
        let of = |waiter: &KeyValue| callers.get(&waiter.lease).copied();
        let who: HashSet<_> = there.values().filter(let_in).filter_map(of).collect();
        assert!(who.len() >= 3, "the round of {} was opened for the callers {who:?}", kv.mod_revision);
    }
}
