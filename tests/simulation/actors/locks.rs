//! Takes locks of all kinds, writes behind their fences, lets go.

use etcd_concurrency::{
    Election, Fence, FencedTxn, Leadership, LostReason, MultiLock, MultiLockGuard, Mutex, MutexGuard, Op,
    Result, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit, Session, Stm, StmTxn,
};
use fastrand::Rng;

use super::{Actor, lead};
use crate::checks::held::{self, Mode};
use crate::checks::log::{CAMPAIGN, GUARDED, PROCLAIM, text};
use crate::checks::orphans::InHand;
use crate::checks::told::Fate;
use crate::plan::Kind;
use crate::wide::{self, Wide};
use crate::world::World;

const PERMITS: u32 = 3;
const NAMES: usize = 4;

/// Whatever holds it.
enum Guard {
    Mutex(MutexGuard),
    Leader(Leadership),
    Reading(RwLockReadGuard),
    Writing(RwLockWriteGuard),
    /// And when it was asked for.
    Permit(SemaphorePermit, i64),
    Locks(MultiLockGuard),
}

impl Guard {
    /// What is held, how, and by which keys.
    fn held(&self) -> Vec<(String, Mode, Fence)> {
        match self {
            Self::Mutex(guard) => vec![("mutex".into(), Mode::Alone, guard.fence().clone())],
            Self::Leader(guard) => vec![("election".into(), Mode::Alone, guard.fence().clone())],
            Self::Reading(guard) => vec![("rwlock".into(), Mode::Shared, guard.fence().clone())],
            Self::Writing(guard) => vec![("rwlock".into(), Mode::Alone, guard.fence().clone())],
            Self::Permit(permit, since) => {
                let ours = u32::try_from(permit.permits()).unwrap_or(u32::MAX);
                vec![("semaphore".into(), Mode::Permits(ours, *since), permit.fence().clone())]
            }
            Self::Locks(guard) => {
                guard.fences().iter().map(|fence| (name_of(fence), Mode::Alone, fence.clone())).collect()
            }
        }
    }

    /// How many keys it holds.
    fn keys(&self) -> usize {
        match self {
            Self::Permit(permit, _) => permit.permits(),
            Self::Locks(guard) => guard.fences().len(),
            _ => 1,
        }
    }

    async fn lost(&self, first: &Fence) -> LostReason {
        match self {
            Self::Permit(permit, _) => permit.lost().await,
            Self::Locks(guard) => guard.lost().await,
            _ => first.lost().await,
        }
    }

    async fn release(self) -> Result<()> {
        match self {
            Self::Mutex(guard) => guard.unlock().await,
            Self::Leader(guard) => guard.resign().await,
            Self::Reading(guard) => guard.unlock().await,
            Self::Writing(guard) => guard.unlock().await,
            Self::Permit(permit, _) => permit.release().await,
            Self::Locks(guard) => guard.unlock().await,
        }
    }
}

/// The name that a key is for: `multi/2` of `multi/2/…`.
fn name_of(fence: &Fence) -> String {
    text(fence.key()).split('/').take(2).collect::<Vec<_>>().join("/")
}

/// The number is one that grows.
async fn take(kind: Kind, session: &Session, rng: &mut Rng, number: u64, since: i64) -> Result<Guard> {
    let tries = rng.u8(0..4) == 0;
    Ok(match kind {
        Kind::Election => {
            let value = format!("{CAMPAIGN}{number}");
            Guard::Leader(Election::new(session, "election")?.campaign(value).await?)
        }
        Kind::RwLock => {
            let lock = RwLock::new(session, "rwlock")?;
            match (rng.u8(0..3) == 0, tries) {
                (true, true) => Guard::Writing(lock.try_write().await?),
                (true, false) => Guard::Writing(lock.write().await?),
                (false, true) => Guard::Reading(lock.try_read().await?),
                (false, false) => Guard::Reading(lock.read().await?),
            }
        }
        Kind::Semaphore => {
            let (semaphore, permits) = (Semaphore::new(session, "semaphore", PERMITS)?, rng.u32(1..=PERMITS));
            let permit = match tries {
                true => semaphore.try_acquire_many(permits).await?,
                false => semaphore.acquire_many(permits).await?,
            };
            Guard::Permit(permit, since)
        }
        Kind::MultiLock => {
            let how_many = rng.usize(1..NAMES);
            let names = rng.choose_multiple(0..NAMES, how_many);
            let locks = MultiLock::new(session, names.iter().map(|name| format!("multi/{name}")))?;
            Guard::Locks(if tries { locks.try_lock().await? } else { locks.lock().await? })
        }
        _ => {
            let mutex = Mutex::new(session, "mutex")?;
            Guard::Mutex(if tries { mutex.try_lock().await? } else { mutex.lock().await? })
        }
    })
}

pub(super) async fn act(actor: &mut Actor, kind: Kind) {
    while let Some(session) = actor.session().await {
        match (kind, actor.rng.u8(0..8)) {
            (Kind::Election, 0 | 1) => {
                observe(actor, &session).await;
                continue;
            }
            (Kind::Election, 2 | 3) if wide::on(Wide::Lead) => {
                lead::act(actor, &session).await;
                continue;
            }
            (Kind::Semaphore, 0) if wide::on(Wide::Resize) => {
                resize(actor, &session).await;
                continue;
            }
            _ => {}
        }
        let (world, mut draws) = (actor.world.clone(), actor.rng.fork());
        let taking = take(kind, &session, &mut draws, world.id(), world.fake.revision());
        let guard = match world.wait("a lock", &mut actor.rng, Some(&session), taking).await {
            Some(Ok(guard)) => guard,
            failed => {
                if let Some(Err(error)) = failed {
                    held::failed(&world, &session, &error);
                }
                actor.world.pause(&mut actor.rng, 200).await;
                continue;
            }
        };
        let enter =
            |(name, mode, fence): (String, Mode, Fence)| held::enter(&world, &name, mode, &fence, &session);
        let mut ids: Vec<Option<u64>> = guard.held().into_iter().map(enter).collect();
        let in_hand = guard.held().first().map(|(_, _, fence)| InHand::of(&world, fence));
        if ids.contains(&None) {
            falls(&world, &guard, &session).await;
        }
        let Some(guard) = hold(actor, guard, &session, &mut ids).await else {
            ids.into_iter().for_each(|id| held::leave(&world, id));
            continue;
        };
        ids.into_iter().for_each(|id| held::leave(&world, id));
        falls(&world, &guard, &session).await;
        drop(in_hand);
        release(actor, guard, &session).await;
        if actor.rng.u8(0..4) > 0 {
            actor.a_while().await;
        }
    }
}

/// Without all of its keys a guard is lost, and each of its fences falls.
async fn falls(world: &World, guard: &Guard, session: &Session) {
    let fences: Vec<Fence> = guard.held().into_iter().map(|(_, _, fence)| fence).collect();
    let Some(first) = fences.first() else { return };
    held::falls(world, (first, guard.keys()), session, guard.lost(first)).await;
    let valid = fences.iter().filter(|fence| fence.is_valid()).count();
    if valid > 0 && valid < fences.len() {
        world.violate(format!("of the fences of one guard some are valid: {fences:?}"));
    }
}

/// Works for a while. Gives the guard back unless it was lost on the way.
async fn hold(actor: &mut Actor, guard: Guard, session: &Session, ids: &mut [Option<u64>]) -> Option<Guard> {
    for _ in 0..actor.rng.usize(0..4) {
        actor.a_while().await;
        held::believed(&actor.world, session);
        match &guard {
            Guard::Leader(leader) if actor.rng.bool() => {
                let proclaiming = leader.proclaim(format!("{PROCLAIM}{}", actor.world.id()));
                drop(actor.world.wait("a proclamation", &mut actor.rng, Some(session), proclaiming).await);
            }
            _ => write(actor, &guard, session).await,
        }
    }
    match guard {
        Guard::Writing(writing) if actor.rng.bool() => {
            // Readers may be in as soon as the server knows, which is before we hear of it.
            ids.iter().for_each(|id| held::share(&actor.world, *id));
            let sharing = writing.downgrade();
            let reading =
                actor.world.wait("a downgrade", &mut actor.rng, Some(session), sharing).await?.ok()?;
            actor.a_while().await;
            Some(Guard::Reading(reading))
        }
        guard => Some(guard),
    }
}

/// A write that only who holds may make.
async fn write(actor: &mut Actor, guard: &Guard, session: &Session) {
    let Some((_, _, fence)) = guard.held().into_iter().next() else { return };
    let txn = match guard {
        Guard::Locks(guard) => guard.txn(),
        _ => fence.txn(),
    };
    write_behind(actor, (&fence, guard.keys()), txn, session).await;
}

/// By either of both ways to make one, behind a fence of so many keys.
pub(super) async fn write_behind(
    actor: &mut Actor,
    (fence, keys): (&Fence, usize),
    txn: FencedTxn<'_>,
    session: &Session,
) {
    let (id, key) = (actor.world.id().to_string(), format!("{GUARDED}{}{}", actor.client, actor.slot));
    let value = format!("{id} {} {} {keys}", fence.token(), text(fence.key()));
    actor.world.puts(&id);
    let fate = if actor.rng.u8(0..4) == 0 {
        let stm = Stm::new(session.client()).fenced(fence);
        let body = |txn: StmTxn| {
            let put = txn.put(key.clone(), value.clone());
            async move { put }
        };
        let done = actor.world.wait("a fenced run", &mut actor.rng, Some(session), stm.run(body)).await;
        done.map(|done| done.map_or_else(|error| Fate::of(&error), |done| Fate::Done(Some(done.revision))))
    } else {
        let commit = txn.success(Op::put(key.clone(), value)).commit();
        let done = actor.world.wait("a fenced write", &mut actor.rng, Some(session), commit).await;
        done.map(|done| {
            done.map_or_else(|error| Fate::of(&error), |done| Fate::Done(Some(done.header.revision)))
        })
    };
    actor.world.was_put(&id, fate.unwrap_or(Fate::Unknown));
}

async fn release(actor: &mut Actor, guard: Guard, session: &Session) {
    let held = guard.held();
    match actor.rng.u8(0..8) {
        0 => drop(guard),
        1 => drop(session.close().await),
        _ => {
            let releasing = guard.release();
            let released = actor.world.wait("a release", &mut actor.rng, Some(session), releasing).await;
            if !matches!(released, Some(Ok(()))) {
                return;
            }
            let snapshot = actor.world.fake.snapshot();
            for (name, _, fence) in held {
                if snapshot.get(fence.key()).is_some_and(|kv| kv.create_revision == fence.token()) {
                    actor.world.violate(format!("{name} was released, and is there: {fence:?}"));
                }
            }
        }
    }
}

/// There may be fewer permits then than one that waits has asked for.
async fn resize(actor: &mut Actor, session: &Session) {
    let Ok(semaphore) = Semaphore::new(session, "semaphore", PERMITS) else { return };
    let permits = actor.rng.u32(1..2 * PERMITS);
    let resizing = semaphore.resize(permits);
    if let Some(Ok(())) =
        actor.world.wait("a change of permits", &mut actor.rng, Some(session), resizing).await
    {
        actor.world.count("resized");
    }
    drop(
        actor
            .world
            .wait("a count of permits", &mut actor.rng, Some(session), semaphore.available_permits())
            .await,
    );
    actor.a_while().await;
}

/// Leaders come one after another, and so does what one of them says.
async fn observe(actor: &mut Actor, session: &Session) {
    let Ok(election) = Election::new(session, "election") else { return };
    let (mut observer, mut before) = (election.observe(), (0, 0));
    for _ in 0..actor.rng.usize(1..6) {
        let patience = std::time::Duration::from_millis(actor.rng.u64(1..3_000));
        let Ok(Ok(seen)) = tokio::time::timeout(patience, observer.next()).await else { return };
        let Some(leader) = seen else { continue };
        let now = (leader.token, leader.mod_revision);
        if now <= before {
            actor.world.violate(format!("an observer saw {now:?} after {before:?}"));
        }
        before = now;
    }
}
