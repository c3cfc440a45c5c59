//! Opens connections to one endpoint.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, Service, ServiceExt};

use super::stream::{Stream, stream};

/// How connections are made and watched over.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// For a TCP connection with its name lookup, and again for the TLS handshake on it. Of a name with several
    /// addresses, each has an equal share.
    pub(crate) connect_timeout: Duration,
    /// Between HTTP/2 pings while a request is open.
    pub(crate) keep_alive_interval: Duration,
    /// For the answer to a ping.
    pub(crate) keep_alive_timeout: Duration,
}

/// One endpoint, ready to be connected to.
#[derive(Clone)]
pub(crate) struct Dialer {
    name: Arc<str>,
    endpoint: Endpoint,
    /// None for a Unix socket.
    tcp: Option<Tcp>,
    check_timeout: Duration,
}

/// How much a connection may hold that nobody has read yet, in bytes.
///
/// h2 counts what unread small messages cost it, by the frame, and closes the connection over more than half of the
/// window: 12,000 answers to creates at once are too many for the 5 MiB that hyper takes. A stream's own window of
/// 2 MiB holds at most 100,000 of etcd's messages, which all have a header, so that here the sender waits instead.
const CONNECTION_WINDOW: u32 = 128 << 20;

impl Dialer {
    /// `endpoint` has its address and, where wanted, its TLS.
    pub(crate) fn new(name: &str, endpoint: Endpoint, options: &Options) -> Self {
        // Never while idle: etcd answers pings without a request, like pings faster than 5 s, by closing the
        // connection (GOAWAY, too_many_pings).
        let endpoint = endpoint
            .http2_keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(options.keep_alive_timeout)
            .keep_alive_while_idle(false)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let tcp = (!name.starts_with("unix:")).then(|| Tcp::new(options));
        let check_timeout = options.connect_timeout + options.keep_alive_timeout;
        Self { name: name.into(), endpoint, tcp, check_timeout }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A channel that connects when it is first used, and again when its connection has ended. Needs a runtime.
    pub(super) fn lazy(&self) -> Channel {
        match &self.tcp {
            Some(tcp) => self.endpoint.connect_with_connector_lazy(tcp.clone()),
            None => self.endpoint.connect_lazy(),
        }
    }

    /// A channel that is connected, and whose peer has answered a request: any gRPC answer will do.
    pub(super) async fn checked(&self) -> Result<Channel, BoxError> {
        let channel = self.lazy();
        timeout(self.check_timeout, ask(channel.clone())).await??;
        Ok(channel)
    }

    /// Whether the peer answers a request on this channel within a time.
    pub(super) async fn answers(&self, channel: Channel, within: Duration) -> bool {
        matches!(timeout(within, ask(channel)).await, Ok(Ok(())))
    }
}

/// Asks gRPC's health service, which needs no token and does nothing. It goes beneath the user's layers: it is about
/// this connection, and no call of anybody's.
async fn ask(mut channel: Channel) -> Result<(), BoxError> {
    let request = Request::post("/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        // An empty message: not compressed, of length 0.
        .body(tonic::body::Body::new(Full::new(Bytes::from_static(&[0; 5]))))?;
    channel.ready().await?.call(request).await?;
    Ok(())
}

/// Connects over TCP.
#[derive(Clone)]
struct Tcp<R = GaiResolver> {
    http: HttpConnector<R>,
    connect_timeout: Duration,
    failed: Arc<Mutex<Option<Instant>>>,
}

/// A channel sends its queue one by one, and connects for each: without this, ten requests that wait for a host
/// that does not answer would wait for ten timeouts in a row.
const SAME_FAILURE: Duration = Duration::from_millis(50);

impl Tcp {
    fn new(options: &Options) -> Self {
        Self::with_resolver(GaiResolver::new(), options)
    }
}

impl<R> Tcp<R> {
    fn with_resolver(resolver: R, options: &Options) -> Self {
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(Duration::from_secs(15)));
        // Divided among the addresses of a name: without it, the first one that drops packets takes all of the time.
        http.set_connect_timeout(Some(options.connect_timeout));
        // The kernel gives up on a peer that acknowledges nothing, also when nobody waits for an answer any more
        // and no ping is sent.
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        http.set_tcp_user_timeout(Some(options.keep_alive_interval + options.keep_alive_timeout));
        Self { http, connect_timeout: options.connect_timeout, failed: Arc::default() }
    }
}

impl<R> Service<Uri> for Tcp<R>
where
    HttpConnector<R>:
        Service<Uri, Response = TokioIo<TcpStream>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let failed = self.failed.clone();
        let at = *failed.lock().unwrap_or_else(PoisonError::into_inner);
        if at.is_some_and(|at| at.elapsed() < SAME_FAILURE) {
            return Box::pin(async { Err("a connection attempt of this moment failed".into()) });
        }
        let connecting = timeout(self.connect_timeout, self.http.call(uri));
        let limit = self.connect_timeout;
        Box::pin(async move {
            let connected = match connecting.await {
                Ok(connected) => connected.map(|tcp| stream(tcp.into_inner())).map_err(Into::into),
                Err(_) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"))
                        .into())
                }
            };
            if connected.is_err() {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            connected
        })
    }
}

#[cfg(test)]
mod tests;
