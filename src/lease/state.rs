//! What a lease is, and who watches that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{SessionState, lock};

/// The state of a lease, and a channel that tells of it. That takes more memory than anything else of a session, and
/// few sessions are watched: it is made for the first who asks.
///
/// A change and its telling are two steps: who holds a borrow of the channel's value stops whoever tells, and must
/// still be able to look at the lease, and to find out that it is lost. For the same reason a thread of its own tells:
/// the caller's, and that of the task which keeps leases alive, may be the one that holds the borrow.
#[derive(Debug, Clone)]
pub(super) struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: Mutex<SessionState>,
    watched: OnceLock<watch::Sender<SessionState>>,
}

impl State {
    pub(super) fn new(first: SessionState) -> Self {
        Self(Arc::new(Inner { now: Mutex::new(first), watched: OnceLock::new() }))
    }

    pub(super) fn now(&self) -> SessionState {
        *lock(&self.0.now)
    }

    /// Changes the state, which nobody is told of yet; returns what that returns.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut SessionState) -> T) -> T {
        change(&mut lock(&self.0.now))
    }

    /// Tells all who watch what the state is, unless they know: soon.
    pub(super) fn tell(&self, runtime: &Handle) {
        if self.0.watched.get().is_some() {
            let mut telling = Telling(Some(self.clone()));
            drop(runtime.spawn_blocking(move || telling.tell()));
        }
    }

    /// As [`tell`](Self::tell); waits until it is done, but hardly longer where a borrow is in the way, which may be the
    /// caller's.
    pub(super) async fn told(&self) {
        if self.0.watched.get().is_none() {
            return;
        }
        let (state, told) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let tells = told.clone();
        // Not on a thread of the runtime, which may be short of them for as long as it likes.
        on_a_thread(move || {
            state.tell_now();
            tells.store(true, Ordering::Release);
        });
        // Nor by tokio's clock: in a test that has it in hand it would run ahead of the thread. It hardly ever takes more than
        // a moment.
        let start = Instant::now();
        while !told.load(Ordering::Acquire) && start.elapsed() < BORROWED {
            tokio::task::yield_now().await;
        }
    }

    /// Waits for those who hold a borrow.
    pub(super) fn tell_now(&self) {
        let Some(watched) = self.0.watched.get() else { return };
        watched.send_if_modified(|told| {
            // Read in here, so that the last to tell tells the last.
            let now = self.now();
            std::mem::replace(told, now) != now
        });
    }

    /// True where there is somebody to tell.
    pub(super) fn is_watched(&self) -> bool {
        self.0.watched.get().is_some_and(|watched| watched.receiver_count() > 0)
    }

    pub(super) fn watch(&self) -> watch::Receiver<SessionState> {
        // Under the lock, so that the channel begins with a change, or is there to tell of it.
        let now = lock(&self.0.now);
        self.0.watched.get_or_init(|| watch::channel(*now).0).subscribe()
    }
}

/// What is to be told on a thread of the runtime; where that has ended, on one of its own: here may be a borrow.
struct Telling(Option<State>);

impl Telling {
    fn tell(&mut self) {
        self.0.take().iter().for_each(State::tell_now);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            on_a_thread(move || state.tell_now());
        }
    }
}

/// Tells on a thread of its own.
pub(super) fn on_a_thread(tell: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("lease's state".into()).spawn(tell) {
        tracing::warn!(%error, "who watches the state of a session is not told of a change");
    }
}

/// How long a borrow is waited for by the one who closes a session.
const BORROWED: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LostReason;

    #[test]
    fn who_watches_sees_what_is_and_what_comes() {
        let state = State::new(SessionState::Active);
        let lose = |reason| {
            state.change(|now| *now = SessionState::Lost(reason));
            state.tell_now();
        };
        lose(LostReason::Expired);
        let mut watched = state.watch();
        assert_eq!(*watched.borrow(), SessionState::Lost(LostReason::Expired));
        state.tell_now();
        assert!(!watched.has_changed().unwrap(), "who watches knows");
        lose(LostReason::Revoked);
        assert!(watched.has_changed().unwrap());
        assert_eq!(*watched.borrow_and_update(), state.now());
        drop(state);
        assert!(watched.has_changed().is_err(), "nothing will come");
    }

    /// What is told in the end is what is, however many change it and tell at once.
    #[test]
    fn the_last_who_tells_tells_the_last() {
        for _ in 0..500 {
            let state = State::new(SessionState::Active);
            let watched = state.watch();
            std::thread::scope(|scope| {
                for reason in [LostReason::Expired, LostReason::Revoked, LostReason::Closed] {
                    let state = &state;
                    scope.spawn(move || {
                        state.change(|now| *now = SessionState::Lost(reason));
                        state.tell_now();
                    });
                }
            });
            assert_eq!(*watched.borrow(), state.now());
        }
    }

    /// Had a change fallen between the first look and the channel, who watches would have waited for it for ever.
    #[test]
    fn no_change_falls_between_the_first_look_and_the_next() {
        for _ in 0..500 {
            let state = State::new(SessionState::Active);
            let watched = std::thread::scope(|scope| {
                let watching = scope.spawn(|| state.watch());
                state.change(|now| *now = SessionState::Lost(LostReason::Expired));
                state.tell_now();
                watching.join().unwrap()
            });
            assert_eq!(*watched.borrow(), SessionState::Lost(LostReason::Expired));
        }
    }
}
