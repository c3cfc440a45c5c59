//! Bare tonic stubs: the least that the work can be done with, and nothing around it. No error is mended, and nothing
//! is believed for less long than it might be.

mod stubs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_concurrency::pb::etcdserverpb as pb;
use pb::compare::{CompareTarget, TargetUnion};
use pb::request_op::Request as Ask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use stubs::{Bare, ask, cancel, compare, create, get, missing, next, put, queue, ranges};

use super::measure::{Future, Gap, Held, Op, Plan, Waiters, accounts, name, op};
use crate::Result;
use crate::works::Task;

/// With `same`, a lock's messages are those of the crate: what it costs the server to read who stands before, and to
/// delete a key only if it is the owner's own.
pub(super) async fn plan(endpoint: &str, task: &Task, same: bool) -> Result<Plan> {
    let mut ops = Vec::new();
    let first = Bare::connect(endpoint).await?;
    match task.kind.as_str() {
        // An election of one is the same as a lock.
        "lock" | "campaign" => {
            let lease = first.grant(60).await?;
            for _ in 0..task.workers {
                ops.push(match same {
                    true => guarded_lock(first.clone(), name("lock"), lease),
                    false => lock(first.clone(), name("lock"), lease),
                });
            }
        }
        "handover" => {
            let (gap, name) = (Gap::new(), name("lock"));
            for _ in 0..task.workers {
                let bare = if task.shared { first.clone() } else { Bare::connect(endpoint).await? };
                ops.push(hand_over(bare, &name, gap.clone(), task.hold).await?);
            }
        }
        "try" => ops.push(failing_try(first).await?),
        "stm" => return transfers(first, endpoint, task).await,
        "stm-read" => ops.push(reads(first)),
        "failover-close" => ops.push(fail_over(first, false)),
        "failover-expiry" => ops.push(fail_over(first, true)),
        "proclaim" => ops.push(proclaim(first, task.workers).await?),
        "sessions" => return Ok(Plan::Sessions(sessions(first, task.workers))),
        "waiters" => return waiters(first, task.workers).await,
        other => return Err(format!("not done: {other}").into()),
    }
    Ok(Plan::Cycles(ops, None))
}

fn lock(bare: Bare, name: String, lease: i64) -> Op {
    let key = format!("{name}/{lease:x}");
    op(move || {
        let (bare, key) = (bare.clone(), key.clone());
        async move {
            let start = Instant::now();
            let txn = pb::TxnRequest {
                compare: vec![missing(&key)],
                success: vec![ask(Ask::RequestPut(put(&key, "", lease)))],
                failure: vec![ask(Ask::RequestRange(get(&key)))],
            };
            if !bare.txn(txn).await?.succeeded {
                return Err("somebody has it".into());
            }
            bare.delete(&key).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

/// The messages of the crate, byte for byte.
fn guarded_lock(bare: Bare, name: String, lease: i64) -> Op {
    let key = format!("{name}/{lease:x}");
    op(move || {
        let (bare, name, key) = (bare.clone(), name.clone(), key.clone());
        async move {
            let start = Instant::now();
            let ahead = ask(Ask::RequestRange(queue(&name, 0)));
            let txn = pb::TxnRequest {
                compare: vec![missing(&key)],
                success: vec![ask(Ask::RequestPut(put(&key, "", lease))), ahead],
                failure: vec![ask(Ask::RequestRange(get(&key)))],
            };
            let reply = bare.txn_with_leader(txn).await?;
            let created = reply.header.as_ref().ok_or("no header")?.revision;
            let others = ranges(reply).next().ok_or("no range")?.count - 1;
            if others > 0 {
                return Err("somebody has it".into());
            }
            let delete = pb::DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
            let txn = pb::TxnRequest {
                compare: vec![compare(&key, CompareTarget::Create, TargetUnion::CreateRevision(created))],
                success: vec![ask(Ask::RequestDeleteRange(delete))],
                failure: vec![],
            };
            if !bare.txn_with_leader(txn).await?.succeeded {
                return Err("somebody deleted it".into());
            }
            Ok(Some(start.elapsed()))
        }
    })
}

/// Waits in the queue as the crate does: watches at "now", then looks again.
async fn hand_over(bare: Bare, name: &str, gap: Gap, hold: u64) -> Result<Op> {
    let lease = bare.grant(60).await?;
    let name = name.to_owned();
    let key = format!("{name}/{lease:x}");
    let (say, mut answers) = bare.watch("nothing").await?;
    next(&mut answers, |answer| answer.created).await?;
    let watch = Arc::new(tokio::sync::Mutex::new((say, answers)));
    Ok(op(move || {
        let (bare, name, key, gap, watch) =
            (bare.clone(), name.clone(), key.clone(), gap.clone(), watch.clone());
        async move {
            let (say, answers) = &mut *watch.lock().await;
            acquire(&bare, &name, &key, lease, say, answers).await?;
            let waited = gap.acquired();
            if hold > 0 {
                tokio::time::sleep(Duration::from_millis(hold)).await;
            }
            gap.releasing();
            bare.delete(&key).await?;
            Ok(waited)
        }
    }))
}

async fn acquire(
    bare: &Bare,
    name: &str,
    key: &str,
    lease: i64,
    say: &mpsc::UnboundedSender<pb::WatchRequest>,
    answers: &mut Streaming<pb::WatchResponse>,
) -> Result<()> {
    let txn = pb::TxnRequest {
        compare: vec![missing(key)],
        success: vec![ask(Ask::RequestPut(put(key, "", lease))), ask(Ask::RequestRange(queue(name, 0)))],
        failure: vec![],
    };
    let reply = bare.txn(txn).await?;
    let mine = reply.header.as_ref().ok_or("no header")?.revision;
    let range = ranges(reply).next().ok_or("no range")?;
    let mut is_direct = range.count == 2;
    let mut predecessor = range.kvs.into_iter().find(|kv| kv.create_revision < mine);
    while let Some(before) = predecessor {
        say.send(create(std::str::from_utf8(&before.key)?))?;
        let created = next(answers, |answer| answer.created).await?;
        let range = bare.kv.clone().range(queue(name, mine - 1)).await?.into_inner();
        let newest = range.kvs.into_iter().next();
        if newest.as_ref().map(|kv| kv.create_revision) == Some(before.create_revision) {
            is_direct |= range.count == 1;
            next(answers, |answer| answer.watch_id == created.watch_id && !answer.events.is_empty()).await?;
            predecessor = match is_direct {
                true => None,
                false => {
                    bare.kv.clone().range(queue(name, mine - 1)).await?.into_inner().kvs.into_iter().next()
                }
            };
        } else {
            predecessor = newest;
        }
        say.send(cancel(created.watch_id))?;
    }
    Ok(())
}

async fn failing_try(bare: Bare) -> Result<Op> {
    let (name, lease) = (name("lock"), bare.grant(60).await?);
    bare.put(&format!("{name}/{lease:x}"), "", lease).await?;
    let key = format!("{name}/{:x}", lease + 1);
    Ok(op(move || {
        let (bare, name, key) = (bare.clone(), name.clone(), key.clone());
        async move {
            let start = Instant::now();
            let mut empty = missing(&format!("{name}/"));
            empty.range_end = format!("{name}0").into();
            let success = vec![ask(Ask::RequestPut(put(&key, "", lease)))];
            match bare.txn(pb::TxnRequest { compare: vec![empty], success, failure: vec![] }).await?.succeeded
            {
                true => Err("it is held".into()),
                false => Ok(Some(start.elapsed())),
            }
        }
    }))
}

/// Reads both accounts, writes both if nobody has since, and goes on with what is there otherwise.
async fn transfers(first: Bare, endpoint: &str, task: &Task) -> Result<Plan> {
    for account in 0..task.accounts {
        first.put(&format!("account/{account}"), "1000", 0).await?;
    }
    let attempts = Arc::new(AtomicU64::new(0));
    let (mut ops, count) = (Vec::new(), task.accounts);
    for _ in 0..task.workers {
        let (bare, attempts) = (Bare::connect(endpoint).await?, attempts.clone());
        ops.push(op(move || {
            let (bare, attempts) = (bare.clone(), attempts.clone());
            async move {
                let start = Instant::now();
                let keys = accounts(count);
                let read = || keys.iter().map(|key| ask(Ask::RequestRange(get(key)))).collect::<Vec<_>>();
                let mut reply = bare.txn(pb::TxnRequest { success: read(), ..Default::default() }).await?;
                loop {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    let mut commit = pb::TxnRequest { failure: read(), ..Default::default() };
                    for ((key, range), change) in keys.iter().zip(ranges(reply)).zip([-1, 1]) {
                        let kv = range.kvs.into_iter().next().ok_or("no such account")?;
                        let value = std::str::from_utf8(&kv.value)?.parse::<i64>()? + change;
                        let unchanged = TargetUnion::ModRevision(kv.mod_revision);
                        commit.compare.push(compare(key, CompareTarget::Mod, unchanged));
                        commit.success.push(ask(Ask::RequestPut(put(key, &value.to_string(), 0))));
                    }
                    reply = bare.txn(commit).await?;
                    if reply.succeeded {
                        return Ok(Some(start.elapsed()));
                    }
                }
            }
        }));
    }
    Ok(Plan::Cycles(ops, Some(attempts)))
}

fn reads(bare: Bare) -> Op {
    op(move || {
        let bare = bare.clone();
        async move {
            let start = Instant::now();
            let success = accounts(1000).iter().map(|key| ask(Ask::RequestRange(get(key)))).collect();
            bare.txn(pb::TxnRequest { success, ..Default::default() }).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

/// The key of a leader goes with its lease; whoever watches it has won.
fn fail_over(bare: Bare, expires: bool) -> Op {
    const TTL: i64 = 2;
    op(move || {
        let bare = bare.clone();
        async move {
            let begin = Instant::now();
            let lease = bare.grant(TTL).await?;
            let key = format!("{}/{lease:x}", name("election"));
            bare.put(&key, "leader", lease).await?;
            let (_say, mut answers) = bare.watch(&key).await?;
            next(&mut answers, |answer| answer.created).await?;
            let start = if expires {
                begin + Duration::from_secs(TTL.try_into()?)
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let start = Instant::now();
                bare.revoke(lease).await?;
                start
            };
            next(&mut answers, |answer| !answer.events.is_empty()).await?;
            Ok(Some(start.elapsed()))
        }
    })
}

async fn proclaim(bare: Bare, observers: usize) -> Result<Op> {
    let key = name("election");
    let (say, mut answers) = bare.watch(&key).await?;
    for observer in 0..observers {
        if observer > 0 {
            say.send(create(&key))?;
        }
        next(&mut answers, |answer| answer.created).await?;
    }
    let watch = Arc::new(tokio::sync::Mutex::new((say, answers)));
    Ok(op(move || {
        let (bare, key, watch) = (bare.clone(), key.clone(), watch.clone());
        async move {
            let (_say, answers) = &mut *watch.lock().await;
            let start = Instant::now();
            bare.put(&key, "news", 0).await?;
            for _ in 0..observers {
                next(answers, |answer| !answer.events.is_empty()).await?;
            }
            Ok(Some(start.elapsed()))
        }
    }))
}

/// One keep-alive stream, on which each lease has its turn every 20 s.
fn sessions(bare: Bare, count: usize) -> Box<dyn FnOnce() -> Future<Held>> {
    Box::new(move || {
        Box::pin(async move {
            let mut leases = Vec::with_capacity(count);
            for _ in 0..count {
                leases.push(bare.grant(60).await?);
            }
            let (say, said) = mpsc::unbounded_channel();
            let mut lease = bare.lease.clone();
            tokio::spawn(async move {
                let mut answers =
                    lease.lease_keep_alive(UnboundedReceiverStream::new(said)).await?.into_inner();
                while answers.message().await?.is_some() {}
                Result::Ok(())
            });
            tokio::spawn(async move {
                let mut turns = tokio::time::interval(Duration::from_millis(100));
                for some in leases.chunks((count / 200).max(1)).cycle() {
                    turns.tick().await;
                    for &id in some {
                        say.send(pb::LeaseKeepAliveRequest { id })?;
                    }
                }
                Result::Ok(())
            });
            Ok(Box::new(bare) as Held)
        })
    })
}

/// One watch stream for all, and a map from the watch to who waits.
async fn waiters(bare: Bare, count: usize) -> Result<Plan> {
    let name = name("lock");
    let held = bare.grant(600).await?;
    let mut before = format!("{name}/{held:x}");
    bare.put(&before, "", held).await?;
    let first = before.clone();
    let mut leases = Vec::with_capacity(count);
    for _ in 0..count {
        leases.push(bare.grant(600).await?);
    }
    let keys: Vec<String> = leases.iter().map(|lease| format!("{name}/{lease:x}")).collect();
    let (say, mut answers) = bare.watch(&before).await?;
    let (passed, mut all_passed) = mpsc::unbounded_channel();
    let (queueing, queue_keys) = (bare.clone(), keys.clone());
    let queue_up = Box::new(move || -> Future<Held> {
        for (place, (key, lease)) in queue_keys.iter().cloned().zip(leases).enumerate() {
            let before = std::mem::replace(&mut before, key.clone());
            if place > 0 {
                // The stream is there until the queue has gone.
                let _ = say.send(create(&before));
            }
            let bare = queueing.clone();
            tokio::spawn(async move { bare.put(&key, "", lease).await });
        }
        let bare = queueing.clone();
        tokio::spawn(async move {
            // Watches are created in the order of the queue: the id is the place.
            let _say = say;
            while let Some(answer) = answers.message().await? {
                if let [event, ..] = &answer.events[..]
                    && event.r#type == 1
                    && passed.send(()).is_ok()
                {
                    let (bare, key) = (bare.clone(), keys[usize::try_from(answer.watch_id)?].clone());
                    tokio::spawn(async move { bare.delete(&key).await });
                }
            }
            Result::Ok(())
        });
        Box::pin(async { Ok(Box::new(()) as Held) })
    });
    let mut counted = bare.kv.clone();
    let queued = Box::new(move || -> Future<usize> {
        let (mut kv, request) =
            (counted.clone(), pb::RangeRequest { count_only: true, limit: 0, ..queue(&name, 0) });
        counted = kv.clone();
        Box::pin(async move {
            Ok(usize::try_from(kv.range(request).await?.into_inner().count)?.saturating_sub(1))
        })
    });
    let hand_over = Box::new(move |times| -> Future<()> {
        Box::pin(async move {
            bare.delete(&first).await?;
            for _ in 0..times {
                all_passed.recv().await.ok_or("the watch has ended")?;
            }
            Ok(())
        })
    });
    Ok(Plan::Waiters(Waiters { queue_up, queued, hand_over }))
}
