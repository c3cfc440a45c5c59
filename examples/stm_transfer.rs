//! Ten transfers at once among five accounts: the sum stays what it was.
//!
//! `cargo run --example stm_transfer` runs on the fake etcd; with `ETCD_ENDPOINTS=http://127.0.0.1:2379` on a real one.
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

mod common;

use etcd_concurrency::{Error, Op, Session, Stm, StmTxn, Txn};
use tokio::task::JoinSet;

const ACCOUNTS: usize = 5;
const PREFIX: &str = "stm_transfer/";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = common::client().await?;
    let open = |txn: Txn, n| txn.success(Op::put(account(n), "100"));
    client.txn((0..ACCOUNTS).fold(Txn::new(), open)).await?;

    // With a session, a commit whose answer is lost is found out about, instead of being reported as unknown.
    let session = Session::open(&client).await?;
    let stm = Stm::new(&client).exactly_once(&session);
    let mut transfers = JoinSet::new();
    for n in 0..10 {
        let (from, to, sum) = (n % ACCOUNTS, (n + 1 + n / ACCOUNTS) % ACCOUNTS, 10 * (n as u64 + 1));
        let stm = stm.clone();
        transfers.spawn(async move {
            let moved = stm.run(|txn| transfer(txn, from, to, sum)).await?;
            let (sum, attempts, revision) = (moved.value, moved.attempts, moved.revision);
            println!("{sum:>3} from {from} to {to}: attempt {attempts}, revision {revision}");
            Ok::<_, Error>(())
        });
    }
    while let Some(done) = transfers.join_next().await {
        done??;
    }

    let balances = stm.run(balances).await?.value;
    println!("balances: {balances:?}");
    assert_eq!(balances.iter().sum::<u64>(), 500, "money was made, or lost");
    session.close().await?;
    client.txn(Txn::new().success(Op::delete_prefix(PREFIX))).await?;
    println!("the sum is 500, as it was");
    Ok(())
}

fn account(n: usize) -> String {
    format!("{PREFIX}{n}")
}

/// Moves as much as there is, up to a sum. It may run several times; what it returned last counts.
async fn transfer(txn: StmTxn, from: usize, to: usize, sum: u64) -> Result<u64, Error> {
    let (from, to) = (account(from), account(to));
    let mine: u64 = txn.get_parsed(from.clone()).await?.unwrap_or(0);
    let sum = sum.min(mine);
    txn.put(from, (mine - sum).to_string())?;
    let yours: u64 = txn.get_parsed(to.clone()).await?.unwrap_or(0);
    txn.put(to, (yours + sum).to_string())?;
    Ok(sum)
}

async fn balances(txn: StmTxn) -> Result<Vec<u64>, Error> {
    let mut balances = Vec::new();
    for (_, value) in txn.get_prefix(PREFIX).await? {
        balances.push(String::from_utf8_lossy(&value).parse().unwrap_or(0));
    }
    Ok(balances)
}
