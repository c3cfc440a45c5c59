//! Who holds what, at this very moment, by what each holder's session says: never too many, and tokens grow.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_concurrency::{Error, Fence, LostReason, Session};
use tokio::time::sleep;

use crate::wide::{self, Wide};
use crate::world::{Phase, World};

/// How something is held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Alone,
    Shared,
    /// So many permits, asked for since this revision.
    Permits(u32, i64),
}

impl Mode {
    /// How many keys it takes.
    fn keys(self) -> usize {
        match self {
            Self::Permits(permits, _) => permits as usize,
            Self::Alone | Self::Shared => 1,
        }
    }
}

#[derive(Default)]
pub(crate) struct Held {
    entries: BTreeMap<u64, Entry>,
    /// The greatest token so far that was held alone, and in any mode, for each name.
    tokens: BTreeMap<String, (i64, i64)>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    mode: Mode,
    fence: Fence,
    lease: i64,
}

/// What is held from here on. None where it was lost already, or taken away behind its owner's back.
pub(crate) fn enter(world: &World, name: &str, mode: Mode, fence: &Fence, session: &Session) -> Option<u64> {
    let lease = session.lease();
    let snapshot = world.fake.snapshot();
    let gone = |key: &[u8], token| snapshot.get(key).is_none_or(|kv| kv.create_revision != token);
    // Who adopts a lease may take up a key whose deletion is under way.
    let adopted = world.orphans.borrow().knows(lease);
    if world.is_taken(lease, fence.token()) || adopted && gone(fence.key(), fence.token()) {
        return None;
    }
    if !fence.is_valid() {
        // Nothing runs between the crate's own look at its clock and this one.
        world.violate(format!("{name} was handed out, and is lost: {fence:?}"));
        return None;
    }
    world.count("held");
    if snapshot.lease(lease).is_none() {
        world.violate(format!("{name} is held by a lease {lease:x} that has ended: {fence:?}"));
    }
    if standing(world, fence, lease) < mode.keys() || gone(fence.key(), fence.token()) {
        world.violate(format!("{name} is held by a key that is not there: {fence:?}"));
    }
    let held = &mut *world.held.borrow_mut();
    held.entries.retain(|_, Entry { fence, lease, .. }| {
        let taken = world.is_taken(*lease, fence.token())
            || world.orphans.borrow().knows(*lease) && gone(fence.key(), fence.token());
        fence.is_valid() && !taken
    });
    let mut permits = 0;
    for entry in held.entries.values().filter(|entry| entry.name == name) {
        match (mode, entry.mode) {
            (Mode::Shared, Mode::Shared) => {}
            (Mode::Permits(..), Mode::Permits(theirs, _)) => permits += theirs,
            _ => world.violate(format!("{name} is held twice: {mode:?} {fence:?} beside {entry:?}")),
        }
    }
    if let Mode::Permits(ours, since) = mode {
        world.told.borrow_mut().permits.push((since, world.fake.revision(), permits + ours));
    }
    let (alone, any) = held.tokens.entry(name.to_owned()).or_default();
    let before = if mode == Mode::Alone { *any } else { *alone };
    let taken_up = adopted && fence.token() == before;
    if fence.token() <= before && !taken_up && !matches!(mode, Mode::Permits(..)) {
        world.violate(format!("{name}: the token {} comes after {before}, {mode:?}", fence.token()));
    }
    *any = fence.token().max(*any);
    if mode == Mode::Alone {
        *alone = fence.token().max(*alone);
    }
    let id = world.id();
    held.entries.insert(id, Entry { name: name.to_owned(), mode, fence: fence.clone(), lease });
    Some(id)
}

/// How many keys are there that were put together with this one.
fn standing(world: &World, fence: &Fence, lease: i64) -> usize {
    let keys = world.fake.snapshot().keys;
    keys.iter().filter(|kv| kv.create_revision == fence.token() && kv.lease == lease).count()
}

/// What is held by keys of which a third party has deleted one is lost as soon as that can be told.
pub(crate) async fn falls(
    world: &World,
    (fence, keys): (&Fence, usize),
    session: &Session,
    lost: impl Future<Output = LostReason>,
) {
    let adopted = world.orphans.borrow().knows(session.lease());
    if !adopted && !world.broken.borrow().contains(&fence.token()) {
        return;
    }
    if standing(world, fence, session.lease()) >= keys {
        return;
    }
    let overdue = async {
        while world.phase() == Phase::Rough {
            sleep(Duration::from_secs(1)).await;
        }
        sleep(TOLD).await;
    };
    tokio::select! {
        biased;
        _ = lost => world.count("told of a deleted key"),
        () = overdue => world.violate(format!("it is held by a key that was deleted long ago: {fence:?}")),
    }
}

/// How long it may take until a deleted key is told of, where nothing is wrong.
const TOLD: Duration = Duration::from_secs(10);

/// A key is told of as deleted where somebody deleted one, or ended a lease: it does not go by itself.
pub(crate) fn failed(world: &World, session: &Session, error: &Error) {
    let nothing_was = world.broken.borrow().is_empty() && world.ended.borrow().is_empty();
    let taken_up = world.orphans.borrow().knows(session.lease());
    if error.lost_reason() == Some(LostReason::KeyDeleted) && nothing_was && !taken_up && session.is_valid() {
        world.violate(format!("it is said that a key was deleted, and none was: {error}"));
    }
    let told = error.to_string();
    let refused =
        ["invalid auth token", "revision of auth store is old"].iter().any(|words| told.contains(words));
    if refused && wide::on(Wide::Tokens) {
        world.violate(format!("a token that is refused ends what needs one: {told}"));
    }
}

/// Whoever believes in a session now is right: the server has its lease.
pub(crate) fn believed(world: &World, session: &Session) {
    let lease = session.lease();
    if session.is_valid() && !world.is_taken(lease, 0) && world.fake.snapshot().lease(lease).is_none() {
        world.violate(format!("a session is valid whose lease {lease:x} has ended: {session:?}"));
    }
}

/// It is shared from here on.
pub(crate) fn share(world: &World, id: Option<u64>) {
    let held = &mut *world.held.borrow_mut();
    if let Some(entry) = id.and_then(|id| held.entries.get_mut(&id)) {
        entry.mode = Mode::Shared;
    }
}

/// It is held no longer.
pub(crate) fn leave(world: &World, id: Option<u64>) {
    if let Some(id) = id {
        world.held.borrow_mut().entries.remove(&id);
    }
}
