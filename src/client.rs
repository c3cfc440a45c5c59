//! The client.

mod builder;
mod connect;
mod departures;
mod endpoints;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{BoxError, Service};

use crate::error::Result;
use crate::lease::{Leases, time::Time};
use crate::transport::retry::Repeat;
use crate::transport::{RawService, Transport, raw};
use crate::txn::{Txn, TxnReply};
use crate::watch::{Hub, Watch, Watcher};
pub use builder::ClientBuilder;
pub(crate) use departures::{Departure, Departures};
pub use endpoints::IntoEndpoints;
#[cfg(feature = "tls")]
pub use tls::TlsOptions;

/// A client of an etcd cluster.
///
/// Sessions, locks and elections are made from it. A clone is cheap and shares everything: connections, the token,
/// the watch stream and the keep-alive stream.
///
/// The client lives on the tokio runtime that it was made on.
///
/// ```
/// # use etcd_concurrency::{Op, Txn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// let client = FakeEtcd::start().client(); // elsewhere: Client::connect("127.0.0.1:2379").await?
/// client.txn(Txn::new().success(Op::put("greeting", "hello"))).await?;
/// // Whatever has no method here: the generated clients, over the same connections.
/// let range = etcd_concurrency::pb::etcdserverpb::RangeRequest { key: "greeting".into(), ..Default::default() };
/// let answer = client.kv_client().range(range).await.expect("a read").into_inner();
/// assert_eq!(answer.kvs[0].value, "hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    transport: Transport,
    watches: Hub,
    leases: Leases,
    runtime: Handle,
    /// Who joins a line.
    joins: Arc<Semaphore>,
    departures: Departures,
    /// For people to read.
    endpoints: Vec<String>,
}

/// A server reads the whole line for each who joins it: thousands at once would keep it from all else, its pings
/// included, and beyond 5,000 it refuses them.
const JOINS_AT_ONCE: usize = 256;

impl Client {
    /// Connects to a cluster, with the defaults of [`Client::builder`].
    ///
    /// ```no_run
    /// # use etcd_concurrency::Client;
    /// # async fn run() -> etcd_concurrency::Result<()> {
    /// let client = Client::connect("127.0.0.1:2379").await?;
    /// let client = Client::connect(["http://a:2379", "http://b:2379", "http://c:2379"]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`ClientBuilder::connect`].
    pub async fn connect(endpoints: impl IntoEndpoints) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// Options for a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// A client over any tower service that carries gRPC: a tonic `Channel`, a tonic `Routes` in this process, a
    /// service written by hand. Nothing is sent yet.
    ///
    /// For layers, a user or a namespace on top of it, see [`ClientBuilder::service`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn from_service<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match Self::builder().service(service).connect_lazy() {
            Ok(client) => client,
            Err(error) => panic!("{error}"),
        }
    }

    /// Commits a transaction: one RPC. It is not repeated unless it was certainly not applied.
    ///
    /// The cluster decides its compares, also where it has no operations, or only serializable reads: by itself, etcd
    /// has one member answer such a transaction from what it has, which may be the past. It then takes one operation
    /// more of the server's `--max-txn-ops`.
    ///
    /// For one behind a lock's fence, see [`Fence::txn`](crate::Fence::txn).
    ///
    /// # Errors
    /// What keeps the server from answering until the request timeout, or what it refused the transaction for;
    /// [`Error::outcome`](crate::Error::outcome) says whether it was applied.
    ///
    /// # Cancel safety
    /// Not safe: a transaction whose future is dropped may have been applied, or not.
    pub async fn txn(&self, txn: Txn) -> Result<TxnReply> {
        let (txn, added) = txn.vouched();
        let answer = self.0.transport.txn(txn.into(), Repeat::Never).await?;
        TxnReply::try_from(answer.value)?.without_read(added)
    }

    /// Watches keys, on the one stream that all watches of this client share. Nothing is waited for; see
    /// [`Watcher::created`].
    pub fn watch(&self, watch: Watch) -> Watcher {
        self.0.watches.watch(watch)
    }

    /// etcd's KV service, as generated.
    ///
    /// This and its five sisters share the client's connections, fail-over, layers and token. They see the whole key
    /// space, whatever the client's namespace is, have no deadline, take answers of any cluster, and repeat nothing but
    /// what the server refused for its token.
    pub fn kv_client(&self) -> raw::KvClient {
        raw::kv(self.service(), self.0.transport.limits().answer)
    }

    /// etcd's Watch service, as [generated](Self::kv_client).
    pub fn watch_client(&self) -> raw::WatchClient {
        raw::watch(self.service(), self.0.transport.limits().answer)
    }

    /// etcd's Lease service, as [generated](Self::kv_client).
    pub fn lease_client(&self) -> raw::LeaseClient {
        raw::lease(self.service(), self.0.transport.limits().answer)
    }

    /// etcd's Cluster service, as [generated](Self::kv_client).
    pub fn cluster_client(&self) -> raw::ClusterClient {
        raw::cluster(self.service(), self.0.transport.limits().answer)
    }

    /// etcd's Maintenance service, as [generated](Self::kv_client).
    pub fn maintenance_client(&self) -> raw::MaintenanceClient {
        raw::maintenance(self.service(), self.0.transport.limits().answer)
    }

    /// etcd's Auth service, as [generated](Self::kv_client).
    pub fn auth_client(&self) -> raw::AuthClient {
        raw::auth(self.service(), self.0.transport.limits().answer)
    }

    /// The service under the generated clients: for clients of other gRPC services that etcd, or a proxy before it,
    /// offers. A call of such a service whose token is refused is the caller's to repeat: the next has another token.
    ///
    /// A call that is dropped after a second or more without an answer counts as one that a silent endpoint was asked: that
    /// is asked whether it lives, and avoided for up to ten seconds. So give calls that wait by nature, those of etcd's
    /// `Lock` and `Election` services, a client of their own.
    pub fn service(&self) -> RawService {
        self.0.transport.raw()
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.0.leases
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// What is being given up.
    pub(crate) fn departures(&self) -> &Departures {
        &self.0.departures
    }

    /// Waits until a line may be joined. A caller that waits for a lock can wait for that, too. The turn goes with the request, and
    /// is over once that is answered, whatever became of the one who asked.
    pub(crate) async fn join_turn(&self) -> OwnedSemaphorePermit {
        let joins = self.0.joins.clone();
        joins.acquire_owned().await.unwrap_or_else(|_| unreachable!("it is never closed"))
    }

    fn new(transport: Transport, endpoints: Vec<String>, runtime: Handle, time: Time) -> Self {
        let watches = Hub::new(transport.clone(), runtime.clone());
        let leases = Leases::new(transport.clone(), runtime.clone(), time);
        let (joins, departures) = (Arc::new(Semaphore::new(JOINS_AT_ONCE)), Departures::default());
        Self(Arc::new(Inner { transport, watches, leases, runtime, joins, departures, endpoints }))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.0.endpoints).finish_non_exhaustive()
    }
}

/// An error with its causes, in one line.
#[cfg(feature = "tls")]
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}
