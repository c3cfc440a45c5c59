//! Transactions that append to lists and read them, judged by what they saw of each other: see `support::append`.
//!
//! `APPEND_SEED=x` replays a seed on the fake, `APPEND_RUNS=n` makes so many transactions at each level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
use etcd_concurrency::{Client, Isolation};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::workers::{loses, names, open, settled, under_trouble};
use crate::support::append::{Done, Fate, Judged, Order, Step, judge};
use crate::support::backend::on_every_backend;
use crate::support::env;
use crate::support::lists::{LEVELS, Lists, order, reads};

const WORKERS: usize = 8;
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// The lists, and a clock that all workers share.
#[derive(Clone)]
struct Stage {
    lists: Lists,
    isolation: Isolation,
    clock: Arc<AtomicU64>,
}

impl Stage {
    async fn begin(client: &Client, name: &str, isolation: Isolation) -> Self {
        let lists = Lists::new(name, isolation);
        lists.make(client).await.expect("lists");
        Self { lists, isolation, clock: Arc::default() }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
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
            let wanted = self.lists.wanted(&mut random, &mut values);
            let began = self.now();
            let (fate, steps) = self.lists.transact(&client, &session, &mut random, &wanted).await;
            done.push(Done { began, ended: self.now(), fate, steps });
        }
        done
    }

    /// Judges what was done, once nothing is under way.
    async fn judged(&self, client: &Client, mut done: Vec<Done>) -> Result<Judged, String> {
        let began = self.now();
        let last = self.lists.read(client).await;
        done.push(Done { began, ended: self.now(), fate: Fate::Committed, steps: reads(&last) });
        judge(&done, &last, order(self.isolation))
    }
}

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
        let observer = fake.client_for("observer");
        let stage = Stage::begin(&observer, "lists", isolation).await;
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
        let done = under_trouble(&fake, &names, seed, workers).await;
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
            let stage = Stage::begin(&client, &backend.key(&format!("{isolation:?}")), isolation).await;
            let mut workers = JoinSet::new();
            for worker in 0..WORKERS {
                workers.spawn(stage.clone().work(backend.client(), worker, 20, fastrand::u64(..)));
            }
            let done = workers.join_all().await.into_iter().flatten().collect();
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
        ("was appended to x", history(&[(0, 1, &[x()])]), last(&[("x", &[]), ("y", &[1])])),
        (
            "between the appends",
            history(&[(0, 9, &[x(), append("x", 3)]), (1, 8, &[y(), append("x", 4)])]),
            last(&[("x", &[1, 4, 3]), ("y", &[2])]),
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

/// What ends when another begins may be after it.
#[test]
fn what_was_at_one_moment_may_have_been_in_either_order() {
    let last = BTreeMap::from([("x".to_owned(), vec![1])]);
    let reader_of_the_past = |began| history(&[(0, 5, &[append("x", 1)]), (began, 9, &[read("x", &[])])]);
    assert!(judge(&reader_of_the_past(5), &last, Order::Strict).is_ok());
    assert!(judge(&reader_of_the_past(6), &last, Order::Strict).is_err());
}

/// One of unknown fate that was applied was applied after it had begun.
#[test]
fn what_is_of_unknown_fate_is_after_what_had_ended_before() {
    let last = BTreeMap::from([("x".to_owned(), vec![1, 3]), ("y".to_owned(), vec![2])]);
    let mut history = history(&[
        (0, 1, &[read("x", &[1])]),
        (2, u64::MAX, &[append("x", 1), append("y", 2)]),
        (3, 4, &[read("x", &[1]), append("x", 3)]),
    ]);
    history[1].fate = Fate::Unknown;
    let told = judge(&history, &last, Order::Strict).expect_err("it saw what had not begun");
    assert!(told.contains("a cycle of 2"), "{told}");
    history.remove(0);
    assert!(judge(&history, &last, Order::Strict).is_ok());
}

/// The judge's time grows no faster than what it judges, and its stack not at all.
#[test]
fn a_long_history_is_judged_too() {
    let name = |of: u64| format!("{}", of / 50);
    let transaction = |n: u64| Done {
        began: 2 * n,
        ended: 2 * n + 3,
        fate: Fate::Committed,
        steps: vec![Step::Read(name(n), (n / 50 * 50..n).collect()), Step::Append(name(n), n)],
    };
    let history: Vec<Done> = (0..50_000).map(transaction).collect();
    let last = (0..1_000).map(|list| (list.to_string(), (list * 50..list * 50 + 50).collect())).collect();
    let judged = judge(&history, &last, Order::Strict).expect("it is good");
    assert_eq!((judged.appends, judged.longest), (50_000, 50));
}
