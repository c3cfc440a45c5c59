//! This crate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, Election, Mutex, Op as Write, Session, Stm, StmTxn, Txn};
use tokio::sync::mpsc;

use super::measure::{Future, Gap, Held, Op, Plan, Waiters, accounts, name, op};
use crate::Result;
use crate::works::Task;

pub(super) async fn plan(endpoint: &str, task: &Task) -> Result<Plan> {
    let mut ops = Vec::new();
    let first = Client::connect(endpoint).await?;
    match task.kind.as_str() {
        "lock" => {
            let session = Session::open(&first).await?;
            for _ in 0..task.workers {
                ops.push(lock(Mutex::new(&session, name("lock"))?));
            }
        }
        "tasks" => {
            let session = Session::open(&first).await?;
            let mutex = Mutex::new(&session, name("lock"))?;
            ops.extend((0..task.workers).map(|_| lock(mutex.clone())));
        }
        "handover" => {
            let (gap, name) = (Gap::new(), name("lock"));
            for _ in 0..task.workers {
                let client = if task.shared { first.clone() } else { Client::connect(endpoint).await? };
                ops.push(hand_over(
                    Mutex::new(&Session::open(&client).await?, &name)?,
                    gap.clone(),
                    task.hold,
                ));
            }
        }
        "try" => ops.push(failing_try(&first).await?),
        "stm" => return transfers(&first, endpoint, task).await,
        "stm-read" => ops.push(reads(&first)),
        "campaign" => ops.push(campaign(&Session::open(&first).await?)?),
        "failover-close" => ops.push(fail_over_by_close(first)),
        "failover-expiry" => ops.push(fail_over_by_expiry(first, endpoint.to_owned())),
        "proclaim" => ops.push(proclaim(&first, task.workers).await?),
        "sessions" => return Ok(Plan::Sessions(sessions(first, task.workers))),
        "waiters" => return waiters(first, task.workers).await,
        other => return Err(format!("not done: {other}").into()),
    }
    Ok(Plan::Cycles(ops, None))
}

fn lock(mutex: Mutex) -> Op {
    op(move || {
        let mutex = mutex.clone();
        async move {
            let start = Instant::now();
            mutex.lock().await?.unlock().await?;
            Ok(Some(start.elapsed()))
        }
    })
}

fn hand_over(mutex: Mutex, gap: Gap, hold: u64) -> Op {
    op(move || {
        let (mutex, gap) = (mutex.clone(), gap.clone());
        async move {
            let guard = mutex.lock().await?;
            let waited = gap.acquired();
            if hold > 0 {
                tokio::time::sleep(Duration::from_millis(hold)).await;
            }
            gap.releasing();
            guard.unlock().await?;
            Ok(waited)
        }
    })
}

async fn failing_try(client: &Client) -> Result<Op> {
    let name = name("lock");
    let held = Mutex::new(&Session::open(client).await?, &name)?.lock().await?;
    let mutex = Mutex::new(&Session::open(client).await?, &name)?;
    let held = Arc::new(held);
    Ok(op(move || {
        let (mutex, held) = (mutex.clone(), held.clone());
        async move {
            let start = Instant::now();
            match mutex.try_lock().await {
                Ok(_) => Err("it is held".into()),
                Err(_) => {
                    drop(held);
                    Ok(Some(start.elapsed()))
                }
            }
        }
    }))
}

async fn transfers(first: &Client, endpoint: &str, task: &Task) -> Result<Plan> {
    for account in 0..task.accounts {
        first.txn(Txn::new().success(Write::put(format!("account/{account}"), "1000"))).await?;
    }
    let attempts = Arc::new(AtomicU64::new(0));
    let (mut ops, count) = (Vec::new(), task.accounts);
    for _ in 0..task.workers {
        let stm = Stm::new(&Client::connect(endpoint).await?);
        let attempts = attempts.clone();
        ops.push(op(move || {
            let (stm, attempts) = (stm.clone(), attempts.clone());
            async move {
                let start = Instant::now();
                let keys = accounts(count);
                let done = stm.run(|txn| transfer(txn, keys.clone())).await?;
                attempts.fetch_add(done.attempts.into(), Ordering::Relaxed);
                Ok(Some(start.elapsed()))
            }
        }));
    }
    Ok(Plan::Cycles(ops, Some(attempts)))
}

async fn transfer(txn: StmTxn, keys: [String; 2]) -> etcd_concurrency::Result<()> {
    let values = txn.get_many(keys.clone()).await?;
    for ((key, value), change) in keys.into_iter().zip(values).zip([-1, 1]) {
        let number = value.as_deref().and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
        txn.put(key, (number.unwrap_or(0) + change).to_string())?;
    }
    Ok(())
}

fn reads(client: &Client) -> Op {
    let stm = Stm::new(client);
    op(move || {
        let stm = stm.clone();
        async move {
            let start = Instant::now();
            stm.run(|txn| async move { txn.get_many(accounts(1000)).await }).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

fn campaign(session: &Session) -> Result<Op> {
    let election = Election::new(session, name("election"))?;
    Ok(op(move || {
        let election = election.clone();
        async move {
            let start = Instant::now();
            election.campaign("me").await?.resign().await?;
            Ok(Some(start.elapsed()))
        }
    }))
}

/// The leader's session is closed when the other has waited for 20 ms.
fn fail_over_by_close(client: Client) -> Op {
    op(move || {
        let client = client.clone();
        async move {
            let name = name("election");
            let (leader, other) = (Session::open(&client).await?, Session::open(&client).await?);
            let _leads = Election::new(&leader, &name)?.campaign("leader").await?;
            let waiting = Election::new(&other, &name)?;
            let waiting =
                tokio::spawn(async move { waiting.campaign("other").await.map(|won| (won, Instant::now())) });
            tokio::time::sleep(Duration::from_millis(20)).await;
            let start = Instant::now();
            leader.close().await?;
            let (_won, at) = waiting.await??;
            other.close().await?;
            Ok(Some(at - start))
        }
    })
}

/// The leader has vanished, with a lease of two seconds: how long after these?
fn fail_over_by_expiry(client: Client, endpoint: String) -> Op {
    const TTL: Duration = Duration::from_secs(2);
    op(move || {
        let (client, endpoint) = (client.clone(), endpoint.clone());
        async move {
            let name = name("election");
            // Granted by hand, and kept alive by nobody.
            let vanished = Client::connect(endpoint.as_str()).await?;
            let grant = pb::LeaseGrantRequest { ttl: TTL.as_secs() as i64, id: 0 };
            let start = Instant::now();
            let lease = vanished.lease_client().lease_grant(grant).await?.into_inner().id;
            let key = format!("{name}/{lease:x}");
            vanished.txn(Txn::new().success(Write::put_with_lease(key, "leader", lease))).await?;
            let other = Session::open(&client).await?;
            let won = Election::new(&other, &name)?.campaign("other").await?;
            let took = start.elapsed();
            drop(won);
            other.close().await?;
            Ok(Some(took.saturating_sub(TTL)))
        }
    })
}

/// Until the last of the observers has heard of it.
async fn proclaim(client: &Client, observers: usize) -> Result<Op> {
    let election = Election::new(&Session::open(client).await?, name("election"))?;
    let leadership = Arc::new(election.campaign("0").await?);
    let (heard, mut all_heard) = mpsc::unbounded_channel();
    for _ in 0..observers {
        let mut observer = election.observe();
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Ok(state) = observer.next().await {
                let _ = heard.send(state.map(|leader| leader.value));
            }
        });
    }
    for _ in 0..observers {
        all_heard.recv().await.ok_or("an observer has ended")?;
    }
    let all_heard = Arc::new(tokio::sync::Mutex::new(all_heard));
    Ok(op(move || {
        let (leadership, all_heard) = (leadership.clone(), all_heard.clone());
        async move {
            let start = Instant::now();
            leadership.proclaim(format!("news {}", fastrand::u64(..))).await?;
            let mut all_heard = all_heard.lock().await;
            for _ in 0..observers {
                all_heard.recv().await.ok_or("an observer has ended")?;
            }
            Ok(Some(start.elapsed()))
        }
    }))
}

fn sessions(client: Client, count: usize) -> Box<dyn FnOnce() -> Future<Held>> {
    Box::new(move || {
        Box::pin(async move {
            let mut sessions = Vec::with_capacity(count);
            for _ in 0..count {
                sessions.push(Session::open(&client).await?);
            }
            Ok(Box::new(sessions) as Held)
        })
    })
}

async fn waiters(client: Client, count: usize) -> Result<Plan> {
    let name = name("lock");
    let held = Mutex::new(&Session::open(&client).await?, &name)?.lock().await?;
    let mut mutexes = Vec::with_capacity(count);
    for _ in 0..count {
        mutexes.push(Mutex::new(&Session::open(&client).await?, &name)?);
    }
    let (passed, mut all_passed) = mpsc::unbounded_channel();
    let queue_up = Box::new(move || -> Future<Held> {
        for mutex in mutexes {
            let passed = passed.clone();
            tokio::spawn(async move {
                let guard = mutex.lock().await?;
                // Nobody counts any more, and the rest need not have it.
                if passed.send(()).is_err() {
                    std::future::pending::<()>().await;
                }
                guard.unlock().await
            });
        }
        Box::pin(async { Ok(Box::new(()) as Held) })
    });
    let queued = Box::new(move || -> Future<usize> {
        let (mut kv, key) = (client.kv_client(), format!("{name}/").into_bytes());
        let mut range_end = key.clone();
        *range_end.last_mut().expect("not empty") += 1;
        Box::pin(async move {
            let request = pb::RangeRequest {
                key: key.into(),
                range_end: range_end.into(),
                count_only: true,
                ..Default::default()
            };
            Ok(usize::try_from(kv.range(request).await?.into_inner().count)?.saturating_sub(1))
        })
    });
    let hand_over = Box::new(move |times| -> Future<()> {
        Box::pin(async move {
            held.unlock().await?;
            for _ in 0..times {
                all_passed.recv().await.ok_or("a waiter has failed")?;
            }
            Ok(())
        })
    });
    Ok(Plan::Waiters(Waiters { queue_up, queued, hand_over }))
}
