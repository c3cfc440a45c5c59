//! Transactions that append to lists and read them, judged by what they saw of each other: see `support::append`.
//!
//! `APPEND_SEED=x` replays a seed on the fake, `APPEND_RUNS=n` makes so many transactions at each level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{Client, Error, Isolation, Op, Outcome, Stm, StmTxn, Txn};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::workers::{loses, names, open, settled, under_trouble};
use crate::support::append::{Done, Fate, Judged, Order, Step, judge};
use crate::support::backend::on_every_backend;
use crate::support::env;

const LISTS: usize = 4;
const WORKERS: usize = 8;
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// All lists, and a clock that all workers share.
#[derive(Clone)]
struct Stage {
    prefix: String,
    isolation: Isolation,
    clock: Arc<AtomicU64>,
}

/// What one transaction is to do: read a list, read all of them, or append to one.
#[derive(Debug, Clone)]
enum Wanted {
    Read(String),
    ReadAll,
    Append(String, u64),
}

impl Stage {
    fn new(prefix: &str, isolation: Isolation) -> Self {
        Self { prefix: format!("{prefix}/"), isolation, clock: Arc::default() }
    }

    fn list(&self, n: usize) -> String {
        format!("{}{n}", self.prefix)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Makes the lists, so that none is new to a range that was read before.
    async fn begin(&self, client: &Client) -> Vec<Done> {
        let value = |n: usize| u64::try_from(n).expect("a small number") + 1;
        let put = |txn: Txn, n| txn.success(Op::put(self.list(n), value(n).to_string()));
        let began = self.now();
        client.txn((0..LISTS).fold(Txn::new(), put)).await.expect("lists");
        let steps = (0..LISTS).map(|n| Step::Append(self.list(n), value(n))).collect();
        vec![Done { began, ended: self.now(), fate: Fate::Committed, steps }]
    }

    fn wanted(&self, random: &mut fastrand::Rng, values: &mut impl Iterator<Item = u64>) -> Vec<Wanted> {
        let steps = random.usize(1..5);
        let one = |_| {
            let list = self.list(random.usize(..LISTS));
            match random.u8(..8) {
                0 => Wanted::ReadAll,
                1..=3 => Wanted::Read(list),
                _ => Wanted::Append(list, values.next().expect("there is no end of it")),
            }
        };
        (0..steps).map(one).collect()
    }

    /// Does what is wanted, and tells what was seen.
    async fn play(self, txn: StmTxn, wanted: Vec<Wanted>) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for wanted in wanted {
            match wanted {
                Wanted::Read(list) => {
                    let seen = parsed(txn.get(list.clone()).await?.as_deref());
                    steps.push(Step::Read(list, seen));
                }
                Wanted::ReadAll => {
                    for (list, seen) in txn.get_prefix(self.prefix.clone()).await? {
                        steps.push(Step::Read(text(&list), parsed(Some(&seen))));
                    }
                }
                Wanted::Append(list, value) => {
                    let seen =
                        txn.get(list.clone()).await?.map_or_else(String::new, |seen| text(&seen) + " ");
                    txn.put(list.clone(), format!("{seen}{value}"))?;
                    steps.push(Step::Append(list, value));
                }
            }
        }
        Ok(steps)
    }

    /// Makes so many transactions, with a session that is replaced when it is lost.
    async fn work(self, client: Client, worker: usize, runs: usize, seed: u64) -> Vec<Done> {
        let mut random = fastrand::Rng::with_seed(seed);
        let first = u64::try_from(worker + 1).expect("a small number") * 1_000_000;
        let mut values = first..;
        let (mut done, mut session) = (Vec::new(), open(&client).await);
        for _ in 0..runs {
            if !session.is_valid() {
                session = open(&client).await;
            }
            let wanted = self.wanted(&mut random, &mut values);
            let mut stm = Stm::new(&client).isolation(self.isolation);
            if random.bool() {
                stm = stm.exactly_once(&session);
            }
            if random.bool() {
                stm = stm.prefetch([self.list(0), self.list(1)]);
            }
            let began = self.now();
            let run = stm.run(|txn| self.clone().play(txn, wanted.clone()));
            let patience = if random.u8(..50) == 0 { MS(random.u64(..40)) } else { S(3600) };
            let (fate, steps) = match timeout(patience, run).await {
                Ok(Ok(committed)) => (Fate::Committed, committed.value),
                Ok(Err(error)) if error.outcome() == Outcome::NotApplied => (Fate::Refused, appends(&wanted)),
                Ok(Err(_)) | Err(_) => (Fate::Unknown, appends(&wanted)),
            };
            done.push(Done { began, ended: self.now(), fate, steps });
        }
        done
    }

    /// Judges what was done, once nothing is under way.
    async fn judged(&self, client: &Client, mut done: Vec<Done>) -> Result<Judged, String> {
        let began = self.now();
        let all = client.txn(Txn::new().success(Op::get_prefix(self.prefix.clone()))).await.expect("a read");
        let lists = all.kvs(0).expect("a range").iter();
        let last: BTreeMap<_, _> = lists.map(|kv| (text(&kv.key), parsed(Some(&kv.value)))).collect();
        let steps = last.iter().map(|(list, seen)| Step::Read(list.clone(), seen.clone())).collect();
        done.push(Done { began, ended: self.now(), fate: Fate::Committed, steps });
        let order = match self.isolation {
            Isolation::ReadCommitted => Order::Committed,
            _ => Order::Strict,
        };
        judge(&done, &last, order)
    }
}

fn appends(wanted: &[Wanted]) -> Vec<Step> {
    let append = |wanted: &Wanted| match wanted {
        Wanted::Append(list, value) => Some(Step::Append(list.clone(), *value)),
        Wanted::Read(_) | Wanted::ReadAll => None,
    };
    wanted.iter().filter_map(append).collect()
}

fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).expect("text").to_owned()
}

fn parsed(list: Option<&[u8]>) -> Vec<u64> {
    let list = text(list.unwrap_or_default());
    list.split_whitespace().map(|value| value.parse().expect("a number")).collect()
}

const LEVELS: [Isolation; 4] = [
    Isolation::SerializableSnapshot,
    Isolation::Serializable,
    Isolation::RepeatableReads,
    Isolation::ReadCommitted,
];

/// Under lost replies, delays, partitions, restarts and leader losses.
#[tokio::test(start_paused = true)]
async fn histories_of_lists_are_in_some_order() {
    let seed = env("APPEND_SEED").unwrap_or_else(|| fastrand::u64(..) >> 16);
    let runs = env("APPEND_RUNS").unwrap_or(1_000) / WORKERS;
    println!("APPEND_SEED={seed} replays this");
    // Back-off and ids repeat, and what is drawn here.
    etcd_concurrency::fake::seed(seed);
    for isolation in LEVELS {
        let fake = FakeEtcd::builder().seed(seed).start();
        let (stage, observer) = (Stage::new("lists", isolation), fake.client_for("observer"));
        let mut done = stage.begin(&observer).await;
        let names = names(WORKERS);
        for name in &names {
            let any = || On::any().client(name);
            fake.fault(any(), Do::delay_up_to(MS(4)));
            loses(&fake, name);
            fake.fault(On::rpc(Rpc::Txn).client(name).probability(0.003), Do::delay(S(30)));
        }
        let mut workers = JoinSet::new();
        for (worker, name) in names.iter().enumerate() {
            let seed = seed ^ u64::try_from(worker).expect("a small number");
            workers.spawn(stage.clone().work(fake.client_for(name), worker, runs, seed));
        }
        done.extend(under_trouble(&fake, &names, seed, workers).await);
        settled(&fake).await;
        let committed = done.iter().filter(|done| done.fate == Fate::Committed).count();
        assert!(committed * 10 > done.len() * 7, "{committed} of {} were committed", done.len());
        match stage.judged(&observer, done).await {
            Ok(judged) => println!("{isolation:?}: {judged:?}"),
            Err(wrong) => panic!("APPEND_SEED={seed}, {isolation:?}: {wrong}"),
        }
    }
}

on_every_backend! {
    /// The same without faults, on real servers too.
    async fn rivals_append_to_lists_in_some_order(backend: Backend) {
        for isolation in LEVELS {
            let client = backend.client();
            let stage = Stage::new(&backend.key(&format!("{isolation:?}")), isolation);
            let mut done = stage.begin(&client).await;
            let mut workers = JoinSet::new();
            for worker in 0..WORKERS {
                workers.spawn(stage.clone().work(backend.client(), worker, 20, fastrand::u64(..)));
            }
            done.extend(workers.join_all().await.into_iter().flatten());
            sleep(S(1)).await;
            stage.judged(&client, done).await.unwrap_or_else(|wrong| panic!("{isolation:?}: {wrong}"));
        }
    }
}

/// Lists of one transaction each, in which all saw all before them.
fn history(steps: &[(u64, u64, &[Step])]) -> Vec<Done> {
    let done = |(began, ended, steps): &(u64, u64, &[Step])| Done {
        began: *began,
        ended: *ended,
        fate: Fate::Committed,
        steps: steps.to_vec(),
    };
    steps.iter().map(done).collect()
}

fn read(list: &str, values: &[u64]) -> Step {
    Step::Read(list.to_owned(), values.to_vec())
}

fn append(list: &str, value: u64) -> Step {
    Step::Append(list.to_owned(), value)
}

#[test]
fn what_is_wrong_with_a_history_is_found() {
    let last = |lists: &[(&str, &[u64])]| -> BTreeMap<String, Vec<u64>> {
        lists.iter().map(|(list, values)| ((*list).to_owned(), values.to_vec())).collect()
    };
    let (x, y) = (|| append("x", 1), || append("y", 2));
    let good = history(&[(0, 1, &[x()]), (2, 3, &[read("x", &[1]), y()]), (4, 5, &[read("y", &[2])])]);
    let both = last(&[("x", &[1]), ("y", &[2])]);
    let judged = judge(&good, &both, Order::Strict).expect("it is good");
    assert_eq!((judged.transactions, judged.appends, judged.longest), (3, 2, 1));
    let refused = |mut history: Vec<Done>, index: usize| {
        history[index].fate = Fate::Refused;
        history
    };
    let wrong = [
        ("lost", history(&[(0, 1, &[x()])]), last(&[("x", &[])])),
        ("not applied", refused(history(&[(0, 1, &[x()])]), 0), last(&[("x", &[1])])),
        ("never appended", history(&[(0, 1, &[read("x", &[9])])]), last(&[("x", &[])])),
        ("twice", history(&[(0, 1, &[x()])]), last(&[("x", &[1, 1])])),
        ("does not see itself", history(&[(0, 1, &[x(), read("x", &[])])]), last(&[("x", &[1])])),
        (
            "in the midst",
            history(&[(0, 9, &[x(), append("x", 3)]), (1, 8, &[read("x", &[1])])]),
            last(&[("x", &[1, 3])]),
        ),
        (
            "never was",
            history(&[(0, 9, &[x()]), (1, 8, &[append("x", 3)]), (2, 7, &[read("x", &[3])])]),
            last(&[("x", &[1, 3])]),
        ),
        // Write skew: each has read what the other has written over.
        (
            "a cycle of 2",
            history(&[(0, 9, &[read("x", &[]), y()]), (1, 8, &[read("y", &[]), x()])]),
            both.clone(),
        ),
        // A reader of the past.
        ("a cycle of 2", history(&[(0, 1, &[x()]), (2, 3, &[read("x", &[])])]), last(&[("x", &[1])])),
        // Read skew: it has seen the one, and not the other, of one transaction.
        (
            "a cycle of 2",
            history(&[(0, 9, &[x(), y()]), (1, 8, &[read("x", &[1]), read("y", &[])])]),
            both.clone(),
        ),
    ];
    for (expected, history, last) in wrong {
        let told = judge(&history, &last, Order::Strict).expect_err(expected);
        assert!(told.contains(expected), "{expected}: {told}");
    }
    // What stands written over at this level is not lost.
    let history = history(&[(0, 1, &[x()]), (2, 3, &[append("x", 3)])]);
    assert!(judge(&history, &last(&[("x", &[3])]), Order::Committed).is_ok());
}
