//! The Watch service.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::inbox::{Heard, Inbox};
use super::responses::Responses;
use super::visit::Visit;
use super::{Meta, Server};
use crate::fake::history::Answer;
use crate::fake::rpc::Rpc;
use crate::fake::shared::State;
use crate::fake::watch::StreamId;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::watch_server::Watch;
use crate::pb::etcdserverpb::{WatchRequest, WatchResponse};

#[tonic::async_trait]
impl Watch for Server {
    type WatchStream = Responses<WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let meta = Meta::of(request.metadata());
        self.open(Rpc::Watch, &meta).await?;
        let stream = self.shared.with(|state, _| {
            let stream = state.open_stream(&self.client, meta.needs_leader);
            state.core.hub.open(stream);
            stream
        });
        let inbox = Inbox::new(self, Rpc::Watch, stream, request.into_inner());
        let visit = Visit::new(self, Rpc::Watch, meta.on_stream(), false);
        let listener = tokio::spawn(listen(visit, stream, inbox));
        Responses::new(self, Rpc::Watch, stream, Some(listener.abort_handle())).started().await
    }
}

/// Does what the client asks, and tells of progress now and then. A client that has no more to ask still
/// gets its events.
async fn listen(visit: Visit, stream: StreamId, mut inbox: Inbox<WatchRequest>) {
    let shared = Arc::clone(&visit.shared);
    let opened = Instant::now();
    let interval = shared.look(|state, _| state.core.config.progress_interval);
    let mut ended = false;
    loop {
        let wants_progress = shared.look(|state, _| state.core.hub.wants_progress(stream));
        tokio::select! {
            biased;
            heard = inbox.hear(), if !ended => match heard {
                Heard::Message(message, after) => {
                    let visit = visit.losing(after.is_an_end());
                    shared.with(|state, now| handle(state, now, &visit, stream, message));
                    after.befall(&shared, stream);
                }
                Heard::End => ended = true,
                Heard::Broken => return,
            },
            () = tokio::time::sleep_until(next_tick(opened, interval)), if wants_progress => {
                shared.with(|state, _| state.core.watch_tick(stream));
            }
            else => return,
        }
    }
}

/// The ticks count from the stream's opening, those included in which nobody was interested.
fn next_tick(opened: Instant, interval: Duration) -> Instant {
    let past = opened.elapsed().as_nanos() / interval.as_nanos().max(1);
    opened + interval * u32::try_from(past + 1).unwrap_or(u32::MAX)
}

fn handle(state: &mut State, now: Duration, visit: &Visit, stream: StreamId, message: WatchRequest) {
    match message.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            let asked = create.clone();
            let seen = visit.seen(state);
            let answer = match state.core.watch(stream, create, &visit.caller(now), seen) {
                Ok(id) => Answer::Watcher(id),
                Err(reason) => Answer::Text(reason),
            };
            visit.record(state, now, &asked, Ok(answer));
        }
        Some(RequestUnion::CancelRequest(cancel)) => {
            state.core.cancel_watch(stream, cancel.watch_id);
            visit.record(state, now, &cancel, Ok(Answer::Nothing));
        }
        Some(RequestUnion::ProgressRequest(_)) => state.core.watch_progress(stream),
        // The server ignores what it does not know.
        None => {}
    }
}
