//! What all handles of one fake share: the state under its lock, the clock, the open streams, and who is
//! waiting for what.

mod lag;
mod outage;
mod streams;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;

use self::outage::Leaderless;
use self::streams::{Flow, Link};
pub(crate) use self::streams::{Pull, Reply};
use super::core::{Config, Core};
use super::fault::{Faults, Place, Plan, broken};
use super::history::{Asked, Log};
use super::refusal::Refusal;
use super::rpc::Rpc;
use super::serve::Listener;
use super::store::Store;
use super::watch::StreamId;

/// Shared by every handle, service and stream of one fake.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    config: Config,
    start: Instant,
    /// Told of every change; for whoever waits for a condition.
    changed: Notify,
    /// Told of partitions, healings and cuts.
    roads: Notify,
    /// Told when the timer has to look again: an earlier deadline, or the end.
    timer: Arc<Notify>,
    listeners: Mutex<Vec<Weak<Listener>>>,
}

/// Everything under the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) faults: Faults,
    pub(crate) history: Log,
    leaderless: Option<Leaderless>,
    stopped: bool,
    /// How often the server was stopped: what was on its way to it before is lost.
    stops: u64,
    streams: BTreeMap<StreamId, Link>,
    last_stream: StreamId,
    partitioned: BTreeSet<Arc<str>>,
    /// What the member has seen that a client reads from, where it lags.
    behind: BTreeMap<Arc<str>, Store>,
    /// How often each client's connection was cut.
    cuts: BTreeMap<Arc<str>, u64>,
    timer_task: Option<AbortHandle>,
    /// When the timer wakes next.
    armed: Option<Duration>,
    /// Who has something new to look at; woken once the lock is free.
    woken: Vec<Waker>,
    /// Something happened that whoever waits on a road wants to know.
    roads_changed: bool,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Arc<Self> {
        let settings = config.clone();
        let state = State {
            faults: Faults::new(config.seed),
            history: Log::new(config.history_limit),
            core: Core::new(config),
            leaderless: None,
            stopped: false,
            stops: 0,
            streams: BTreeMap::new(),
            last_stream: 0,
            partitioned: BTreeSet::new(),
            behind: BTreeMap::new(),
            cuts: BTreeMap::new(),
            timer_task: None,
            armed: None,
            woken: Vec::new(),
            roads_changed: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            config: settings,
            start: Instant::now(),
            changed: Notify::new(),
            roads: Notify::new(),
            timer: Arc::new(Notify::new()),
            listeners: Mutex::default(),
        })
    }

    /// Changes the state. What is due by now happens first, so that nobody is served by a late timer.
    pub(crate) fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = self.start.elapsed();
        let mut state = self.lock();
        state.advance(now);
        let out = change(&mut state, now);
        let woken = self.settle(&mut state);
        let roads_changed = std::mem::take(&mut state.roads_changed);
        drop(state);
        // Wakers may run anything: never under the lock.
        woken.into_iter().for_each(Waker::wake);
        self.changed.notify_waiters();
        if roads_changed {
            self.roads.notify_waiters();
        }
        out
    }

    /// Looks at the state, and tells nobody unless time itself has changed it.
    pub(crate) fn look<T>(self: &Arc<Self>, look: impl FnOnce(&State, Duration) -> T) -> T {
        let now = self.start.elapsed();
        let mut state = self.lock();
        if state.next_wake().is_some_and(|wake| wake <= now) {
            drop(state);
            return self.with(|state, now| look(state, now));
        }
        let out = look(&mut state, now);
        drop(state);
        out
    }

    /// The largest message that is read at all.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.config.max_message_bytes()
    }

    /// What is wrong with a request at first sight.
    pub(crate) fn check(&self, request: &impl Asked) -> Result<(), Refusal> {
        let (size, limit) = (request.size(), self.config.max_message_bytes());
        if size > limit {
            return Err(Refusal::MessageTooLarge { size, limit });
        }
        request.check(&self.config)
    }

    /// Waits until something holds, looking again after each change.
    pub(crate) async fn until(&self, mut holds: impl FnMut() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// What the faults set have in store for a message.
    pub(crate) fn plan(&self, place: Place, rpc: Rpc, client: &str, message: &dyn Any) -> Option<Plan> {
        self.lock().faults.plan(place, rpc, client, message)
    }

    /// Waits while the client is partitioned.
    pub(crate) async fn road(&self, client: &str) {
        self.on_roads(|state| !state.partitioned.contains(client)).await;
    }

    /// As [`road`](Self::road), for a call: it breaks off when the connection is cut.
    pub(crate) async fn pass(&self, client: &str) -> Result<(), Status> {
        if !self.lock().partitioned.contains(client) {
            return Ok(());
        }
        tokio::select! {
            biased;
            status = self.broken_off(client) => Err(status),
            () = self.road(client) => Ok(()),
        }
    }

    /// Waits until the client's connection is cut, or the server stopped.
    pub(crate) async fn broken_off(&self, client: &str) -> Status {
        let cuts = |state: &State| state.cuts.get(client).copied().unwrap_or(0) + state.stops;
        let before = cuts(&self.lock());
        self.on_roads(|state| cuts(state) > before).await;
        broken()
    }

    pub(crate) fn partition(self: &Arc<Self>, client: &str) {
        self.with(|state, now| {
            state.note(now, format!("{client} is partitioned"));
            state.partitioned.insert(client.into());
            state.roads_changed = true;
        });
    }

    pub(crate) fn heal(self: &Arc<Self>, client: &str) {
        self.with(|state, now| {
            state.note(now, format!("{client} is healed"));
            state.partitioned.remove(client);
            state.each_stream_of(client, |_| {});
            state.roads_changed = true;
        });
    }

    /// Breaks the client's streams, and, if `calls`, its unanswered calls too.
    pub(crate) fn cut(self: &Arc<Self>, client: &str, calls: bool) {
        self.with(|state, now| {
            let what = if calls { "connection is cut" } else { "streams are cut" };
            state.note(now, format!("{client}'s {what}"));
            state.each_stream_of(client, |link| link.flow = Flow::Cut(broken()));
            *state.cuts.entry(client.into()).or_default() += u64::from(calls);
            state.roads_changed = true;
        });
    }

    pub(crate) fn stall(self: &Arc<Self>, client: &str) {
        self.with(|state, now| {
            state.note(now, format!("{client}'s streams stall"));
            state.each_stream_of(client, |link| link.flow = Flow::Stalled);
        });
    }

    pub(crate) fn cut_stream(self: &Arc<Self>, stream: StreamId, status: Status) {
        self.with(|state, _| state.on_stream(stream, |link| link.flow = Flow::Cut(status)));
    }

    pub(crate) fn stall_stream(self: &Arc<Self>, stream: StreamId) {
        self.with(|state, _| state.on_stream(stream, |link| link.flow = Flow::Stalled));
    }

    /// What a stream may say now; `waker` is told when that may have changed.
    pub(crate) fn pull<T>(
        &self,
        stream: StreamId,
        waker: &Waker,
        next: impl FnOnce(&mut State, StreamId) -> Option<T>,
    ) -> Pull<T> {
        self.lock().pull(stream, waker, next)
    }

    async fn on_roads(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.roads.notified());
            changed.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a predicate of the user's must not take the server down with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a change: whom to wake, and whether the timer has to look again.
    fn settle(self: &Arc<Self>, state: &mut State) -> Vec<Waker> {
        let next = state.next_wake();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.timer.notify_one();
            self.keep_timer(state);
        }
        for stream in state.core.take_ready() {
            state.on_stream(stream, |_| {});
        }
        std::mem::take(&mut state.woken)
    }

    /// Without a runtime there is no timer; leases then end when somebody next looks.
    fn keep_timer(self: &Arc<Self>, state: &mut State) {
        let alive = state.timer_task.as_ref().is_some_and(|task| !task.is_finished());
        if !alive && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let task = drive(Arc::downgrade(self), Arc::clone(&self.timer), self.start);
            state.timer_task = Some(runtime.spawn(task).abort_handle());
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.timer.notify_one();
    }
}

/// The one timer: sleeps until the next lease ends, or the next leader is there, and lets it happen. It never ticks, so that a paused clock
/// jumps from deadline to deadline.
async fn drive(shared: Weak<Shared>, look_again: Arc<Notify>, start: Instant) {
    loop {
        let Some(alive) = shared.upgrade() else { return };
        let deadline = alive.with(|state, _| {
            state.armed = state.next_wake();
            state.armed
        });
        drop(alive);
        match deadline {
            None => look_again.notified().await,
            Some(deadline) => tokio::select! {
                biased;
                () = look_again.notified() => {}
                () = tokio::time::sleep_until(start + deadline) => {}
            },
        }
    }
}
