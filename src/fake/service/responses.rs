//! What the server says on a stream, as it reaches the client: late, lost, in pieces, or followed by a break.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};
use tonic::{Response, Status};

use super::Server;
use crate::fake::fault::{End, LoseReply, Place, broken};
use crate::fake::rpc::Rpc;
use crate::fake::shared::{Pull, Reply, Shared, State};
use crate::fake::watch::StreamId;
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
    /// Said, but not arrived yet; each no earlier than the one before.
    under_way: VecDeque<(Instant, T)>,
    arrival: Option<Pin<Box<Sleep>>>,
    over: bool,
}

/// A message that a stream can send.
pub(crate) trait Said: Any + Send + Unpin + Sized {
    /// The next one that the state has for a stream.
    fn next(state: &mut State, stream: StreamId) -> Option<Self>;

    /// The smallest pieces in which it may come.
    fn pieces(self, _: &State, _: StreamId) -> Vec<Self> {
        vec![self]
    }
}

impl Said for WatchResponse {
    fn next(state: &mut State, stream: StreamId) -> Option<Self> {
        state.core.next_watch_response(stream)
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
            under_way: VecDeque::new(),
            arrival: None,
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
            let arrived = self.under_way.front().is_some_and(|(due, _)| *due <= Instant::now());
            let under_way = &mut self.under_way;
            let pulled = self.shared.pull(self.stream, cx.waker(), |state, stream| {
                if arrived {
                    return under_way.pop_front().map(|(_, item)| (item, true));
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
                Pull::End(_) if !self.under_way.is_empty() => break,
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
        self.poll_arrival(cx)
    }

    /// Nothing new: waits for what is under way, if anything is.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        let Some((due, _)) = self.under_way.front() else { return Poll::Pending };
        if *due <= Instant::now() {
            // Arrived, but the road is closed: the state wakes us when it opens.
            return Poll::Pending;
        }
        let arrival = self.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(*due)));
        arrival.as_mut().reset(*due);
        if arrival.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Puts a message on its way, past the faults; one that arrives at once is handed back.
    fn send(&mut self, item: T) -> Option<T> {
        let plan = self.shared.plan(Place::Response, self.rpc, &self.client, &item);
        if plan.is_none() && self.under_way.is_empty() {
            return Some(item);
        }
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
        let now = Instant::now();
        let before = self.under_way.back().map_or(now, |(due, _)| *due);
        let due = before.max(now + plan.delay + plan.delay_reply);
        self.under_way.extend(pieces.into_iter().map(|piece| (due, piece)));
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
