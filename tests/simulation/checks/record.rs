//! The record: everything that was ever written, in order, as a watch of all keys tells it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb::watch_request::RequestUnion;
use etcd_concurrency::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use etcd_concurrency::pb::mvccpb::Event;
use etcd_concurrency::{Client, Txn};
use tokio::task::JoinHandle;
use tokio::time::sleep;

#[derive(Clone)]
pub(crate) struct Record {
    events: Rc<RefCell<Vec<Event>>>,
    /// Something is missing: the history was compacted before it was read.
    torn: Rc<Cell<bool>>,
    follows: Rc<JoinHandle<()>>,
}

impl Record {
    pub(crate) fn start(client: Client) -> Self {
        let (events, torn) = (Rc::<RefCell<Vec<Event>>>::default(), Rc::new(Cell::new(false)));
        let (kept, tears) = (events.clone(), torn.clone());
        let follows = tokio::task::spawn_local(async move {
            while !tears.get() {
                follow(&client, &kept, &tears).await;
                // The server is gone, or the token: a call fetches another.
                sleep(Duration::from_micros(100)).await;
                drop(client.txn(Txn::new()).await);
            }
        });
        Self { events, torn, follows: Rc::new(follows) }
    }

    pub(crate) fn last_revision(&self) -> i64 {
        last_revision(&self.events.borrow())
    }

    pub(crate) fn is_torn(&self) -> bool {
        self.torn.get()
    }

    /// All events.
    pub(crate) fn end(&self) -> Vec<Event> {
        self.follows.abort();
        self.events.take()
    }
}

async fn follow(client: &Client, events: &RefCell<Vec<Event>>, torn: &Cell<bool>) {
    let (requests, sent) = tokio::sync::mpsc::unbounded_channel();
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: last_revision(&events.borrow()) + 1,
        ..Default::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).expect("the receiver is here");
    let sent = tokio_stream::wrappers::UnboundedReceiverStream::new(sent);
    let Ok(answers) = client.watch_client().watch(sent).await else { return };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        if answer.compact_revision > 0 {
            torn.set(true);
        }
        if answer.canceled {
            return;
        }
        events.borrow_mut().extend(answer.events);
    }
}

pub(crate) fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// Nothing is written before the second revision.
fn last_revision(events: &[Event]) -> i64 {
    events.last().map_or(1, revision)
}
