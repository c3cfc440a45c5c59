//! The fake through the generated clients, on a paused clock.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::*;

type Result<T = ()> = std::result::Result<T, Status>;

mod auth;
mod faults;
mod history;
mod kv;
mod lease;
mod outages;
mod plans;
mod services;
mod strangers;
mod tcp;
mod watch;

/// One client of the fake.
struct Client {
    kv: KvClient<Service>,
    lease: LeaseClient<Service>,
    watch: WatchClient<Service>,
}

impl Client {
    fn of(fake: &FakeEtcd, name: &str) -> Self {
        Self {
            kv: KvClient::new(fake.service_for(name)),
            lease: LeaseClient::new(fake.service_for(name)),
            watch: WatchClient::new(fake.service_for(name)),
        }
    }

    async fn put(&mut self, key: &str, value: &str) -> Result<PutResponse> {
        Ok(self.kv.put(put(key, value, 0)).await?.into_inner())
    }

    async fn grant(&mut self, id: i64, ttl: i64) -> Result<LeaseGrantResponse> {
        Ok(self.lease.lease_grant(LeaseGrantRequest { id, ttl }).await?.into_inner())
    }

    /// Opens a watch stream with one watcher on all keys, and waits until it is there.
    async fn watch_all(&mut self) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)> {
        let (asks, asked) = mpsc::channel(16);
        let create = WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        asks.send(ask(RequestUnion::CreateRequest(create))).await.map_err(|_| Status::internal("closed"))?;
        let mut said = self.watch.watch(ReceiverStream::new(asked)).await?.into_inner();
        let created = said.message().await?.unwrap_or_default();
        assert!(created.created && !created.canceled);
        Ok((asks, said))
    }

    /// Opens a keep-alive stream and renews a lease on it.
    async fn keep_alive(
        &mut self,
        id: i64,
    ) -> Result<(mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>)> {
        let (asks, asked) = mpsc::channel(16);
        asks.send(LeaseKeepAliveRequest { id }).await.map_err(|_| Status::internal("closed"))?;
        let mut said = self.lease.lease_keep_alive(ReceiverStream::new(asked)).await?.into_inner();
        assert_eq!(said.message().await?.unwrap_or_default().id, id);
        Ok((asks, said))
    }
}

fn ask(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

fn put(key: &str, value: &str, lease: i64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..Default::default() }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

#[test]
fn bounds() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<FakeEtcd>();
    shared::<Service>();
    shared::<On>();
    shared::<Do>();
    shared::<Fault>();
}

/// Revision and number of events of each response until one for this revision.
async fn events_until(said: &mut Streaming<WatchResponse>, revision: i64) -> Result<Vec<(i64, usize)>> {
    let mut seen = Vec::new();
    loop {
        let response = said.message().await?.ok_or_else(|| Status::internal("the stream has ended"))?;
        let at = response.header.unwrap_or_default().revision;
        seen.push((at, response.events.len()));
        if at >= revision {
            return Ok(seen);
        }
    }
}
