//! Where the messages between clients and the fake wait to be let through, one by one.
//!
//! A unary call is two messages, its request and its answer; of a watch stream each message is one. Messages of one lane come
//! in order: a lane is what a client asks of a stream, or what one watch of a stream is told. So watches of one stream overtake
//! each other, as etcd's do when it catches them up. Keep-alives and grants pass.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Holds messages while it is closed.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    arrived: Notify,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    lanes: u64,
    /// How many messages have come to wait.
    arrivals: u64,
    waiting: VecDeque<Message>,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    /// The connection breaks: it does not arrive, and the client is told so.
    Broken,
    /// The same to the client, but the server has it in a socket that it reads later.
    PutAside,
}

/// What kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    /// A request whose client has been told that its connection broke.
    Straggler,
    Answer,
    Event,
}

type Ends = Box<dyn FnOnce(Verdict) + Send>;
type IsGone = Box<dyn Fn() -> bool + Send>;

/// A message that waits.
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) lane: Lane,
    /// For people to read.
    pub(crate) what: String,
    /// What is done with it.
    pub(crate) ends: Ends,
    /// True once there is no client any more that it could reach.
    pub(crate) is_gone: IsGone,
}

/// Messages of one lane come in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane(u64);

/// A message at the head of its lane.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) index: usize,
    pub(crate) kind: Kind,
    pub(crate) what: String,
}

impl Gate {
    /// From here on messages wait.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
    }

    /// All that waits is delivered, in order, and all that comes.
    pub(crate) fn open(&self) {
        self.inner().closed = false;
        // What is delivered may bring more, which passes then.
        loop {
            let Some(first) = self.inner().waiting.pop_front() else { return };
            (first.ends)(Verdict::Delivered);
        }
    }

    pub(crate) fn lane(&self) -> Lane {
        let mut inner = self.inner();
        inner.lanes += 1;
        Lane(inner.lanes)
    }

    /// Takes a message in; it passes at once while the gate is open.
    pub(crate) fn take(&self, message: Message) {
        let mut inner = self.inner();
        if !inner.closed {
            drop(inner);
            return (message.ends)(Verdict::Delivered);
        }
        inner.waiting.push_back(message);
        inner.arrivals += 1;
        drop(inner);
        self.0.arrived.notify_one();
    }

    /// How many messages have come to wait, since the beginning.
    pub(crate) fn arrivals(&self) -> u64 {
        self.inner().arrivals
    }

    /// Waits until another message has come.
    pub(crate) async fn another(&self) {
        let before = self.arrivals();
        while self.arrivals() == before {
            self.0.arrived.notified().await;
        }
    }

    /// Waits until there is such a message.
    pub(crate) async fn arrived(&self, such: impl Fn(&Head) -> bool) {
        while !self.heads().iter().any(&such) {
            self.0.arrived.notified().await;
        }
    }

    /// The first message of each lane, the oldest first; stragglers last.
    pub(crate) fn heads(&self) -> Vec<Head> {
        let mut inner = self.inner();
        inner.waiting.retain(|waiting| !(waiting.is_gone)());
        let mut lanes = Vec::new();
        let mut heads = Vec::new();
        for (index, message) in inner.waiting.iter().enumerate() {
            if !lanes.contains(&message.lane) {
                lanes.push(message.lane);
                heads.push(Head { index, kind: message.kind, what: message.what.clone() });
            }
        }
        heads.sort_by_key(|head| head.kind == Kind::Straggler);
        heads
    }

    /// Ends the wait of a message.
    pub(crate) fn end(&self, head: &Head, verdict: Verdict) {
        let waiting = self.inner().waiting.remove(head.index);
        let waiting = waiting.expect("nothing comes or goes between a look and a choice");
        (waiting.ends)(verdict);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
