//! One call at the server: from its first line to its last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::{Meta, Server};
use crate::fake::core::{Caller, Core};
use crate::fake::fault::broken;
use crate::fake::history::{Answer, Answered, Asked, Call, Need, Short};
use crate::fake::refusal::Refusal;
use crate::fake::rpc::Rpc;
use crate::fake::shared::{Shared, State};

/// How long a call waits for a leader: 5 s, and two election timeouts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

/// A call that has reached the server, or a client's message on a stream.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) shared: Arc<Shared>,
    client: Arc<str>,
    rpc: Rpc,
    meta: Meta,
    /// A fault takes the answer.
    lost: bool,
    stops: u64,
}

impl Visit {
    pub(super) fn new(server: &Server, rpc: Rpc, meta: Meta, lost: bool) -> Self {
        let shared = Arc::clone(&server.shared);
        let stops = shared.look(|state, _| state.stops());
        Self { shared, client: Arc::clone(&server.client), rpc, meta, lost, stops }
    }

    /// The same call, whose answer is lost or not.
    pub(super) fn losing(&self, lost: bool) -> Self {
        Self { lost, ..self.clone() }
    }

    /// Answers a request in one step, when the cluster can, and records it.
    pub(super) async fn serve<Q: Asked, R: Answered>(
        self,
        request: Q,
        apply: impl FnOnce(&mut Core, &Q, &Caller<'_>) -> Result<R, Refusal> + Send,
    ) -> Result<R, Status> {
        let checked = self.shared.check(&request);
        // What is wrong at first sight is refused even where there is no leader to ask.
        let need = if checked.is_ok() { request.need() } else { Need::Nothing };
        let answer = self
            .when(need, |state, now, may| {
                let caller = self.caller(now);
                let may = may.and(checked);
                // What needs nothing of the cluster is answered from what this member has seen of it.
                let answer = match need {
                    Need::Nothing => state
                        .at_member(&self.client, |core| may.and_then(|()| apply(core, &request, &caller))),
                    _ => may.and_then(|()| apply(&mut state.core, &request, &caller)),
                };
                self.record(state, now, &request, answer.as_ref().map(Answered::answer).map_err(|r| *r));
                answer
            })
            .await?;
        Ok(answer?)
    }

    /// Takes one step as soon as the cluster has what it needs. The step is told if it waited in vain.
    pub(super) async fn when<T>(
        &self,
        need: Need,
        step: impl FnOnce(&mut State, Duration, Result<(), Refusal>) -> T + Send,
    ) -> Result<T, Status> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let mut step = Some(step);
        let mut waited = false;
        loop {
            let outcome = self.shared.with(|state, now| {
                if state.is_stopped() || state.stops() != self.stops {
                    return Some(Err(broken()));
                }
                let may = if state.has_leader() {
                    // Reads that were waiting for the old leader's word are sent away.
                    if waited && need == Need::Read { Err(Refusal::LeaderChanged) } else { Ok(()) }
                } else if self.meta.needs_leader {
                    Err(Refusal::NoLeader)
                } else if need == Need::Nothing {
                    Ok(())
                } else if waited && Instant::now() >= deadline {
                    Err(need.in_vain())
                } else {
                    return None;
                };
                step.take().map(|step| Ok(step(state, now, may)))
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
            waited = true;
            tokio::select! {
                biased;
                () = self.shared.leader() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// The newest revision that the member called has seen.
    pub(super) fn seen(&self, state: &State) -> i64 {
        state.seen_by(&self.client)
    }

    pub(super) fn caller(&self, now: Duration) -> Caller<'_> {
        Caller { now, token: self.meta.token.as_deref() }
    }

    pub(super) fn record(
        &self,
        state: &mut State,
        now: Duration,
        request: &impl Asked,
        outcome: Result<Answer, Refusal>,
    ) {
        let (client, rpc, answered) = (Arc::clone(&self.client), self.rpc, !self.lost);
        state.history.call(now, state.core.store.revision(), || {
            let request = Short(request).to_string().into();
            Call { client, rpc, request, outcome, answered }
        });
    }
}
