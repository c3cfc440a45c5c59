//! A value that calls change in turn, each with a request.

use std::ops::{Deref, DerefMut};
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

/// One's turn.
pub(crate) struct InTurn<'a, T>(MutexGuard<'a, T>);

impl<T> Turns<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), given: AtomicU64::new(0) }
    }

    /// Waits for one's turn. None where no turn was given for as long as a request may take: then a future that has it, or is
    /// the next, is kept and not polled.
    pub(crate) async fn next(&self, longest: Duration) -> Option<InTurn<'_, T>> {
        let mut next = Box::pin(self.value.lock());
        loop {
            let given = self.given.load(Ordering::Relaxed);
            match timeout(longest, &mut next).await {
                Ok(turn) => {
                    self.given.fetch_add(1, Ordering::Relaxed);
                    return Some(InTurn(turn));
                }
                Err(_) if self.given.load(Ordering::Relaxed) == given => return None,
                Err(_) => {}
            }
        }
    }

    /// One's turn, if no other waits for it or has it.
    pub(crate) fn try_next(&self) -> Option<InTurn<'_, T>> {
        let turn = self.value.try_lock().ok()?;
        self.given.fetch_add(1, Ordering::Relaxed);
        Some(InTurn(turn))
    }
}

impl<T> Deref for InTurn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for InTurn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
