//! Many wait, and one makes way: only those that can go on are told of it, and only they ask anything.

use std::time::Duration;

use etcd_concurrency::{Client, Session};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tower::Layer;

use super::table::Wait;
use crate::support::answers::Answers;
use crate::support::backend::{Backend, on_fake, on_real};
use crate::support::count::RpcCounter;
use crate::support::etcd::Version;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet};

/// How many wait. A real server that waits for its disk at every write takes its time over a thousand.
fn crowd(backend: &Backend) -> u32 {
    if backend.is_fake() { 1_000 } else { 200 }
}

/// Sessions of one client, whose calls and answers are counted.
struct Crowd {
    sessions: Vec<Session>,
    counter: RpcCounter,
    answers: Answers,
}

impl Crowd {
    async fn gather(backend: &Backend) -> Crowd {
        let (counter, answers) = (RpcCounter::new(), Answers::default());
        let client = Client::from_service(answers.layer(counter.layer(backend.service())));
        let mut opening = JoinSet::new();
        for _ in 0..crowd(backend) {
            let client = client.clone();
            opening.spawn(async move { Session::builder(&client).ttl(Duration::from_secs(60)).open().await });
        }
        let sessions =
            opening.join_all().await.into_iter().map(|opened| opened.expect("a session")).collect();
        Crowd { sessions, counter, answers }
    }

    async fn wait(&self, backend: &Backend, wait: Wait) {
        let (name, observer) = (backend.key(&format!("{wait:?}")), backend.client());
        let (holder, waiters) = (Session::open(&observer).await.unwrap(), crowd(backend));
        let making_way = wait.hold(&holder, &name, waiters).await.unwrap();
        let (told, mut tells) = unbounded_channel();
        let mut waiting = JoinSet::new();
        for session in &self.sessions {
            let (doing, told) = (wait.wait(session, &name, waiters), told.clone());
            waiting.spawn(async move {
                let got = doing.await.expect("nothing goes wrong");
                told.send(()).expect("somebody listens");
                // Nobody else can have it.
                std::future::pending::<()>().await;
                drop(got);
            });
        }
        wait.until_stand(&observer, &name, waiters).await;
        self.until_quiet(wait.watches(i64::from(waiters))).await;
        self.counter.reset();
        self.answers.take_events();
        // Not dropped yet: whoever leaves again is seen, too.
        let made_way = making_way.await.unwrap();
        let going_on = if wait.is_for_all() { waiters } else { 1 };
        for _ in 0..going_on {
            tells.recv().await.expect("one that goes on");
        }
        quiet(&self.counter).await;
        assert!(tells.try_recv().is_err(), "{wait:?}: more went on than can");
        let (calls, events) = (self.counter.unary_total(), self.answers.take_events());
        println!("{wait:?}: {going_on} went on with {calls} calls and {events} events");
        let (most_calls, most_events) = wait.most(u64::from(going_on));
        assert!(calls <= most_calls, "{wait:?}: {}", self.counter);
        assert!(events <= most_events, "{wait:?}: {events} events");
        assert_eq!(self.counter.count("Watch"), 0, "{wait:?}: {}", self.counter);
        drop(made_way);
        waiting.shutdown().await;
        wait.until_line(&observer, &name, 0).await;
        self.until_quiet(0).await;
    }

    /// So many watches stand, every call is answered, and no other follows.
    async fn until_quiet(&self, watches: i64) {
        until(&format!("{watches} watches"), LONG, async || {
            (self.answers.watches() == watches && self.answers.open() == 0).then_some(())
        })
        .await;
        quiet(&self.counter).await;
    }
}

impl Wait {
    /// How many watches so many have.
    fn watches(self, waiters: i64) -> i64 {
        match self {
            Wait::Gate | Wait::Latch | Wait::Change => waiters,
            // The first watches the queue, and the next one the keys from the first's to its own.
            Wait::Item | Wait::Urgent => 2 * waiters - 2,
            // On its own key, and on the one before it; the first on all from the one to the other, or on the queue.
            Wait::Writer | Wait::Several | Wait::Permit => 2 * waiters - 1,
            _ => 2 * waiters,
        }
    }

    /// How many calls, and how many events, tell so many that they may go on.
    fn most(self, going_on: u64) -> (u64, u64) {
        match self {
            // What they wait for goes: that is all that they need to know.
            Wait::Reader | Wait::Gate | Wait::Latch | Wait::Change => (0, going_on),
            // Before it, each sees those who come after it.
            Wait::Round => (0, going_on * 2),
            Wait::Writer | Wait::Several => (1, 2),
            // It marks what it has got, and the next one looks whether more is free.
            Wait::Permit => (3, 6),
            // The take, the item's end, the way out; the next one's proof that it is the first, and its look.
            Wait::Item | Wait::Urgent => (6, 12),
        }
    }
}

async fn one_release_wakes_those_that_can_go_on(backend: Backend) {
    let crowd = Crowd::gather(&backend).await;
    for wait in Wait::ALL {
        crowd.wait(&backend, wait).await;
    }
}

#[test]
fn of_a_thousand() {
    on_fake(module_path!(), one_release_wakes_those_that_can_go_on);
}

#[test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
fn of_many_on_etcd_3_7() {
    on_real(Version::V3_7, module_path!(), one_release_wakes_those_that_can_go_on);
}

#[test]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
fn of_many_on_etcd_3_4() {
    on_real(Version::V3_4, module_path!(), one_release_wakes_those_that_can_go_on);
}
