//! What happened, for assertions and for reading.

mod answered;
mod asked;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

pub(crate) use self::answered::{Answer, Answered};
pub(crate) use self::asked::{Asked, Need, Streamed};
use super::refusal::Refusal;
use super::rpc::Rpc;

/// Everything that a fake did, in order. Prints as one line for each.
///
/// Two runs of one test with one seed have equal histories, if the test itself leaves nothing to chance.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    operations: Vec<Operation>,
    forgotten: u64,
}

/// Something that a fake did: it answered a request, or it ended a lease, lost its leader, and so on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Operation {
    /// When, counted from the fake's start.
    pub at: Duration,
    /// For whom; `None` for what no client asked for.
    pub client: Option<Arc<str>>,
    /// What was called; `None` for what no client asked for.
    pub rpc: Option<Rpc>,
    /// The request in short, or what happened. Secrets are left out.
    pub request: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The store's revision right after.
    pub revision: i64,
    /// Whether the answer was sent on its way; `false` where a fault took it.
    pub answered: bool,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It was done; the answer in short.
    Done(String),
    /// It was refused, and nothing was applied.
    Refused {
        /// The status code.
        code: Code,
        /// The server's words.
        message: String,
    },
}

impl History {
    /// How many older operations are no longer in it; see [`Builder::history_limit`](super::Builder::history_limit).
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The operations of one client.
    pub fn of<'h>(&'h self, client: &'h str) -> impl Iterator<Item = &'h Operation> {
        self.operations.iter().filter(move |operation| operation.client.as_deref() == Some(client))
    }

    /// The calls of one RPC.
    pub fn calls(&self, rpc: Rpc) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(move |operation| operation.rpc == Some(rpc))
    }
}

impl Operation {
    /// Whether it was done, not refused.
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_))
    }
}

impl Deref for History {
    type Target = [Operation];

    fn deref(&self) -> &[Operation] {
        &self.operations
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.forgotten > 0 {
            writeln!(f, "({} older operations are forgotten)", self.forgotten)?;
        }
        self.operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, client, rpc, request, outcome, revision, answered } = self;
        write!(f, "{:>5}.{:06} @{revision:<5}", at.as_secs(), at.subsec_micros())?;
        let (Some(client), Some(rpc)) = (client, rpc) else { return write!(f, "-- {request} --") };
        write!(f, "{client:<8} {rpc:<15} {request}{outcome}")?;
        if *answered { Ok(()) } else { f.write_str(" (the answer was lost)") }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(answer) if answer.is_empty() => Ok(()),
            Self::Done(answer) => write!(f, " -> {answer}"),
            Self::Refused { code, message } => write!(f, " -> {code:?}: {message}"),
        }
    }
}

/// The history as it is kept: requests in words already, since one as it came holds on to the buffer that it was
/// read into.
#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    limit: usize,
    forgotten: u64,
}

/// What a client asked for, and what came of it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) client: Arc<str>,
    pub(crate) rpc: Rpc,
    pub(crate) request: Box<str>,
    pub(crate) outcome: Result<Answer, Refusal>,
    pub(crate) answered: bool,
}

#[derive(Debug)]
struct Entry {
    at: Duration,
    revision: i64,
    what: What,
}

#[derive(Debug)]
enum What {
    Call(Call),
    Note(String),
}

impl Log {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: VecDeque::new(), limit, forgotten: 0 }
    }

    pub(crate) fn call(&mut self, at: Duration, revision: i64, call: impl FnOnce() -> Call) {
        if self.limit == 0 {
            // Words cost something.
            self.forgotten += 1;
        } else {
            self.push(Entry { at, revision, what: What::Call(call()) });
        }
    }

    pub(crate) fn note(&mut self, at: Duration, revision: i64, what: String) {
        self.push(Entry { at, revision, what: What::Note(what) });
    }

    pub(crate) fn read(&self) -> History {
        let operations = self.entries.iter().map(Entry::read).collect();
        History { operations, forgotten: self.forgotten }
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.len() >= self.limit {
            self.entries.pop_front();
            self.forgotten += 1;
        }
        if self.limit > 0 {
            self.entries.push_back(entry);
        }
    }
}

impl Entry {
    fn read(&self) -> Operation {
        let (at, revision) = (self.at, self.revision);
        match &self.what {
            What::Note(request) => Operation {
                at,
                client: None,
                rpc: None,
                request: request.clone(),
                outcome: Outcome::Done(String::new()),
                revision,
                answered: true,
            },
            What::Call(call) => Operation {
                at,
                client: Some(Arc::clone(&call.client)),
                rpc: Some(call.rpc),
                request: call.request.to_string(),
                outcome: match &call.outcome {
                    Ok(answer) => Outcome::Done(answer.to_string()),
                    Err(refusal) => {
                        let status = refusal.status();
                        Outcome::Refused { code: status.code(), message: status.message().to_owned() }
                    }
                },
                revision,
                answered: call.answered,
            },
        }
    }
}

/// A request in short.
pub(crate) struct Short<'a, Q>(pub(crate) &'a Q);

impl<Q: Asked> fmt::Display for Short<'_, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.short(f)
    }
}
