//! What a client does with a server that is not what it should be.

use std::future::Future;
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{
    Client, Counter, Election, Membership, Mutex, Op, Queue, Result, Semaphore, Session, Stm, Txn, Watch,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peer::{Script, Spoilt};

/// What one work may last while the server lies to it. It need not succeed; it must not spin.
const PATIENCE: Duration = Duration::from_secs(300);
/// What all works may ask of the server in that time: a request every few milliseconds would be a busy loop.
const REQUESTS: usize = 20_000;

/// Works on a server whose answers are spoilt as the input says; then it is an honest one, and must serve as ever.
pub(crate) async fn replay(input: &[u8]) {
    let fake = FakeEtcd::builder().history_limit(100).start();
    let script = Script::new(input);
    let spoilt = Spoilt::new(fake.service_for("spoilt"), script.clone());
    let client =
        Client::builder().service(spoilt.clone()).request_timeout(Duration::from_secs(5)).connect_lazy();
    let client = client.expect("a client");
    works(&client).await;
    let requests = spoilt.requests();
    assert!(requests < REQUESTS, "{requests} requests: a busy loop");

    // What it has left is gone with its leases, or at once.
    script.end();
    drop(client);
    let honest = fake.client_for("honest");
    let session = Session::builder(&honest).ttl(Duration::from_secs(10)).open().await.expect("a session");
    let mutex = Mutex::new(&session, "lock").expect("a name");
    let guard =
        timeout(Duration::from_secs(3600), mutex.lock()).await.expect("leases end").expect("the lock");
    guard.unlock().await.expect("unlocked");
    session.close().await.expect("closed");
    fake.until(|fake| fake.streams() == 0).await;
    assert_eq!(fake.watchers(), 0, "of streams that are gone");
}

async fn works(client: &Client) {
    let mut works = JoinSet::new();
    let mut go = |work: std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>| {
        // What fails fails: a typed error is all that can be asked for.
        works.spawn(async move { drop(timeout(PATIENCE, work).await) });
    };
    for _ in 0..2 {
        go(Box::pin(locks(client.clone())));
        go(Box::pin(elections(client.clone())));
        go(Box::pin(recipes(client.clone())));
        go(Box::pin(transactions(client.clone())));
    }
    go(Box::pin(watches(client.clone())));
    while let Some(done) = works.join_next().await {
        done.expect("no work panics");
    }
}

async fn open(client: &Client) -> Result<Session> {
    let session = Session::builder(client).ttl(Duration::from_secs(10));
    match session.clone().open().await {
        Ok(session) => Ok(session),
        Err(_) => session.open().await,
    }
}

async fn locks(client: Client) -> Result<()> {
    let session = open(&client).await?;
    let mutex = Mutex::new(&session, "lock")?;
    for _ in 0..4 {
        if let Ok(guard) = mutex.lock().await {
            // Whatever the server said: never for longer than the session lasts.
            assert!(!guard.is_valid() || session.is_valid());
            drop(guard.txn().success(Op::put("written", "x")).commit().await);
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(guard.unlock().await);
        }
        drop(mutex.try_lock().await);
    }
    session.close().await
}

async fn elections(client: Client) -> Result<()> {
    let session = open(&client).await?;
    let election = Election::new(&session, "election")?;
    let mut observer = election.observe();
    let observing = tokio::spawn(async move {
        while timeout(PATIENCE, observer.next()).await.is_ok_and(|next| next.is_ok()) {}
    });
    for _ in 0..3 {
        let leadership = election.campaign("me").await?;
        drop(leadership.proclaim("still me").await);
        drop(election.leader().await);
        drop(election.contenders().await);
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(leadership.resign().await);
    }
    observing.abort();
    session.close().await
}

async fn recipes(client: Client) -> Result<()> {
    let session = open(&client).await?;
    let queue = Queue::new(&session, "queue")?;
    for n in 0..3 {
        drop(queue.enqueue(format!("item {n}")).await);
        if let Ok(Ok(job)) = timeout(Duration::from_secs(20), queue.take()).await {
            drop(job.ack().await);
        }
        let permits = Semaphore::new(&session, "semaphore", 2)?;
        drop(timeout(Duration::from_secs(20), permits.acquire()).await);
        drop(Counter::new(&client, "counter")?.add(1).await);
    }
    let membership = Membership::new(&session, "members")?;
    drop(membership.join("here").await);
    session.close().await
}

async fn transactions(client: Client) -> Result<()> {
    let session = open(&client).await?;
    for _ in 0..4 {
        let stm = Stm::new(&client).max_attempts(20);
        let body = |txn: etcd_concurrency::StmTxn| async move {
            let number: Option<i64> = txn.get_parsed("number").await?;
            txn.get_prefix("numbers/").await?;
            txn.put("number", (number.unwrap_or(0) + 1).to_string())
        };
        drop(stm.run(body).await);
        drop(stm.exactly_once(&session).run(body).await);
        drop(client.txn(Txn::new().success(Op::get("number"))).await);
    }
    session.close().await
}

async fn watches(client: Client) -> Result<()> {
    let mut watcher = client.watch(Watch::prefix("").from_revision(1));
    for _ in 0..30 {
        timeout(Duration::from_secs(20), watcher.next()).await.ok().transpose()?;
    }
    Ok(())
}
