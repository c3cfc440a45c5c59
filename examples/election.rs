//! Two candidates, of whom the second wins first and the first later; an observer who sees it all; and a leader who
//! leads again after its lease was lost.
//!
//! `cargo run --example election` runs on the fake etcd; with `ETCD_ENDPOINTS=http://127.0.0.1:2379` on a real one.
#![allow(clippy::print_stdout, reason = "an example tells what it sees")]

mod common;

use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::LeaseRevokeRequest;
use etcd_concurrency::{Candidate, Client, Election, Observer, Op, Session, Watch};

const SEAT: &str = "example/seat";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = common::client().await?;
    let (first, second) = (session(&client).await?, session(&client).await?);
    let mut observer = Election::new(&second, SEAT)?.observe();
    saw(&mut observer).await?;

    // The first takes its time, so the second wins.
    let leadership = Election::new(&second, SEAT)?.campaign("the second").await?;
    saw(&mut observer).await?;
    let waiting = Election::new(&first, SEAT)?;
    let mut arrivals = client.watch(Watch::prefix(format!("{SEAT}/")));
    arrivals.created().await?;
    let waiting = tokio::spawn(async move { waiting.campaign("the first").await });
    arrivals.next().await?;
    let contenders = Election::new(&first, SEAT)?.contenders().await?;
    println!("in the queue: {}", contenders.iter().map(name).collect::<Vec<_>>().join(", "));

    leadership.proclaim("the second, on port 7000").await?;
    saw(&mut observer).await?;
    leadership.txn().success(Op::put("example/schedule", "by the second")).commit().await?;
    println!("the second writes behind its fence, and resigns");
    leadership.resign().await?;
    saw(&mut observer).await?;
    waiting.await??.resign().await?;
    println!("the first has led too, and resigns");
    saw(&mut observer).await?;

    // For as long as one lives: the lease of the first term is revoked, the second term has another.
    let third = session(&client).await?;
    let mut terms = 0;
    let election = Election::new(&third, SEAT)?;
    let done = election.lead("the third", |leadership| {
        terms += 1;
        let (term, client) = (terms, client.clone());
        async move {
            println!("the third leads, term {term}, fencing token {}", leadership.token());
            if term == 1 {
                println!("its lease is revoked: the work is dropped where it waits");
                let revoke = LeaseRevokeRequest { id: leadership.session().lease() };
                client.lease_client().lease_revoke(revoke).await?;
                std::future::pending::<()>().await;
            }
            leadership.txn().success(Op::delete("example/schedule")).commit().await?;
            Ok::<_, Box<dyn std::error::Error>>(term)
        }
    });
    println!("the third is done in term {}", done.await??);
    for session in [first, second] {
        session.close().await?;
    }
    Ok(())
}

async fn session(client: &Client) -> etcd_concurrency::Result<Session> {
    Session::builder(client).ttl(Duration::from_secs(10)).open().await
}

/// Prints what the observer sees next.
async fn saw(observer: &mut Observer) -> etcd_concurrency::Result<()> {
    match observer.next().await? {
        Some(leader) => println!("the observer sees: {} leads", name(&leader)),
        None => println!("the observer sees: nobody leads"),
    }
    Ok(())
}

fn name(candidate: &Candidate) -> String {
    String::from_utf8_lossy(&candidate.value).into_owned()
}
