//! One of the two servers, and what it answers, as text.

use std::fmt::Debug;
use std::time::Duration;

use etcd_concurrency::RawService;
use etcd_concurrency::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_concurrency::pb::etcdserverpb::{
    HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, ResponseHeader,
};
use etcd_concurrency::pb::etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::{Response, Status, Streaming};

use super::op::{CLIENTS, Op, RUNNER, STREAMS};
use super::stream::Stream;
use super::token::Token;
use super::{race, ties, users};

/// Nothing that is waited for takes as long.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// One server, seen by all clients.
pub(super) struct Side {
    pub(super) clients: Vec<Client>,
    pub(super) streams: Vec<Stream>,
}

/// One client: its connection, and whom it speaks for.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) service: RawService,
    pub(super) token: Token,
    kv: KvClient<RawService>,
    lease: LeaseClient<RawService>,
    maintenance: MaintenanceClient<RawService>,
}

/// What an operation was answered, with all that has to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// The remaining TTL, which hangs on the clock.
    pub(super) ttl: Option<i64>,
    /// The store's revision by the answer's header; 0 for an error.
    pub(super) revision: i64,
    /// Whether the answer shows that the revision is of the operation's own making.
    pub(super) wrote: bool,
}

impl Side {
    /// `connect` makes the connection of one more client.
    pub(super) fn new(connect: impl Fn(Token) -> RawService) -> Side {
        let client = |_| {
            let token = Token::default();
            Client::new(connect(token.clone()), token)
        };
        Side { clients: (0..CLIENTS).map(client).collect(), streams: Vec::new() }
    }

    /// Opens the streams: each is another client's.
    pub(super) async fn open(&mut self) {
        for client in 0..STREAMS {
            self.streams.push(Stream::open(&self.clients[client]).await);
        }
    }

    /// Opens it again; as the runner's, if its client may not watch any more.
    pub(super) async fn reopen(&mut self, stream: usize) {
        self.streams[stream] = Stream::open(&self.clients[stream]).await;
        if self.streams[stream].is_refused {
            self.streams[stream] = Stream::open(&self.clients[RUNNER]).await;
        }
    }

    pub(super) async fn answer(&self, client: usize, op: &Op) -> Answer {
        let client = self.clients[client].clone();
        let answer = async {
            match op {
                Op::Auth(auth) => users::answer_to(client, auth).await,
                op => client.answer(op).await,
            }
        };
        timeout(LIMIT, answer).await.unwrap_or_else(|_| Answer::text("no answer".into()))
    }
}

impl Client {
    fn new(service: RawService, token: Token) -> Client {
        let large = usize::MAX;
        Client {
            kv: KvClient::new(service.clone()).max_decoding_message_size(large),
            lease: LeaseClient::new(service.clone()),
            maintenance: MaintenanceClient::new(service.clone()),
            service,
            token,
        }
    }

    /// Everything but watches.
    pub(super) async fn answer(mut self, op: &Op) -> Answer {
        match op.clone() {
            Op::Put(request) => {
                Answer { wrote: true, ..answer(self.kv.put(request).await, |r| &mut r.header) }
            }
            Op::Range(request) => {
                let mut response = self.kv.range(request.clone()).await;
                response.iter_mut().for_each(|response| ties::settle(&request, response.get_mut()));
                answer(response, |r| &mut r.header)
            }
            Op::Delete(request) => {
                let response = self.kv.delete_range(request).await;
                let wrote = response.as_ref().is_ok_and(|response| response.get_ref().deleted > 0);
                Answer { wrote, ..answer(response, |r| &mut r.header) }
            }
            Op::Txn(request) => {
                let mut response = self.kv.txn(request.clone()).await;
                response.iter_mut().for_each(|response| ties::settle_txn(&request, response.get_mut()));
                let wrote = response.as_ref().is_ok_and(|response| race::wrote(response.get_ref()));
                Answer { wrote, ..answer(response, |r| &mut r.header) }
            }
            Op::Compact(request) => answer(self.kv.compact(request).await, |r| &mut r.header),
            Op::RangeStream(request) => {
                let pieces = collect(self.kv.range_stream(request.clone()).await, |piece| {
                    piece.range_response.iter_mut().for_each(|piece| {
                        neutral(&mut piece.header);
                        ties::settle_stream(&request, piece);
                    });
                });
                Answer::text(pieces.await)
            }
            Op::Grant(request) => answer(self.lease.lease_grant(request).await, |r| &mut r.header),
            Op::GrantAndRevoke(request) => self.grant_and_revoke(request).await,
            Op::Revoke(id) => {
                answer(self.lease.lease_revoke(LeaseRevokeRequest { id }).await, |r| &mut r.header)
            }
            Op::TimeToLive(request) => self.time_to_live(request).await,
            Op::Leases => answer(self.lease.lease_leases(LeaseLeasesRequest {}).await, |r| &mut r.header),
            Op::KeepAlive(ids) => {
                let requests = tokio_stream::iter(ids.into_iter().map(|id| LeaseKeepAliveRequest { id }));
                let answers = collect(self.lease.lease_keep_alive(requests).await, |answer| {
                    neutral(&mut answer.header);
                });
                Answer::text(answers.await)
            }
            Op::HashKv(revision) => {
                answer(self.maintenance.hash_kv(HashKvRequest { revision }).await, |r| &mut r.header)
            }
            Op::Watch(..) | Op::Cancel(..) | Op::Progress(_) | Op::Reopen(_) => {
                unreachable!("watches are the pair's")
            }
            Op::Expire(..) | Op::Race(_) | Op::Auth(_) | Op::As(..) => {
                unreachable!("made of others")
            }
        }
    }

    async fn grant_and_revoke(mut self, request: LeaseGrantRequest) -> Answer {
        let asked = request.id;
        let granted = match self.lease.lease_grant(request).await {
            Ok(granted) => granted.into_inner(),
            Err(status) => return Answer::text(words(&status)),
        };
        let id = granted.id;
        let ttl = LeaseTimeToLiveRequest { id, keys: true };
        let mut left = self.time_to_live(ttl).await;
        let revoked = answer(self.lease.lease_revoke(LeaseRevokeRequest { id }).await, |r| &mut r.header);
        let revision = granted.header.map(|header| header.revision);
        // Each server makes up its own ids.
        let id = if asked == 0 { 0 } else { id };
        left.text = left.text.replace(&granted.id.to_string(), &id.to_string());
        let text = format!("{id} for {} at {revision:?}; {}; {}", granted.ttl, left.text, revoked.text);
        Answer { text, ..left }
    }

    async fn time_to_live(&mut self, request: LeaseTimeToLiveRequest) -> Answer {
        let mut ttl = None;
        let response = self.lease.lease_time_to_live(request).await.map(|mut response| {
            let response_mut = response.get_mut();
            // A real server lists the keys in the order of a Go map, which is none.
            response_mut.keys.sort();
            if response_mut.ttl >= 0 {
                ttl = Some(std::mem::take(&mut response_mut.ttl));
            }
            response
        });
        Answer { ttl, ..answer(response, |r| &mut r.header) }
    }
}

impl Answer {
    pub(super) fn text(text: String) -> Answer {
        Answer { text, ttl: None, revision: 0, wrote: false }
    }

    /// The same but for the time that passed between the two questions.
    pub(super) fn agrees(&self, other: &Answer) -> bool {
        let near = match (self.ttl, other.ttl) {
            (Some(one), Some(other)) => one.abs_diff(other) <= 2,
            (one, other) => one == other,
        };
        near && self.text == other.text
    }
}

pub(super) fn answer<R: Debug>(
    result: Result<Response<R>, Status>,
    header: impl Fn(&mut R) -> &mut Option<ResponseHeader>,
) -> Answer {
    match result {
        Ok(response) => {
            let mut response = response.into_inner();
            let header = header(&mut response);
            neutral(header);
            let revision = header.as_ref().map_or(0, |header| header.revision);
            Answer { revision, ..Answer::text(format!("{response:?}")) }
        }
        Err(status) => Answer::text(words(&status)),
    }
}

async fn collect<R: Debug>(
    result: Result<Response<Streaming<R>>, Status>,
    mut neutralize: impl FnMut(&mut R),
) -> String {
    let mut answers = match result {
        Ok(answers) => answers.into_inner(),
        Err(status) => return words(&status),
    };
    let mut lines = Vec::new();
    while let Some(next) = answers.next().await {
        match next {
            Ok(mut next) => {
                neutralize(&mut next);
                lines.push(format!("{next:?}"));
            }
            Err(status) => lines.push(words(&status)),
        }
    }
    lines.join("\n  ")
}

pub(super) fn words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Who answers differs: the cluster's and member's ids are made from its name and addresses, and an election
/// more or less makes another term.
pub(super) fn neutral(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader { revision: header.revision, ..Default::default() };
    }
}
