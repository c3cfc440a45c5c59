//! What a client says on a stream, as it reaches the server: late, lost, or followed by a break.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::Server;
use crate::fake::fault::{End, LoseReply, Place, Plan, Ticket, broken};
use crate::fake::refusal::Refusal;
use crate::fake::rpc::Rpc;
use crate::fake::shared::Shared;
use crate::fake::watch::StreamId;

/// The server's ear on one stream.
pub(super) struct Inbox<M> {
    shared: Arc<Shared>,
    client: Arc<str>,
    rpc: Rpc,
    stream: StreamId,
    inbound: Streaming<M>,
    ended: bool,
    max_bytes: usize,
    /// Said, but not arrived yet; each no earlier than the one before.
    under_way: VecDeque<UnderWay<M>>,
}

struct UnderWay<M> {
    due: Instant,
    held: Vec<Ticket>,
    message: M,
    end: Option<End>,
}

/// What came of listening once.
pub(super) enum Heard<M> {
    /// A message to handle, and what befalls the stream when that is done.
    Message(M, After),
    /// The client has no more to say.
    End,
    /// The stream is broken.
    Broken,
}

/// What befalls a stream after a message was handled.
pub(super) enum After {
    Nothing,
    Cut(Status),
    Stall,
}

impl<M: Message + Any> Inbox<M> {
    pub(super) fn new(server: &Server, rpc: Rpc, stream: StreamId, inbound: Streaming<M>) -> Self {
        let shared = Arc::clone(&server.shared);
        let max_bytes = shared.look(|state, _| state.core.config.max_message_bytes());
        let client = Arc::clone(&server.client);
        Self { shared, client, rpc, stream, inbound, ended: false, max_bytes, under_way: VecDeque::new() }
    }

    /// Waits for the next message that arrives.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn hear(&mut self) -> Heard<M> {
        loop {
            let Some(first) = self.under_way.front() else {
                if self.ended {
                    return Heard::End;
                }
                let said = self.inbound.message().await;
                if self.take(said).is_err() {
                    return Heard::Broken;
                }
                continue;
            };
            let arrival = arrive(&self.shared, &self.client, first.due, &first.held);
            tokio::select! {
                biased;
                () = arrival => {}
                said = self.inbound.message(), if !self.ended => {
                    if self.take(said).is_err() {
                        return Heard::Broken;
                    }
                    continue;
                }
            }
            let Some(UnderWay { message, end, .. }) = self.under_way.pop_front() else { continue };
            if !self.shared.look(|state, _| state.hears(self.stream)) {
                continue;
            }
            match end {
                None | Some(End::Split) => return Heard::Message(message, After::Nothing),
                Some(End::Vanish) => {}
                Some(End::Fail(status)) => {
                    match self.rpc {
                        // Answered in the order in which they were asked: what was answered before comes before.
                        Rpc::LeaseKeepAlive => {
                            self.shared.with(|state, _| state.refuse(self.stream, status));
                        }
                        _ => self.shared.cut_stream(self.stream, status),
                    }
                    return Heard::Broken;
                }
                Some(End::LoseReply(LoseReply::Error)) => {
                    return Heard::Message(message, After::Cut(broken()));
                }
                Some(End::LoseReply(LoseReply::Status(status))) => {
                    return Heard::Message(message, After::Cut(status));
                }
                Some(End::LoseReply(LoseReply::Hang)) => return Heard::Message(message, After::Stall),
            }
        }
    }

    /// Puts what was said on its way.
    fn take(&mut self, said: Result<Option<M>, Status>) -> Result<(), ()> {
        let message = match said {
            Ok(Some(message)) => message,
            Ok(None) => {
                self.ended = true;
                return Ok(());
            }
            Err(status) => {
                self.shared.cut_stream(self.stream, status);
                return Err(());
            }
        };
        let (size, limit) = (message.encoded_len(), self.max_bytes);
        if size > limit {
            self.shared.cut_stream(self.stream, Refusal::MessageTooLarge { size, limit }.status());
            return Err(());
        }
        let plan = self.shared.plan(Place::Request, self.rpc, &self.client, &message);
        let Plan { delay, held, end, .. } = plan.unwrap_or_default();
        let due = self.under_way.back().map_or(Instant::now(), |before| before.due);
        let due = due.max(Instant::now() + delay);
        self.under_way.push_back(UnderWay { due, held, message, end });
        Ok(())
    }
}

impl After {
    pub(super) fn is_an_end(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    pub(super) fn befall(self, shared: &Arc<Shared>, stream: StreamId) {
        match self {
            Self::Nothing => {}
            Self::Cut(status) => shared.cut_stream(stream, status),
            Self::Stall => shared.stall_stream(stream),
        }
    }
}

async fn arrive(shared: &Shared, client: &str, due: Instant, held: &[Ticket]) {
    if due > Instant::now() {
        tokio::time::sleep_until(due).await;
    }
    for ticket in held {
        ticket.released().await;
    }
    shared.road(client).await;
}
