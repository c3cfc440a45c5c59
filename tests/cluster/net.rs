//! The network of a cluster and its clients: every connection goes through here, and is held up where it is told so.
//!
//! Members find each other under one address each, so that the source of a connection between them cannot be told by
//! its port: it is read from the header with which a member says who it is.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::port;

/// Who is at an end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    Member(usize),
    Client(usize),
    /// A member's question that does not say whose it is: of no weight.
    Unknown,
}

/// All links.
pub(crate) struct Net {
    state: watch::Sender<State>,
    /// The members by the ids that they go by.
    ids: Arc<OnceLock<HashMap<u64, usize>>>,
    links: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// Between these nothing passes, either way.
    apart: HashSet<(Node, Node)>,
    /// How much later everything arrives.
    delay: Duration,
}

impl Net {
    pub(crate) fn new() -> Net {
        Net { state: watch::Sender::default(), ids: Arc::default(), links: JoinSet::new() }
    }

    /// A way to a member from a client, or from the other members. Gives its port.
    pub(crate) async fn link(&mut self, from: Option<Node>, to: Node, server: &str) -> u16 {
        let port = port::free();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let server = server.trim_start_matches("http://").to_owned();
        let (state, ids) = (self.state.clone(), self.ids.clone());
        self.links.spawn(async move {
            // They end with the link.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (server, state, ids) = (server.clone(), state.subscribe(), ids.clone());
                connections.spawn(async move {
                    // Whichever end fails: that is the connection's end.
                    drop(carry(stream, &server, from, to, state, &ids).await);
                });
                while connections.try_join_next().is_some() {}
            }
        });
        port
    }

    /// The ids that members go by, once they have them.
    pub(crate) fn know(&self, ids: HashMap<u64, usize>) {
        self.ids.set(ids).expect("once");
    }

    /// Nothing passes between these two, until [`heal`](Self::heal).
    pub(crate) fn part(&self, one: Node, other: Node) {
        self.state.send_modify(|state| {
            state.apart.extend([(one, other), (other, one)]);
        });
    }

    pub(crate) fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// All is well again; what was held up arrives.
    pub(crate) fn heal(&self) {
        self.state.send_modify(|state| *state = State::default());
    }
}

/// Who opened a connection. Members connect to each other before their ids are known here, and keep those connections:
/// so it is told each time who that is.
#[derive(Clone, Copy)]
enum Sender<'a> {
    Known(Node),
    /// The id that it goes by.
    Says(Option<u64>, &'a OnceLock<HashMap<u64, usize>>),
}

impl Sender<'_> {
    fn node(self) -> Node {
        match self {
            Sender::Known(node) => node,
            Sender::Says(id, ids) => {
                let member = id.and_then(|id| ids.get()?.get(&id).copied());
                member.map_or(Node::Unknown, Node::Member)
            }
        }
    }
}

async fn carry(
    mut stream: TcpStream,
    server: &str,
    from: Option<Node>,
    to: Node,
    state: watch::Receiver<State>,
    ids: &OnceLock<HashMap<u64, usize>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let from = match from {
        Some(from) => Sender::Known(from),
        None => {
            head = read_head(&mut stream).await?;
            Sender::Says(id(&head), ids)
        }
    };
    let mut server = TcpStream::connect(server).await?;
    for end in [&stream, &server] {
        end.set_nodelay(true)?;
    }
    open(&mut state.clone(), from, to).await;
    server.write_all(&head).await?;
    let (from_client, to_client) = stream.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        forward(from_client, to_server, state.clone(), from, to),
        forward(from_server, to_client, state.clone(), from, to),
    )?;
    Ok(())
}

/// As much as has the headers of an HTTP/1 request.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

/// The id that a member says it goes by.
fn id(head: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(head);
    let says = head.lines().find_map(|line| line.strip_prefix("X-Server-From: "))?;
    u64::from_str_radix(says.trim(), 16).ok()
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    one: Sender<'_>,
    other: Node,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        let delay = state.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        open(&mut state, one, other).await;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

/// Waits until the two are not apart.
async fn open(state: &mut watch::Receiver<State>, one: Sender<'_>, other: Node) {
    // An error means that the net is gone, and the connection with it.
    let _ = state.wait_for(|state| !state.apart.contains(&(one.node(), other))).await;
}

/// The members' connections stood before their ids were known, and were never cut: no partition between members had any
/// effect, and all tests of it passed.
#[test]
fn a_member_says_who_it_is_and_is_known_once_the_ids_are() {
    let ids = OnceLock::new();
    let head = b"GET /raft/stream/msgappv2/1 HTTP/1.1\r\nHost: x\r\nX-Server-From: 8e9e05c52164694d\r\n\r\n";
    let member = Sender::Says(id(head), &ids);
    assert_eq!(member.node(), Node::Unknown);
    ids.set(HashMap::from([(0x8e9e_05c5_2164_694d, 2)])).expect("once");
    assert_eq!(member.node(), Node::Member(2));
    let other = Sender::Says(id(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"), &ids);
    assert_eq!(other.node(), Node::Unknown);
}
