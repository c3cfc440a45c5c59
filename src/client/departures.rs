//! What is being given up on a name: who comes again may have to wait until that is done.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Client;

/// Keys of this client's sessions that are on their way out, by the name that they are on.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: BTreeSet<(Bytes, u64)>,
    /// How many there were.
    begun: u64,
}

/// A departure that is under way, until it is dropped.
pub(crate) struct Departure {
    client: Client,
    name: Bytes,
    number: u64,
}

impl Departures {
    /// Waits for those departures from a name that have begun by now.
    pub(crate) async fn ended(&self, name: &Bytes) {
        let now = self.state().begun;
        loop {
            let mut told = std::pin::pin!(self.ended.notified());
            told.as_mut().enable();
            if self.state().under_way.range((name.clone(), 0)..(name.clone(), now)).next().is_none() {
                return;
            }
            told.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Departure {
    /// Begins one: it counts from here on.
    pub(crate) fn begin(client: &Client, name: &Bytes) -> Self {
        let mut state = client.departures().state();
        let number = state.begun;
        state.begun += 1;
        state.under_way.insert((name.clone(), number));
        drop(state);
        Self { client: client.clone(), name: name.clone(), number }
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        let departures = self.client.departures();
        departures.state().under_way.remove(&(self.name.clone(), self.number));
        departures.ended.notify_waiters();
    }
}
