//! What the server's own Lock and Election share: a queue of keys under a name, the oldest first.
//!
//! A real server runs etcd's Go client inside itself for these two, and hands on that client's errors: with
//! their words, and the code Unknown.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Code, Status};

use super::visit::Visit;
use crate::fake::core::{Caller, Core};
use crate::fake::history::{Answered, Asked, Need};
use crate::fake::keys::KeyRange;
use crate::fake::refusal::Refusal;
use crate::fake::shared::{Shared, State};
use crate::key::{name_prefix, owner_key, prefix_end};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::*;

/// A place in a queue. Dropped before [`keep`](Self::keep), it is given up.
pub(super) struct Place {
    shared: Arc<Shared>,
    prefix: Bytes,
    pub(super) key: Bytes,
    /// The revision at which the key was created.
    pub(super) revision: i64,
    /// The value that it has, if it was there before.
    pub(super) found: Option<Bytes>,
    pub(super) header: Option<ResponseHeader>,
    kept: bool,
}

impl Visit {
    /// One of the inner client's calls.
    pub(super) async fn ask<R: Send>(
        &self,
        need: Need,
        call: impl FnOnce(&mut Core, &Caller<'_>) -> Result<R, Refusal> + Send,
    ) -> Result<R, Refusal> {
        let step = |state: &mut State, now: Duration, may: Result<(), Refusal>| {
            may.and_then(|()| call(&mut state.core, &self.caller(now)))
        };
        match self.when(need, step).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::Other(Code::Unavailable, "connection broken")),
        }
    }

    /// Records a call when it is over, and puts its refusal into the inner client's words.
    pub(super) fn over<R: Answered>(
        &self,
        request: impl Asked,
        outcome: Result<R, Refusal>,
    ) -> Result<R, Status> {
        let outcome = outcome.map_err(|refusal| match refusal {
            // These two do not come from the inner client.
            Refusal::NoLeader | Refusal::Other(..) => refusal,
            refusal => Refusal::Other(Code::Unknown, refusal.words().1),
        });
        self.shared.with(|state, now| {
            let answer = outcome.as_ref().map(Answered::answer).map_err(|refusal| *refusal);
            self.record(state, now, &request, answer);
        });
        Ok(outcome?)
    }

    /// The lease asked for; a new one of 60 s where none is, which nobody renews.
    pub(super) async fn session(&self, lease: i64) -> Result<i64, Refusal> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = LeaseGrantRequest { id: 0, ttl: 60 };
        let granted = self.ask(Need::Proposal, |core, caller| core.grant(&grant, caller)).await?;
        Ok(granted.id)
    }

    /// The oldest key under a name.
    pub(super) async fn first(&self, name: &[u8]) -> Result<RangeResponse, Refusal> {
        let range = oldest(&name_prefix(name));
        self.ask(Need::Read, |core, caller| core.range(&range, caller)).await
    }
}

impl Place {
    /// Puts the lease's key in the queue, or finds it there.
    pub(super) async fn take(visit: &Visit, name: &[u8], lease: i64, value: Bytes) -> Result<Self, Refusal> {
        let lease = visit.session(lease).await?;
        let prefix = name_prefix(name);
        let key = owner_key(&prefix, lease);
        let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        let first = op(Request::RequestRange(oldest(&prefix)));
        let txn = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(Request::RequestPut(put)), first.clone()],
            failure: vec![op(Request::RequestRange(get)), first],
        };
        let answer = visit.ask(Need::Proposal, |core, caller| core.txn(&txn, caller)).await?;
        let found = match answer.responses.into_iter().next().and_then(|first| first.response) {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let revision = match &found {
            Some(kv) => kv.create_revision,
            None => answer.header.map_or(0, |header| header.revision),
        };
        let (shared, header, found) = (Arc::clone(&visit.shared), answer.header, found.map(|kv| kv.value));
        if found.is_none() {
            shared.with(|state, now| state.note(now, format!("{} enters its queue", key.escape_ascii())));
        }
        Ok(Self { shared, prefix, key, revision, found, header, kept: false })
    }

    /// Whether nobody is before it.
    pub(super) fn is_first(&self) -> bool {
        let range = KeyRange::new(self.prefix.clone(), prefix_end(&self.prefix));
        self.shared.look(|state, _| match state.core.store.range(&range, 0) {
            Ok(mut keys) => keys.all(|kv| kv.create_revision >= self.revision),
            // Now is never compacted and never ahead.
            Err(_) => false,
        })
    }

    /// Waits until nobody is before it.
    pub(super) async fn wait(&self) {
        self.shared.until(|| self.is_first()).await;
    }

    /// Leaves the key where it is.
    pub(super) fn keep(mut self) -> (Bytes, i64, Option<ResponseHeader>) {
        self.kept = true;
        (std::mem::take(&mut self.key), self.revision, self.header.take())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let key = std::mem::take(&mut self.key);
        self.shared.with(|state, now| {
            let created = state.core.store.get(&key, 0).map(|kv| kv.create_revision);
            // A server that has stopped leaves it to the lease.
            if created == Some(self.revision) && !state.is_stopped() {
                state.core.delete(&key);
                state.note(now, format!("{} leaves its queue", key.escape_ascii()));
            }
        });
    }
}

/// A compare that holds while a key of this create revision is there.
pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

pub(super) fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn oldest(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
}
