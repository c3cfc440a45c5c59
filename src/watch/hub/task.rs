//! The task that owns the one stream of all of a client's watches.
//!
//! It starts with the first watcher and ends some seconds after the last one: a client that waits for a lock again and again
//! opens no stream each time. It waits for nothing but its inputs: what it sends goes into a queue without bound, which
//! holds creates and cancels only, and what it receives goes into mailboxes that never block.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::line::{Heard, Line, Requests, judge, steer};
use super::{Command, Past, Shared, Slot};
use crate::error::{Error, ErrorKind, LostReason, Outcome};
use crate::pb::etcdserverpb as pb;
use crate::transport::channel::Route;
use crate::transport::retry::{Backoff, may_pass};
use crate::watch::pulse::{Beat, Pulse};
use crate::watch::table::{RPC, Table, Turn};

/// The task.
pub(super) struct Task {
    shared: Arc<Shared>,
    commands: UnboundedReceiver<Command>,
    table: Table,
    line: Line,
    pulse: Pulse,
    /// Forgets only what happened before a stream that lived for a while: one that breaks after each acknowledgement is
    /// not opened forty times a second.
    backoff: Backoff,
    /// How many streams in a row died for an answer that did not come.
    deaths: u32,
    /// When more is to go onto the stream, where watches are tried.
    advance: Option<Instant>,
    /// Since when the stream has failed, and nothing else, in ways that do not pass by themselves.
    failing: Option<Instant>,
    /// See [`Past`].
    worked: bool,
    /// Since when there has been no watcher.
    idle: Option<Instant>,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, commands: UnboundedReceiver<Command>, past: Past) -> Self {
        let now = Instant::now();
        Self {
            shared,
            commands,
            table: Table::new(past.last_id),
            line: Line::Down(now),
            pulse: Pulse::new(now.into_std(), 0),
            backoff: Backoff::default(),
            deaths: 0,
            advance: None,
            failing: None,
            worked: past.worked,
            idle: None,
        }
    }

    /// What the next task is to know.
    fn past(&self) -> Past {
        Past { last_id: self.table.last_id(), worked: self.worked }
    }

    pub(super) async fn run(mut self) {
        let mut timer = pin!(sleep_until(Instant::now()));
        let shared = self.shared.clone();
        let mut closed = pin!(shared.closed.cancelled());
        loop {
            self.flush();
            if self.retires() {
                return;
            }
            let due = self.due();
            // Only ever set earlier here: what is due later is seen when the timer fires, not at every message.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            // The order is fixed so that a run repeats; none starves the others, since the timer is seldom due
            // and commands are taken between any two messages.
            tokio::select! {
                biased;
                () = &mut timer => self.tick(),
                heard = self.line.hear() => self.heard(heard),
                Some(command) = self.commands.recv() => self.command(command),
                () = &mut closed, if self.idle.is_some() => {}
            }
            for _ in 0..COMMANDS_PER_MESSAGE {
                let Ok(command) = self.commands.try_recv() else { break };
                self.command(command);
            }
            tokio::task::consume_budget().await;
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Watch { id, watch, mailbox } => self.table.add(id, watch, mailbox),
            Command::Drained(id) => self.table.drained(id),
            Command::Drop(id) => self.table.remove(id),
        }
    }

    /// True when no watcher is left, nor comes: commands are sent under the lock that is held here.
    fn retires(&mut self) -> bool {
        if self.stays() {
            return false;
        }
        let shared = self.shared.clone();
        let mut slot = shared.slot();
        while let Ok(command) = self.commands.try_recv() {
            self.command(command);
        }
        if self.table.is_empty() {
            *slot = Slot { commands: None, past: self.past() };
            return true;
        }
        self.idle = None;
        false
    }

    /// There are watchers, or a stream that waits for some to come.
    fn stays(&mut self) -> bool {
        if !self.table.is_empty() {
            self.idle = None;
            return true;
        }
        let now = Instant::now();
        let since = *self.idle.get_or_insert(now);
        let is_open = matches!(self.line, Line::Open(..)) && !self.shared.closed.is_cancelled();
        is_open && now < since + LINGER
    }

    /// Sends what is to be sent.
    fn flush(&mut self) {
        let (Line::Opening(requests, _) | Line::Open(requests, _)) = &self.line else { return };
        for request in self.table.outbox() {
            // Where the server does not read any more, the answers end too.
            let _ = requests.queue.send(request);
        }
        let now = Instant::now();
        if self.table.is_asking() {
            self.pulse.asked(now.into_std());
        }
        // What is tried is tried on a stream that is open.
        let pause = self.table.pause().filter(|_| matches!(self.line, Line::Open(..)));
        self.advance = pause.map(|pause| self.advance.unwrap_or(now + pause));
    }

    /// When something is to be done, though nothing comes.
    fn due(&self) -> Instant {
        let due = Instant::from(self.pulse.due());
        match (&self.line, self.idle) {
            (Line::Down(until), _) => *until,
            (_, Some(since)) => since + LINGER,
            (_, None) => self.advance.map_or(due, |advance| advance.min(due)),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        match &self.line {
            // Whether a stream lives that no watcher uses is seen when one does.
            _ if self.idle.is_some() => {}
            Line::Down(until) if now >= *until => self.open(),
            Line::Down(_) => {}
            Line::Opening(..) | Line::Open(..) => match self.pulse.beat(now.into_std()) {
                Beat::Well => {}
                Beat::Ask => self.table.probe(),
                Beat::Dead => {
                    self.died();
                    self.broken(Error::new(ErrorKind::Timeout, Outcome::NotApplied).at(RPC));
                }
            },
        }
        if let Some(due) = self.advance.take_if(|advance| now >= *advance) {
            match self.pulse.stood_still(due.into_std(), now.into_std()) {
                true => self.table.stood_still(),
                false => self.table.advance(),
            }
        }
    }

    fn open(&mut self) {
        let (queue, requests) = unbounded_channel();
        let route = Route::default();
        let transport = self.shared.transport.clone();
        let to = route.clone();
        self.pulse = Pulse::new(Instant::now().into_std(), self.deaths);
        // A server opens the stream by its first answer, which is waited for as any.
        let limit = self.pulse.patience().max(transport.limits().request_timeout / 2);
        let requests = UnboundedReceiverStream::new(requests);
        let opening = async move { transport.open_watch(requests, to, limit).await };
        self.line = Line::Opening(Requests { queue, route }, Box::pin(opening));
        self.table.opened();
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Opened(Ok(stream)) => {
                let line = std::mem::replace(&mut self.line, Line::Down(Instant::now()));
                if let Line::Opening(requests, _) = line {
                    self.line = Line::Open(requests, Box::new(stream));
                }
            }
            Heard::Opened(Err(error)) => {
                if *error.kind() == ErrorKind::Timeout {
                    self.died();
                }
                self.broken(error);
            }
            Heard::Message(Ok(Some(response))) => match self.check(&response) {
                Ok(()) => self.response(response),
                Err(error) => self.broken(error),
            },
            Heard::Message(Ok(None)) => {
                self.broken(Error::new(ErrorKind::Disconnected, Outcome::NotApplied).at(RPC));
            }
            Heard::Message(Err(status)) => {
                let error = self.shared.transport.stream_error(RPC, status, &self.line.route());
                self.broken(error);
            }
        }
    }

    /// Refuses what another cluster says.
    fn check(&self, response: &pb::WatchResponse) -> Result<(), Error> {
        let Line::Open(Requests { route, .. }, _) = &self.line else { return Ok(()) };
        self.shared.transport.same_cluster(RPC, response.header.as_ref(), route)
    }

    fn response(&mut self, response: pb::WatchResponse) {
        let now = Instant::now().into_std();
        let transport = &self.shared.transport;
        let response = transport.watched(response);
        let line = &self.line;
        let judge = |reason: &str| judge(transport, &line.route(), reason);
        match self.table.respond(response, &judge) {
            Turn::Heard => self.pulse.heard(now),
            Turn::Refused => self.pulse.answered(now, self.table.is_asking()),
            Turn::Acknowledged => {
                self.pulse.answered(now, self.table.is_asking());
                (self.failing, self.worked) = (None, true);
            }
            Turn::Reopen(error) => {
                self.down();
                if let Some(error) = error {
                    self.failed(&Arc::new(error));
                }
            }
            Turn::Broken(error) => self.broken(error),
        }
    }

    /// The stream broke, or could not be opened.
    fn broken(&mut self, error: Error) {
        tracing::debug!(%error, "the watch stream broke");
        if let Line::Opening(requests, _) | Line::Open(requests, _) = &self.line {
            steer(&requests.route, error.kind());
        }
        let error = Arc::new(error.with_outcome(Outcome::NotApplied));
        if matches!(self.line, Line::Open(..)) {
            self.table.broke(self.pulse.lived() < A_WHILE, &error);
        }
        self.down();
        if *error.kind() == ErrorKind::NoLeader {
            self.table.end_leaderless(&error);
        }
        self.failed(&error);
    }

    /// A stream was of no use: all watches end with what does not pass by itself.
    fn failed(&mut self, error: &Arc<Error>) {
        let transport = &self.shared.transport;
        let passes = may_pass(error.kind()) || transport.token_passes(error.kind());
        if passes || self.worked && !transport.is_final(error.kind()) {
            self.failing = None;
            return;
        }
        // What does not pass by itself still has the time of a request: servers may be in the midst of a change.
        let now = Instant::now();
        let failing = *self.failing.get_or_insert(now);
        if now - failing >= self.shared.transport.limits().request_timeout {
            self.table.end_all(error);
        }
    }

    /// An answer did not come: the next may take longer. That of a server that never opens the stream only a little, as it
    /// may be none.
    fn died(&mut self) {
        let is_open = matches!(self.line, Line::Open(..));
        self.deaths += u32::from(is_open || self.deaths < MOST_UNOPENED);
    }

    /// Closes the stream, to open another after a pause.
    fn down(&mut self) {
        let lived = self.pulse.lived();
        if lived >= A_WHILE {
            self.backoff.reset();
        }
        if lived >= A_LONG_WHILE {
            self.deaths = 0;
        }
        self.table.closed();
        self.line = Line::Down(Instant::now() + self.backoff.next());
    }
}

/// The task ended, with its last watcher or with its runtime: no watcher is left waiting.
impl Drop for Task {
    fn drop(&mut self) {
        {
            let mut slot = self.shared.slot();
            self.commands.close();
            if slot.commands.as_ref().is_some_and(UnboundedSender::is_closed) {
                *slot = Slot { commands: None, past: self.past() };
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.command(command);
        }
        self.table.end_all(&Arc::new(LostReason::Closed.into()));
    }
}

const COMMANDS_PER_MESSAGE: usize = 64;
/// A stream on which something was heard for so long is one that works. More than the silence after which one is asked
/// whether it lives.
const A_WHILE: Duration = Duration::from_secs(10);
/// After so long, a slow line is taken for a quick one again.
const A_LONG_WHILE: Duration = Duration::from_secs(600);
/// So many streams that were never opened count as deaths: an answer is then waited for for 20 s.
const MOST_UNOPENED: u32 = 2;
/// How long a stream without watches is kept. Less than the silence after which one is asked whether it lives.
pub(super) const LINGER: Duration = Duration::from_secs(5);
