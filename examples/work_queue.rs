//! A queue of work: one who sends it, two workers of whom one dies with a job in hand, and one piece that nobody can do.
//!
//! `cargo run --example work_queue` runs on the fake etcd; with `ETCD_ENDPOINTS=http://127.0.0.1:2379` on a real one.
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

mod common;

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::LeaseRevokeRequest;
use etcd_concurrency::{Client, Job, Op, Queue, Session, Txn};
use tokio::time::timeout;

const QUEUE: &str = "example/thumbnails";
const DONE: &str = "example/thumbnails-done/";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = common::client().await?;
    let (sender, dies, works) = (session(&client).await?, session(&client).await?, session(&client).await?);

    // What is sent outlives its sender.
    for picture in ["ada.png", "broken.png", "grace.png", "alan.png"] {
        queue(&sender)?.enqueue(picture).await?;
    }
    println!("{} pieces of work", queue(&sender)?.len().await?);
    sender.close().await?;

    // A worker dies with a piece in hand. It goes back to its place, and the next who takes it is told that it is the
    // second.
    let job = queue(&dies)?.take().await?;
    println!("the first worker takes {}, and dies", name(&job));
    client.lease_client().lease_revoke(LeaseRevokeRequest { id: dies.lease() }).await?;
    println!("it is told why: {:?}", job.lost().await);
    let late = job.ack().await.expect_err("another may have it by now");
    println!("what it would still say of it is refused: {late}");

    let worker = queue(&works)?;
    while let Ok(job) = timeout(Duration::from_secs(1), worker.take()).await {
        work(job?).await?;
    }

    for letter in worker.dead_letters().await? {
        println!("given up: {}", String::from_utf8_lossy(&letter.value));
        worker.discard(&letter).await?;
    }
    let done = client.txn(Txn::new().success(Op::get_prefix(DONE)).success(Op::delete_prefix(DONE))).await?;
    let done = done.kvs(0).unwrap_or_default();
    assert_eq!(done.len(), 3, "each is done once, and the broken one is not");
    println!("done: {}, and nothing is left", done.len());
    works.close().await?;
    Ok(())
}

/// What a worker does with a piece of work.
async fn work(job: Job) -> etcd_concurrency::Result<()> {
    let picture = name(&job);
    if picture.starts_with("broken") {
        println!("delivery {} of {picture}: it cannot be done, and goes back", job.deliveries());
        return job.nack().await;
    }
    println!("delivery {} of {picture}: done", job.deliveries());
    // The result and the end of the job are one: no other worker's result can come in between, nor be lost.
    job.ack_with([Op::put(format!("{DONE}{picture}"), "a thumbnail")]).await
}

/// The same limit for all.
fn queue(session: &Session) -> etcd_concurrency::Result<Queue> {
    Queue::new(session, QUEUE)?.max_deliveries(3)
}

async fn session(client: &Client) -> etcd_concurrency::Result<Session> {
    Session::builder(client).ttl(Duration::from_secs(10)).open().await
}

fn name(job: &Job) -> String {
    String::from_utf8_lossy(job.value()).into_owned()
}
