//! A network that can be broken on purpose: a TCP proxy in front of one endpoint.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::port;

/// Forwards until told otherwise. Belongs to the runtime that started it; dropped, it closes all.
pub(crate) struct Proxy {
    address: SocketAddr,
    server: String,
    network: watch::Sender<Network>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Network {
    /// Nothing is forwarded, not even the end of a connection.
    stalled: bool,
    /// How often everything was cut: a connection of an earlier count is closed.
    cuts: u64,
    connections: usize,
}

impl Proxy {
    /// In front of an endpoint like `http://127.0.0.1:2379`.
    pub(crate) async fn start(endpoint: &str) -> Proxy {
        let server = endpoint.trim_start_matches("http://").to_owned();
        // Not port 0: the port must still be ours to take after `refuse`.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let network = watch::Sender::new(Network::default());
        let mut proxy = Proxy { address, server, network, acceptor: None };
        proxy.accept().await;
        proxy
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.network.borrow().connections
    }

    /// Connections stay open and nothing passes, in either direction. Holds from its return on:
    /// no byte that was not written before arrives before `resume`.
    pub(crate) fn stall(&self) {
        self.network.send_modify(|network| network.stalled = true);
    }

    /// Ends a stall. What was held back arrives.
    pub(crate) fn resume(&self) {
        self.network.send_modify(|network| network.stalled = false);
    }

    /// Closes every open connection; new ones are served.
    pub(crate) fn cut(&self) {
        self.network.send_modify(|network| network.cuts += 1);
    }

    /// New connections are refused as if nobody listened; open ones go on.
    pub(crate) async fn refuse(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.abort();
            // The listener is closed when its task is gone, not before.
            let _ = acceptor.await;
        }
    }

    /// Ends a `refuse`.
    pub(crate) async fn accept(&mut self) {
        if self.acceptor.is_none() {
            let listener = TcpListener::bind(self.address).await.expect("the proxy's port is free");
            let accept = accept_all(listener, self.server.clone(), self.network.clone());
            self.acceptor = Some(tokio::spawn(accept));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.abort();
        }
        self.cut();
    }
}

async fn accept_all(listener: TcpListener, server: String, network: watch::Sender<Network>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connection(client, server.clone(), network.clone()));
    }
}

async fn connection(client: TcpStream, server: String, network: watch::Sender<Network>) {
    let born = network.borrow().cuts;
    network.send_modify(|network| network.connections += 1);
    let mut cut = network.subscribe();
    let carry = async {
        let server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            forward(from_client, to_server, network.subscribe()),
            forward(from_server, to_client, network.subscribe()),
        )
    };
    tokio::select! {
        _ = cut.wait_for(|network| network.cuts != born) => {}
        // Either side's end or failure is the connection's end; there is nobody to tell.
        _ = carry => {}
    }
    network.send_modify(|network| network.connections -= 1);
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        let mut sent = 0;
        while sent < n {
            open(&mut network).await;
            to.writable().await?;
            // Looked at and written under one lock, so that `stall` holds from its return on.
            let now = network.borrow();
            if now.stalled {
                continue;
            }
            match to.try_write(&buffer[sent..n]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if n == 0 {
            open(&mut network).await;
            return to.shutdown().await;
        }
    }
}

async fn open(network: &mut watch::Receiver<Network>) {
    // An error means that the proxy is gone; then the connection is being closed anyway.
    let _ = network.wait_for(|network| !network.stalled).await;
}
