//! A value that calls change in turn, each with a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// A value that is had in turn, in the order of asking.
#[derive(Debug, Default)]
pub(crate) struct Turns<T> {
    value: Mutex<T>,
    /// How often a turn was given.
    given: AtomicU64,
}

impl<T> Turns<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), given: AtomicU64::new(0) }
    }

    /// Waits for one's turn. None where no turn was given for as long as a request may take: then a future that has it, or is
    /// the next, is kept and not polled.
    pub(crate) async fn next(&self, longest: Duration) -> Option<MutexGuard<'_, T>> {
        if let Some(turn) = self.try_next() {
            return Some(turn);
        }
        // Boxed, since most need not wait.
        let mut next = Box::pin(self.value.lock());
        loop {
            let given = self.given.load(Ordering::Relaxed);
            match timeout(longest, &mut next).await {
                Ok(turn) => return Some(self.gives(turn)),
                Err(_) if self.given.load(Ordering::Relaxed) == given => return None,
                Err(_) => {}
            }
        }
    }

    /// One's turn, if no other waits for it or has it.
    pub(super) fn try_next(&self) -> Option<MutexGuard<'_, T>> {
        self.value.try_lock().ok().map(|turn| self.gives(turn))
    }

    fn gives<'a>(&'a self, turn: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.given.fetch_add(1, Ordering::Relaxed);
        turn
    }
}
