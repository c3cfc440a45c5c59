//! Where messages are held until they are released.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Where messages are held until they are released, by [`Do::hold`](super::Do::hold): as long as the test likes.
#[derive(Debug, Clone, Default)]
pub struct Hold {
    gate: Arc<Mutex<Gate>>,
}

impl Hold {
    /// One that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages it holds.
    pub fn held(&self) -> usize {
        self.gate().waiting.len()
    }

    /// Lets everything go that it holds, in the order in which it came, and holds nothing any more.
    pub fn release(&self) {
        let mut gate = self.gate();
        gate.open = true;
        let released = std::mem::take(&mut gate.waiting);
        drop(gate);
        released.into_values().flatten().for_each(Waker::wake);
    }

    /// Lets the message go that it has held for longest. Whether there was one.
    pub fn release_next(&self) -> bool {
        let released = self.gate().waiting.pop_first();
        let there_was = released.is_some();
        if let Some((_, Some(waker))) = released {
            waker.wake();
        }
        there_was
    }

    /// Holds a message from now on.
    pub(crate) fn take(&self) -> Ticket {
        let mut gate = self.gate();
        let number = gate.taken;
        gate.taken += 1;
        if !gate.open {
            gate.waiting.insert(number, None);
        }
        drop(gate);
        Ticket { hold: self.clone(), number }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is held, by number, and whom to wake when it is released.
#[derive(Debug, Default)]
struct Gate {
    open: bool,
    taken: u64,
    waiting: BTreeMap<u64, Option<Waker>>,
}

/// The place of a message that is held, or was. Dropped with the message.
#[derive(Debug)]
pub(crate) struct Ticket {
    hold: Hold,
    number: u64,
}

impl Ticket {
    /// Whether it was released.
    pub(crate) fn is_released(&self) -> bool {
        !self.hold.gate().waiting.contains_key(&self.number)
    }

    /// Waits until it is released.
    pub(crate) async fn released(&self) {
        std::future::poll_fn(|context| self.poll_released(context)).await;
    }

    pub(crate) fn poll_released(&self, context: &Context<'_>) -> Poll<()> {
        match self.hold.gate().waiting.get_mut(&self.number) {
            None => Poll::Ready(()),
            Some(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.hold.gate().waiting.remove(&self.number);
    }
}
