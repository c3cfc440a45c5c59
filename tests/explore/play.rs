//! Plays a scene by a schedule: which message is let through next, and what goes wrong.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Client, Error, Op, Session, Txn};
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::bounds::{Bounds, Left};
use crate::gate::{Gate, Head, Kind, Verdict};
use crate::wire;

pub(crate) type Playing = Pin<Box<dyn Future<Output = ()>>>;

/// Clients that do something, what can go wrong around them, and what must hold.
#[derive(Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// Panics where a promise is broken.
    pub(crate) play: fn(Rc<World>) -> Playing,
    /// What a third party does, once, at any time: for one fault.
    pub(crate) strikes: &'static [Strike],
}

/// What a scene is played in.
pub(crate) struct World {
    pub(crate) fake: FakeEtcd,
    pub(crate) gate: Gate,
    /// The largest token that was handed out, of all locks.
    largest: Cell<i64>,
    /// When a third party was done with what it has done, for scenes that want to know.
    pub(crate) since: Rc<Cell<Option<Instant>>>,
    struck: RefCell<Vec<bool>>,
    strikes: Notify,
    /// How many faults there were.
    faults: Cell<usize>,
}

/// What a third party does.
pub(crate) type Strike = (&'static str, fn(&World));

impl World {
    pub(crate) fn client(&self, name: &'static str) -> Client {
        wire::client(&self.fake, &self.gate, name)
    }

    /// A session that outlives the scene.
    pub(crate) async fn session(&self, name: &'static str) -> Session {
        let ttl = Duration::from_secs(3600);
        Session::builder(&self.client(name)).ttl(ttl).open().await.expect("the gate is open")
    }

    /// A lock was handed out: its token is larger than all before.
    pub(crate) fn granted(&self, token: i64) {
        let before = self.largest.replace(token);
        assert!(token > before, "the token {token} was handed out after {before}");
    }

    /// No key that was put before is there any more, where nothing else deletes any.
    pub(crate) fn is_first(&self, token: i64, prefix: &str) {
        let keys = self.fake.snapshot().keys;
        let older = |kv: &&KeyValue| kv.key.starts_with(prefix.as_bytes()) && kv.create_revision < token;
        let older = keys.iter().find(older);
        assert!(older.is_none(), "{token} was granted while {older:?} stands");
    }

    /// Something went wrong.
    pub(crate) fn has_failed(&self) -> bool {
        self.faults.get() > 0
    }

    /// A call has failed: for a fault.
    pub(crate) fn failed(&self, error: &Error) {
        assert!(self.faults.get() > 0, "a call fails, though nothing went wrong: {error}");
    }

    /// Waits until all acts have ended: soon, unless something went wrong, and then before one looks again that was told nothing.
    pub(crate) async fn acts(&self, acts: impl IntoIterator<Item = JoinHandle<()>>) {
        let begun = Instant::now();
        for act in acts {
            act.await.expect("it does not panic");
        }
        let longest = if self.faults.get() == 0 { SOON } else { LATE };
        assert!(begun.elapsed() < longest, "it took {:?}", begun.elapsed());
    }

    /// A third party has struck.
    pub(crate) fn is_struck(&self) -> bool {
        self.struck.borrow().iter().any(|struck| *struck)
    }

    /// Waits for that.
    pub(crate) async fn struck(&self) {
        while !self.is_struck() {
            self.strikes.notified().await;
        }
    }

    /// A third party, whose messages wait for none, deletes keys.
    pub(crate) fn delete_prefix(&self, prefix: &'static str) {
        let client = self.fake.client_for("third");
        spawn_local(async move {
            let deleted = client.txn(Txn::new().success(Op::delete_prefix(prefix))).await;
            deleted.expect("nothing strikes the third party");
        });
    }

    /// A third party, as above, ends the lease of the oldest key of a prefix.
    pub(crate) fn end_lease_of_first(&self, prefix: &str) {
        let keys = self.fake.snapshot().keys;
        let first = keys.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes()));
        let Some(lease) = first.min_by_key(|kv| kv.create_revision).map(|kv| kv.lease) else { return };
        let client = self.fake.client_for("third");
        spawn_local(async move {
            let ended = client.lease_client().lease_revoke(pb::LeaseRevokeRequest { id: lease }).await;
            ended.expect("nothing strikes the third party");
        });
    }

    /// A third party, as above, compacts all that has happened.
    pub(crate) fn compact(&self) {
        let (client, revision) = (self.fake.client_for("third"), self.fake.revision());
        spawn_local(async move {
            let request = pb::CompactionRequest { revision, physical: false };
            client.kv_client().compact(request).await.expect("nothing strikes the third party");
        });
    }

    /// Waits until no message has come for a while.
    pub(crate) async fn quiet(&self) {
        loop {
            let before = self.gate.arrivals();
            sleep(Duration::from_secs(2)).await;
            let is_empty = self.gate.heads().iter().all(|head| head.kind == Kind::Straggler);
            if is_empty && self.gate.arrivals() == before {
                return;
            }
        }
    }

    /// Waits until no message has come for a while, then lets through all that is left, stragglers too, and waits for what comes
    /// of that.
    pub(crate) async fn settle(&self) {
        self.quiet().await;
        self.gate.open();
        sleep(Duration::from_secs(130)).await;
    }

    /// No key is left below these names, whose owners are gone.
    pub(crate) fn left(&self, names: &[&str]) -> Vec<String> {
        let keys = self.fake.snapshot().keys;
        let left = keys.iter().filter(|kv| names.iter().any(|name| kv.key.starts_with(name.as_bytes())));
        left.map(|kv| format!("{} of {}", String::from_utf8_lossy(&kv.key), kv.create_revision)).collect()
    }
}

/// A point at which there was a choice.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) options: usize,
    pub(crate) taken: usize,
    /// What was chosen, for people to read.
    pub(crate) what: String,
}

/// How a scene went.
#[derive(Debug)]
pub(crate) struct Played {
    pub(crate) points: Vec<Point>,
    pub(crate) violation: Option<String>,
}

/// What can be chosen.
#[derive(Clone)]
enum Choice {
    Through(Head),
    Broken(Head),
    PutAside(Head),
    Strike(usize),
    /// Longer than an attempt lasts.
    TimePasses,
    /// What was put aside stays there until something else has come.
    Leave,
    /// No message is let through before another comes, or some time has passed.
    Wait,
    /// While all is quiet, nothing is done.
    Nothing,
}

thread_local!(static PANIC: RefCell<Option<String>> = const { RefCell::new(None) });

/// Plays a scene, by this schedule as far as it goes; from there on the first choice is taken.
pub(crate) fn play(scene: &Scene, bounds: Bounds, schedule: &[usize]) -> Played {
    note_panics();
    PANIC.take();
    etcd_concurrency::fake::seed(1);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let (local, points) = (LocalSet::new(), Rc::new(RefCell::new(Vec::new())));
    let told = points.clone();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        local.block_on(&runtime, async {
            let struck = RefCell::new(vec![false; scene.strikes.len()]);
            let fake = FakeEtcd::start();
            let (since, strikes) = (Rc::default(), Notify::new());
            let (gate, largest) = (Gate::default(), Cell::new(0));
            let world = Rc::new(World { fake, gate, largest, since, struck, strikes, faults: Cell::new(0) });
            let playing = spawn_local((scene.play)(world.clone()));
            let chooses = choose(scene, &world, Left::of(bounds), schedule, &told);
            let played = timeout(LONGEST, async {
                tokio::select! {
                    biased;
                    played = playing => played.map_err(|error| error.to_string()),
                    () = chooses => unreachable!("it chooses as long as there is anything"),
                }
            });
            played.await.unwrap_or_else(|_| Err("it came to no end".into()))
        })
    }));
    let violation = PANIC.take().or(match ran {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("it panicked".into()),
    });
    let points = points.take();
    Played { points, violation }
}

async fn choose(
    scene: &Scene,
    world: &Rc<World>,
    mut left: Left,
    schedule: &[usize],
    points: &Rc<RefCell<Vec<Point>>>,
) {
    let mut was_quiet = false;
    loop {
        let is_quiet = timeout(QUIET, world.gate.arrived(|_| true)).await.is_err();
        if is_quiet && was_quiet {
            continue;
        }
        was_quiet = is_quiet;
        // The clock stands still while any task has something to do.
        sleep(Duration::from_millis(1)).await;
        let choices = choices(scene, world, left);
        let depth = points.borrow().len();
        if choices.len() == usize::from(is_quiet) {
            continue;
        }
        let taken = schedule.get(depth).copied().unwrap_or_default();
        let Some((choice, costs)) = choices.get(taken) else {
            panic!(
                "a schedule takes choice {taken} of {} at point {depth}: it is another version's, or of other bounds",
                choices.len()
            );
        };
        left = left.without(*costs);
        world.faults.set(world.faults.get() + costs.1);
        let what = match choice {
            Choice::Through(head) => head.what.clone(),
            Choice::Broken(head) => format!("the connection breaks; lost: {}", head.what),
            Choice::PutAside(head) => format!("the connection breaks; put aside: {}", head.what),
            Choice::Strike(index) => scene.strikes[*index].0.to_owned(),
            Choice::TimePasses => "time passes".into(),
            Choice::Leave => "what was put aside stays there".into(),
            Choice::Wait => "what waits is overtaken by what comes".into(),
            Choice::Nothing => "all is quiet".into(),
        };
        points.borrow_mut().push(Point { options: choices.len(), taken, what });
        match choice {
            Choice::Through(head) => world.gate.end(head, Verdict::Delivered),
            Choice::Broken(head) => world.gate.end(head, Verdict::Broken),
            Choice::PutAside(head) => world.gate.end(head, Verdict::PutAside),
            Choice::Strike(index) => {
                world.struck.borrow_mut()[*index] = true;
                (scene.strikes[*index].1)(world);
                world.strikes.notify_one();
            }
            Choice::TimePasses => sleep(PASSES).await,
            Choice::Wait => drop(timeout(QUIET, world.gate.another()).await),
            Choice::Nothing => {}
            Choice::Leave => world.gate.arrived(|head| head.kind != Kind::Straggler).await,
        }
    }
}

/// What a choice takes of the bounds: preemptions, and faults.
type Costs = (usize, usize);

/// All that may be chosen now. The first costs nothing: the oldest message.
fn choices(scene: &Scene, world: &World, left: Left) -> Vec<(Choice, Costs)> {
    let heads = world.gate.heads();
    let mut all: Vec<(Choice, Costs)> = Vec::new();
    match heads.first() {
        None => all.push((Choice::Nothing, (0, 0))),
        Some(head) if head.kind == Kind::Straggler => all.push((Choice::Leave, (0, 0))),
        Some(_) => {}
    }
    for (index, head) in heads.iter().enumerate() {
        // A straggler may come at any time: that is its nature, and was paid for.
        let is_free = index == 0 || head.kind == Kind::Straggler;
        all.push((Choice::Through(head.clone()), (usize::from(!is_free), 0)));
    }
    for head in heads.iter().filter(|head| head.kind != Kind::Straggler) {
        all.push((Choice::Broken(head.clone()), (0, 1)));
        if head.kind == Kind::Request && !head.what.contains("watch") {
            all.push((Choice::PutAside(head.clone()), (0, 1)));
        }
    }
    for (index, _) in scene.strikes.iter().enumerate() {
        if !world.struck.borrow()[index] {
            all.push((Choice::Strike(index), (0, 1)));
        }
    }
    if heads.iter().any(|head| head.kind != Kind::Straggler) {
        all.push((Choice::Wait, (1, 0)));
        all.push((Choice::TimePasses, (0, 1)));
    }
    all.retain(|(_, costs)| left.allows(*costs));
    all
}

/// A task's panic ends that task alone: it is remembered.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if tokio::runtime::Handle::try_current().is_ok() {
                // What follows from it comes later.
                PANIC.with_borrow_mut(|first| _ = first.get_or_insert_with(|| info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Of virtual time.
const LONGEST: Duration = Duration::from_secs(3600);
/// So long nothing comes while all is quiet. Shorter than what is waited for in a scene.
const QUIET: Duration = Duration::from_secs(1);
/// Longer than all acts of a scene take.
const SOON: Duration = Duration::from_secs(15);
/// Longer than requests are repeated; shorter than one waits who looks again.
const LATE: Duration = Duration::from_secs(50);
/// Longer than one attempt of a request is waited for, shorter than its timeout.
const PASSES: Duration = Duration::from_secs(6);
