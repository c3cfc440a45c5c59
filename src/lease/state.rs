//! What a lease is, and who watches that.

use std::sync::Mutex;

use tokio::sync::watch;

use super::{SessionState, lock};

/// The state of a lease. A watch channel takes more memory than anything else of a session, and few sessions are
/// watched: it is made for the first who asks.
///
/// Both are under one lock, so that no change falls between, and the last to change it is the last to tell.
#[derive(Debug)]
pub(super) struct State(Mutex<Told>);

#[derive(Debug)]
struct Told {
    now: SessionState,
    watched: Option<watch::Sender<SessionState>>,
}

impl State {
    pub(super) fn new(first: SessionState) -> Self {
        Self(Mutex::new(Told { now: first, watched: None }))
    }

    pub(super) fn now(&self) -> SessionState {
        lock(&self.0).now
    }

    /// Changes the state, and tells all who watch it if that says that it did.
    pub(super) fn change(&self, change: impl FnOnce(&mut SessionState) -> bool) -> bool {
        let mut told = lock(&self.0);
        let changed = change(&mut told.now);
        if changed && let Some(watched) = &told.watched {
            watched.send_replace(told.now);
        }
        changed
    }

    pub(super) fn watch(&self) -> watch::Receiver<SessionState> {
        let mut told = lock(&self.0);
        let now = told.now;
        told.watched.get_or_insert_with(|| watch::channel(now).0).subscribe()
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
