//! Locks of all kinds under drawn faults: who holds what is checked at every entry, and at the end nothing is left.
//!
//! `MODEL_SEED=x` replays one seed, `MODEL_SEEDS=n` draws so many.

use std::sync::{Arc, Mutex as Shared};
use std::time::Duration;

use etcd_concurrency::fake::{FakeEtcd, FaultPlan, Trouble};
use etcd_concurrency::{
    Client, Fence, MultiLock, MultiLockGuard, Result, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use etcd_concurrency::{Semaphore, SemaphorePermit, Session};
use fastrand::Rng;
use tokio::time::{sleep, timeout};

use crate::support::env;

const LENGTH: Duration = Duration::from_secs(40);
const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];
const PERMITS: u32 = 3;
const NAMES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    RwLock,
    Semaphore,
    MultiLock,
}

/// What one holds.
#[derive(Debug, Clone, PartialEq)]
enum What {
    Share,
    Alone,
    Permits(u32),
    Names(Vec<usize>),
}

/// Whatever holds it.
enum Guard {
    Reading(RwLockReadGuard),
    Writing(RwLockWriteGuard),
    Permit(SemaphorePermit),
    Locks(MultiLockGuard),
}

/// All that is held. An entry whose fences its session no longer calls valid holds nothing.
#[derive(Clone, Default)]
struct Held(Arc<Shared<Vec<Entry>>>);

type Entry = (u64, What, Vec<Fence>);

impl Held {
    fn enter(&self, what: What, fences: Vec<Fence>) -> u64 {
        let mut held = self.0.lock().unwrap();
        held.retain(|(_, _, fences)| fences.iter().all(Fence::is_valid));
        let mut permits = 0;
        for (_, other, fences) in held.iter() {
            let clash = match (&what, other) {
                (What::Share, What::Share) => false,
                (What::Names(ours), What::Names(theirs)) => ours.iter().any(|name| theirs.contains(name)),
                (What::Permits(_), What::Permits(theirs)) => {
                    permits += theirs;
                    false
                }
                _ => true,
            };
            assert!(!clash, "{what:?} beside {other:?} of {fences:?}");
        }
        if let What::Permits(ours) = what {
            assert!(permits + ours <= PERMITS, "{ours} permits beside {permits}");
        }
        let id = fastrand::u64(..);
        held.push((id, what, fences));
        id
    }

    /// A writer lets readers in.
    fn share(&self, id: u64) {
        self.0
            .lock()
            .unwrap()
            .iter_mut()
            .filter(|(other, ..)| *other == id)
            .for_each(|(_, what, _)| *what = What::Share);
    }

    fn leave(&self, id: u64) {
        self.0.lock().unwrap().retain(|(other, ..)| *other != id);
    }
}

impl Guard {
    fn fences(&self) -> Vec<Fence> {
        match self {
            Guard::Reading(guard) => vec![guard.fence().clone()],
            Guard::Writing(guard) => vec![guard.fence().clone()],
            Guard::Permit(permit) => vec![permit.fence().clone()],
            Guard::Locks(guard) => guard.fences().to_vec(),
        }
    }

    async fn release(self) -> Result<()> {
        match self {
            Guard::Reading(guard) => guard.unlock().await,
            Guard::Writing(guard) => guard.unlock().await,
            Guard::Permit(permit) => permit.release().await,
            Guard::Locks(guard) => guard.unlock().await,
        }
    }
}

async fn take(kind: Kind, session: &Session, rng: &mut Rng) -> Result<(What, Guard)> {
    let tries = rng.u8(0..4) == 0;
    Ok(match kind {
        Kind::RwLock => {
            let lock = RwLock::new(session, "x")?;
            match (rng.u8(0..3) == 0, tries) {
                (true, true) => (What::Alone, Guard::Writing(lock.try_write().await?)),
                (true, false) => (What::Alone, Guard::Writing(lock.write().await?)),
                (false, true) => (What::Share, Guard::Reading(lock.try_read().await?)),
                (false, false) => (What::Share, Guard::Reading(lock.read().await?)),
            }
        }
        Kind::Semaphore => {
            let (semaphore, permits) = (Semaphore::new(session, "x", PERMITS)?, rng.u32(1..=PERMITS));
            let permit = match tries {
                true => semaphore.try_acquire_many(permits).await?,
                false => semaphore.acquire_many(permits).await?,
            };
            (What::Permits(permits), Guard::Permit(permit))
        }
        Kind::MultiLock => {
            let how_many = rng.usize(1..4);
            let names = rng.choose_multiple(0..NAMES, how_many);
            let locks = MultiLock::new(session, names.iter().map(|name| format!("x/{name}")))?;
            let guard = if tries { locks.try_lock().await? } else { locks.lock().await? };
            (What::Names(names), Guard::Locks(guard))
        }
    })
}

/// Readers may be in as soon as the server knows, which is before we hear of it.
async fn share(held: &Held, id: u64, writing: RwLockWriteGuard) -> Result<RwLockReadGuard> {
    held.share(id);
    writing.downgrade().await
}

/// Takes, holds, lets go, gives up, in all ways there are.
async fn act(kind: Kind, client: Client, held: Held, mut rng: Rng) {
    let mut session: Option<Session> = None;
    loop {
        let Some(open) = session.clone().filter(Session::is_valid) else {
            session = Session::builder(&client).ttl(Duration::from_secs(5)).open().await.ok();
            continue;
        };
        let patience = Duration::from_millis(rng.u64(1..8_000));
        let Ok(Ok((what, guard))) = timeout(patience, take(kind, &open, &mut rng)).await else { continue };
        let id = held.enter(what, guard.fences());
        sleep(Duration::from_millis(rng.u64(0..2_000))).await;
        let guard = match guard {
            Guard::Writing(writing) if rng.bool() => match share(&held, id, writing).await {
                Ok(reading) => {
                    sleep(Duration::from_millis(rng.u64(0..2_000))).await;
                    Guard::Reading(reading)
                }
                Err(_) => continue,
            },
            guard => guard,
        };
        held.leave(id);
        match rng.u8(0..8) {
            0 => drop(guard),
            1 => drop(timeout(Duration::from_millis(1), guard.release()).await),
            2 => drop(open.close().await),
            _ => drop(guard.release().await),
        }
    }
}

async fn run(kind: Kind, seed: u64) {
    let fake = FakeEtcd::builder().seed(seed).history_limit(0).start();
    let held = Held::default();
    let mut rng = Rng::with_seed(seed);
    let mut plan = FaultPlan::new();
    for (when, trouble) in FaultPlan::drawn(seed, &CLIENTS, LENGTH).troubles() {
        // A lease that the server ends on a whim is one that its session calls valid for a while.
        if !matches!(trouble, Trouble::EndLease(_)) {
            plan = plan.at(when, trouble.clone());
        }
    }
    let mut actors = tokio::task::JoinSet::new();
    for name in CLIENTS {
        let client = fake.client_for(name);
        for _ in 0..3 {
            actors.spawn(act(kind, client.clone(), held.clone(), rng.fork()));
        }
    }
    tokio::select! {
        happened = fake.run(&plan) => happened.expect("nothing listens"),
        ended = actors.join_next() => panic!("an actor ended: {ended:?}"),
    }
    tokio::select! {
        () = sleep(LENGTH) => {}
        ended = actors.join_next() => panic!("an actor ended: {ended:?}"),
    }
    actors.shutdown().await;
    // What was dropped wherever it stood is settled, or ends with its lease.
    let clean = |fake: &FakeEtcd| {
        let snapshot = fake.snapshot();
        let left = snapshot.keys.iter().filter(|kv| kv.key != b"x/limit"[..]).count();
        left + fake.watchers() + fake.leases() == 0
    };
    let settled = timeout(Duration::from_secs(120), fake.until(clean)).await;
    assert!(settled.is_ok(), "left behind: {} {} watchers", fake.snapshot(), fake.watchers());
    // And nobody is locked out.
    let session = Session::open(&fake.client()).await.expect("a session");
    for _ in 0..4 {
        let taken = timeout(Duration::from_secs(10), take(kind, &session, &mut rng)).await;
        taken.expect("in time").expect("taken").1.release().await.expect("released");
    }
}

fn check(kind: Kind) {
    let seeds: Vec<u64> = match env("MODEL_SEED") {
        Some(seed) => vec![seed],
        None => (0..env("MODEL_SEEDS").unwrap_or(5)).map(|_| fastrand::u64(..) >> 16).collect(),
    };
    for seed in seeds {
        println!("{kind:?}: MODEL_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(run(kind, seed));
    }
}

#[test]
fn readers_and_writers_are_never_together() {
    check(Kind::RwLock);
}

#[test]
fn permits_never_exceed_their_number() {
    check(Kind::Semaphore);
}

#[test]
fn a_name_is_never_held_twice() {
    check(Kind::MultiLock);
}
