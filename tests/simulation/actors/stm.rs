//! Runs of transactional memory, each of which writes down what it has read.

use std::time::Duration;

use etcd_concurrency::{Committed, Error, Isolation, Result, Session, Stm, StmTxn};
use tokio::time::sleep;

use super::Actor;
use crate::checks::log::{RUNS, listed, text};
use crate::checks::told::Fate;

const ACCOUNTS: usize = 4;
const ROOM: &str = "stm/room/";

/// What a run does.
#[derive(Debug, Clone)]
struct Run {
    kind: Kind,
    /// The key of its record.
    record: String,
    /// A number that nobody else has.
    id: u64,
    keys: [String; 2],
    slow: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// From one account to another.
    Transfer,
    /// Rests on two accounts, and writes one of them.
    Skew,
    /// Rests on nothing.
    Blind,
    /// Comes into a room or leaves it, by how many are there.
    Room,
    /// Only reads.
    Audit,
}

pub(super) async fn act(actor: &mut Actor) {
    while let Some(session) = actor.session().await {
        let isolation = match actor.rng.u8(0..4) {
            0 => Isolation::Serializable,
            1 => Isolation::RepeatableReads,
            _ => Isolation::SerializableSnapshot,
        };
        let mut stm = Stm::new(&actor.client()).isolation(isolation);
        let marked = actor.rng.bool();
        if marked {
            stm = stm.exactly_once(&session);
        }
        for _ in 0..actor.rng.usize(1..6) {
            run(actor, &stm, isolation, marked.then_some(&session)).await;
            if actor.rng.bool() {
                actor.a_while().await;
            }
        }
    }
}

async fn run(actor: &mut Actor, stm: &Stm, isolation: Isolation, session: Option<&Session>) {
    let rng = &mut actor.rng;
    let (from, step) = (rng.usize(..ACCOUNTS), rng.usize(1..ACCOUNTS));
    let kinds = [Kind::Transfer, Kind::Transfer, Kind::Skew, Kind::Blind, Kind::Room, Kind::Audit];
    let kind = match kinds[rng.usize(..kinds.len())] {
        // A range may have new keys by the commit.
        Kind::Room | Kind::Audit if isolation == Isolation::RepeatableReads => Kind::Skew,
        kind => kind,
    };
    let id = actor.world.id();
    let run = Run {
        kind,
        record: format!("{RUNS}{}{}", actor.client, actor.slot),
        id,
        keys: [from, (from + step) % ACCOUNTS].map(|n| format!("stm/account/{n}")),
        slow: Duration::from_millis(if rng.bool() { 0 } else { rng.u64(0..200) }),
    };
    let told = id.to_string();
    if kind != Kind::Audit {
        actor.world.puts(&told);
    }
    let done = stm.run(|txn| run.clone().body(txn));
    let done: Option<Result<Committed<String>>> =
        actor.world.wait("a run", &mut actor.rng, session, done).await;
    if kind == Kind::Audit {
        if let Some(Ok(done)) = done {
            actor.world.count("read-only runs");
            actor.world.told.borrow_mut().audits.push((done.revision, done.value));
        }
        return;
    }
    let fate = match done {
        Some(Ok(done)) => Fate::Done(Some(done.revision)),
        Some(Err(error)) => Fate::of(&error),
        None => Fate::Unknown,
    };
    actor.world.was_put(&told, fate);
}

impl Run {
    /// One attempt. What it read is its record, and what it returns.
    async fn body(self, txn: StmTxn) -> Result<String, Error> {
        let mut read = String::new();
        match self.kind {
            Kind::Blind => {}
            Kind::Transfer | Kind::Skew => {
                let mut sums = [0; 2];
                for (key, sum) in self.keys.iter().zip(&mut sums) {
                    let value = txn.get(key.clone()).await?.map(|value| text(&value)).unwrap_or_default();
                    *sum = value.split(':').next().and_then(|sum| sum.parse().ok()).unwrap_or(0);
                    read += &format!("key {key} {value}\n");
                    sleep(self.slow).await;
                }
                let value = |sum: i64| format!("{sum}:{}", self.id);
                txn.put(self.keys[0].clone(), value(sums[0] - 1))?;
                if self.kind == Kind::Transfer {
                    txn.put(self.keys[1].clone(), value(sums[1] + 1))?;
                }
            }
            Kind::Room => {
                let there = txn.get_prefix(ROOM).await?;
                read += &format!("all {ROOM} {}\n", listed(there.iter().map(|(key, value)| (key, value))));
                sleep(self.slow).await;
                match there.first().filter(|_| there.len() > 2) {
                    Some((key, _)) => txn.del(key.clone())?,
                    None => txn.put(format!("{ROOM}{}", self.id), self.id.to_string())?,
                }
            }
            Kind::Audit => {
                let value =
                    txn.get(self.keys[0].clone()).await?.map(|value| text(&value)).unwrap_or_default();
                read += &format!("key {} {value}\n", self.keys[0]);
                sleep(self.slow).await;
                let there = txn.get_prefix("stm/account/").await?;
                read +=
                    &format!("all stm/account/ {}\n", listed(there.iter().map(|(key, value)| (key, value))));
                return Ok(read);
            }
        }
        txn.put(self.record, format!("{}\n{read}", self.id))?;
        Ok(read)
    }
}
