//! A keep-alive stream: what is asked and answered on it, and what its silence means.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use super::clock::Moment;
use crate::error::{ErrorKind, Result};
use crate::pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use crate::transport::Transport;
use crate::transport::channel::Route;
use crate::transport::retry::avoids_member;

/// A stream, open or being opened. etcd answers the opening with its first response, so requests go out before.
pub(super) struct Stream {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Answers,
    route: Route,
    /// The keep-alives under way, the oldest first: each lease's are answered in their order.
    unanswered: VecDeque<Asked>,
    asked: u64,
    /// When a keep-alive was last answered.
    heard: Option<Moment>,
    /// The latest of the keep-alives that were answered.
    answered: u64,
    /// It is silent, and is listened to until then.
    doubted: Option<Moment>,
}

/// A keep-alive under way.
struct Asked {
    id: i64,
    /// Counts the keep-alives of the stream.
    number: u64,
    /// The lease was given up since. It may be adopted again, and asked for again, before this is answered.
    forgotten: bool,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<LeaseKeepAliveResponse>>> + Send>>;

enum Answers {
    Opening(Opening),
    Open(Box<Streaming<LeaseKeepAliveResponse>>),
}

/// What a keep-alive without an answer says of its stream.
pub(super) enum Silence {
    /// Nothing before this.
    Wait(Moment),
    /// Later ones were answered: this one was lost on the way.
    Skipped,
    /// The stream is dead.
    Dead,
}

impl Stream {
    pub(super) fn open(transport: Transport) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let route = Route::default();
        let on = route.clone();
        let opening =
            async move { transport.open_keep_alive(UnboundedReceiverStream::new(receiver), on).await };
        let answers = Answers::Opening(Box::pin(opening));
        let (unanswered, heard, doubted) = (VecDeque::new(), None, None);
        Self { requests, answers, route, unanswered, asked: 0, heard, answered: 0, doubted }
    }

    pub(super) fn ask(&mut self, id: i64) {
        // A stream whose receiver is gone tells so by its answers.
        let _ = self.requests.send(LeaseKeepAliveRequest { id });
        self.asked += 1;
        self.unanswered.push_back(Asked { id, number: self.asked, forgotten: false });
    }

    /// A lease is given up: what is answered for it is no answer to who adopts it.
    pub(super) fn forget(&mut self, id: i64) {
        self.unanswered.iter_mut().filter(|asked| asked.id == id).for_each(|asked| asked.forgotten = true);
    }

    /// A keep-alive of this lease was answered. False where the lease was given up since it was asked for.
    pub(super) fn heard(&mut self, id: i64, now: Moment) -> bool {
        let asked = self.unanswered.iter().position(|asked| asked.id == id);
        let Some(asked) = asked.and_then(|at| self.unanswered.remove(at)) else { return true };
        self.heard = Some(now);
        self.answered = self.answered.max(asked.number);
        self.doubted = None;
        !asked.forgotten
    }

    /// An answer is overdue. Where the server has many to give it gives them one after the other, and where this process
    /// stood still the answer may have come and be yet to be read: it is the stream's silence that counts, and only as
    /// far as it was listened to.
    pub(super) fn judge(&mut self, id: i64, now: Moment, patience: Duration, left: Duration) -> Silence {
        let asked = self.unanswered.iter().find(|asked| asked.id == id && !asked.forgotten);
        if asked.is_some_and(|asked| asked.number < self.answered) {
            return Silence::Skipped;
        }
        match (self.heard, self.doubted) {
            (Some(heard), _) if now < heard + patience => Silence::Wait(heard + patience),
            (_, None) => {
                let until = now + GRACE.min(left / 4);
                self.doubted = Some(until);
                Silence::Wait(until)
            }
            (_, Some(until)) if now < until => Silence::Wait(until),
            (_, Some(_)) => Silence::Dead,
        }
    }

    /// It is dead, whatever it says of itself.
    pub(super) fn is_dead(&self) {
        self.route.avoid();
    }

    /// It ended with this error. Where it may be one lease's doing, that lease is not asked for again at once: it was the
    /// one being answered.
    pub(super) fn ended(&mut self, kind: &ErrorKind) -> Option<i64> {
        match kind {
            ErrorKind::Timeout => self.route.avoid(),
            kind if avoids_member(kind) => self.route.avoid_member(),
            _ => {}
        }
        let culprit = match kind {
            ErrorKind::PermissionDenied | ErrorKind::Refused { .. } | ErrorKind::Other { .. } => {
                self.unanswered.pop_front()
            }
            _ => None,
        };
        culprit.filter(|asked| !asked.forgotten).map(|asked| asked.id)
    }

    /// The leases that were asked for, and not answered.
    pub(super) fn into_unanswered(self) -> impl Iterator<Item = i64> {
        self.unanswered.into_iter().filter(|asked| !asked.forgotten).map(|asked| asked.id)
    }

    /// The next answer. Cancel safe: the opening and the stream stay where they are.
    pub(super) async fn next(&mut self, transport: &Transport) -> Result<LeaseKeepAliveResponse> {
        loop {
            match &mut self.answers {
                Answers::Opening(opening) => {
                    let open = opening.await?;
                    self.answers = Answers::Open(Box::new(open));
                }
                Answers::Open(open) => {
                    let ended = match open.message().await {
                        Ok(Some(answer)) => {
                            // Another cluster knows nothing of our leases.
                            transport.same_cluster(RPC, answer.header.as_ref(), &self.route)?;
                            return Ok(answer);
                        }
                        Ok(None) => Status::unavailable("the keep-alive stream ended"),
                        Err(status) => status,
                    };
                    return Err(transport.stream_error(RPC, ended, &self.route));
                }
            }
        }
    }
}

const RPC: &str = "Lease/LeaseKeepAlive";
/// How long a silent stream is listened to before it counts as dead.
const GRACE: Duration = Duration::from_millis(100);
