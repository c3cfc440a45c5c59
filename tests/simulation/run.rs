//! Runs one schedule, and tells what became of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use etcd_concurrency::fake::History;
use etcd_concurrency::{Session, Watch};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::checks::record::Record;
use crate::checks::{left, log, orphans};
use crate::plan::Plan;
use crate::wide::{self, Wide};
use crate::world::{BOUND, Phase, World, in_time};
use crate::{actors, nemesis};

/// What became of a schedule.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The promise that was broken, if one was.
    pub(crate) violation: Option<String>,
    /// Of virtual time.
    pub(crate) lasted: Duration,
    /// How often things of interest happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) history: History,
}

thread_local!(static PANIC: RefCell<Option<String>> = const { RefCell::new(None) });

/// Runs a schedule, and keeps so much of the fake's history.
///
/// On a thread of its own: unoptimized, the futures of all actors take more than a thread's 2 MiB of stack.
pub(crate) fn run(plan: &Plan, history: usize) -> Ran {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        let running = thread.spawn_scoped(scope, || run_here(plan, history)).expect("a thread");
        running.join().expect("what panics is caught there")
    })
}

fn run_here(plan: &Plan, history: usize) -> Ran {
    note_panics();
    PANIC.take();
    // What the crate leaves to chance.
    etcd_concurrency::fake::seed(plan.seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let local = LocalSet::new();
    let ran = catch_unwind(AssertUnwindSafe(|| local.block_on(&runtime, Box::pin(play(plan, history)))));
    let panicked = PANIC.take();
    let mut ran = ran.unwrap_or_else(|_| Ran {
        violation: None,
        lasted: Duration::ZERO,
        counts: BTreeMap::new(),
        history: etcd_concurrency::fake::FakeEtcd::start().history(),
    });
    ran.violation = ran.violation.or(panicked);
    ran
}

/// A task's panic ends that task alone: all of them are remembered.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = tokio::runtime::Handle::try_current().is_ok();
            if noted {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

async fn play(plan: &Plan, history: usize) -> Ran {
    let start = Instant::now();
    let world = World::new(plan, history).await;
    let record = Record::start(world.observer.clone());
    world.fake.until(|fake| fake.watchers() == 1).await;
    let played = tokio::select! {
        biased;
        () = world.violated() => Ok(()),
        played = act_and_judge(&world, plan, &record) => played,
    };
    if let Err(why) = played {
        world.violate(why);
    }
    let (violation, counts) = (world.violation(), world.counts.take());
    Ran { violation, lasted: start.elapsed(), counts, history: world.fake.history() }
}

async fn act_and_judge(world: &Rc<World>, plan: &Plan, record: &Record) -> Result<(), String> {
    let start = Instant::now();
    let tasks = usual_tasks(world).await;
    let mut nemesis = JoinSet::new();
    for event in &plan.events {
        nemesis.spawn_local(nemesis::strike(world.clone(), start, event.clone()));
    }
    let mut actors = JoinSet::new();
    for actor in &plan.actors {
        actors.spawn_local(actors::act(world.clone(), actor.clone()));
    }
    let mended = async {
        while let Some(ended) = nemesis.join_next().await {
            ended.expect("the nemesis");
        }
    };
    in_time(plan.setup.length + BOUND, mended).await?;
    nemesis::end(world).await;
    world.set_phase(Phase::Calm);
    let calm = Instant::now();
    orphans::end(world).await?;
    sleep_until(calm + CALM).await;
    world.set_phase(Phase::Over);
    let over = async {
        while let Some(ended) = actors.join_next().await {
            ended.map_err(|error| format!("an actor: {error}"))?;
        }
        Ok::<_, String>(())
    };
    in_time(2 * BOUND, over).await.map_err(|why| format!("the actors: {why}"))??;
    if wide::on(Wide::Stragglers) {
        // Members go on that stood still, and what straggles arrives, while the sessions live.
        sleep_until(world.last_straggler.get()).await;
        world.stopped[0].release();
        left::without_owners(world).await?;
    }
    // What was given up has time to be settled before its session is given back, or none.
    let in_peace = plan.seed.is_multiple_of(2);
    if in_peace && !world.told.borrow().not_taken_off.is_empty() {
        sleep(SETTLED).await;
    }
    world.told.borrow_mut().count_sessions_that_were_lost();
    world.drop_sessions();
    // What they had claimed is free then.
    let gone = in_time(BOUND, world.fake.until(left::no_leases)).await;
    gone.map_err(|why| format!("the end of all sessions: {why}"))?;
    // Too late for everything that goes with a session.
    world.stopped[1].release();
    let drained = in_time(BOUND, actors::drain(world)).await?;
    drained.map_err(|error| format!("what is left in the queue cannot be taken: {error}"))?;
    left::settled(world, tasks).await?;
    let revision = world.fake.revision();
    while !record.is_torn() && record.last_revision() < revision {
        sleep(Duration::from_millis(1)).await;
    }
    if record.is_torn() {
        world.count("torn records");
        return Ok(());
    }
    log::judge(&record.end(), &world.told.borrow())
}

/// How many tasks there are when nothing is done: what a client keeps that was used once, and the record.
async fn usual_tasks(world: &World) -> usize {
    for client in world.nodes.iter().map(|node| &node.client).chain([&world.observer]) {
        let session = Session::open(client).await.expect("nothing is wrong yet");
        let mut watcher = client.watch(Watch::key("nothing"));
        watcher.created().await.expect("nothing is wrong yet");
        session.close().await.expect("nothing is wrong yet");
    }
    world.fake.until(|fake| fake.watchers() == 1 && fake.streams() == 1).await;
    sleep(Duration::from_secs(1)).await;
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Longer than a request may straggle, be repeated, and be looked after once more.
const SETTLED: Duration = Duration::from_secs(30);
/// How long nothing goes wrong before it is over.
const CALM: Duration = Duration::from_secs(10);
const STACK: usize = 16 << 20;
