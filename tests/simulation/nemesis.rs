//! Carries out what goes wrong.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_concurrency::fake::{Do, Fault, FaultPlan, LoseReply, On, Rpc};
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Compare, Op, Txn};
use tokio::time::{Instant, advance, sleep, sleep_until};

use crate::plan::{CLIENTS, Event, What};
use crate::world::World;

/// Lets one thing go wrong, and mends it.
pub(crate) async fn strike(world: Rc<World>, start: Instant, event: Event) {
    sleep_until(start + event.at).await;
    let fake = &world.fake;
    match event.what {
        What::Fake(trouble) => {
            let plan = FaultPlan::new().at(Duration::ZERO, trouble);
            fake.run(&plan).await.expect("nothing listens");
        }
        What::Straggle { client, share, delay, lasts } => {
            let on = On::rpc(Rpc::Txn).client(CLIENTS[client]).probability(share);
            mend(fake.fault(on, Do::delay(delay)), lasts).await;
        }
        What::AnswerLate { client, share, delay, lasts } => {
            let on = On::any().client(CLIENTS[client]).probability(share);
            mend(fake.fault(on, Do::delay_reply(delay)), lasts).await;
        }
        What::KeepAliveLate { client, delay, lasts } => {
            let on = On::response(Rpc::LeaseKeepAlive).client(CLIENTS[client]);
            mend(fake.fault(on, Do::delay(delay)), lasts).await;
        }
        What::KeepAliveFades { client, delay, late, lost } => {
            let name = CLIENTS[client];
            mend(fake.fault(On::response(Rpc::LeaseKeepAlive).client(name), Do::delay(delay)), late).await;
            mend(fake.fault(On::rpc(Rpc::LeaseKeepAlive).client(name), Do::vanish()), lost).await;
        }
        What::Hang { client, share, lasts } => {
            let on = On::rpc(Rpc::Txn).client(CLIENTS[client]).probability(share);
            mend(fake.fault(on, Do::lose_reply_by(LoseReply::Hang)), lasts).await;
        }
        What::EndLease { number, revoke } => end_lease(&world, number, revoke),
        What::BreakKey { number } => break_key(&world, number).await,
        What::Suspend { client, slept } => {
            let slept = u64::try_from(slept.as_millis()).unwrap_or_default();
            world.nodes[client].slept.fetch_add(slept, Ordering::Relaxed);
        }
        What::Freeze { client, lasts } => {
            let until = &world.nodes[client].frozen_until;
            until.set(until.get().max(Instant::now() + lasts));
        }
        What::StopAll { lasts } => advance(lasts).await,
        What::Close { client, slot } => {
            if let Some(session) = world.session(client, slot) {
                // It may fail: then the lease ends by itself.
                drop(session.close().await);
            }
        }
    }
}

/// Whatever is still wrong is mended.
pub(crate) async fn end(world: &World) {
    world.fake.clear_faults();
    world.fake.restart().await.expect("nothing listens");
    for name in CLIENTS {
        world.fake.heal(name);
        // What is silent for good would be found out by no client: HTTP/2 would tell it.
        world.fake.cut(name);
    }
}

async fn mend(fault: Fault, lasts: Duration) {
    sleep(lasts).await;
    fault.remove();
}

fn end_lease(world: &World, number: usize, revoke: bool) {
    let mut leases: Vec<i64> = world.fake.snapshot().leases.iter().map(|lease| lease.id).collect();
    leases.sort_unstable();
    let Some(place) = number.checked_rem(leases.len()) else { return };
    world.ended.borrow_mut().insert(leases[place]);
    match revoke {
        true => world.fake.revoke_lease(leases[place]),
        false => world.fake.expire_lease(leases[place]),
    };
}

/// Deletes a key behind its owner's back, if it still is the one that was seen.
async fn break_key(world: &World, number: usize) {
    let names = [&b"mutex/"[..], b"election/", b"rwlock/", b"semaphore/", b"multi/"];
    // Markers and slips are nobody's to touch.
    let touched = |kv: &KeyValue| kv.lease != 0 && names.iter().any(|name| kv.key.starts_with(name));
    let keys: Vec<KeyValue> = world.fake.snapshot().keys.into_iter().filter(touched).collect();
    let Some(place) = number.checked_rem(keys.len()) else { return };
    let KeyValue { key, create_revision, .. } = &keys[place];
    world.broken.borrow_mut().insert(*create_revision);
    let seen = Compare::create_revision(key.clone()).is(*create_revision);
    // Where there is no server or leader it is not deleted, and only counts as deleted.
    drop(world.observer.txn(Txn::new().compare(seen).success(Op::delete(key.clone()))).await);
}
