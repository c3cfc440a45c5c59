//! What an orphaned session leaves to who adopts its lease: what was held then, and nothing else.
//!
//! Keys that were held stay for as long as an adopter keeps the lease, and may keep others waiting for so long. So all
//! adopters end when nothing goes wrong any more: a key that is there then, or that others wait for, is one too many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Fence, Session};
use tokio::time::sleep;

use super::log::text;
use crate::world::World;

#[derive(Default)]
pub(crate) struct Orphans {
    leases: BTreeSet<i64>,
    /// What guards hold now, by their tokens, and how many guards.
    in_hand: BTreeMap<i64, usize>,
    /// The tokens that guards held when their session was orphaned.
    left: BTreeSet<i64>,
    adopters: Vec<Session>,
    /// Adopters that only keep the lease.
    idle: BTreeSet<i64>,
    /// Revisions between which a name's one key of a lease may have been put for good, by a request that came late.
    late: BTreeMap<i64, Vec<(i64, i64)>>,
}

impl Orphans {
    pub(crate) fn are_none(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether the lease was left to an adopter ever.
    pub(crate) fn knows(&self, lease: i64) -> bool {
        self.leases.contains(&lease)
    }

    pub(crate) fn orphaned(&mut self, lease: i64) {
        self.leases.insert(lease);
        self.left.extend(self.in_hand.keys());
    }

    /// A session has adopted a lease: one that is `idle` puts no keys.
    pub(crate) fn adopted(&mut self, session: Session, late: (i64, i64), idle: bool) {
        self.late.entry(session.lease()).or_default().push(late);
        if idle {
            self.idle.insert(session.lease());
        }
        self.adopters.push(session);
    }

    /// Of these keys those that have no place, for people to read.
    fn too_many(&self, keys: &[KeyValue]) -> String {
        let too_many = keys.iter().filter(|kv| !self.may_stay(kv));
        too_many.map(|kv| format!(" {} of {}", text(&kv.key), kv.create_revision)).collect()
    }

    /// Whether a key has a place where an adopter only keeps the lease.
    fn may_stay(&self, kv: &KeyValue) -> bool {
        let is_late = |(after, until): &(i64, i64)| (*after..=*until).contains(&kv.create_revision);
        let late = || self.late.get(&kv.lease).is_some_and(|late| late.iter().any(is_late));
        !self.idle.contains(&kv.lease)
            || !GUARDED.iter().any(|name| kv.key.starts_with(name.as_bytes()))
            || self.left.contains(&kv.create_revision)
            || NAMES_OWN.iter().any(|name| kv.key.starts_with(name.as_bytes())) && late()
    }
}

/// What a guard holds. Dropped where it is released or dropped.
pub(crate) struct InHand<'w>(&'w World, i64);

impl<'w> InHand<'w> {
    pub(crate) fn of(world: &'w World, fence: &Fence) -> Self {
        *world.orphans.borrow_mut().in_hand.entry(fence.token()).or_default() += 1;
        Self(world, fence.token())
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        let in_hand = &mut self.0.orphans.borrow_mut().in_hand;
        let guards = in_hand.remove(&self.1).unwrap_or_default();
        if guards > 1 {
            in_hand.insert(self.1, guards - 1);
        }
    }
}

/// Waits until adopters that only keep a lease have with it what was held, and no more; then ends all adopters.
pub(crate) async fn end(world: &World) -> Result<(), String> {
    let mut stays = String::new();
    for _ in 0..SETTLED.as_secs() {
        stays = world.orphans.borrow().too_many(&world.fake.snapshot().keys);
        if stays.is_empty() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    if !stays.is_empty() {
        return Err(format!("left to an adopter, and held by no guard:{stays}"));
    }
    let adopters = std::mem::take(&mut world.orphans.borrow_mut().adopters);
    for session in adopters {
        // It may be orphaned again, or lost.
        drop(session.close().await);
    }
    Ok(())
}

/// What only a guard keeps.
const GUARDED: [&str; 7] =
    ["mutex/", "election/", "rwlock/", "semaphore/queue/", "multi/", "queue/claims/", "urgent/claims/"];
/// Where a session puts the same key again.
const NAMES_OWN: [&str; 2] = ["mutex/", "election/"];
/// How long it may take until what was under way is taken back, once nothing goes wrong.
const SETTLED: Duration = Duration::from_secs(12);
