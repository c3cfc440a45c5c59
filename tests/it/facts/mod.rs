//! What the crate relies on, or must not rely on, of a server: tried on every version, and held of the fake.
//!
//! The real tests print what they saw, since some of it is a matter of chance.

mod order;
mod ranges;
mod slow;
mod space;

use etcd_concurrency::Client;
use etcd_concurrency::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// A watch stream as the server sends it.
struct Stream {
    requests: UnboundedSender<pb::WatchRequest>,
    answers: UnboundedReceiver<(Instant, pb::WatchResponse)>,
    _reader: AbortOnDropHandle<()>,
}

impl Stream {
    /// Watches each of the keys, from a revision on (0: from now on); the first with the id 1.
    async fn open(client: &Client, keys: &[&str], start_revision: i64) -> Stream {
        let (requests, receiver) = unbounded_channel();
        for (watch_id, key) in (1..).zip(keys) {
            let _ = requests.send(create(watch_id, key, start_revision));
        }
        let watch = client.watch_client().watch(UnboundedReceiverStream::new(receiver)).await;
        let mut inbound = watch.expect("a stream").into_inner();
        let (sender, answers) = unbounded_channel();
        // Read at all times, so that the server never has to put anything off.
        let reader = tokio::spawn(async move {
            while let Some(Ok(answer)) = inbound.next().await {
                if sender.send((Instant::now(), answer)).is_err() {
                    return;
                }
            }
        });
        Stream { requests, answers, _reader: AbortOnDropHandle::new(reader) }
    }

    fn watch(&self, watch_id: i64, key: &str, start_revision: i64) {
        let _ = self.requests.send(create(watch_id, key, start_revision));
    }

    async fn next(&mut self) -> (Instant, pb::WatchResponse) {
        self.answers.recv().await.expect("the stream stands")
    }

    /// All answers until each of these watches has told of a revision, or a later one.
    async fn until(&mut self, revisions: &[(i64, i64)]) -> Vec<(Instant, pb::WatchResponse)> {
        let mut missing = revisions.to_vec();
        let mut answers = Vec::new();
        while !missing.is_empty() {
            let (at, answer) = self.next().await;
            let told = revision(&answer);
            missing.retain(|(id, wanted)| *id != answer.watch_id || told < *wanted);
            answers.push((at, answer));
        }
        answers
    }

    /// Waits until so many watches stand.
    async fn created(&mut self, count: usize) {
        for _ in 0..count {
            assert!(self.next().await.1.created, "nothing happens before");
        }
    }
}

fn create(watch_id: i64, key: &str, start_revision: i64) -> pb::WatchRequest {
    let key = key.to_owned().into();
    let create = pb::WatchCreateRequest { key, watch_id, start_revision, ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// The last revision that an answer tells of; 0 where it tells of none.
fn revision(answer: &pb::WatchResponse) -> i64 {
    let revisions = answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
    revisions.max().unwrap_or(0)
}

async fn put(client: &Client, key: &str) -> i64 {
    let put = pb::PutRequest { key: key.to_owned().into(), ..Default::default() };
    let answer = client.kv_client().put(put).await.expect("put").into_inner();
    answer.header.expect("a header").revision
}

/// Deletes all keys with this prefix, at one revision.
async fn delete(client: &Client, prefix: &str) -> i64 {
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().expect("a prefix") += 1;
    let delete =
        pb::DeleteRangeRequest { key: prefix.to_owned().into(), range_end: range_end.into(), prev_kv: false };
    let answer = client.kv_client().delete_range(delete).await.expect("deleted").into_inner();
    answer.header.expect("a header").revision
}
