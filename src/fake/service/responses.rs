//! What the server says on a stream, as it reaches the client: late, lost, in pieces, or followed by a break.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::{Response, Status};

use super::Server;
use super::road::{Message, Road};
use crate::fake::fault::{End, LoseReply, Place, broken};
use crate::fake::rpc::Rpc;
use crate::fake::shared::{Pull, Reply, Shared, State};
use crate::fake::watch::{INVALID_ID, StreamId};
use crate::pb::etcdserverpb::{LeaseKeepAliveResponse, RangeStreamResponse, SnapshotResponse, WatchResponse};
use crate::pb::v3electionpb::LeaderResponse;

/// The messages of one stream, pulled from the state as fast as the client reads.
///
/// Dropping it closes the stream: its watchers are gone when the drop returns.
pub(crate) struct Responses<T> {
    shared: Arc<Shared>,
    client: Arc<str>,
    rpc: Rpc,
    stream: StreamId,
    /// The task that hears what the client says, or does what the stream tells of.
    listener: Option<AbortHandle>,
    first: Option<Result<T, Status>>,
    /// Said, but not arrived yet.
    road: Road<T>,
    over: bool,
}

/// A message that a stream can send.
pub(crate) trait Said: Any + Send + Unpin + Sized {
    /// The next one that the state has for a stream.
    fn next(state: &mut State, stream: StreamId) -> Option<Self>;

    /// What of the stream it is about, if others may overtake it.
    fn lane(&self) -> Option<i64> {
        None
    }

    /// Whether it says something of all lanes.
    fn is_of_all_lanes(&self) -> bool {
        false
    }

    /// The smallest pieces in which it may come.
    fn pieces(self, _: &State, _: StreamId) -> Vec<Self> {
        vec![self]
    }
}

impl Said for WatchResponse {
    fn next(state: &mut State, stream: StreamId) -> Option<Self> {
        state.core.next_watch_response(stream)
    }

    /// Creations are answered in order.
    fn lane(&self) -> Option<i64> {
        (!self.created).then_some(self.watch_id)
    }

    fn is_of_all_lanes(&self) -> bool {
        !self.created && self.watch_id == INVALID_ID
    }

    fn pieces(self, state: &State, stream: StreamId) -> Vec<Self> {
        state.core.hub.pieces(stream, self)
    }
}

macro_rules! said {
    ($($message:ty as $reply:ident),*) => { $(
        impl Said for $message {
            fn next(state: &mut State, stream: StreamId) -> Option<Self> {
                match state.next_reply(stream) {
                    Some(Reply::$reply(message)) => Some(message),
                    _ => None,
                }
            }
        }
    )* };
}

said!(
    LeaseKeepAliveResponse as KeepAlive,
    RangeStreamResponse as Range,
    SnapshotResponse as Snapshot,
    LeaderResponse as Leader
);

impl<T: Said> Responses<T> {
    /// Closes `stream` and stops its listener when dropped.
    pub(super) fn new(server: &Server, rpc: Rpc, stream: StreamId, listener: Option<AbortHandle>) -> Self {
        Self {
            shared: Arc::clone(&server.shared),
            client: Arc::clone(&server.client),
            rpc,
            stream,
            listener,
            first: None,
            road: Road::new(),
            over: false,
        }
    }

    /// Waits for the first message: etcd sends a stream's headers no earlier, so a client that waits for
    /// the headers before it asks for anything waits for ever.
    pub(super) async fn started(mut self) -> Result<Response<Self>, Status> {
        match std::future::poll_fn(|cx| self.poll_message(cx)).await {
            Some(Err(status)) => Err(status),
            first => {
                self.first = first;
                Ok(Response::new(self))
            }
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            // Whatever is said now is put on its way now, even if something before it has yet to arrive.
            let road = &mut self.road;
            let pulled = self.shared.pull(self.stream, cx.waker(), |state, stream| {
                if let Some(item) = road.pop() {
                    return Some((item, true));
                }
                T::next(state, stream).map(|item| (item, false))
            });
            match pulled {
                Pull::Item((item, true)) => return Poll::Ready(Some(Ok(item))),
                Pull::Item((item, false)) => {
                    if let Some(item) = self.send(item) {
                        return Poll::Ready(Some(Ok(item)));
                    }
                }
                Pull::End(_) if !self.road.is_empty() => break,
                Pull::End(status) => {
                    self.over = true;
                    return Poll::Ready(status.map(Err));
                }
                Pull::Cut(status) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(status)));
                }
                Pull::Nothing => break,
            }
        }
        // Nothing new.
        self.road.wake_on_arrival(cx);
        Poll::Pending
    }

    /// Puts a message on its way, past the faults; one that arrives at once is handed back.
    fn send(&mut self, item: T) -> Option<T> {
        let plan = self.shared.plan(Place::Response, self.rpc, &self.client, &item);
        if plan.is_none() && self.road.is_empty() {
            return Some(item);
        }
        if item.is_of_all_lanes() && self.road.has_lanes() {
            // The server holds it back while a watcher is behind.
            return None;
        }
        let struck = plan.is_some();
        let plan = plan.unwrap_or_default();
        let pieces = match plan.end {
            None => vec![item],
            Some(End::Split) => self.shared.look(|state, _| item.pieces(state, self.stream)),
            Some(End::Vanish) => Vec::new(),
            Some(End::Fail(status) | End::LoseReply(LoseReply::Status(status))) => {
                self.shared.cut_stream(self.stream, status);
                Vec::new()
            }
            Some(End::LoseReply(LoseReply::Error)) => {
                self.shared.cut_stream(self.stream, broken());
                Vec::new()
            }
            Some(End::LoseReply(LoseReply::Hang)) => {
                self.shared.stall_stream(self.stream);
                Vec::new()
            }
        };
        let due = Instant::now() + plan.delay + plan.delay_reply;
        let mut held = plan.held;
        for item in pieces {
            let lane = item.lane();
            // What nothing befell is held up by others alone.
            let holds_up_all = struck && !(plan.alone && lane.is_some());
            self.road.push(Message { due, held: std::mem::take(&mut held), lane, holds_up_all, item });
        }
        None
    }
}

impl<T: Said> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_message(cx)
    }
}

impl<T> Drop for Responses<T> {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
        self.shared.with(|state, _| state.close_stream(self.stream));
    }
}
