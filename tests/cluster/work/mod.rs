//! What the processes do. Each prints what it did, a line each, and goes on until it is killed.
//!
//! Every line has a word, a moment in Unix nanoseconds, and more.

pub(crate) mod append;
mod bank;
mod counter;
pub(crate) mod fifo;
mod hold;
mod leave;
mod owner;
mod queue;
mod record;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_concurrency::{Client, Session};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::part;
use crate::support::rival;
use crate::support::supervisor::Supervisor;

use record::Recorder;

pub(crate) use bank::{ACCOUNTS, START, account};

/// Short, so that it is lost now and then.
pub(crate) const TTL: Duration = Duration::from_secs(4);
/// How long a lock is held.
const HOLD: Duration = Duration::from_millis(200);
/// How often a holder asks whether it still is one.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) const OURS: &[&str] =
    &["lock", "election", "bank", "queue", "leave", "append", "owner", "counter", "fifo"];
pub(crate) const GO: &str = "go-lock";

pub(crate) fn start(kind: &'static str, number: usize, endpoints: &str) -> Supervisor {
    if kind == GO {
        return rival::holder(endpoints, "lock", TTL, HOLD, LOOK);
    }
    let number = number.to_string();
    // Any test of this binary will do: it sees that it is a part.
    part::play(
        "nothing_breaks_a_promise_on_etcd_3_7",
        &[("KIND", kind), ("NUMBER", &number), ("ENDPOINTS", endpoints)],
    )
}

/// The worker itself, in a process of its own.
pub(crate) async fn part() {
    let var = |name: &str| std::env::var(name).expect("told");
    let client = Client::builder().endpoints(var("ENDPOINTS").as_str()).connect_lazy().expect("endpoints");
    let number: usize = var("NUMBER").parse().expect("a number");
    match var("KIND").as_str() {
        "lock" => hold::lock(client).await,
        "election" => hold::lead(client, number).await,
        "bank" => bank::work(client, number).await,
        "queue" => queue::work(client, number).await,
        "leave" => leave::work(client).await,
        "append" => append::work(client, number).await,
        "owner" => tasks(number, |record| owner::calls(client.clone(), record)).await,
        "counter" => tasks(number, |record| counter::calls(client.clone(), record)).await,
        "fifo" => tasks(number, |record| fifo::calls(client.clone(), record)).await,
        other => panic!("what is {other}?"),
    }
}

/// Several at once who make calls and tell them.
async fn tasks<F>(process: usize, calls: impl Fn(Recorder) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks: JoinSet<()> = (0..record::TASKS).map(|task| calls(Recorder::of(process, task))).collect();
    tasks.join_all().await;
}

/// Another session, however long it takes.
async fn open(client: &Client) -> Session {
    open_for(client, TTL).await
}

async fn open_for(client: &Client, ttl: Duration) -> Session {
    loop {
        match Session::builder(client).ttl(ttl).open().await {
            Ok(session) => return session,
            Err(error) => {
                tell("trouble", &error.to_string());
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn tell(word: &str, more: &str) {
    tell_since(word, now(), more);
}

fn tell_since(word: &str, moment: u128, more: &str) {
    eprintln!("{word} {moment} {more}");
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}
