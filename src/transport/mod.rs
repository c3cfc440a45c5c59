//! The thin layer under everything: one typed method per RPC, and the only place where a status becomes an error.
//!
//! From the outside in: the typed methods here (key namespace, repeats), then the token ([`auth`]), then the user's
//! tower layers, then the connections ([`channel`]) or whatever service the user gave instead.

pub(crate) mod auth;
pub(crate) mod channel;
pub(crate) mod classify;
pub(crate) mod cluster;
mod leases;
pub(crate) mod namespace;
pub(crate) mod raw;
pub(crate) mod retry;
pub(crate) mod stack;
mod unsent;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tower::util::BoxCloneSyncService;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use channel::Route;
use cluster::{Cluster, Headed, Sees};
pub(crate) use leases::Revoked;
use namespace::Namespace;
use retry::{Repeat, Retry};
use unsent::Told;

/// Any service that carries gRPC, with its type erased.
///
/// The erasure costs nothing that can be measured, and spares every type above a parameter. Errors are statuses that
/// keep what happened as their source: with a boxed error, rustc could not see that the generated clients' futures
/// are `Send`.
pub type RawService =
    BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, Status>;

/// What bounds a call.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The deadline of a call with all its repeats.
    pub(crate) request_timeout: Duration,
    /// The largest answer that is taken, in bytes.
    pub(crate) answer: usize,
}

/// Calls etcd.
#[derive(Clone)]
pub(crate) struct Transport {
    service: Told,
    auth: Option<auth::Tokens>,
    namespace: Arc<Namespace>,
    limits: Limits,
    cluster: Cluster,
}

/// An answer, and how it was come by.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    /// An earlier attempt got no answer: it may still be applied after this one.
    pub(crate) ambiguous: bool,
    /// How many attempts got no answer.
    pub(crate) unanswered: u32,
}

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $client:path, $method:ident, $rpc:literal, $request:ty => $response:ty) => {
        $(#[$doc])*
        async fn $name(
            &self,
            request: $request,
            repeat: Repeat,
            sees: Sees,
        ) -> Result<Answer<$response>> {
            self.call($rpc, repeat, sees, || request.encoded_len(), |route| {
                let client = <$client>::new(self.service.clone());
                let mut client = client.max_decoding_message_size(self.limits.answer);
                let request = routed(with_leader(request.clone()), route);
                async move { client.$method(request).await }
            })
            .await
        }
    };
}

impl Transport {
    pub(crate) fn new(
        service: RawService,
        auth: Option<auth::Tokens>,
        namespace: Namespace,
        limits: Limits,
    ) -> Self {
        let (namespace, cluster) = (Arc::new(namespace), Cluster::default());
        Self { service: Told(service), auth, namespace, limits, cluster }
    }

    /// What this has seen of the cluster, another transport of the same client has, too.
    pub(crate) fn beside(mut self, other: &Self) -> Self {
        self.cluster = other.cluster.clone();
        self
    }

    /// The service itself, for the generated clients of an embedding program.
    pub(crate) fn raw(&self) -> RawService {
        self.service.0.clone()
    }

    /// The newest revision of the store that this client has been told of.
    pub(crate) fn revision(&self) -> i64 {
        self.cluster.revision()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse> {
        let request = self.namespace.range(request);
        let sees = if request.serializable { Sees::Past } else { Sees::Now };
        let answer = self.raw_range(request, Repeat::Read, sees).await?;
        Ok(self.namespace.ranged(answer.value))
    }

    /// A transaction. `repeat` says whether it may be sent again when nobody knows what became of it.
    pub(crate) async fn txn(
        &self,
        request: pb::TxnRequest,
        repeat: Repeat,
    ) -> Result<Answer<pb::TxnResponse>> {
        debug_assert!(crate::txn::is_vouched(&request), "one member would decide by the past: {request:?}");
        let request = self.namespace.txn(request);
        let (size, sees) = (size(&request), sees(&request));
        let mut answer = self.raw_txn(request, repeat, sees).await.map_err(|error| error.with_size(size))?;
        answer.value = self.namespace.txned(answer.value);
        Ok(answer)
    }

    /// The status of the member that `route` leads to, asked for once. Needs no leader.
    pub(crate) async fn status(&self, route: Route, deadline: Instant) -> Result<pb::StatusResponse> {
        let rpc = "Maintenance/Status";
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.service.clone());
        let answer = client.status(routed(Request::new(pb::StatusRequest {}), route.clone()));
        match timeout_at(deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(classify::error(rpc, status).with_outcome(Outcome::NotApplied)),
            Err(_) => Err(silent(rpc, &route).with_outcome(Outcome::NotApplied)),
        }
    }

    /// A token for a user.
    pub(crate) async fn authenticate(&self, name: &str, password: &str) -> Result<String> {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        Ok(self.raw_authenticate(request, Repeat::Read, Sees::Nothing).await?.value.token)
    }

    /// Opens a watch stream, within a time: servers open one by their first answer. Keys in its requests and answers are without the namespace.
    pub(crate) async fn open_watch(
        &self,
        requests: impl Stream<Item = pb::WatchRequest> + Send + 'static,
        route: Route,
        limit: Duration,
    ) -> Result<Streaming<pb::WatchResponse>> {
        let namespace = self.namespace.clone();
        let requests = tokio_stream::StreamExt::map(requests, move |request| namespace.watch(request));
        let client = pb::watch_client::WatchClient::new(self.service.clone());
        let mut client = client.max_decoding_message_size(self.limits.answer);
        let request = routed(with_leader(requests), route.clone());
        self.open("Watch/Watch", &route, limit, async move { client.watch(request).await }).await
    }

    /// Takes the namespace out of a watch answer.
    pub(crate) fn watched(&self, response: pb::WatchResponse) -> pb::WatchResponse {
        self.namespace.watched(response)
    }

    /// Refuses an answer on a stream that is another cluster's, whose endpoint is avoided from here on.
    pub(crate) fn same_cluster(
        &self,
        rpc: &'static str,
        header: Option<&pb::ResponseHeader>,
        route: &Route,
    ) -> Result<()> {
        header.map_or(Ok(()), |header| self.cluster.same(header)).map_err(|kind| {
            route.avoid_member();
            Error::new(kind, Outcome::NotApplied).at(rpc)
        })
    }

    /// Turns the status that ended a stream into an error, and notes what it says of the token.
    pub(crate) fn stream_error(&self, rpc: &'static str, status: Status, route: &Route) -> Error {
        let error = classify::error(rpc, status);
        self.note_auth(&error, route);
        error
    }

    /// True where a new token may mend the error of a stream that went this way: where the stream's was the current one, it
    /// has been dropped, and the next request fetches another.
    pub(crate) fn note_auth(&self, error: &Error, route: &Route) -> bool {
        match &self.auth {
            Some(tokens) if classify::wants_new_token(error.kind()) => match route.token() {
                Some(used) => tokens.refused(Some(&used)),
                // A layer of the user's has lost the route, or there was none.
                None => tokens.drop_current(),
            },
            _ => self.token_passes(error.kind()),
        }
    }

    /// True where a stream that went this way has a token which has been replaced since. Members before 3.4.22 and 3.5.6
    /// refuse a watch whose token has run out as one without permission.
    pub(crate) fn has_another_token(&self, route: &Route) -> bool {
        let used = route.token();
        used.is_some_and(|used| self.auth.as_ref().is_some_and(|tokens| tokens.have_replaced(&used)))
    }

    /// True where the next attempt has another token than the one that this was refused for.
    fn token_refused(&self, error: &Error, route: &Route) -> bool {
        match &self.auth {
            Some(tokens) if classify::wants_new_token(error.kind()) => tokens.refused(route.token().as_ref()),
            _ => false,
        }
    }

    /// True for errors that no time mends: see [`retry::is_final`]. A token of the user's own that is refused is one, too.
    pub(crate) fn is_final(&self, kind: &ErrorKind) -> bool {
        retry::is_final(kind) || *kind == ErrorKind::InvalidToken && !self.token_passes(kind)
    }

    /// True for a refusal of the token that the same request may not meet again: with another token; or where there is
    /// none, and the server knows the user by a certificate. A token of the user's own is never another.
    pub(crate) fn token_passes(&self, kind: &ErrorKind) -> bool {
        *kind == ErrorKind::InvalidToken && self.auth.as_ref().is_none_or(auth::Tokens::are_renewed)
    }

    /// Opens a stream, once: whoever holds the stream knows when to open it again.
    async fn open<T>(
        &self,
        rpc: &'static str,
        route: &Route,
        limit: Duration,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Streaming<T>> {
        match timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.stream_error(rpc, status, route)),
            Err(_) => Err(Error::new(ErrorKind::Timeout, Outcome::NotApplied).at(rpc)),
        }
    }

    /// Makes a unary call, and makes it again as far as [`retry`] allows and the deadline lasts. `size` tells how many bytes
    /// the request has.
    async fn call<T, F, Fut>(
        &self,
        rpc: &'static str,
        repeat: Repeat,
        sees: Sees,
        size: impl Fn() -> usize,
        attempt: F,
    ) -> Result<Answer<T>>
    where
        T: Headed,
        F: Fn(Route) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut retry = Retry::new(repeat, Instant::now(), self.limits.request_timeout);
        let mut route = match repeat {
            // A read that failed has changed nothing, whoever got it.
            Repeat::Read => Route::default(),
            Repeat::Harmless | Repeat::Never => Route::of_write(),
        };
        loop {
            let deadline = retry.attempt_deadline(Instant::now());
            let revision = self.cluster.revision();
            // Boxed: it would be most of the size of all futures above, which mostly wait for something else.
            let attempt = Box::pin(attempt(route.clone()));
            let failed = match timeout_at(deadline, attempt).await {
                Ok(Ok(response)) => {
                    let value = response.into_inner();
                    let header = value.header();
                    match header.map_or(Ok(()), |header| self.cluster.learn(header, sees, revision)) {
                        Ok(()) => {
                            let (ambiguous, unanswered) = (retry.ambiguous(), retry.unanswered());
                            return Ok(Answer { value, ambiguous, unanswered });
                        }
                        Err(kind) => Error::new(kind, Outcome::Applied).at(rpc),
                    }
                }
                Ok(Err(status)) => classify::error_of(rpc, status, &size),
                Err(_) => silent(rpc, &route),
            };
            // The message of an answer that is believed in nothing has been read, too.
            let unsent = failed.outcome() == Outcome::Unknown && route.gives_up();
            let failed = if unsent { failed.with_outcome(Outcome::NotApplied) } else { failed };
            if retry::avoids_member(failed.kind()) {
                route.avoid_member();
            }
            let passes = self.token_refused(&failed, &route) || self.token_passes(failed.kind());
            match retry.after(failed, route.elsewhere(), passes, Instant::now()) {
                Ok(pause) if pause.is_zero() => {}
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(error) => return Err(error),
            }
            route = route.next();
        }
    }

    unary!(raw_range, pb::kv_client::KvClient<_>, range, "KV/Range", pb::RangeRequest => pb::RangeResponse);
    unary!(raw_txn, pb::kv_client::KvClient<_>, txn, "KV/Txn", pb::TxnRequest => pb::TxnResponse);
    unary!(raw_authenticate, pb::auth_client::AuthClient<_>, authenticate, "Auth/Authenticate", pb::AuthenticateRequest => pb::AuthenticateResponse);
    unary!(raw_lease_grant, pb::lease_client::LeaseClient<_>, lease_grant, "Lease/LeaseGrant", pb::LeaseGrantRequest => pb::LeaseGrantResponse);
    unary!(raw_lease_revoke, pb::lease_client::LeaseClient<_>, lease_revoke, "Lease/LeaseRevoke", pb::LeaseRevokeRequest => pb::LeaseRevokeResponse);
    unary!(raw_lease_time_to_live, pb::lease_client::LeaseClient<_>, lease_time_to_live, "Lease/LeaseTimeToLive", pb::LeaseTimeToLiveRequest => pb::LeaseTimeToLiveResponse);
}

/// Whether a transaction's answer sees all that was committed before.
fn sees(txn: &pb::TxnRequest) -> Sees {
    use pb::request_op::Request;
    let now = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestRange(range)) => !range.serializable,
        other => other.is_some(),
    };
    if txn.success.iter().chain(&txn.failure).any(now) { Sees::Now } else { Sees::Past }
}

/// How many compares, operations for success and operations for failure there are, nested ones included.
fn size(txn: &pb::TxnRequest) -> [usize; 3] {
    let mut size = [txn.compare.len(), txn.success.len(), txn.failure.len()];
    for op in txn.success.iter().chain(&txn.failure) {
        if let Some(pb::request_op::Request::RequestTxn(inner)) = &op.request {
            let inner = self::size(inner);
            size = std::array::from_fn(|sort| size[sort] + inner[sort]);
        }
    }
    size
}

/// The error for an attempt that got no answer, and whose endpoint is avoided from here on.
fn silent(rpc: &'static str, route: &Route) -> Error {
    route.avoid();
    let error = Error::new(ErrorKind::Timeout, Outcome::Unknown).at(rpc);
    match route.endpoint() {
        Some(endpoint) => error.because(format!("{endpoint} did not answer")),
        None => error,
    }
}

/// Asks a member without a leader to refuse at once instead of letting the call wait.
fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    request
}

fn routed<T>(mut request: Request<T>, route: Route) -> Request<T> {
    request.extensions_mut().insert(route);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is spawned must be `Send`; what rustc makes of the generated clients hangs on the service's error type.
    #[test]
    fn calls_can_be_spawned() {
        fn send<T: Send>(_: impl FnOnce(Transport) -> T) {}
        send(|transport| async move { transport.range(pb::RangeRequest::default()).await });
        send(|transport| async move { transport.lease_grant(1, 1).await.map(|_| ()) });
        send(|transport| async move {
            transport.open_keep_alive(tokio_stream::empty(), Route::default()).await.map(|_| ())
        });
        send(|transport| async move {
            raw::kv(transport.raw(), 1 << 20).range(pb::RangeRequest::default()).await
        });
    }
}
