//! A watch stream of one side.

use bytes::Bytes;
use etcd_concurrency::pb::etcdserverpb::watch_client::WatchClient;
use etcd_concurrency::pb::etcdserverpb::watch_request::RequestUnion;
use etcd_concurrency::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use etcd_concurrency::pb::mvccpb::Event;
use etcd_concurrency::pb::mvccpb::event::EventType;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::side::{Client, LIMIT, neutral, words};

/// A write of this key passes through every stream, and everything before it has come when it has. No other
/// operation puts it.
pub(super) const MARKER: Bytes = Bytes::from_static(b"~");

/// The watcher of the marker on each stream.
const MARKED: i64 = 1 << 40;

pub(super) struct Stream {
    requests: UnboundedSender<WatchRequest>,
    answers: UnboundedReceiver<Result<WatchResponse, Status>>,
    /// What has come since it was last compared, the marker's own responses left out.
    pub(super) log: Vec<WatchResponse>,
    /// Its client may not watch the marker: good for nothing.
    pub(super) is_refused: bool,
    _reader: AbortOnDropHandle<()>,
}

impl Stream {
    pub(super) async fn open(client: &Client) -> Stream {
        let (requests, receiver) = unbounded_channel();
        let create = WatchCreateRequest { key: MARKER, watch_id: MARKED, ..Default::default() };
        // A server sends no head before it is asked something.
        let _ = requests.send(request(RequestUnion::CreateRequest(create)));
        let mut client = WatchClient::new(client.service.clone()).max_decoding_message_size(usize::MAX);
        let opened = timeout(LIMIT, client.watch(UnboundedReceiverStream::new(receiver))).await;
        let mut inbound = opened.expect("in time").expect("a stream").into_inner();
        // Read at all times, so that no server ever has to put anything off.
        let (sender, answers) = unbounded_channel();
        let reader = tokio::spawn(async move {
            while let Some(answer) = inbound.next().await {
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let reader = AbortOnDropHandle::new(reader);
        let mut stream = Stream { requests, answers, log: Vec::new(), is_refused: false, _reader: reader };
        let first = stream.until("its first watcher", |answer| answer.created).await.expect("an answer");
        stream.is_refused = first.canceled;
        stream.log.clear();
        stream
    }

    pub(super) fn ask(&self, union: RequestUnion) {
        // A stream that has ended says so to who waits for the answer.
        let _ = self.requests.send(request(union));
    }

    /// Waits for a response, and logs it with all that come before it.
    pub(super) async fn until(
        &mut self,
        what: &str,
        mut is: impl FnMut(&WatchResponse) -> bool,
    ) -> Result<WatchResponse, String> {
        let wait = async {
            loop {
                match self.answers.recv().await {
                    Some(Ok(mut answer)) => {
                        neutral(&mut answer.header);
                        let found = is(&answer);
                        // Among the watchers of one event there is no order: of a marker, some are told later.
                        let of_marker = !answer.events.is_empty() && answer.events.iter().all(is_marker);
                        if answer.watch_id != MARKED && !of_marker {
                            self.log.push(answer.clone());
                        }
                        if found {
                            return Ok(answer);
                        }
                    }
                    Some(Err(status)) => return Err(format!("the stream broke: {}", words(&status))),
                    None => return Err("the stream ended".to_owned()),
                }
            }
        };
        timeout(LIMIT, wait).await.unwrap_or_else(|_| Err(format!("never came: {what}")))
    }

    /// Waits until the marker of this revision has passed.
    pub(super) async fn drain(&mut self, revision: i64) -> Result<(), String> {
        let passed = |answer: &WatchResponse| answer.watch_id == MARKED && reaches(answer, revision);
        self.until("the marker", passed).await.map(drop)
    }
}

/// Whether there is an event of this revision or a later one.
pub(super) fn reaches(answer: &WatchResponse, revision: i64) -> bool {
    answer.events.iter().filter_map(|event| event.kv.as_ref()).any(|kv| kv.mod_revision >= revision)
}

/// Whether a marker was written.
pub(super) fn is_marker(event: &Event) -> bool {
    event.r#type() == EventType::Put && event.kv.as_ref().is_some_and(|kv| kv.key == MARKER)
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}
