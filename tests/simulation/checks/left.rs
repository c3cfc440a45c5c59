//! What is left when the dust has settled: nothing but data.

use std::time::Duration;

use etcd_concurrency::fake::{FakeEtcd, LeaseSnapshot};
use tokio::time::sleep;

use super::log::{COUNTER, GUARDED, LATCHES, READY, text};
use crate::world::World;

/// What may stay. Everything else belongs to somebody who is gone.
const DATA: [&str; 9] = [
    GUARDED,
    "stm/",
    "queue/items/",
    "queue/returns/",
    "urgent/items/",
    "urgent/returns/",
    "semaphore/limit",
    LATCHES,
    // Where the last to leave was dropped, the next to enter finds out that it is stale.
    READY,
];

/// No lease is left, but empty ones with which an item of a queue was to be put again: where no attempt to grant one was answered
/// for sure it is not used, and lives for its ten minutes.
pub(crate) fn no_leases(fake: &FakeEtcd) -> bool {
    let empty = |lease: &LeaseSnapshot| lease.keys.is_empty() && lease.ttl == SAVES;
    fake.leases() == 0 || fake.snapshot().leases.iter().all(empty)
}

/// The TTL of such a lease, in seconds; no session of the simulation has one as long.
const SAVES: i64 = 600;

/// Waits until nothing is left, and tells what is.
pub(crate) async fn settled(world: &World, tasks: usize) -> Result<(), String> {
    let mut left = String::new();
    // Longer than any lease, and than any request that may straggle. That another client's lease has ended, one that had
    // orphaned it finds out by a look every one to two minutes.
    let longest = if world.orphans.borrow().are_none() { 120 } else { 120 + 2 * 120 };
    for _ in 0..longest {
        left = look(world, tasks);
        if left.is_empty() {
            return Ok(());
        }
        sleep(Duration::from_secs(1)).await;
    }
    Err(format!("left behind:{left}"))
}

/// Waits until no key is left of those who held or waited, while their sessions live; it must not take long.
pub(crate) async fn without_owners(world: &World) -> Result<(), String> {
    let mut left = String::new();
    for _ in 0..OWNERLESS.as_secs() {
        sleep(Duration::from_secs(1)).await;
        let keys = world.fake.snapshot().keys;
        let keys = keys.iter().filter(|kv| kv.lease != 0);
        let owned = keys.filter(|kv| OWNED.iter().any(|name| kv.key.starts_with(name.as_bytes())));
        left = owned.map(|kv| format!(" {} of {}", text(&kv.key), kv.create_revision)).collect();
        if left.is_empty() {
            return Ok(());
        }
    }
    Err(format!("keys without an owner, {OWNERLESS:?} after all was quiet:{left}"))
}

/// What only those have who hold or wait.
const OWNED: [&str; 11] = [
    "mutex/",
    "election/",
    "rwlock/",
    "semaphore/",
    "multi/",
    "members/",
    "double/waiters/",
    "queue/claims/",
    "queue/waiting/",
    "urgent/claims/",
    "urgent/waiting/",
];

/// How long keys may stay that came late.
const OWNERLESS: Duration = Duration::from_secs(8);

fn look(world: &World, tasks: usize) -> String {
    let fake = &world.fake;
    let mut left = String::new();
    for kv in fake.snapshot().keys {
        let key = text(&kv.key);
        if key != COUNTER && !DATA.iter().any(|data| key.starts_with(data)) {
            left += &format!(" {key}");
        }
    }
    let now = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    // The record is one watcher, on one stream.
    for (what, there, most) in [
        ("leases", usize::from(!no_leases(fake)), 0),
        ("watchers", fake.watchers(), 1),
        ("streams", fake.streams(), 1),
        ("tasks", now, tasks),
    ] {
        if there > most {
            left += &format!(" {there} {what}");
        }
    }
    left
}
