//! The server's state as one piece: store, lessor and watches, and each request applied to them.
//!
//! Pure: time is an argument, counted from the fake's start. Every request is applied as a whole, so what a
//! client sees of it never depends on scheduling.

mod auth;
mod cluster;
mod lease;
mod maintenance;

use std::collections::BTreeSet;
use std::time::Duration;

use prost::Message;

use super::auth::Auth;
use super::lessor::Lessor;
use super::refusal::{AuthRefusal, Refusal};
use super::store::{Changes, Store};
use super::watch::{Hub, StreamId};
use super::{range, txn};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, Member, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchResponse,
};

/// What a server is started with.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) min_lease_ttl: i64,
    pub(crate) max_txn_ops: usize,
    pub(crate) max_request_bytes: usize,
    pub(crate) progress_interval: Duration,
    pub(crate) version: String,
    pub(crate) history_limit: usize,
    pub(crate) token_ttl: Duration,
    pub(crate) jwt_tokens: bool,
    pub(crate) shuffled_watches: bool,
    pub(crate) loses_deletions: bool,
}

/// Who calls, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'c> {
    pub(crate) now: Duration,
    pub(crate) token: Option<&'c str>,
}

impl Config {
    /// The largest message that is read at all: the largest request, and 512 KiB for what is around it.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_request_bytes.saturating_add(512 * 1024)
    }
}

/// The state of a server.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) lessor: Lessor,
    pub(crate) hub: Hub,
    pub(crate) auth: Auth,
    pub(crate) has_leader: bool,
    members: Vec<Member>,
    members_made: u64,
    alarms: BTreeSet<(u64, i32)>,
    /// The version that a downgrade is under way to.
    downgrade: Option<String>,
    served: bool,
    term: u64,
    /// Proposals applied so far; what a real server calls its raft index.
    index: u64,
}

impl Core {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            store: Store::losing_deletions(config.loses_deletions),
            lessor: Lessor::new(config.min_lease_ttl),
            hub: Hub::new(config.max_message_bytes(), config.shuffled_watches.then_some(config.seed)),
            auth: Auth::new(config.token_ttl, config.jwt_tokens, config.seed),
            members: vec![Member {
                id: MEMBER_ID,
                name: "default".into(),
                peer_ur_ls: vec!["http://localhost:2380".into()],
                client_ur_ls: vec!["http://localhost:2379".into()],
                is_learner: false,
            }],
            members_made: 0,
            alarms: BTreeSet::new(),
            downgrade: None,
            has_leader: true,
            served: false,
            term: 2,
            // A fresh single member has applied as many when it starts to serve.
            index: 4,
            config,
        }
    }

    /// A header at the store's revision.
    pub(crate) fn header(&self) -> Option<ResponseHeader> {
        self.header_at(self.store.revision())
    }

    /// A header at another revision; 0 leaves it out.
    pub(crate) fn header_at(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision, raft_term: self.term })
    }

    pub(crate) fn range(
        &mut self,
        request: &RangeRequest,
        caller: &Caller<'_>,
    ) -> Result<RangeResponse, Refusal> {
        let identity = self.auth.identify(caller)?;
        self.may_read(identity.as_ref(), &request.key, &request.range_end)?;
        let mut response = range::read(&self.store, request)?;
        self.fill(&mut response.header);
        Ok(response)
    }

    pub(crate) fn range_stream(
        &mut self,
        request: &RangeRequest,
        caller: &Caller<'_>,
    ) -> Result<Vec<RangeResponse>, Refusal> {
        let identity = self.auth.identify(caller)?;
        self.may_read(identity.as_ref(), &request.key, &request.range_end)?;
        let mut pieces = range::stream(&self.store, request, self.config.max_request_bytes)?;
        if let Some(last) = pieces.last_mut() {
            self.fill(&mut last.header);
        }
        Ok(pieces)
    }

    pub(crate) fn put(&mut self, request: &PutRequest, caller: &Caller<'_>) -> Result<PutResponse, Refusal> {
        let identity = self.identified_proposal(request, caller)?;
        self.check_alarms(true)?;
        self.may_put(identity.as_ref(), request)?;
        let (mut response, changes) = txn::put(&mut self.store, &mut self.lessor, request)?;
        self.publish(changes);
        self.fill(&mut response.header);
        Ok(response)
    }

    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
        caller: &Caller<'_>,
    ) -> Result<DeleteRangeResponse, Refusal> {
        let identity = self.identified_proposal(request, caller)?;
        self.check_alarms(false)?;
        self.may_delete(identity.as_ref(), request)?;
        let (mut response, changes) = txn::delete_range(&mut self.store, &mut self.lessor, request)?;
        self.publish(changes);
        self.fill(&mut response.header);
        Ok(response)
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest, caller: &Caller<'_>) -> Result<TxnResponse, Refusal> {
        let identity = if txn::is_read_only(request) {
            self.auth.identify(caller)?
        } else {
            let identity = self.identified_proposal(request, caller)?;
            self.check_alarms(txn::puts(request))?;
            identity
        };
        self.may_txn(identity.as_ref(), request)?;
        let (mut response, changes) = txn::txn(&mut self.store, &mut self.lessor, request)?;
        self.publish(changes);
        self.fill(&mut response.header);
        Ok(response)
    }

    /// Deletes a key without asking who wants it.
    pub(crate) fn delete(&mut self, key: &bytes::Bytes) {
        self.index += 1;
        self.lessor.detach(key);
        let changes = txn::delete_keys(&mut self.store, [key.clone()]);
        self.publish(changes);
    }

    /// For administrators.
    pub(crate) fn compact(
        &mut self,
        request: &CompactionRequest,
        caller: &Caller<'_>,
    ) -> Result<CompactionResponse, Refusal> {
        let identity = self.auth.identify(caller)?;
        self.auth.check_admin(identity.as_ref())?;
        self.propose(request)?;
        self.check_alarms(false)?;
        self.apply_compaction(request)
    }

    pub(crate) fn apply_compaction(
        &mut self,
        request: &CompactionRequest,
    ) -> Result<CompactionResponse, Refusal> {
        self.store.compact(request.revision)?;
        Ok(CompactionResponse { header: self.header() })
    }

    /// Made at a member that has seen everything up to a revision.
    pub(crate) fn watch(
        &mut self,
        stream: StreamId,
        request: WatchCreateRequest,
        caller: &Caller<'_>,
        seen: i64,
    ) -> Result<i64, &'static str> {
        let key: &[u8] = if request.key.is_empty() { &[0] } else { &request.key };
        let may = self
            .auth
            .identify(caller)
            .and_then(|identity| self.may_read(identity.as_ref(), key, &request.range_end))
            .map_err(reason);
        self.hub.create(stream, request, (seen, self.store.revision()), may)
    }

    pub(crate) fn cancel_watch(&mut self, stream: StreamId, id: i64) {
        self.hub.cancel(stream, id, self.store.revision());
    }

    pub(crate) fn watch_progress(&mut self, stream: StreamId) {
        self.hub.progress(stream, self.store.revision());
    }

    pub(crate) fn watch_tick(&mut self, stream: StreamId) {
        self.hub.tick(stream, self.store.revision());
    }

    pub(crate) fn next_watch_response(&mut self, stream: StreamId) -> Option<WatchResponse> {
        let mut response = self.hub.next(stream, &self.store)?;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        response.header = self.header_at(revision);
        Some(response)
    }

    pub(crate) fn take_ready(&mut self) -> BTreeSet<StreamId> {
        self.hub.take_ready()
    }

    /// Everything that goes through raft on a real server: too large a proposal is refused.
    fn propose(&mut self, request: &impl Message) -> Result<(), Refusal> {
        let length = request.encoded_len();
        let proposal = PROPOSAL_HEADER_BYTES + 1 + prost::length_delimiter_len(length) + length;
        if proposal > self.config.max_request_bytes {
            return Err(Refusal::RequestTooLarge);
        }
        self.index += 1;
        Ok(())
    }

    fn publish(&mut self, changes: Option<Changes>) {
        if let Some(changes) = changes {
            self.hub.notify(&self.store, &changes);
        }
    }

    fn fill(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = self.header_at(revision);
    }
}

/// Why somebody may not watch, as gRPC prints a status.
fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Auth(AuthRefusal::InvalidToken) => {
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        }
        Refusal::Auth(AuthRefusal::OldRevision) => {
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        }
        Refusal::Auth(AuthRefusal::UserEmpty) => {
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        }
        _ => "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    }
}

/// The ids that etcd makes for a member `default` at `http://localhost:2380`.
pub(crate) const CLUSTER_ID: u64 = 0xcdf8_1819_4e3a_8c32;
pub(crate) const MEMBER_ID: u64 = 0x8e9e_05c5_2164_694d;

/// What raft's entry holds beside the request: a header with a nine-byte request id.
const PROPOSAL_HEADER_BYTES: usize = 13;
