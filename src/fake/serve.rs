//! The fake over TCP.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::service::Server;
use super::shared::Shared;

/// A fake that listens on a TCP address, until this is dropped: then its connections break.
#[derive(Debug)]
pub struct Serving {
    listener: Arc<Listener>,
}

impl Serving {
    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr
    }

    /// The address as clients want it: `http://127.0.0.1:2379`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Breaks all connections; new ones are accepted.
    pub fn cut_connections(&self) {
        self.listener.connections.cut();
    }

    pub(crate) async fn start(shared: Arc<Shared>, client: &str, addr: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(addr).await?;
        let addr = socket.local_addr()?;
        let endpoint = format!("http://{addr}");
        shared.with(|state, _| state.core.serve_at(endpoint));
        let connections = Connections::default();
        let listener =
            Arc::new(Listener { addr, client: client.into(), connections, task: Mutex::default() });
        shared.add_listener(&listener);
        if !shared.is_stopped() {
            listener.accept(socket, &shared);
        }
        Ok(Self { listener })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(task) = self.listener.task().take() {
            task.abort();
        }
        self.listener.connections.cut();
    }
}

/// An address, listened on while the server runs.
#[derive(Debug)]
pub(crate) struct Listener {
    addr: SocketAddr,
    client: Arc<str>,
    connections: Connections,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Listener {
    /// Closes the port and breaks its connections.
    pub(crate) async fn stop(&self) {
        let task = self.task().take();
        self.connections.cut();
        if let Some(task) = task {
            task.abort();
            // The port is closed once it is gone.
            if let Err(error) = task.await
                && !error.is_cancelled()
            {
                tracing::warn!(%error, "the fake's listener has failed");
            }
        }
    }

    /// Listens again.
    pub(crate) async fn start(&self, shared: &Arc<Shared>) -> io::Result<()> {
        let socket = TcpListener::bind(self.addr).await?;
        self.accept(socket, shared);
        Ok(())
    }

    fn accept(&self, socket: TcpListener, shared: &Arc<Shared>) {
        let routes = Server::new(Arc::clone(shared), &self.client).routes();
        let incoming = Incoming { listener: socket, connections: self.connections.clone() };
        let serving = tonic::transport::Server::builder()
            // h2 closes a connection over half of this in the cost of unread small messages, which etcd's server
            // does not count: ten thousand creates at once are no reason.
            .initial_connection_window_size(128 << 20)
            .add_routes(routes)
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the fake has stopped to listen");
            }
        });
        *self.task() = Some(task);
    }

    fn task(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What breaks all connections of a listener.
#[derive(Debug, Clone, Default)]
struct Connections {
    cut: Arc<Mutex<CancellationToken>>,
}

impl Connections {
    fn current(&self) -> CancellationToken {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cut(&self) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }
}

struct Incoming {
    listener: TcpListener,
    connections: Connections,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Poll::Ready(accepted) = self.listener.poll_accept(cx) else { return Poll::Pending };
        let connection = accepted.and_then(|(stream, _)| {
            // Small messages must not wait for each other.
            stream.set_nodelay(true)?;
            Ok(Connection { stream, cut: Box::pin(self.connections.current().cancelled_owned()) })
        });
        Poll::Ready(Some(connection))
    }
}

/// A connection that can be broken from outside, whatever its tasks are doing.
struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
