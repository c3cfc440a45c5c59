//! Members, residents and followers, and everything that goes wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::{MemberChange, Peer, Session};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{S, group};
use crate::recipes::world::{CLIENTS, TROUBLED, World, explore, open, patience};

/// Members that join, speak, leave and are dropped, residents that stay, followers, and everything that goes wrong. In
/// the end each follower's picture is the store's, the residents are there, and no other member is.
#[test]
fn random_schedules() {
    explore(async |world: World| {
        let actors = world.actors(act);
        let mut residents = Vec::new();
        for (actor, _) in CLIENTS.iter().enumerate() {
            let client = world.client(actor);
            residents.push(loop {
                let session = open(&client).await;
                if let Ok(resident) = group(&session, "group").remain(format!("r{actor}")).await {
                    break resident;
                }
            });
        }
        let mut followers = JoinSet::new();
        for actor in 0..3 {
            let client = world.client(actor);
            followers.spawn(async move { follow(open(&client).await).await });
        }
        actors.join_all().await;
        sleep(TROUBLED).await;
        let last = |world: &World| {
            let mut said: Vec<_> = world.fake.snapshot().keys.iter().map(|kv| kv.value.clone()).collect();
            said.sort();
            said
        };
        let settled = world.fake.until(|_| last(&world) == ["r0", "r1", "r2"]);
        timeout(S(120), settled).await.unwrap_or_else(|_| panic!("{:?}: {residents:?}", last(&world)));
        sleep(S(60)).await;
        let there: Vec<Peer> = group(&open(&world.fake.client()).await, "group").list().await.unwrap();
        for picture in followers.join_all().await.into_iter().flatten() {
            assert_eq!(picture, there.iter().map(|peer| (peer.key.clone(), peer.clone())).collect());
        }
        drop(residents);
        world.fake.until(|fake| fake.snapshot().keys.is_empty()).await;
    });

    /// The picture that one follower has in the end; none where its session was lost.
    async fn follow(session: Session) -> Option<BTreeMap<Bytes, Peer>> {
        let (mut changes, mut picture) = (group(&session, "group").changes(), BTreeMap::new());
        let end = tokio::time::Instant::now() + TROUBLED * 4;
        loop {
            match tokio::time::timeout_at(end, changes.next()).await {
                Err(_) => return Some(picture),
                Ok(Err(error)) => {
                    assert!(!session.is_valid(), "{error}");
                    return None;
                }
                Ok(Ok(MemberChange::Present(all))) => {
                    picture.extend(all.into_iter().map(|peer| (peer.key.clone(), peer)));
                }
                Ok(Ok(MemberChange::Joined(peer))) => {
                    assert!(picture.insert(peer.key.clone(), peer).is_none(), "it was here already");
                }
                Ok(Ok(MemberChange::Updated(peer))) => {
                    let before = picture.insert(peer.key.clone(), peer.clone()).expect("it was here");
                    assert!(before.mod_revision < peer.mod_revision);
                }
                Ok(Ok(MemberChange::Left(peer))) => {
                    assert_eq!(picture.remove(&peer.key).as_ref(), Some(&peer));
                }
                Ok(Ok(other)) => panic!("{other:?}"),
            }
        }
    }

    async fn act(world: World, actor: usize) {
        let (mut rng, client) = (world.rng(actor), world.client(actor));
        let mut session = open(&client).await;
        for _ in 0..8 {
            if !session.is_valid() {
                session = open(&client).await;
            }
            let limit = patience(&mut rng);
            if let Ok(Ok(member)) = timeout(limit, group(&session, "group").join("m")).await {
                sleep(Duration::from_millis(rng.u64(0..2_000))).await;
                let limit = patience(&mut rng);
                if let Ok(Ok(())) = timeout(limit, member.update("n")).await {
                    world.recorded(member.token()).await;
                }
                if rng.bool() {
                    let limit = patience(&mut rng);
                    let _ = timeout(limit, member.leave()).await;
                }
            }
            sleep(Duration::from_millis(rng.u64(0..2_000))).await;
        }
    }
}
