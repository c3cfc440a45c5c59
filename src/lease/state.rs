//! What a lease is, and who watches that.

use std::sync::{Mutex, OnceLock};

use tokio::sync::watch;

use super::{SessionState, lock};

/// The state of a lease. A watch channel takes more memory than all else of a session, and few sessions are watched: it
/// is made for the first who asks.
#[derive(Debug)]
pub(super) struct State {
    now: Mutex<SessionState>,
    watched: OnceLock<watch::Sender<SessionState>>,
}

impl State {
    pub(super) fn new(first: SessionState) -> Self {
        Self { now: Mutex::new(first), watched: OnceLock::new() }
    }

    pub(super) fn now(&self) -> SessionState {
        *lock(&self.now)
    }

    /// Changes the state, and tells all who watch it if that says that it did.
    pub(super) fn change(&self, change: impl FnOnce(&mut SessionState) -> bool) -> bool {
        let mut now = lock(&self.now);
        let changed = change(&mut now);
        // Under the lock, so that the last to change it is the last to tell.
        if changed && let Some(watched) = self.watched.get() {
            watched.send_replace(*now);
        }
        changed
    }

    pub(super) fn watch(&self) -> watch::Receiver<SessionState> {
        // Under the lock, so that no change falls between.
        let now = lock(&self.now);
        self.watched.get_or_init(|| watch::channel(*now).0).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LostReason;

    #[test]
    fn who_watches_sees_what_is_and_what_comes() {
        let state = State::new(SessionState::Active);
        let lose = |reason| {
            state.change(|now| {
                *now = SessionState::Lost(reason);
                true
            })
        };
        assert!(lose(LostReason::Expired));
        let mut watched = state.watch();
        assert_eq!(*watched.borrow(), SessionState::Lost(LostReason::Expired));
        assert!(!state.change(|_| false) && !watched.has_changed().unwrap());
        assert!(lose(LostReason::Revoked) && watched.has_changed().unwrap());
        assert_eq!(*watched.borrow_and_update(), state.now());
        drop(state);
        assert!(watched.has_changed().is_err(), "nothing will come");
    }

    /// Had a change fallen between the first look and the channel, who watches would have waited for it for ever.
    #[test]
    fn no_change_falls_between_the_first_look_and_the_next() {
        for _ in 0..500 {
            let state = State::new(SessionState::Active);
            let watched = std::thread::scope(|scope| {
                let watching = scope.spawn(|| state.watch());
                state.change(|now| {
                    *now = SessionState::Lost(LostReason::Expired);
                    true
                });
                watching.join().unwrap()
            });
            assert_eq!(*watched.borrow(), SessionState::Lost(LostReason::Expired));
        }
    }
}
