//! Joins a group, stays in it, watches who is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::{MemberChange, MemberChanges, Membership, Peer, Session};
use tokio::time::{Instant, timeout};

use super::{Actor, locks};
use crate::checks::held::{self, Mode};
use crate::checks::log::{CAMPAIGN, MEMBERS, PROCLAIM};
use crate::world::{BOUND, Phase, World};

pub(super) async fn act(actor: &mut Actor) {
    while let Some(session) = actor.session().await {
        let Ok(group) = Membership::new(&session, "members") else { return };
        match actor.rng.u8(0..8) {
            0..4 => join(actor, &group, &session).await,
            4 | 5 => remain(actor, &group, &session).await,
            _ => follow(actor, &group).await,
        }
        actor.a_while().await;
    }
}

async fn join(actor: &mut Actor, group: &Membership, session: &Session) {
    let world = actor.world.clone();
    let joining = group.join(format!("{CAMPAIGN}{}", world.id()));
    let joined = world.wait("a join", &mut actor.rng, Some(session), joining).await;
    let Some(Ok(member)) = joined else { return };
    let id = held::enter(&world, "members", Mode::Shared, member.fence(), session);
    for _ in 0..actor.rng.usize(0..3) {
        actor.a_while().await;
        let updating = member.update(format!("{PROCLAIM}{}", world.id()));
        drop(world.wait("an update", &mut actor.rng, Some(session), updating).await);
        locks::write_behind(actor, (member.fence(), 1), member.txn(), session).await;
    }
    held::leave(&world, id);
    if actor.rng.u8(0..4) > 0 {
        drop(world.wait("leaving a group", &mut actor.rng, Some(session), member.leave()).await);
    }
}

/// Stays over the losses of its sessions, of which it opens its own.
async fn remain(actor: &mut Actor, group: &Membership, session: &Session) {
    let world = actor.world.clone();
    let remaining = group.remain(format!("{CAMPAIGN}{}", world.id()));
    let remained = world.wait("a resident", &mut actor.rng, Some(session), remaining).await;
    let Some(Ok(resident)) = remained else { return };
    for _ in 0..actor.rng.usize(0..4) {
        actor.a_while().await;
        resident.update(format!("{CAMPAIGN}{}", world.id()));
    }
    if actor.rng.u8(0..4) > 0 {
        drop(world.wait("a resident's leaving", &mut actor.rng, None, resident.leave()).await);
    }
}

/// Each change fits what was told before; and where nothing is wrong, all that is there is told soon.
async fn follow(actor: &mut Actor, group: &Membership) {
    let (mut changes, mut here) = (group.changes(), BTreeMap::new());
    for _ in 0..actor.rng.usize(0..20) {
        let patience = Duration::from_millis(actor.rng.u64(0..1_000));
        if !step(&actor.world, &mut changes, &mut here, patience).await {
            return;
        }
    }
    let calm_since = (actor.world.phase() != Phase::Rough).then(Instant::now);
    while calm_since.is_some() && !is_all(&actor.world, &here) {
        if calm_since.is_some_and(|since| since.elapsed() > BOUND) {
            return actor.world.violate(format!("a follower still believes in {here:?}"));
        }
        if !step(&actor.world, &mut changes, &mut here, Duration::from_millis(500)).await {
            return;
        }
    }
    actor.world.count("groups followed");
}

/// False where there is no next change.
async fn step(
    world: &World,
    changes: &mut MemberChanges,
    here: &mut BTreeMap<Bytes, Peer>,
    patience: Duration,
) -> bool {
    let change = match timeout(patience, changes.next()).await {
        Ok(Ok(change)) => change,
        Ok(Err(_)) => return false,
        Err(_) => return true,
    };
    let told = format!("{change:?}");
    let fits = match change {
        MemberChange::Present(all) => {
            let first = here.is_empty();
            here.extend(all.into_iter().map(|peer| (peer.key.clone(), peer)));
            first
        }
        MemberChange::Joined(peer) => here.insert(peer.key.clone(), peer).is_none(),
        MemberChange::Updated(peer) => {
            let revision = peer.mod_revision;
            here.insert(peer.key.clone(), peer).is_some_and(|before| before.mod_revision < revision)
        }
        MemberChange::Left(peer) => here.remove(&peer.key).is_some(),
        _ => false,
    };
    if !fits {
        world.violate(format!("a follower was told {told}, and had seen {here:?}"));
    }
    fits
}

fn is_all(world: &World, here: &BTreeMap<Bytes, Peer>) -> bool {
    let there = world.fake.snapshot().keys;
    let mut there = there.iter().filter(|kv| kv.key.starts_with(MEMBERS.as_bytes()));
    there.clone().count() == here.len()
        && there.all(|kv| here.get(&kv.key).is_some_and(|peer| peer.mod_revision == kv.mod_revision))
}
