//! A bank whose network is bad: what was acknowledged is there once, what was refused is not, and the history is one
//! that could have happened one transfer after the other.
//!
//! `BANK_SEED=x` replays a seed on the fake, `BANK_TRANSFERS=n` makes so many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Client, Error, Op, Outcome, Stm, StmTxn, Txn};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::workers::{loses, names, open, settled, under_trouble};
use crate::support::env;
use crate::support::etcd::{Etcd, Version};
use crate::support::proxy::Proxy;

const ACCOUNTS: usize = 5;
const WORKERS: usize = 16;
const START: i64 = 1_000;
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// What became of a transfer, as its worker was told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// At this revision.
    Committed(i64),
    Refused,
    /// The session was lost before it could be found out, or the run was dropped.
    Unknown,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the account has not enough")]
    NotEnough,
    #[error(transparent)]
    Etcd(#[from] Error),
}

fn account(n: usize) -> String {
    format!("bank/account/{n}")
}

/// Moves money, and leaves a record of what it saw.
async fn transfer(txn: StmTxn, record: String, from: usize, to: usize, sum: i64) -> Result<(), Failed> {
    let (mine, yours): (i64, i64) = tokio::try_join!(balance(&txn, from), balance(&txn, to))?;
    if mine < sum {
        return Err(Failed::NotEnough);
    }
    txn.put(account(from), (mine - sum).to_string())?;
    txn.put(account(to), (yours + sum).to_string())?;
    txn.put(record, format!("{from} {to} {sum} {mine} {yours}"))?;
    Ok(())
}

async fn balance(txn: &StmTxn, n: usize) -> Result<i64, Error> {
    Ok(txn.get_parsed(account(n)).await?.expect("an account is never closed"))
}

/// Makes transfers, with a session that is replaced when it is lost; by record, what became of them.
async fn work(client: Client, worker: usize, transfers: usize, seed: u64) -> Vec<(String, Fate)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut fates = Vec::new();
    let mut session = open(&client).await;
    let mut stm = Stm::new(&client).exactly_once(&session);
    for n in 0..transfers {
        if !session.is_valid() {
            session = open(&client).await;
            stm = Stm::new(&client).exactly_once(&session);
        }
        if random.u8(..10) == 0 {
            let all = stm.run(|txn| async move { txn.get_prefix("bank/account/").await }).await;
            if let Ok(all) = all {
                let sum: i64 = all.value.iter().map(|(_, value)| number(value)).sum();
                assert_eq!(sum, START * ACCOUNTS as i64, "the sum at revision {}", all.revision);
            }
        }
        let kind = if random.u8(..10) == 0 { "note" } else { "record" };
        let record = format!("bank/{kind}/{worker}/{n}");
        let (from, to) = (random.usize(..ACCOUNTS), random.usize(1..ACCOUNTS));
        let (to, sum) = ((from + to) % ACCOUNTS, random.i64(1..200));
        let run = stm.run(|txn| {
            let record = record.clone();
            async move {
                match kind {
                    // Rests on nothing: but for its marker, nothing would keep it from being applied twice.
                    "note" => Ok(txn.put(record, "")?),
                    _ => transfer(txn, record, from, to, sum).await,
                }
            }
        });
        let patience = if random.u8(..50) == 0 { MS(random.u64(..40)) } else { S(3600) };
        let fate = match timeout(patience, run).await {
            Ok(Ok(committed)) => Fate::Committed(committed.revision),
            Ok(Err(Failed::Etcd(error))) if error.outcome() == Outcome::Unknown => Fate::Unknown,
            Ok(Err(_)) => Fate::Refused,
            Err(_) => Fate::Unknown,
        };
        fates.push((record, fate));
    }
    fates
}

async fn start_bank(client: &Client) {
    let put = |txn: Txn, n| txn.success(Op::put(account(n), START.to_string()));
    client.txn((0..ACCOUNTS).fold(Txn::new(), put)).await.expect("a bank");
}

async fn read(client: &Client, prefix: &'static str) -> Vec<KeyValue> {
    let reply = client.txn(Txn::new().success(Op::get_prefix(prefix))).await.expect("a read");
    reply.kvs(0).expect("a range").to_vec()
}

fn number(value: &[u8]) -> i64 {
    parsed(value)[0]
}

fn parsed(value: &[u8]) -> Vec<i64> {
    let text = std::str::from_utf8(value).expect("text");
    text.split(' ').map(|number| number.parse().expect("a number")).collect()
}

/// Holds the bank against what the workers were told, and replays it in the order of the commits.
async fn check(client: &Client, fates: Vec<(String, Fate)>) -> String {
    let (notes, mut records) = (read(client, "bank/note/").await, read(client, "bank/record/").await);
    let left: BTreeMap<_, _> = notes.iter().chain(&records).map(|kv| (&kv.key[..], kv)).collect();
    let (mut committed, mut refused, mut found, mut not_found) = (0, 0, 0, 0);
    for (record, fate) in &fates {
        let kv = left.get(record.as_bytes());
        match (fate, kv) {
            (Fate::Committed(revision), Some(kv)) => {
                assert_eq!((kv.mod_revision, kv.version), (*revision, 1), "{record}: not once");
                committed += 1;
            }
            (Fate::Committed(_), None) => panic!("{record} was acknowledged, and is not there"),
            (Fate::Refused, None) => refused += 1,
            (Fate::Refused, Some(_)) => panic!("{record} was refused, and is there"),
            (Fate::Unknown, Some(kv)) => {
                assert_eq!(kv.version, 1, "{record}: not once");
                found += 1;
            }
            (Fate::Unknown, None) => not_found += 1,
        }
    }
    assert_eq!(left.len(), committed + found);
    let mut balances = [START; ACCOUNTS];
    records.sort_by_key(|kv| kv.mod_revision);
    for kv in &records {
        let [from, to, sum, mine, yours] = parsed(&kv.value)[..] else { panic!("{kv:?}") };
        let [from, to] = [from, to].map(|n| usize::try_from(n).expect("an account"));
        assert_eq!((balances[from], balances[to]), (mine, yours), "seen by {kv:?}");
        balances[from] -= sum;
        balances[to] += sum;
    }
    let accounts = read(client, "bank/account/").await;
    assert_eq!(accounts.iter().map(|kv| number(&kv.value)).collect::<Vec<_>>(), balances);
    assert_eq!(balances.iter().sum::<i64>(), START * ACCOUNTS as i64);
    assert!(committed * 10 > fates.len() * 8, "{committed} of {} were committed", fates.len());
    format!(
        "{committed} committed, {refused} refused; nobody was told of {found} that are there and {not_found} that are not"
    )
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_done_twice() {
    let seed = env("BANK_SEED").unwrap_or_else(|| fastrand::u64(..) >> 16);
    let transfers = env("BANK_TRANSFERS").unwrap_or(10_000) / WORKERS;
    println!("BANK_SEED={seed} replays this");
    // Back-off and ids repeat, and what is drawn here.
    etcd_concurrency::fake::seed(seed);
    let started = std::time::Instant::now();
    let fake = FakeEtcd::builder().seed(seed).start();
    let observer = fake.client_for("observer");
    start_bank(&observer).await;
    let names = names(WORKERS);
    for name in &names {
        let any = || On::any().client(name);
        fake.fault(any(), Do::delay(MS(1)));
        fake.fault(any(), Do::delay_reply(MS(1)));
        loses(&fake, name);
        fake.fault(On::rpc(Rpc::Txn).client(name).probability(0.003), Do::delay(S(7)));
    }
    let mut workers = JoinSet::new();
    for (worker, name) in names.iter().enumerate() {
        workers.spawn(work(fake.client_for(name), worker, transfers, seed ^ worker as u64));
    }
    let before = Instant::now();
    let fates = under_trouble(&fake, &names, seed, workers).await;
    let lasted = before.elapsed();
    settled(&fake).await;
    let told = check(&observer, fates).await;
    println!("{told}; {lasted:.0?} of virtual time in {:.1?}", started.elapsed());
}

/// The same over connections that stall and break.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn nothing_is_lost_or_done_twice_on_a_real_server() {
    let transfers = env("BANK_TRANSFERS").unwrap_or(1_600) / WORKERS;
    for version in [Version::V3_4, Version::V3_7] {
        let etcd = Etcd::start(version).await;
        let observer = Client::connect(etcd.endpoint()).await.unwrap();
        start_bank(&observer).await;
        let mut workers = JoinSet::new();
        let mut proxies = Vec::new();
        for worker in 0..WORKERS {
            let proxy = Proxy::start(etcd.endpoint()).await;
            let client = Client::builder().endpoints(proxy.endpoint()).request_timeout(S(4));
            let client = client.connect().await.unwrap();
            proxies.push(Arc::new(proxy));
            workers.spawn(work(client, worker, transfers, fastrand::u64(..)));
        }
        let trouble = async {
            loop {
                let proxy = fastrand::choice(&proxies).expect("one of them").clone();
                match fastrand::u8(..3) {
                    0 => proxy.cut(),
                    _ => {
                        proxy.stall();
                        tokio::spawn(async move {
                            sleep(MS(fastrand::u64(..3_000))).await;
                            // What was held back arrives, or is lost.
                            if fastrand::bool() {
                                proxy.cut();
                            }
                            proxy.resume();
                        });
                    }
                }
                sleep(MS(fastrand::u64(..100))).await;
            }
        };
        let done = async {
            let mut fates = Vec::new();
            while let Some(told) = workers.join_next().await {
                fates.extend(told.expect("a worker"));
            }
            fates
        };
        let fates = tokio::select! {
            fates = done => fates,
            () = trouble => unreachable!("there is no end of it"),
        };
        println!("{version}: {}", check(&observer, fates).await);
    }
}
