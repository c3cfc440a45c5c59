//! Options of a client.

mod dial;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::body::Body;
use tower::{BoxError, Layer, Service};

#[cfg(feature = "tls")]
use super::TlsOptions;
use super::{Client, IntoEndpoints, connect};
use crate::error::{Error, Result};
use crate::lease::time::Time;
use crate::transport::auth::{Auth, Tokens};
use crate::transport::namespace::Namespace;
use crate::transport::stack::{Layers, erase};
use crate::transport::{Limits, RawService, Transport};

/// Options of a [`Client`], made by [`Client::builder`].
///
/// ```
/// # use etcd_concurrency::{Client, Op, Txn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// use std::time::Duration;
/// let fake = FakeEtcd::start();
/// let client = Client::builder()
///     .service(fake.service()) // elsewhere: .endpoints(["http://a:2379", "http://b:2379"])
///     .namespace("billing/")
///     .request_timeout(Duration::from_secs(5))
///     .connect()
///     .await?;
/// client.txn(Txn::new().success(Op::put("invoice", "1"))).await?;
/// assert!(fake.snapshot().get("billing/invoice").is_some());
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "it does nothing until connect"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    service: Option<RawService>,
    layers: Layers,
    user: Option<(String, String)>,
    token: Option<String>,
    plaintext_credentials: bool,
    namespace: Bytes,
    max_answer_size: usize,
    connect_timeout: Duration,
    request_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    slept: Option<Arc<dyn Fn() -> Duration + Send + Sync>>,
    #[cfg(feature = "tls")]
    tls: Option<TlsOptions>,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            service: None,
            layers: Layers::default(),
            user: None,
            token: None,
            plaintext_credentials: false,
            namespace: Bytes::new(),
            max_answer_size: MAX_ANSWER_SIZE,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(6),
            keep_alive_timeout: Duration::from_secs(3),
            slept: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Members of the cluster, as many as there are. Can be called again for more.
    ///
    /// Requests rotate among them. One that cannot be reached, leaves a request without an answer or has no leader is avoided:
    /// for 500 ms at first, for up to 10 s when that goes on. Before requests go to an unreachable one again, a connection is
    /// made in the background and gRPC's health service asked, beneath the layers.
    pub fn endpoints(mut self, endpoints: impl IntoEndpoints) -> Self {
        self.endpoints.extend(endpoints.into_endpoints());
        self
    }

    /// A tower service that carries gRPC, in the place of endpoints. Connections, keep-alive pings and TLS are then
    /// up to the service.
    ///
    /// Over HTTP/2 of hyper, as a `tonic::transport::Channel` is, more than ten thousand watches or sessions want a
    /// larger `initial_connection_window_size` than its 5 MiB (128 MiB is what connections to endpoints take): half of
    /// it is what many small answers may cost before the connection is closed over them.
    pub fn service<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.service = Some(erase(service));
        self
    }

    /// A tower layer around the connections. It sees every request of the client: streams, authentication and
    /// repeats included, with the token on it. The first layer added is the outermost.
    pub fn layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<RawService> + Send + Sync + 'static,
        L::Service: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send + 'static,
        <L::Service as Service<Request<Body>>>::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.layers.add(layer);
        self
    }

    /// Authenticates as this user. The token is fetched once for all calls and streams, and fetched again when the
    /// server refuses it.
    ///
    /// Where the server has authentication disabled, it goes on without.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// Sends this token with every request. It is never replaced.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Lets a user or a token go over `http://` to hosts other than this one, where all on the way can read and use it.
    /// Default: false, and [`connect`](Self::connect) refuses such endpoints where there is a user or a token, also
    /// beside `https://` ones. Unix sockets and services are not asked about.
    pub fn allow_plaintext_credentials(mut self, allow: bool) -> Self {
        self.plaintext_credentials = allow;
        self
    }

    /// Puts a prefix before every key, and takes it from the keys of answers. Sessions, locks and elections live
    /// under it; the generated clients do not.
    ///
    /// It is to end with a delimiter, as `app/` does: all keys of `app2` are in the namespace `app`. One that ends with
    /// a letter or a digit is warned of in the log.
    pub fn namespace(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.namespace = prefix.into().into();
        self
    }

    /// Where sessions read for how long this machine was suspended since the client was made. Default: the system's
    /// own clocks; on others than Linux the wall clock alone tells, by its jumps ahead. A test gives its own to put a
    /// client to sleep; should what it tells shrink, the greatest counts.
    ///
    /// It is called at every look at a session, on any thread, and may look at sessions itself. It must not block or
    /// panic.
    pub fn suspended_time(mut self, slept: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.slept = Some(Arc::new(slept));
        self
    }

    /// The largest answer that is taken, in bytes; of a larger one nothing is read, and the call fails with
    /// [`AnswerTooLarge`](crate::ErrorKind::AnswerTooLarge). Default: 32 MiB, which is 200,000 keys of a line of waiters;
    /// a server splits what it tells of watches at 2 MiB.
    ///
    /// What is decoded takes more memory than what was sent: of ordinary keys about the double, and of empty messages,
    /// as no etcd sends them, up to fifty times as much.
    pub fn max_answer_size(mut self, bytes: usize) -> Self {
        self.max_answer_size = bytes;
        self
    }

    /// How long [`connect`](Self::connect) may take, and each connection made later. Of a name with several addresses each
    /// gets an equal share of it. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call may take, with all its repeats. Default: 10 s.
    ///
    /// A read, or a write that may be sent twice, gets half of it for one attempt. What waits by its nature, such as
    /// a lock, has no deadline of its own.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How often a connection is pinged while a request or stream is open on it. Default: 6 s.
    ///
    /// etcd closes connections that are pinged more often than every 5 s, unless it is told otherwise
    /// (`--grpc-keepalive-min-time`).
    pub fn keep_alive_interval(mut self, interval: Duration) -> Self {
        self.keep_alive_interval = interval;
        self
    }

    /// How long a ping may stay unanswered before its connection counts as broken. Default: 3 s.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.keep_alive_timeout = timeout;
        self
    }

    /// TLS for all endpoints. Without this, `https://` endpoints are held against the system's roots.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(mut self, options: TlsOptions) -> Self {
        self.tls = Some(options);
        self
    }

    /// Makes the client, and makes sure that it works: asks the endpoints, one after another, until one answers as
    /// etcd does, and authenticates where there is a user.
    ///
    /// A member that answers that it has no leader, or wants a token, counts. Each endpoint is asked once; the token is asked
    /// for again after errors that pass, until the connect timeout.
    ///
    /// # Errors
    /// All in the connect timeout:
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when an option is not acceptable, or there is no tokio
    /// runtime; nothing was sent.
    /// [`Connect`](crate::ErrorKind::Connect) when no endpoint can be reached or none answers.
    /// [`Protocol`](crate::ErrorKind::Protocol) when the one endpoint speaks something else.
    /// [`Unauthenticated`](crate::ErrorKind::Unauthenticated) when user or password are wrong.
    /// [`Timeout`](crate::ErrorKind::Timeout) when no token came in time, and whatever else the server answers to the
    /// request for one.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes what it opened. A token that is being fetched is waited for in the background, for
    /// the request timeout at most.
    pub async fn connect(self) -> Result<Client> {
        let connect_timeout = self.connect_timeout;
        let Built { client, bare, tokens } = self.build()?;
        let deadline = Instant::now() + bounded(connect_timeout);
        connect::reach(&bare, &client.0.endpoints, deadline).await?;
        if let Some(tokens) = tokens {
            connect::authenticate(&tokens, &client.0.endpoints, deadline).await?;
        }
        Ok(client)
    }

    /// Makes the client and sends nothing: the first calls connect and authenticate.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when an option is not acceptable, or there is no tokio
    /// runtime.
    pub fn connect_lazy(self) -> Result<Client> {
        Ok(self.build()?.client)
    }

    fn build(self) -> Result<Built> {
        let runtime = Handle::try_current().map_err(|error| Error::invalid("runtime", error.to_string()))?;
        for (what, timeout) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("keep_alive_interval", self.keep_alive_interval),
            ("keep_alive_timeout", self.keep_alive_timeout),
        ] {
            if timeout.is_zero() {
                return Err(Error::invalid(what, "zero"));
            }
        }
        if self.max_answer_size == 0 {
            return Err(Error::invalid("max_answer_size", "zero"));
        }
        if self.namespace.last().is_some_and(u8::is_ascii_alphanumeric) {
            let namespace = String::from_utf8_lossy(&self.namespace);
            tracing::warn!(?namespace, "a namespace without a delimiter at its end holds others' keys, too");
        }
        let given = self.given_token()?;
        let (connections, endpoints) = match &self.service {
            Some(_) if !self.endpoints.is_empty() => {
                return Err(Error::invalid("endpoints", "given beside a service"));
            }
            Some(_) if self.has_tls() => return Err(Error::invalid("tls", "given beside a service")),
            Some(service) => (service.clone(), Vec::new()),
            None => {
                let endpoints = self.dial(runtime.clone())?;
                let names = endpoints.names().map(str::to_owned).collect();
                (RawService::new(endpoints), names)
            }
        };

        let limits = Limits { request_timeout: bounded(self.request_timeout), answer: self.max_answer_size };
        let layered = self.layers.around(connections);
        let bare = Transport::new(layered.clone(), None, Namespace::new(""), limits.clone());
        let tokens = match (self.user, given) {
            (Some((name, password)), _) => {
                Some(Tokens::of_user(name, password, bare.clone(), runtime.clone()))
            }
            (None, Some(token)) => Some(Tokens::given(token)),
            (None, None) => None,
        };
        let service = match &tokens {
            Some(tokens) => RawService::new(Auth::new(layered, tokens.clone())),
            None => layered,
        };
        let time = self.slept.map_or_else(Time::system, Time::suspended_for);
        // A token of another cluster is to be refused as any other answer of it.
        let transport =
            Transport::new(service, tokens.clone(), Namespace::new(self.namespace), limits).beside(&bare);
        Ok(Built { client: Client::new(transport, endpoints, runtime, time), bare, tokens })
    }

    /// Checks the user as well.
    fn given_token(&self) -> Result<Option<HeaderValue>> {
        if self.user.as_ref().is_some_and(|(name, _)| name.is_empty()) {
            return Err(Error::invalid("user", "an empty name"));
        }
        match &self.token {
            None => Ok(None),
            Some(_) if self.user.is_some() => Err(Error::invalid("token", "given beside a user")),
            Some(token) if token.is_empty() => Err(Error::invalid("token", "empty")),
            Some(token) => match HeaderValue::try_from(token) {
                Ok(token) => Ok(Some(token)),
                Err(_) => Err(Error::invalid("token", "not a value for a header")),
            },
        }
    }
}

struct Built {
    client: Client,
    /// Without a token.
    bare: Transport,
    tokens: Option<Tokens>,
}

const MAX_ANSWER_SIZE: usize = 32 << 20;

/// Longer times would overflow clocks.
fn bounded(time: Duration) -> Duration {
    time.min(Duration::from_secs(365 * 24 * 60 * 60))
}

/// An endpoint for a log: a user in it may have a password.
fn without_user(endpoint: &str) -> &str {
    endpoint.rsplit_once('@').map_or(endpoint, |(_, host)| host)
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("endpoints", &self.endpoints.iter().map(|given| without_user(given)).collect::<Vec<_>>())
            .field("service", &self.service.is_some())
            .field("layers", &self.layers.len())
            // Neither the password nor a token belongs in a log.
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("token", &self.token.is_some())
            .field("plaintext_credentials", &self.plaintext_credentials)
            .field("namespace", &self.namespace)
            .field("max_answer_size", &self.max_answer_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .field("keep_alive_timeout", &self.keep_alive_timeout)
            .finish_non_exhaustive()
    }
}
