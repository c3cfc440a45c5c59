//! Times without a leader, and without a server.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Flow, Shared, State};
use crate::fake::fault::broken;
use crate::fake::serve::Listener;

/// A cluster without a leader.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaderless {
    since: Duration,
    until: Duration,
    /// The streams that want a leader have been ended.
    streams_ended: bool,
}

/// Three election timeouts: so long a stream that wants a leader is left open without one.
const STREAMS_WAIT: Duration = Duration::from_secs(3);

impl Shared {
    /// Takes the leader away for a while.
    pub(crate) fn lose_leader(self: &Arc<Self>, duration: Duration) {
        self.with(|state, now| {
            state.note(now, format!("the leader is lost for {duration:?}"));
            let (since, streams_ended) =
                state.leaderless.map_or((now, false), |loss| (loss.since, loss.streams_ended));
            state.leaderless = Some(Leaderless { since, until: now + duration, streams_ended });
            state.core.has_leader = false;
            state.advance(now);
        });
    }

    /// Waits until there is a leader, or no server.
    pub(crate) async fn leader(&self) {
        self.on_roads(|state| state.leaderless.is_none() || state.stopped).await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Stops the server: everything that is open breaks.
    pub(crate) async fn stop(self: &Arc<Self>) {
        self.with(|state, now| {
            if state.stopped {
                return;
            }
            state.note(now, "the server stops".into());
            state.stopped = true;
            state.stops += 1;
            state.roads_changed = true;
            state.set_flow(&Flow::Cut(broken()), |_| true);
            for stream in state.streams.keys() {
                state.core.hub.close(*stream);
            }
        });
        for listener in self.listeners() {
            listener.stop().await;
        }
    }

    /// Starts it again, with its data. Leases start over, tokens are gone.
    pub(crate) async fn restart(self: &Arc<Self>) -> io::Result<()> {
        self.with(|state, now| {
            if !state.stopped {
                return;
            }
            state.note(now, "the server starts again".into());
            state.stopped = false;
            state.core.auth.restart();
            state.leaderless = None;
            state.elect(now);
        });
        for listener in self.listeners() {
            listener.start(self).await?;
        }
        Ok(())
    }

    pub(crate) fn add_listener(&self, listener: &Arc<Listener>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    fn listeners(&self) -> Vec<Arc<Listener>> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().filter_map(std::sync::Weak::upgrade).collect()
    }
}

impl State {
    /// What is due by now: leases end, the next leader takes over, streams that want one lose patience.
    pub(super) fn advance(&mut self, now: Duration) {
        if let Some(loss) = &mut self.leaderless {
            let (until, patience) = (loss.until, loss.since + STREAMS_WAIT);
            if !loss.streams_ended && patience < until && patience <= now {
                loss.streams_ended = true;
                let ended = Flow::Cut(crate::fake::refusal::Refusal::NoLeader.status());
                self.set_flow(&ended, |link| link.needs_leader && matches!(link.flow, Flow::Open));
            }
            if until <= now {
                self.leaderless = None;
                self.note(until, "there is a leader again".into());
                self.elect(until);
            }
        }
        if self.leaderless.is_some() || self.stopped {
            return;
        }
        while let Some(id) = self.core.expire_one(now) {
            self.note(now, format!("lease {id:x} has expired"));
        }
    }

    /// When something is due next.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        match self.leaderless {
            _ if self.stopped => None,
            Some(loss) if !loss.streams_ended => Some(loss.until.min(loss.since + STREAMS_WAIT)),
            Some(loss) => Some(loss.until),
            None => self.core.lessor.next_deadline(),
        }
    }

    pub(crate) fn has_leader(&self) -> bool {
        self.leaderless.is_none()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Who was connected before the server stopped is not connected after.
    pub(crate) fn stops(&self) -> u64 {
        self.stops
    }

    /// Records what no client did.
    pub(crate) fn note(&mut self, now: Duration, what: String) {
        let revision = self.core.store.revision();
        self.history.note(now, revision, what);
    }

    fn elect(&mut self, now: Duration) {
        self.core.elect(now);
        self.roads_changed = true;
    }
}
