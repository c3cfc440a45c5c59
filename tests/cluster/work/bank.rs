//! One who moves money between accounts, each move once, and leaves a record of what it saw.
//!
//! `committed`, then the record and the revision; `refused` or `unknown`, then the record.

use etcd_concurrency::{Client, Error, Outcome, Stm, StmTxn};

use super::{open, tell};

pub(crate) const ACCOUNTS: usize = 5;
pub(crate) const START: i64 = 1_000;

pub(crate) fn account(n: usize) -> String {
    format!("bank/account/{n}")
}

pub(super) async fn work(client: Client, number: usize) {
    let mut transfers = 0;
    loop {
        let session = open(&client).await;
        let stm = Stm::new(&client).exactly_once(&session);
        while session.is_valid() {
            let record = format!("bank/record/{number}/{transfers}");
            transfers += 1;
            let (from, to) = (fastrand::usize(..ACCOUNTS), fastrand::usize(1..ACCOUNTS));
            let (to, sum) = ((from + to) % ACCOUNTS, fastrand::i64(1..50));
            match stm.run(|txn| transfer(txn, record.clone(), from, to, sum)).await {
                Ok(done) => tell("committed", &format!("{record} {}", done.revision)),
                Err(error) if error.outcome() == Outcome::Unknown => tell("unknown", &record),
                Err(_) => tell("refused", &record),
            }
        }
    }
}

async fn transfer(txn: StmTxn, record: String, from: usize, to: usize, sum: i64) -> Result<(), Error> {
    let mine: i64 = txn.get_parsed(account(from)).await?.expect("an account is never closed");
    let yours: i64 = txn.get_parsed(account(to)).await?.expect("an account is never closed");
    txn.put(account(from), (mine - sum).to_string())?;
    txn.put(account(to), (yours + sum).to_string())?;
    txn.put(record, format!("{from} {to} {sum} {mine} {yours}"))
}
