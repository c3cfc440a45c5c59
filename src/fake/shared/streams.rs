//! The open streams: what each lets through, and what it has to say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use tonic::Status;

use super::State;
use crate::fake::watch::StreamId;
use crate::pb::etcdserverpb::{LeaseKeepAliveResponse, RangeStreamResponse, SnapshotResponse};
use crate::pb::v3electionpb::LeaderResponse;

/// An open stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Arc<str>,
    pub(super) flow: Flow,
    /// The client wants it to end when there is no leader.
    pub(super) needs_leader: bool,
    waker: Option<Waker>,
    /// What it has yet to send; a watch stream's responses are with the watchers instead.
    replies: VecDeque<Reply>,
    /// Nothing more comes: the server ends it so when all is sent.
    finished: Option<Result<(), Status>>,
}

/// What a stream lets through.
#[derive(Debug, Clone)]
pub(super) enum Flow {
    Open,
    /// Half-open: nothing comes out, what goes in is swallowed.
    Stalled,
    Cut(Status),
}

/// A message on a stream other than a watch's.
#[derive(Debug)]
pub(crate) enum Reply {
    KeepAlive(LeaseKeepAliveResponse),
    Range(RangeStreamResponse),
    Snapshot(SnapshotResponse),
    Leader(LeaderResponse),
}

/// What a stream has to say now.
pub(crate) enum Pull<T> {
    Item(T),
    Nothing,
    /// All is sent: an error, or the regular end.
    End(Option<Status>),
    /// It broke, whatever there was still to send.
    Cut(Status),
}

impl State {
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn open_stream(&mut self, client: &Arc<str>, needs_leader: bool) -> StreamId {
        self.last_stream += 1;
        let link = Link {
            client: Arc::clone(client),
            flow: Flow::Open,
            needs_leader,
            waker: None,
            replies: VecDeque::new(),
            finished: None,
        };
        self.streams.insert(self.last_stream, link);
        self.last_stream
    }

    pub(crate) fn close_stream(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.core.hub.close(stream);
    }

    /// Whether the server hears what the client says on this stream.
    pub(crate) fn hears(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|link| matches!(link.flow, Flow::Open))
    }

    /// Queues a message.
    pub(crate) fn reply(&mut self, stream: StreamId, reply: Reply) {
        self.on_stream(stream, |link| link.replies.push_back(reply));
    }

    /// Nothing more comes on this stream.
    pub(crate) fn finish(&mut self, stream: StreamId) {
        self.on_stream(stream, |link| link.finished = Some(Ok(())));
    }

    /// Nothing more comes on this stream than an error.
    pub(crate) fn refuse(&mut self, stream: StreamId, status: Status) {
        self.on_stream(stream, |link| link.finished = Some(Err(status)));
    }

    pub(crate) fn next_reply(&mut self, stream: StreamId) -> Option<Reply> {
        self.streams.get_mut(&stream)?.replies.pop_front()
    }

    /// Ends streams, or makes them half-open.
    pub(super) fn set_flow(&mut self, flow: &Flow, which: impl Fn(&Link) -> bool) {
        for link in self.streams.values_mut().filter(|link| which(link)) {
            link.flow = flow.clone();
            self.woken.extend(link.waker.take());
        }
    }

    pub(super) fn pull<T>(
        &mut self,
        stream: StreamId,
        waker: &Waker,
        next: impl FnOnce(&mut Self, StreamId) -> Option<T>,
    ) -> Pull<T> {
        let Some(link) = self.streams.get(&stream) else { return Pull::End(None) };
        let through = match &link.flow {
            Flow::Cut(status) => return Pull::Cut(status.clone()),
            Flow::Stalled => false,
            Flow::Open => !self.partitioned.contains(&link.client),
        };
        if through && let Some(item) = next(self, stream) {
            return Pull::Item(item);
        }
        match self.streams.get_mut(&stream) {
            Some(link) => match link.finished.clone().filter(|_| through) {
                Some(end) => Pull::End(end.err()),
                None => {
                    link.waker = Some(waker.clone());
                    Pull::Nothing
                }
            },
            None => Pull::End(None),
        }
    }

    /// Changes a stream and lets it look again.
    pub(super) fn on_stream(&mut self, stream: StreamId, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.streams.get_mut(&stream) {
            change(link);
            self.woken.extend(link.waker.take());
        }
    }

    pub(super) fn each_stream_of(&mut self, client: &str, change: impl Fn(&mut Link)) {
        for link in self.streams.values_mut().filter(|link| &*link.client == client) {
            change(link);
            self.woken.extend(link.waker.take());
        }
    }
}
