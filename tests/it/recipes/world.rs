//! A fake in which things go wrong by chance, with a record of all that happened: for tests that try what nobody
//! thought of.
//!
//! A world that fails prints its seed; `RECIPES_SEED=<seed>` tries that one alone, `RECIPES_WORLDS=<n>` more of them.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_concurrency::fake::{FakeEtcd, FaultPlan, Trouble};
use etcd_concurrency::pb::etcdserverpb::{
    WatchCreateRequest, WatchRequest, watch_client::WatchClient, watch_request::RequestUnion,
};
use etcd_concurrency::pb::mvccpb::{Event, KeyValue, event::EventType};
use etcd_concurrency::{Client, Session};
use fastrand::Rng;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::backend::Backend;
pub(super) use crate::support::env;
use crate::support::queue::LONG;

pub(super) const CLIENTS: [&str; 3] = ["a", "b", "c"];
/// For how long things go wrong.
pub(super) const TROUBLED: Duration = Duration::from_secs(90);
const WORLDS: usize = 40;

#[derive(Clone)]
pub(super) struct World {
    pub(super) fake: FakeEtcd,
    pub(super) seed: u64,
    /// All that was written, from the first revision on.
    events: Arc<Mutex<Vec<Event>>>,
}

/// Tries many worlds, each with troubles of its own.
pub(super) fn explore<F: Future<Output = ()>>(mut body: impl FnMut(World) -> F) {
    let seeds: Vec<u64> = match env("RECIPES_SEED") {
        Some(seed) => vec![seed],
        None => (0..env("RECIPES_WORLDS").unwrap_or(WORLDS)).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        let _told = Told(seed);
        // What the crate draws repeats with it.
        etcd_concurrency::fake::seed(seed);
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fake = FakeEtcd::builder().seed(seed).start();
            let world = World { fake: fake.clone(), seed, events: Arc::default() };
            world.record().await;
            let plan = FaultPlan::drawn(seed, &CLIENTS, TROUBLED);
            // The record is of one stream, which a restart would break.
            let plan = plan
                .troubles()
                .filter(|(_, trouble)| !matches!(trouble, Trouble::Restart(_)))
                .fold(FaultPlan::new(), |plan, (when, trouble)| plan.at(when, trouble.clone()));
            let troubles = async { fake.run(&plan).await.unwrap() };
            let lived =
                timeout(Duration::from_secs(24 * 3600), async { tokio::join!(body(world), troubles) });
            assert!(lived.await.is_ok(), "it hangs; what went wrong:\n{plan}");
        });
    }
}

struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("RECIPES_SEED={}", self.0);
        }
    }
}

impl World {
    /// What one actor draws.
    pub(super) fn rng(&self, actor: usize) -> Rng {
        Rng::with_seed(self.seed ^ (actor as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Six actors that act at the same time.
    pub(super) fn actors<T: Send + 'static, F>(&self, act: impl Fn(World, usize) -> F) -> JoinSet<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        (0..6).map(|actor| act(self.clone(), actor)).collect()
    }

    pub(super) fn client(&self, actor: usize) -> Client {
        self.fake.client_for(CLIENTS[actor % CLIENTS.len()])
    }

    pub(super) fn revision(&self) -> i64 {
        self.fake.revision()
    }

    /// What was written from one revision to another, both with.
    pub(super) fn between(&self, from: i64, to: i64) -> Vec<Event> {
        let events = self.events.lock().unwrap();
        let within = |event: &&Event| {
            let revision = event.kv.as_ref().unwrap().mod_revision;
            (from..=to).contains(&revision)
        };
        events.iter().filter(within).cloned().collect()
    }

    /// Whether it held of the keys of a prefix at one revision at least, of these from the first to the last.
    pub(super) async fn held_between(
        &self,
        (from, to): (i64, i64),
        prefix: &str,
        holds: impl Fn(&[KeyValue]) -> bool,
    ) -> bool {
        self.recorded(to).await;
        let events = self.between(0, to);
        let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
        let mut there: Vec<KeyValue> = Vec::new();
        let (mut rest, mut now) = (&events[..], from);
        loop {
            let (before, after) = rest.split_at(rest.partition_point(|event| revision(event) <= now));
            for event in before {
                let kv = event.kv.clone().unwrap();
                if !kv.key.starts_with(prefix.as_bytes()) {
                    continue;
                }
                there.retain(|other| other.key != kv.key);
                if event.r#type() == EventType::Put {
                    there.push(kv);
                }
            }
            if holds(&there) {
                return true;
            }
            let Some(next) = after.first() else { return false };
            (rest, now) = (after, revision(next));
        }
    }

    /// Waits until the record has come so far.
    pub(super) async fn recorded(&self, revision: i64) {
        let last =
            || self.events.lock().unwrap().last().map_or(1, |event| event.kv.as_ref().unwrap().mod_revision);
        while last() < revision {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn record(&self) {
        let (requests, sent) = tokio::sync::mpsc::unbounded_channel();
        let create = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: 1,
            ..Default::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).unwrap();
        let mut client = WatchClient::new(self.fake.service_for("record"));
        let sent = tokio_stream::wrappers::UnboundedReceiverStream::new(sent);
        let mut answers = client.watch(sent).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().unwrap().created);
        let events = self.events.clone();
        tokio::spawn(async move {
            let _open = requests;
            while let Ok(Some(answer)) = answers.message().await {
                assert!(!answer.canceled, "the record broke");
                events.lock().unwrap().extend(answer.events);
            }
        });
    }
}

/// A session, however long it takes.
pub(super) async fn open(client: &Client) -> Session {
    loop {
        match Session::builder(client).ttl(Duration::from_secs(5)).open().await {
            Ok(session) => return session,
            Err(_) => sleep(Duration::from_millis(300)).await,
        }
    }
}

/// Somewhere in the middle of what takes a while, or never.
pub(super) fn patience(rng: &mut Rng) -> Duration {
    match rng.u8(0..4) {
        0 => Duration::from_millis(rng.u64(0..50)),
        1 => Duration::from_millis(rng.u64(0..3_000)),
        _ => Duration::from_secs(40),
    }
}

/// Waits until no key starts with `prefix`, and on the fake no watch and no more tasks than `usual` are left.
pub(super) async fn nothing_left(backend: &Backend, observer: &Client, prefix: &str, usual: usize) {
    let end = tokio::time::Instant::now() + LONG;
    loop {
        let (keys, watchers) = (keys(observer, prefix).await, backend.watchers().unwrap_or_default());
        let tasks = if backend.is_fake() { crate::drops::tasks() } else { 0 };
        if keys == 0 && watchers == 0 && tasks <= usual {
            return;
        }
        let left = format!("{keys} keys of {prefix}, {watchers} watchers, {tasks} tasks of {usual}");
        assert!(tokio::time::Instant::now() < end, "left: {left}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How many keys start with `prefix`.
pub(super) async fn keys(observer: &Client, prefix: &str) -> usize {
    let read = etcd_concurrency::Txn::new().success(etcd_concurrency::Op::get_prefix(prefix.to_owned()));
    observer.txn(read).await.unwrap().kvs(0).unwrap().len()
}
