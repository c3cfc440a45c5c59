//! Random senders and workers under random trouble, on the fake and its paused clock; with priorities, and without.
//!
//! `QUEUE_SEED=7` replays one seed, `QUEUE_SEEDS=1000` runs so many fresh ones.

mod order;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::fake::{FakeEtcd, FaultPlan, Trouble};
use etcd_concurrency::pb::mvccpb::Event;
use etcd_concurrency::{Client, Fence, Job, Op, Outcome, PriorityQueue, Queue, Result, Session};
use fastrand::Rng;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use self::order::{Record, check_sends, check_takes};
use super::text;
use crate::support::env;

const LENGTH: Duration = Duration::from_secs(30);
const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];

/// What the actors know. The server's side of it is read at the end.
#[derive(Default)]
struct Known {
    /// Every value that was sent: `Applied`, or what the error said; `Unknown` where the future was dropped.
    sent: BTreeMap<String, Outcome>,
    /// Who had which item on loan, with the count of deliveries.
    lent: BTreeMap<String, Vec<(Fence, u32)>>,
    /// Acknowledgements that succeeded, and such that were certainly not applied: value and token.
    acknowledged: BTreeSet<(String, i64)>,
    refused: BTreeSet<(String, i64)>,
    /// What was dequeued.
    dequeued: Vec<String>,
    /// Dequeues that brought nothing, of sessions that were lost.
    may_be_lost: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    ByAge,
    ByPriority,
}

/// A queue of either kind.
enum Either {
    ByAge(Queue),
    ByPriority(PriorityQueue),
}

/// The same of either kind.
macro_rules! either {
    ($queue:expr, $inner:ident => $does:expr) => {
        match $queue {
            Either::ByAge($inner) => $does,
            Either::ByPriority($inner) => $does,
        }
    };
}

impl Either {
    fn new(kind: Kind, session: &Session, name: &str) -> Either {
        match kind {
            Kind::ByAge => Either::ByAge(Queue::new(session, name).unwrap()),
            Kind::ByPriority => Either::ByPriority(PriorityQueue::new(session, name).unwrap()),
        }
    }

    async fn enqueue(&self, value: String, priority: u32) -> Result<()> {
        match self {
            Either::ByAge(queue) => queue.enqueue(value).await,
            Either::ByPriority(queue) => queue.enqueue(value, priority).await,
        }
    }

    async fn take(&self) -> Result<Job> {
        either!(self, queue => queue.take().await)
    }

    async fn try_take(&self) -> Result<Option<Job>> {
        either!(self, queue => queue.try_take().await)
    }

    async fn dequeue(&self) -> Result<String> {
        either!(self, queue => queue.dequeue().await).map(text)
    }

    async fn try_dequeue(&self) -> Result<Option<String>> {
        Ok(either!(self, queue => queue.try_dequeue().await)?.map(text))
    }
}

struct Actor {
    kind: Kind,
    client: Client,
    session: Session,
    random: Rng,
    known: Rc<RefCell<Known>>,
    /// Leases are ended by hand.
    surprises: bool,
    end: Instant,
}

impl Actor {
    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    async fn pause(&mut self, longest_ms: u64) {
        sleep(Duration::from_millis(self.random.u64(0..longest_ms))).await;
    }

    fn patience(&mut self) -> Duration {
        let longest = if self.random.bool() { 50 } else { 5_000 };
        Duration::from_millis(self.random.u64(0..longest))
    }

    /// The queue, through a session that is valid. None when it is time to stop.
    async fn queue(&mut self, name: &str) -> Option<Either> {
        while self.goes_on() {
            if self.session.is_valid() {
                return Some(Either::new(self.kind, &self.session, name));
            }
            match open(&self.client).await {
                Ok(session) => self.session = session,
                Err(_) => self.pause(500).await,
            }
        }
        None
    }

    async fn send(mut self, name: &str, who: usize) {
        let mut n = 0;
        while let Some(queue) = self.queue(name).await {
            // One handle for a while, so that slips are used again.
            for _ in 0..self.random.usize(1..10) {
                n += 1;
                let value = format!("{who}-{n}");
                let (patience, priority) = (self.patience(), self.random.u32(0..3));
                let outcome = match timeout(patience, queue.enqueue(value.clone(), priority)).await {
                    Ok(Ok(())) => Outcome::Applied,
                    Ok(Err(error)) => error.outcome(),
                    Err(_) => Outcome::Unknown,
                };
                self.known.borrow_mut().sent.insert(value, outcome);
                self.pause(800).await;
            }
        }
    }

    async fn work(mut self, name: &str) {
        while let Some(queue) = self.queue(name).await {
            let patience = self.patience();
            let taken = match self.random.u8(0..4) {
                0 => timeout(patience, queue.try_take()).await.map(|taken| taken.transpose()),
                _ => timeout(patience, queue.take()).await.map(Some),
            };
            let Ok(Some(Ok(job))) = taken else {
                self.pause(100).await;
                continue;
            };
            let value = text(job.value());
            {
                let mut known = self.known.borrow_mut();
                let before = known.lent.entry(value.clone()).or_default();
                for (fence, deliveries) in before.iter() {
                    // A lease that is ended by hand takes its session by surprise.
                    assert!(self.surprises || !fence.is_valid(), "{value} is in two hands");
                    assert!(
                        fence.token() < job.token() && *deliveries < job.deliveries(),
                        "{value}: {job:?}"
                    );
                }
                before.push((job.fence().clone(), job.deliveries()));
            }
            self.pause(2_000).await;
            let token = job.token();
            match self.random.u8(0..8) {
                0 => drop(job),
                1 => drop(job.nack().await),
                // Given up while it is under way.
                2 => drop(timeout(self.patience(), job.ack_with([done(&value, token)])).await),
                _ => {
                    let acknowledged = job.ack_with([done(&value, token)]).await;
                    let mut known = self.known.borrow_mut();
                    match acknowledged {
                        Ok(()) => drop(known.acknowledged.insert((value, token))),
                        Err(error)
                            if error.lost_reason().is_some() && error.outcome() == Outcome::NotApplied =>
                        {
                            known.refused.insert((value, token));
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }

    async fn consume(mut self, name: &str) {
        while let Some(queue) = self.queue(name).await {
            let mut in_vain = 0;
            while self.session.is_valid() && self.goes_on() {
                let patience = self.patience();
                match timeout(patience, queue.dequeue()).await {
                    Ok(Ok(item)) => self.known.borrow_mut().dequeued.push(item),
                    Ok(Err(_)) | Err(_) => in_vain += 1,
                }
                self.pause(300).await;
            }
            if !self.session.is_valid() {
                self.known.borrow_mut().may_be_lost += in_vain;
            }
        }
    }
}

/// An acknowledgement leaves this behind, on the server.
fn done(value: &str, token: i64) -> Op {
    Op::put(format!("done/{value}/{token}"), "")
}

async fn open(client: &Client) -> Result<Session> {
    Session::builder(client).ttl(Duration::from_secs(5)).open().await
}

fn keys(fake: &FakeEtcd, prefix: &str) -> Vec<String> {
    let snapshot = fake.snapshot();
    snapshot.keys.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes())).map(|kv| text(&kv.key)).collect()
}

async fn play(seed: u64, kind: Kind) {
    etcd_concurrency::fake::seed(seed);
    let fake = FakeEtcd::builder().seed(seed).start();
    let record = Record::start(&fake).await;
    let mut random = Rng::with_seed(seed);
    let known = Rc::new(RefCell::new(Known::default()));
    let plan = FaultPlan::drawn(seed, &CLIENTS, LENGTH);
    let surprises = plan.troubles().any(|(_, trouble)| matches!(trouble, Trouble::EndLease(_)));
    let end = Instant::now() + LENGTH + Duration::from_secs(5);
    let mut actors = Vec::new();
    for (who, name) in CLIENTS.into_iter().enumerate() {
        let client = fake.client_for(name);
        // Two sessions for a client: tasks of one session, of one client and of several meet.
        for _ in 0..2 {
            let session = open(&client).await.unwrap();
            let mut actor = || Actor {
                kind,
                client: client.clone(),
                session: session.clone(),
                random: random.fork(),
                known: known.clone(),
                surprises,
                end,
            };
            let name = if who < 2 { "jobs" } else { "items" };
            let id = actors.len();
            let sender = actor();
            actors.push(tokio::task::spawn_local(async move { sender.send(name, id).await }));
            for _ in 0..2 {
                let actor = actor();
                actors.push(match who < 2 {
                    true => tokio::task::spawn_local(async move { actor.work("jobs").await }),
                    false => tokio::task::spawn_local(async move { actor.consume("items").await }),
                });
            }
        }
    }
    fake.run(&plan).await.unwrap();
    for actor in actors {
        actor.await.unwrap();
    }

    // The dust settles: stragglers arrive, leases of lost sessions end. Then one looks at what is left, undisturbed.
    sleep(Duration::from_secs(60)).await;
    let judge = open(&fake.client_for("judge")).await.unwrap();
    let jobs = Either::new(kind, &judge, "jobs");
    while let Some(job) = jobs.try_take().await.unwrap() {
        let (value, token) = (text(job.value()), job.token());
        job.ack_with([done(&value, token)]).await.unwrap();
        known.borrow_mut().acknowledged.insert((value, token));
    }
    let items = Either::new(kind, &judge, "items");
    while let Some(item) = items.try_dequeue().await.unwrap() {
        known.borrow_mut().dequeued.push(item);
    }
    judge.close().await.unwrap();
    verdict(&fake, &known.borrow(), &plan);
    match record.up_to(fake.revision()).await {
        Some(events) => in_order(&events, &known.borrow()),
        None => println!("the record broke: the order is not known"),
    }
}

fn in_order(events: &[Event], known: &Known) {
    for name in ["jobs", "items"] {
        let (sent, taken) = (check_sends(events, name, &known.sent), check_takes(events, name));
        assert!(sent > 0 && taken > 0, "nothing happened on {name}");
        println!("{name}: {sent} sent, {taken} taken, in order");
    }
}

fn verdict(fake: &FakeEtcd, known: &Known, plan: &FaultPlan) {
    let done: Vec<(String, i64)> = keys(fake, "done/")
        .iter()
        .map(|key| {
            let mut parts = key.split('/').skip(1);
            (parts.next().unwrap().to_owned(), parts.next().unwrap().parse().unwrap())
        })
        .collect();
    let values: BTreeSet<_> = done.iter().map(|(value, _)| value).collect();
    assert_eq!(values.len(), done.len(), "acknowledged twice: {done:?}\n{plan}");
    let done: BTreeSet<_> = done.iter().cloned().collect();
    assert!(known.acknowledged.is_subset(&done), "acknowledged, and not on the server\n{plan}");
    assert!(known.refused.is_disjoint(&done), "refused, and done all the same\n{plan}");

    let mut dequeued = known.dequeued.clone();
    dequeued.sort();
    let count = dequeued.len();
    dequeued.dedup();
    assert_eq!(dequeued.len(), count, "dequeued twice\n{plan}");

    let out: BTreeSet<String> = done.into_iter().map(|(value, _)| value).chain(dequeued).collect();
    let mut lost = Vec::new();
    for (value, outcome) in &known.sent {
        match outcome {
            Outcome::Applied if !out.contains(value) => lost.push(value),
            Outcome::NotApplied => assert!(!out.contains(value), "{value} was never sent\n{plan}"),
            _ => {}
        }
    }
    let is_job = |value: &str| value.split('-').next().unwrap().parse::<usize>().unwrap() < 12;
    let (jobs, items): (Vec<_>, Vec<_>) = lost.into_iter().partition(|value| is_job(value));
    assert!(jobs.is_empty(), "lost: {jobs:?}\n{plan}");
    assert!(items.len() <= known.may_be_lost, "lost: {items:?} of {}\n{plan}", known.may_be_lost);
    assert!(out.iter().all(|value| known.sent.contains_key(value)));
    for left in ["jobs/", "items/"] {
        assert_eq!(keys(fake, left), Vec::<String>::new(), "{plan}");
    }
    println!("{} sent, {} out, {} of {} lost", known.sent.len(), out.len(), items.len(), known.may_be_lost);
}

fn check(kind: Kind) {
    let seeds = match (env("QUEUE_SEED"), env("QUEUE_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).map(|_| fastrand::u64(..)).collect(),
        (None, None) => (0..3).chain([fastrand::u64(..)]).collect(),
    };
    for seed in seeds {
        println!("{kind:?}: QUEUE_SEED={seed}");
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let limit = Duration::from_secs(3600);
        let played = LocalSet::new().block_on(&runtime, async { timeout(limit, play(seed, kind)).await });
        assert!(played.is_ok(), "not done within an hour of the fake's time");
    }
}

#[test]
fn none_is_lost_and_none_is_done_twice_by_age() {
    check(Kind::ByAge);
}

#[test]
fn none_is_lost_and_none_is_done_twice_by_priority() {
    check(Kind::ByPriority);
}
