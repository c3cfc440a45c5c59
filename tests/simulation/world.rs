//! The world of one schedule: the fake, the clients, and what is known about them from outside.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On};
use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::{Client, Session};
use fastrand::Rng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::checks::held::Held;
use crate::checks::orphans::Orphans;
use crate::checks::told::Told;
use crate::plan::{CLIENTS, Plan, Setup};

/// How long anything may take that waits while nothing goes wrong. Well below a minute, after which the crate looks
/// again at what it may have missed: a wake-up that only that makes up for is lost.
pub(crate) const BOUND: Duration = Duration::from_secs(50);

/// How finely time is counted in which something goes on that should have ended.
const STEP: Duration = Duration::from_millis(100);

pub(crate) struct World {
    pub(crate) fake: FakeEtcd,
    pub(crate) setup: Setup,
    /// One that no trouble strikes.
    pub(crate) observer: Client,
    pub(crate) nodes: Vec<Node>,
    sessions: RefCell<BTreeMap<(usize, usize), Session>>,
    pub(crate) held: RefCell<Held>,
    pub(crate) told: RefCell<Told>,
    pub(crate) orphans: RefCell<Orphans>,
    /// Leases that were ended behind their owners' backs, and keys that were deleted, by their create_revisions.
    pub(crate) ended: RefCell<BTreeSet<i64>>,
    pub(crate) broken: RefCell<BTreeSet<i64>>,
    /// Members that stand still until all is quiet, and until all have gone.
    pub(crate) stopped: [Hold; 2],
    /// When the last call has arrived that straggles.
    pub(crate) last_straggler: Cell<Instant>,
    /// What one call may straggle for, if it is struck by all that makes calls straggle.
    longest: Cell<Duration>,
    phase: Cell<Phase>,
    violation: RefCell<Option<String>>,
    violated: Notify,
    ids: Cell<u64>,
    pub(crate) counts: RefCell<BTreeMap<&'static str, u64>>,
}

/// A process.
pub(crate) struct Node {
    pub(crate) client: Client,
    /// Milliseconds.
    pub(crate) slept: Arc<AtomicU64>,
    pub(crate) frozen_until: Cell<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Things go wrong.
    Rough,
    /// Nothing goes wrong: nobody may wait for long.
    Calm,
    /// What is begun is finished.
    Over,
}

impl World {
    pub(crate) async fn new(plan: &Plan, history: usize) -> Rc<Self> {
        let setup = plan.setup.clone();
        let fake = FakeEtcd::builder().seed(plan.seed).history_limit(history);
        let fake = fake.token_ttl(Duration::from_secs(20));
        let fake = if setup.shuffled { fake.shuffled_watches() } else { fake }.start();
        if setup.auth {
            enable_auth(&fake.client()).await;
        }
        if !setup.latency.is_zero() {
            for name in CLIENTS {
                fake.fault(On::any().client(name), Do::delay(setup.latency));
                fake.fault(On::any().client(name), Do::delay_reply(setup.latency));
            }
        }
        let nodes = CLIENTS.map(|name| Node::new(&fake, name, &setup));
        let observer = Node::new(&fake, "observer", &setup).client;
        Rc::new(Self {
            fake,
            setup,
            observer,
            nodes: nodes.into(),
            sessions: RefCell::default(),
            held: RefCell::default(),
            told: RefCell::default(),
            orphans: RefCell::default(),
            ended: RefCell::default(),
            broken: RefCell::default(),
            stopped: [Hold::new(), Hold::new()],
            last_straggler: Cell::new(Instant::now()),
            longest: Cell::new(Duration::ZERO),
            phase: Cell::new(Phase::Rough),
            violation: RefCell::default(),
            violated: Notify::new(),
            ids: Cell::new(0),
            counts: RefCell::default(),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.phase.get() != Phase::Over
    }

    /// A promise was broken. The first one is told.
    pub(crate) fn violate(&self, what: impl Into<String>) {
        self.violation.borrow_mut().get_or_insert_with(|| what.into());
        self.violated.notify_one();
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    pub(crate) async fn violated(&self) {
        while self.violation.borrow().is_none() {
            self.violated.notified().await;
        }
    }

    /// A number that is given once.
    pub(crate) fn id(&self) -> u64 {
        self.ids.set(self.ids.get() + 1);
        self.ids.get()
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    /// The session of a slot, if it is there and may be closed or used.
    pub(crate) fn session(&self, client: usize, slot: usize) -> Option<Session> {
        self.sessions.borrow().get(&(client, slot)).cloned()
    }

    pub(crate) fn set_session(&self, client: usize, slot: usize, session: Session) {
        let before = self.sessions.borrow_mut().insert((client, slot), session);
        drop(before);
    }

    /// Takes the session of a slot away.
    pub(crate) fn take_session(&self, client: usize, slot: usize) -> Option<Session> {
        self.sessions.borrow_mut().remove(&(client, slot))
    }

    /// What is sent from now on may take so long to arrive; and longer where it straggles for several reasons, which add up.
    pub(crate) fn straggles(&self, lasts: Duration, longest: Duration) {
        self.longest.set(self.longest.get() + longest);
        let last = Instant::now() + lasts + self.longest.get();
        self.last_straggler.set(self.last_straggler.get().max(last));
    }

    pub(crate) fn drop_sessions(&self) {
        let all = std::mem::take(&mut *self.sessions.borrow_mut());
        drop(all);
    }

    /// Whether somebody took this away behind its owner's back, who believes in it for a while.
    pub(crate) fn is_taken(&self, lease: i64, token: i64) -> bool {
        self.ended.borrow().contains(&lease) || self.broken.borrow().contains(&token)
    }

    /// Waits as long as the client's process stands still, before each poll.
    pub(crate) async fn unless_frozen<F: Future>(self: &Rc<Self>, client: usize, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut thaw = pin!(sleep_until(Instant::now()));
        poll_fn(|context| {
            let until = self.nodes[client].frozen_until.get();
            if Instant::now() < until {
                thaw.as_mut().reset(until);
                if thaw.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
            future.as_mut().poll(context)
        })
        .await
    }

    /// Runs something that waits, and gives it up somewhere, or not. None where it was given up.
    ///
    /// Once nothing goes wrong it is not given up, and must end in time; and whatever happens, once its session is lost.
    pub(crate) async fn wait<F: Future>(
        &self,
        what: &'static str,
        rng: &mut Rng,
        session: Option<&Session>,
        future: F,
    ) -> Option<F::Output> {
        let rough = self.phase() == Phase::Rough;
        let (polls, patience) = match rng.u8(0..6) {
            0 if rough => (rng.usize(1..30), Duration::MAX),
            1 if rough => (usize::MAX, Duration::from_millis(rng.u64(0..50))),
            2 if rough => (usize::MAX, Duration::from_millis(rng.u64(0..4_000))),
            _ => (usize::MAX, Duration::MAX),
        };
        let given_up = async {
            match patience {
                Duration::MAX => std::future::pending().await,
                patience => sleep(patience).await,
            }
        };
        let overdue = async {
            while self.phase() == Phase::Rough {
                sleep(Duration::from_secs(1)).await;
            }
            sleep(BOUND).await;
        };
        let lost = async {
            let Some(session) = session else { return std::future::pending().await };
            session.lost().await;
            // In steps, so that a time in which all stands still counts as one.
            let steps = (self.setup.request_timeout + Duration::from_secs(3)).as_millis() / STEP.as_millis();
            for _ in 0..steps {
                sleep(STEP).await;
            }
        };
        tokio::select! {
            biased;
            done = at_most(polls, future) => done,
            () = given_up => None,
            () = overdue => {
                self.violate(format!("{what} took longer than {BOUND:?} although nothing was wrong"));
                None
            }
            () = lost => {
                self.violate(format!("{what} went on after its session was lost"));
                None
            }
        }
    }

    pub(crate) async fn pause(&self, rng: &mut Rng, longest_ms: u64) {
        sleep(Duration::from_millis(rng.u64(0..longest_ms))).await;
    }
}

impl Node {
    fn new(fake: &FakeEtcd, name: &str, setup: &Setup) -> Self {
        let slept = Arc::new(AtomicU64::new(0));
        let told = slept.clone();
        let mut client = Client::builder()
            .service(fake.service_for(name))
            .request_timeout(setup.request_timeout)
            .suspended_time(move || Duration::from_millis(told.load(Ordering::Relaxed)));
        if setup.auth {
            client = client.user("root", "secret");
        }
        let client = client.connect_lazy().expect("good options");
        Self { client, slept, frozen_until: Cell::new(Instant::now()) }
    }
}

async fn enable_auth(client: &Client) {
    let mut auth = client.auth_client();
    let user =
        pb::AuthUserAddRequest { name: "root".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(user).await.expect("a user");
    let grant = pb::AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(grant).await.expect("a role");
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("auth");
}

/// Polls a future so many times at most, then drops it.
async fn at_most<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// What does not end by then will not end.
pub(crate) async fn in_time<F: Future>(limit: Duration, future: F) -> Result<F::Output, String> {
    timeout(limit, future).await.map_err(|_| format!("not done within {limit:?} of virtual time"))
}
