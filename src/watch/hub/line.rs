//! The stream itself: down, opening or open.

use std::future::{Future, pending};
use std::pin::Pin;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::error::{Error, ErrorKind, Result};
use crate::pb::etcdserverpb as pb;
use crate::transport::channel::Route;
use crate::transport::retry::avoids_member;
use crate::transport::{Transport, classify};

/// The stream, of which there is one at a time.
pub(super) enum Line {
    /// None, until then.
    Down(Instant),
    Opening(Requests, Opening),
    Open(Requests, Box<Streaming<pb::WatchResponse>>),
}

/// The way out, and where it leads.
pub(super) struct Requests {
    pub(super) queue: UnboundedSender<pb::WatchRequest>,
    pub(super) route: Route,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<pb::WatchResponse>>> + Send>>;

/// What a line brings.
pub(super) enum Heard {
    Opened(Result<Streaming<pb::WatchResponse>>),
    Message(Result<Option<pb::WatchResponse>, Status>),
}

impl Line {
    /// Waits for what comes. Nothing is lost when the future is dropped.
    pub(super) async fn hear(&mut self) -> Heard {
        match self {
            Self::Down(_) => pending().await,
            Self::Opening(_, opening) => Heard::Opened(opening.await),
            Self::Open(_, stream) => Heard::Message(stream.message().await),
        }
    }

    /// Where it leads.
    pub(super) fn route(&self) -> Route {
        match self {
            Self::Opening(requests, _) | Self::Open(requests, _) => requests.route.clone(),
            Self::Down(_) => Route::default(),
        }
    }
}

/// Leads the next stream elsewhere, where this route's end is to blame.
pub(super) fn steer(route: &Route, kind: &ErrorKind) {
    match kind {
        ErrorKind::Timeout => route.avoid(),
        kind if avoids_member(kind) => route.avoid_member(),
        _ => {}
    }
}

/// The error that a reason to cancel is, and whether another token may mend it.
pub(super) fn judge(transport: &Transport, route: &Route, reason: &str) -> (Error, bool) {
    let error = classify::cancel_reason(reason);
    let may_be_the_token = *error.kind() == ErrorKind::PermissionDenied && transport.has_another_token(route);
    let mends = transport.note_auth(&error, route) || may_be_the_token;
    (error, mends)
}
