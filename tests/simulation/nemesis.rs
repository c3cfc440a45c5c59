//! Carries out what goes wrong.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_concurrency::fake::{Do, Fault, FaultPlan, Hold, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::request_op::Request;
use etcd_concurrency::pb::etcdserverpb::{RequestOp, TxnRequest, WatchResponse};
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Compare, Op, Session, Txn};
use tokio::time::{Instant, advance, sleep, sleep_until, timeout};
use tonic::Status;

use crate::checks::log::text;
use crate::plan::{CLIENTS, Event, GoesOn, What};
use crate::world::{BOUND, World};

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
        What::Stop { client, share, lasts, goes_on } => {
            let stopped = match goes_on {
                GoesOn::After(_) => Hold::new(),
                GoesOn::WhenAllIsQuiet => world.stopped[0].clone(),
                GoesOn::WhenAllHaveGone => world.stopped[1].clone(),
            };
            let on = On::rpc(Rpc::Txn).client(CLIENTS[client]).probability(share);
            mend(fake.fault(on, Do::hold(&stopped)), lasts).await;
            if let GoesOn::After(while_it_stands) = goes_on {
                sleep(while_it_stands).await;
                stopped.release();
            }
        }
        What::StraggleLong { client, share, longest, lasts } => {
            world.straggles(lasts, longest);
            let on = On::rpc(Rpc::Txn).client(CLIENTS[client]).probability(share);
            mend(fake.fault(on, Do::delay_up_to(longest)), lasts).await;
        }
        What::Lag { client, lasts } => {
            fake.lag(CLIENTS[client]);
            sleep(lasts).await;
            fake.catch_up(CLIENTS[client]);
        }
        What::Victims { client, share, longest, lasts } => {
            let on = On::response(Rpc::Watch).client(CLIENTS[client]).probability(share);
            let on = on.matching(|told: &WatchResponse| !told.events.is_empty());
            mend(fake.fault(on, Do::delay_up_to(longest).alone()), lasts).await;
        }
        What::Applied { client, share, lasts } => {
            let full = Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
            let writes = |txn: &TxnRequest| {
                let puts = |op: &RequestOp| matches!(op.request, Some(Request::RequestPut(_)));
                txn.success.iter().any(puts)
            };
            let on = On::rpc(Rpc::Txn).client(CLIENTS[client]).probability(share).matching(writes);
            mend(fake.fault(on, Do::lose_reply_by(LoseReply::Status(full))), lasts).await;
        }
        What::RefuseTokens { times, outdated: true } => fake.outdate_tokens(times),
        What::RefuseTokens { times, outdated: false } => fake.refuse_tokens(times),
        What::BreakName { number } => break_name(&world, number).await,
        What::Orphan { client, slot, by, after, used } => {
            orphan(&world, (client, slot), by, after, used).await
        }
    }
}

/// Whatever is still wrong is mended.
pub(crate) async fn end(world: &World) {
    world.fake.clear_faults();
    world.fake.restart().await.expect("nothing listens");
    world.fake.refuse_tokens(0);
    for name in CLIENTS {
        world.fake.catch_up(name);
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
    let keys = owned(world, "");
    if let Some(place) = number.checked_rem(keys.len()) {
        break_keys(world, &keys[place..=place]).await;
    }
}

/// Deletes all keys of a name in one revision, holders' and waiters'.
async fn break_name(world: &World, number: usize) {
    let all = owned(world, "");
    let Some(place) = number.checked_rem(all.len()) else { return };
    let name = text(&all[place].key).split('/').next().map(|name| format!("{name}/")).unwrap_or_default();
    break_keys(world, &owned(world, &name)).await;
}

/// Keys of those who hold or wait, under a name.
fn owned(world: &World, name: &str) -> Vec<KeyValue> {
    let names = ["mutex/", "election/", "rwlock/", "semaphore/", "multi/"];
    // Markers and slips are nobody's to touch.
    let touched = |kv: &KeyValue| {
        let key = text(&kv.key);
        kv.lease != 0 && key.starts_with(name) && names.iter().any(|name| key.starts_with(name))
    };
    world.fake.snapshot().keys.into_iter().filter(touched).collect()
}

async fn break_keys(world: &World, keys: &[KeyValue]) {
    let mut txn = Txn::new();
    for KeyValue { key, create_revision, .. } in keys {
        world.broken.borrow_mut().insert(*create_revision);
        let seen = Compare::create_revision(key.clone()).is(*create_revision);
        txn = txn.compare(seen).success(Op::delete(key.clone()));
    }
    // Where there is no server or leader they are not deleted, and only count as deleted.
    drop(world.observer.txn(txn).await);
}

/// Orphans a session under those who use it, and lets a client adopt the lease.
async fn orphan(world: &World, from: (usize, usize), by: usize, after: Duration, used: bool) {
    let Some(session) = world.session(from.0, from.1).filter(Session::is_valid) else { return };
    drop(world.take_session(from.0, from.1));
    let orphaned_at = world.fake.revision();
    let lease = session.orphan();
    world.orphans.borrow_mut().orphaned(lease);
    sleep(after).await;
    let adopting = Session::builder(&world.nodes[by].client).lease(lease).open();
    let Ok(Ok(session)) = timeout(BOUND / 2, adopting).await else { return };
    world.count("adopted");
    // Of another client's adoption the first knows nothing, and leaves it all that it may have put itself.
    let between = if by == from.0 { (orphaned_at, world.fake.revision()) } else { (0, i64::MAX) };
    if used {
        world.set_session(by, from.1, session.clone());
    }
    world.orphans.borrow_mut().adopted(session, between, !used);
}
