//! Leases that are kept alive: one stream for all of a client's, and a clock for each.

mod alarm;
pub(crate) mod clock;
mod doomed;
mod fate;
mod keepalive;
mod local;
mod registry;
mod state;
mod stream;
mod successor;
pub(crate) mod suspects;
#[cfg(test)]
mod testing;
pub(crate) mod time;
mod unsaved;

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, LostReason, Result};
use alarm::Alarm;
use clock::{LeaseClock, Moment};
use doomed::Doomed;
pub(crate) use fate::End;
pub(crate) use local::{Held, Locals, Turn};
pub(crate) use registry::Leases;
use registry::{Carried, Command, Known};
use state::State;
pub(crate) use successor::MayRevoke;
use suspects::Suspects;
pub(crate) use unsaved::{Debt, Owed, Unsaved};

/// What a session knows of its lease.
///
/// ```
/// # use etcd_concurrency::{LostReason, Session, SessionState, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let mut state = session.state();
/// assert_eq!(*state.borrow_and_update(), SessionState::Active);
/// session.close().await?;
/// assert_eq!(*state.borrow_and_update(), SessionState::Lost(LostReason::Closed));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// Keep-alives are answered.
    Active,
    /// A keep-alive is overdue, or its stream broke. The session is valid until its deadline.
    Suspended {
        /// When the trouble was noticed.
        since: Instant,
    },
    /// The session ended.
    Lost(LostReason),
}

/// A lease that is kept alive, shared by the sessions on it and the task that keeps it.
pub(crate) struct Lease {
    id: i64,
    clock: Mutex<LeaseClock>,
    state: State,
    /// Cancelled once the state is lost. Who waits for that goes on in the order of coming, which a watch channel does
    /// not keep.
    ended: CancellationToken,
    carried: Arc<Carried>,
    /// It was granted here, not adopted: nobody else puts keys with it.
    granted: bool,
    /// How many sessions are on it, or about to be: more than one where it was adopted twice. With none left it is given
    /// up for good.
    sessions: AtomicUsize,
    /// It was given away, by one of the sessions on it for all of them.
    given_away: AtomicBool,
    /// Which one it is of the handles of the lease that this client had one after another.
    number: u64,
    /// Tells that a keep-alive was answered after trouble, or for the first time.
    resumed: Notify,
    leases: Leases,
}

impl Lease {
    fn new(id: i64, clock: LeaseClock, carried: Arc<Carried>, leases: Leases) -> Self {
        let granted = clock.is_proven();
        let first =
            if granted { SessionState::Active } else { SessionState::Suspended { since: Instant::now() } };
        let (clock, state) = (Mutex::new(clock), State::new(first));
        let (ended, sessions) = (CancellationToken::new(), AtomicUsize::new(1));
        let (given_away, resumed) = (AtomicBool::new(false), Notify::new());
        let number = carried.handles.fetch_add(1, Ordering::Relaxed) + 1;
        Self { id, clock, state, ended, carried, granted, sessions, given_away, number, resumed, leases }
    }

    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        lock(&self.clock).ttl()
    }

    /// The server is known to have it: it was granted, or a keep-alive was answered.
    pub(crate) fn is_proven(&self) -> bool {
        lock(&self.clock).is_proven()
    }

    /// A session more is on this lease.
    pub(crate) fn enter(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// A session less is; true if it was the last.
    pub(crate) fn leave(&self) -> bool {
        self.sessions.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// As [`enter`](Self::enter), unless the lease was given up.
    fn enter_if_used(&self) -> bool {
        let more = |sessions: usize| (sessions > 0).then_some(sessions + 1);
        self.sessions.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Whose turn it is among the tasks of this process, key by key.
    pub(crate) fn locals(&self) -> &Locals {
        &self.carried.locals
    }

    /// It was granted here, not adopted.
    pub(crate) fn is_granted(&self) -> bool {
        self.granted
    }

    /// Keys that may yet be put, though those who wanted them have given up.
    pub(crate) fn suspects(&self) -> &Suspects {
        &self.carried.suspects
    }

    /// The work that must end before the lease is revoked, whichever session on it begins that, or revokes it.
    pub(crate) fn urgent(&self) -> &TaskTracker {
        &self.carried.urgent
    }

    /// The holds of barriers that may outlast the lease without an owner, whichever session on it makes them.
    pub(crate) fn holds(&self) -> &TaskTracker {
        &self.carried.holds
    }

    /// What is lost with the lease unless it is saved, of all sessions on it; told and asked for this handle.
    pub(crate) fn unsaved(&self) -> Unsaved {
        self.carried.unsaved.of(self.number)
    }

    /// Gives the lease away: its adopter is to find it, so none of the sessions on it revokes it.
    pub(crate) fn give_away(&self) {
        self.given_away.store(true, Ordering::Relaxed);
        self.carried.given_away.fetch_max(self.number, Ordering::Relaxed);
        // The caller may hold a borrow of the state.
        self.end(LostReason::Orphaned);
    }

    /// Keys that may yet be deleted, though who deleted them has given up.
    pub(crate) fn doomed(&self) -> &Doomed {
        &self.carried.doomed
    }

    pub(crate) fn state(&self) -> SessionState {
        self.state.now()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<SessionState> {
        self.state.watch()
    }

    /// Why the lease is lost. Looks at the clock itself: a task that wakes late learns it before any timer fires.
    ///
    /// Who asks may hold a borrow of [`watch`](Self::watch), so what this finds is told by the task.
    pub(crate) fn lost_reason(&self) -> Option<LostReason> {
        if let SessionState::Lost(reason) = self.state.now() {
            return Some(reason);
        }
        self.remaining().is_zero().then(|| self.end(LostReason::Expired))
    }

    /// Like [`lost_reason`](Self::lost_reason), without ending anything.
    fn is_believed(&self, now: Moment) -> bool {
        let ended = matches!(self.state.now(), SessionState::Lost(_));
        !ended && !lock(&self.clock).remaining(now).is_zero()
    }

    /// What is left until the deadline; zero once it passed.
    pub(crate) fn remaining(&self) -> Duration {
        // Before the lock: where the time is read may be a user's code, and that may ask for a session.
        let now = self.leases.time().now();
        lock(&self.clock).remaining(now)
    }

    /// When tokio's clock reaches the deadline, as it is now.
    fn ends_at(&self) -> Instant {
        let deadline = lock(&self.clock).deadline();
        self.leases.time().instant_of(deadline)
    }

    /// The server said that the lease is gone. What that means depends on whether its TTL can have run out.
    pub(crate) fn gone(&self) -> LostReason {
        let revoked = !self.remaining().is_zero();
        self.lose(if revoked { LostReason::Revoked } else { LostReason::LeaseGone })
    }

    /// Takes an answer of the server that the cluster's past is gone for what it says.
    pub(crate) fn learn_of_past<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if matches!(error.kind(), ErrorKind::RevisionsLost { .. }) => {
                let lost = self.lose(LostReason::RevisionsLost);
                Err(Error::from(lost).with_outcome(error.outcome()).because(error))
            }
            other => other,
        }
    }

    /// Takes an answer of the server that the lease is gone, or the cluster's past, for what it says.
    pub(crate) fn learn<T>(&self, result: Result<T>) -> Result<T> {
        match self.learn_of_past(result) {
            Err(error) if *error.kind() == ErrorKind::LeaseNotFound => {
                Err(Error::from(self.gone()).with_outcome(error.outcome()).because(error))
            }
            other => other,
        }
    }

    /// Ends belief in the lease, and tells who watches. The first reason given stays, and is returned.
    pub(crate) fn lose(&self, reason: LostReason) -> LostReason {
        let first = self.end(reason);
        self.state.tell(&self.leases.shared.runtime);
        first
    }

    /// Like [`lose`](Self::lose), where the caller may hold a borrow of [`watch`](Self::watch): the task tells who
    /// watches.
    pub(crate) fn end(&self, reason: LostReason) -> LostReason {
        let (first, ended) = self.state.change(|state| match *state {
            SessionState::Lost(earlier) => (earlier, false),
            _ => {
                *state = SessionState::Lost(reason);
                // Before it can be seen that the lease is lost.
                *lock(&self.carried.lost_at) = Some(Instant::now());
                (reason, true)
            }
        });
        if ended {
            if matches!(reason, LostReason::LeaseGone | LostReason::Revoked) {
                self.was_revoked();
            }
            self.ended.cancel();
            tracing::debug!(lease = format_args!("{:x}", self.id), %reason, "lease lost");
            self.leases.tell(Command::Forget(self.id));
        }
        first
    }

    /// Waits until all who watch know the state, but hardly longer where one of them holds a borrow of it.
    pub(crate) async fn told(&self) {
        self.state.told().await;
    }

    /// Waits until a keep-alive is answered, unless there is no trouble. The lease's end is not told.
    pub(crate) async fn proven(&self) {
        loop {
            // Made before the look: no answer is missed.
            let resumed = self.resumed.notified();
            if !matches!(self.state.now(), SessionState::Suspended { .. }) {
                return;
            }
            resumed.await;
        }
    }

    /// Resolves once the lease is lost: at the deadline, on the runtime that polls this, whatever the client's does.
    ///
    /// Each poll looks at the clock: whoever waits for this beside other work learns of the loss before that work goes
    /// on, even if all timers of a process that was stopped fire at once.
    pub(crate) async fn lost(&self) -> LostReason {
        let mut ended = std::pin::pin!(self.ended.cancelled());
        let mut alarm = Alarm::default();
        poll_fn(|context| match self.lost_reason() {
            Some(reason) => Poll::Ready(reason),
            // The state is there before the token is cancelled.
            None if ended.as_mut().poll(context).is_ready() => {
                Poll::Ready(self.lost_reason().unwrap_or(LostReason::Expired))
            }
            None => alarm.poll(self, context),
        })
        .await
    }

    fn suspend(&self) {
        let changed = self.state.change(|state| {
            let active = *state == SessionState::Active;
            if active {
                *state = SessionState::Suspended { since: Instant::now() };
            }
            active
        });
        if changed {
            self.state.tell(&self.leases.shared.runtime);
        }
    }

    fn resume(&self) {
        let changed = self.state.change(|state| {
            let suspended = matches!(state, SessionState::Suspended { .. });
            if suspended {
                // Before it can be seen: what was known of the lease's end is of before.
                self.proves();
                *state = SessionState::Active;
            }
            suspended
        });
        // Most keep-alives change nothing, and wait for nobody who holds a borrow.
        if changed {
            self.resumed.notify_waiters();
            self.state.tell(&self.leases.shared.runtime);
        }
    }

    /// Asks or tells the clock something, at this moment. Only the task that keeps the lease alive tells it anything, so
    /// moments that are read before the lock come in order.
    fn with_clock<T>(&self, f: impl FnOnce(&mut LeaseClock, Moment) -> T) -> T {
        // Not under the lock: see `remaining`.
        let now = self.leases.time().now();
        f(&mut lock(&self.clock), now)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut by_id = lock(&self.leases.shared.by_id);
        drop(std::mem::take(&mut self.carried));
        // An earlier session's work in the background may still need what is carried over.
        let is_over = |known: &Known| known.lease.strong_count() == 0 && known.carried.strong_count() == 0;
        if by_id.get(&self.id).is_some_and(is_over) {
            by_id.remove(&self.id);
        }
    }
}

/// tokio's timers count in these.
const MOMENT: Duration = Duration::from_millis(1);

/// No code of ours panics under these locks, and no user's code runs under them; if one did panic, the data would still
/// be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
