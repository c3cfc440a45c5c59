//! Many clients of one fake that make transactions while all goes wrong.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, FaultPlan, LoseReply, On, Rpc};
use etcd_concurrency::{Client, Session};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A session, however often that takes.
pub(super) async fn open(client: &Client) -> Session {
    loop {
        match Session::builder(client).ttl(Duration::from_secs(20)).open().await {
            Ok(session) => return session,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// So many clients' names.
pub(super) fn names(workers: usize) -> Vec<String> {
    (0..workers).map(|worker| format!("w{worker}")).collect()
}

/// Some of a client's transactions are not applied, and some are and get no answer.
pub(super) fn loses(fake: &FakeEtcd, client: &str) {
    let txns = || On::rpc(Rpc::Txn).client(client);
    fake.fault(txns().probability(0.02), Do::lose_reply());
    fake.fault(txns().probability(0.02), Do::cut());
    fake.fault(txns().probability(0.003), Do::lose_reply_by(LoseReply::Hang));
}

/// What the workers told, of whom each met faults that were drawn.
pub(super) async fn under_trouble<T: 'static>(
    fake: &FakeEtcd,
    names: &[String],
    seed: u64,
    workers: JoinSet<Vec<T>>,
) -> Vec<T> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let trouble = async {
        for n in 0.. {
            let plan = FaultPlan::drawn(seed.wrapping_add(n), &names, Duration::from_secs(60));
            fake.run(&plan).await.expect("nothing listens");
        }
    };
    tokio::select! {
        all = workers.join_all() => all.into_iter().flatten().collect(),
        () = trouble => unreachable!("there is no end of it"),
    }
}

/// Ends all trouble, and waits until nothing is under way.
pub(super) async fn settled(fake: &FakeEtcd) {
    fake.clear_faults();
    fake.restart().await.expect("nothing listens");
    // No straggler is to come after it.
    sleep(Duration::from_secs(60)).await;
}
