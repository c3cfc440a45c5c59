//! The stubs, and their requests.

use etcd_concurrency::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request as Ask;
use pb::response_op::Response as Answer;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::Result;

#[derive(Clone)]
pub(super) struct Bare {
    pub(super) kv: KvClient<Channel>,
    pub(super) lease: LeaseClient<Channel>,
    pub(super) watch: WatchClient<Channel>,
}

impl Bare {
    pub(super) async fn connect(endpoint: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
        let channel = endpoint.initial_connection_window_size(128 << 20).connect().await?;
        Ok(Self {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel),
        })
    }

    pub(super) async fn grant(&self, ttl: i64) -> Result<i64> {
        let grant = pb::LeaseGrantRequest { ttl, id: 0 };
        Ok(self.lease.clone().lease_grant(grant).await?.into_inner().id)
    }

    pub(super) async fn revoke(&self, id: i64) -> Result<()> {
        self.lease.clone().lease_revoke(pb::LeaseRevokeRequest { id }).await?;
        Ok(())
    }

    pub(super) async fn txn(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse> {
        Ok(self.kv.clone().txn(txn).await?.into_inner())
    }

    /// Refused by a member that has no leader, instead of left to wait.
    pub(super) async fn txn_with_leader(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse> {
        let mut request = tonic::Request::new(txn);
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        Ok(self.kv.clone().txn(request).await?.into_inner())
    }

    pub(super) async fn put(&self, key: &str, value: &str, lease: i64) -> Result<()> {
        self.kv.clone().put(put(key, value, lease)).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let delete = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
        self.kv.clone().delete_range(delete).await?;
        Ok(())
    }

    /// A watch stream with its first watch, and the way to say what to watch besides. Without one etcd answers nothing.
    pub(super) async fn watch(
        &self,
        key: &str,
    ) -> Result<(mpsc::UnboundedSender<pb::WatchRequest>, Streaming<pb::WatchResponse>)> {
        let (ask, asked) = mpsc::unbounded_channel();
        ask.send(create(key))?;
        let answers = self.watch.clone().watch(UnboundedReceiverStream::new(asked)).await?.into_inner();
        Ok((ask, answers))
    }
}

pub(super) fn put(key: &str, value: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..Default::default() }
}

pub(super) fn ask(request: Ask) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub(super) fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// All below a name, which stands before others that are older than `older`, if that is not 0; the two newest.
pub(super) fn queue(name: &str, older: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: format!("{name}/").into(),
        range_end: format!("{name}0").into(),
        limit: 2,
        sort_order: pb::range_request::SortOrder::Descend.into(),
        sort_target: pb::range_request::SortTarget::Create.into(),
        max_create_revision: older,
        keys_only: true,
        ..Default::default()
    }
}

pub(super) fn missing(key: &str) -> pb::Compare {
    compare(key, CompareTarget::Create, TargetUnion::CreateRevision(0))
}

pub(super) fn compare(key: &str, target: CompareTarget, value: TargetUnion) -> pb::Compare {
    pb::Compare {
        key: key.to_owned().into(),
        target: target.into(),
        result: CompareResult::Equal.into(),
        target_union: Some(value),
        ..Default::default()
    }
}

pub(super) fn ranges(reply: pb::TxnResponse) -> impl Iterator<Item = pb::RangeResponse> {
    reply.responses.into_iter().filter_map(|response| match response.response {
        Some(Answer::ResponseRange(range)) => Some(range),
        _ => None,
    })
}

pub(super) fn create(key: &str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

pub(super) fn cancel(watch_id: i64) -> pb::WatchRequest {
    let cancel = pb::WatchCancelRequest { watch_id };
    pb::WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }
}

/// The next answer of that kind.
pub(super) async fn next(
    answers: &mut Streaming<pb::WatchResponse>,
    mut is_it: impl FnMut(&pb::WatchResponse) -> bool,
) -> Result<pb::WatchResponse> {
    loop {
        let answer = answers.message().await?.ok_or("the watch has ended")?;
        if is_it(&answer) {
            return Ok(answer);
        }
    }
}
