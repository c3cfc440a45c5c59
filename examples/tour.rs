//! A session, a lock with two rivals, and a write that is refused once the lock is lost.
//!
//! `cargo run --example tour` runs on the fake etcd; with `ETCD_ENDPOINTS=http://127.0.0.1:2379` on a real one.
#![allow(clippy::print_stdout, reason = "a tour tells what it sees")]

mod common;

use std::time::Duration;

use etcd_concurrency::{Client, Compare, ErrorKind, Mutex, MutexGuard, Op, Session, Txn};
use tokio::task::JoinHandle;

const LOCK: &str = "tour/lock";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = common::client().await?;
    let alice = session(&client, "alice").await?;
    let guard = Mutex::new(&alice, LOCK)?.lock().await?;
    println!("alice has the lock: key {}, fencing token {}", text(guard.key()), guard.token());

    let bob = session(&client, "bob").await?;
    let carol = session(&client, "carol").await?;
    let bobs = queue_up(&client, &bob, 2).await?;
    println!("bob waits");
    let carols = queue_up(&client, &carol, 3).await?;
    println!("carol waits behind bob");

    let dave = session(&client, "dave").await?;
    match Mutex::new(&dave, LOCK)?.try_lock().await {
        Err(error) if *error.kind() == ErrorKind::Locked => println!("dave tries, and is told: {error}"),
        other => return Err(format!("dave should have been refused: {other:?}").into()),
    }

    guard.txn().success(Op::put("tour/owner", "alice")).commit().await?;
    println!("alice writes behind her fence: the server commits it, since she holds the lock");
    guard.unlock().await?;
    println!("alice unlocks");

    let bobs = bobs.await??;
    println!("bob has the lock, with a greater token: {}", bobs.token());

    // What a pause longer than the TTL does to a holder: the server gives his lease up.
    println!("bob's lease is revoked behind his back");
    let revoke = etcd_concurrency::pb::etcdserverpb::LeaseRevokeRequest { id: bob.lease() };
    client.lease_client().lease_revoke(revoke).await?;
    println!("bob is told at once: {}", bobs.lost().await);

    let carols = carols.await??;
    println!("carol has the lock, with a greater token: {}", carols.token());
    carols.txn().success(Op::put("tour/owner", "carol")).commit().await?;
    println!("carol writes behind her fence");

    // His guard knows, and sends nothing.
    let late = bobs.txn().success(Op::put("tour/owner", "bob")).commit().await;
    println!("bob's guard refuses to write: {}", late.err().ok_or("bob wrote without the lock")?);
    // And if it did not know: the server refuses.
    let sent = Txn::new().compare(bobs.is_owner()).success(Op::put("tour/owner", "bob"));
    let reply = client.txn(sent.failure(Op::get("tour/owner"))).await?;
    assert!(!reply.succeeded, "the server took a write from a holder of the past");
    let owner = reply.kvs(0).and_then(|kvs| kvs.first()).ok_or("nobody wrote")?;
    println!(
        "a write of his that was under way is refused by the server: the owner is {}",
        text(&owner.value)
    );

    carols.unlock().await?;
    for session in [alice, bob, carol, dave] {
        session.close().await?;
    }
    client.txn(Txn::new().compare(Compare::exists("tour/owner")).success(Op::delete("tour/owner"))).await?;
    println!("all sessions are closed; nothing is left");
    Ok(())
}

async fn session(client: &Client, who: &str) -> etcd_concurrency::Result<Session> {
    let session = Session::builder(client).ttl(Duration::from_secs(10)).open().await?;
    println!("{who} opens a session: lease {:x}, ttl {:?}", session.lease(), session.ttl());
    Ok(session)
}

/// Lets a session ask for the lock, and waits until it stands in the queue as number `place`.
async fn queue_up(
    client: &Client,
    session: &Session,
    place: usize,
) -> Result<JoinHandle<etcd_concurrency::Result<MutexGuard>>, Box<dyn std::error::Error>> {
    let mutex = Mutex::new(session, LOCK)?;
    let waiting = tokio::spawn(async move { mutex.lock().await });
    loop {
        let queue = client.txn(Txn::new().success(Op::get_prefix(format!("{LOCK}/")))).await?;
        if queue.kvs(0).map_or(0, <[_]>::len) == place {
            return Ok(waiting);
        }
        tokio::task::yield_now().await;
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
