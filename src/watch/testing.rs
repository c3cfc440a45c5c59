//! A Watch service that does what a test says, by hand.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;

use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::transport::namespace::Namespace;
use crate::transport::{Limits, RawService, Transport};
use pb::watch_request::RequestUnion;
use pb::watch_server::{Watch, WatchServer};

pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The server's side of all streams.
pub(super) struct Server {
    knocks: UnboundedReceiver<Knock>,
}

/// The server's side of one stream.
pub(super) struct Wire {
    requests: Streaming<pb::WatchRequest>,
    answers: UnboundedSender<Result<pb::WatchResponse, Status>>,
}

/// A stream that waits to be let in.
struct Knock {
    requests: Streaming<pb::WatchRequest>,
    answer: oneshot::Sender<Result<Answers, Status>>,
}

type Answers = UnboundedReceiverStream<Result<pb::WatchResponse, Status>>;

struct Service(UnboundedSender<Knock>);

#[tonic::async_trait]
impl Watch for Service {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (answer, answered) = oneshot::channel();
        let knock = Knock { requests: request.into_inner(), answer };
        self.0.send(knock).map_err(|_| Status::unavailable("the test is over"))?;
        answered.await.map_err(|_| Status::unavailable("the test is over"))?.map(Response::new)
    }
}

/// A server, and a transport that leads to it.
pub(super) fn server() -> (Server, Transport) {
    let (sender, knocks) = unbounded_channel();
    let routes = tonic::service::Routes::new(WatchServer::new(Service(sender)));
    let service = ServiceExt::<http::Request<Body>>::map_err(routes, |never: Infallible| match never {});
    let service = RawService::new(service);
    let limits = Limits { request_timeout: REQUEST_TIMEOUT, answer: 32 << 20 };
    (Server { knocks }, Transport::new(service, None, Namespace::new(""), limits))
}

impl Server {
    /// Lets the next stream in.
    pub(super) async fn accept(&mut self) -> Wire {
        loop {
            let Knock { requests, answer } = self.knocks.recv().await.expect("a stream");
            let (answers, stream) = unbounded_channel();
            // Who knocked may have given up.
            if answer.send(Ok(stream.into())).is_ok() {
                return Wire { requests, answers };
            }
        }
    }

    /// Lets the next stream in that waits at the door for so long.
    pub(super) async fn accept_after(&mut self, pause: Duration) -> Wire {
        loop {
            let Knock { requests, answer } = self.knocks.recv().await.expect("a stream");
            tokio::time::sleep(pause).await;
            let (answers, stream) = unbounded_channel();
            if answer.send(Ok(stream.into())).is_ok() {
                return Wire { requests, answers };
            }
        }
    }

    /// Turns the next stream away.
    pub(super) async fn refuse(&mut self, status: Status) {
        let knock = self.knocks.recv().await.expect("a stream");
        // Who knocked may have given up.
        let _ = knock.answer.send(Err(status));
    }

    /// Leaves the next stream at the door.
    pub(super) async fn ignore(&mut self) -> impl Sized + use<> {
        self.knocks.recv().await.expect("a stream")
    }

    /// True when no stream knocks.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.knocks.try_recv().is_err()
    }
}

impl Wire {
    /// The next request; none once the client has closed the stream.
    pub(super) async fn next_request(&mut self) -> Option<RequestUnion> {
        // A stream that the client has dropped ends in an error or without one.
        self.requests.message().await.ok().flatten()?.request_union
    }

    /// The next request, which must be a create.
    pub(super) async fn create(&mut self) -> pb::WatchCreateRequest {
        match self.next_request().await {
            Some(RequestUnion::CreateRequest(create)) => create,
            other => panic!("not a create: {other:?}"),
        }
    }

    /// The same, acknowledged at `revision`. Gives the watch's id.
    pub(super) async fn created(&mut self, revision: i64) -> i64 {
        let id = self.create().await.watch_id;
        self.acknowledge(id, revision);
        id
    }

    /// The next request, which must be a cancel. Gives the watch's id.
    pub(super) async fn cancelled(&mut self) -> i64 {
        match self.next_request().await {
            Some(RequestUnion::CancelRequest(cancel)) => cancel.watch_id,
            other => panic!("not a cancel: {other:?}"),
        }
    }

    /// Waits until the client closes the stream.
    pub(super) async fn closed(&mut self) {
        while self.next_request().await.is_some() {}
    }

    pub(super) fn acknowledge(&self, id: i64, revision: i64) {
        self.send(pb::WatchResponse { created: true, ..answer(id, revision) });
    }

    /// Refuses a create as servers do.
    pub(super) fn refuse(&self, reason: &str) {
        let cancel_reason = reason.to_owned();
        self.send(pb::WatchResponse { created: true, canceled: true, cancel_reason, ..answer(-1, 1) });
    }

    pub(super) fn events(&self, id: i64, revision: i64, events: &[(&str, i64)]) {
        self.send(pb::WatchResponse { events: puts(events), ..answer(id, revision) });
    }

    pub(super) fn send(&self, response: pb::WatchResponse) {
        // Whether the client still listens is for the test to see.
        let _ = self.answers.send(Ok(response));
    }

    /// Ends the stream.
    pub(super) fn fail(self, status: Status) {
        let _ = self.answers.send(Err(status));
    }
}

pub(super) fn answer(watch_id: i64, revision: i64) -> pb::WatchResponse {
    let header = Some(pb::ResponseHeader { revision, ..Default::default() });
    pb::WatchResponse { header, watch_id, ..Default::default() }
}

pub(super) fn puts(events: &[(&str, i64)]) -> Vec<Event> {
    let put = |&(key, mod_revision): &(&str, i64)| {
        let kv = KeyValue { key: key.to_owned().into(), mod_revision, ..Default::default() };
        Event { kv: Some(kv), ..Default::default() }
    };
    events.iter().map(put).collect()
}

pub(super) fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}
