//! The road from the server to the client of one stream: what was said, but has not arrived yet.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use crate::fake::fault::Ticket;

/// What is under way, in the order in which it was said. It arrives in that order, but for what others may overtake.
pub(super) struct Road<T> {
    under_way: VecDeque<Message<T>>,
    arrival: Option<Pin<Box<Sleep>>>,
}

pub(super) struct Message<T> {
    pub(super) due: Instant,
    pub(super) held: Vec<Ticket>,
    /// What nothing of the same lane overtakes.
    pub(super) lane: Option<i64>,
    /// Nothing at all overtakes it.
    pub(super) holds_up_all: bool,
    pub(super) item: T,
}

impl<T> Road<T> {
    pub(super) fn new() -> Self {
        Self { under_way: VecDeque::new(), arrival: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether something is under way in any lane of its own.
    pub(super) fn has_lanes(&self) -> bool {
        self.under_way.iter().any(|message| message.lane.is_some() && !message.holds_up_all)
    }

    pub(super) fn push(&mut self, message: Message<T>) {
        self.under_way.push_back(message);
    }

    /// What has arrived first.
    pub(super) fn pop(&mut self) -> Option<T> {
        let first = self.first_arrived()?;
        Some(self.under_way.remove(first)?.item)
    }

    /// Wakes the task when something may have arrived.
    pub(super) fn wake_on_arrival(&mut self, context: &mut Context<'_>) {
        let now = Instant::now();
        // What is released by now is there already, and waits for the road to open: of which the state tells.
        for ticket in self.under_way.iter().flat_map(|message| &message.held) {
            let _: Poll<()> = ticket.poll_released(context);
        }
        let Some(due) = self.under_way.iter().map(|message| message.due).filter(|due| *due > now).min()
        else {
            return;
        };
        let arrival = self.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        arrival.as_mut().reset(due);
        if arrival.as_mut().poll(context) == Poll::Ready(()) {
            context.waker().wake_by_ref();
        }
    }

    fn first_arrived(&self) -> Option<usize> {
        let now = Instant::now();
        let mut held_up = BTreeSet::new();
        for (place, message) in self.under_way.iter().enumerate() {
            let arrived = message.due <= now && message.held.iter().all(Ticket::is_released);
            if arrived && !held_up.contains(&message.lane) {
                return Some(place);
            }
            if message.holds_up_all {
                return None;
            }
            held_up.insert(message.lane);
        }
        None
    }
}
