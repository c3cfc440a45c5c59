//! A fake etcd for tests: the real protocol, every fault on demand, no server to install.
//!
//! It answers as etcd 3.7 does, down to the words of its errors, to any client: as a tower service in
//! process ([`FakeEtcd::service`]), or over TCP ([`FakeEtcd::serve`]). It knows no clock but tokio's, so with
//! `#[tokio::test(start_paused = true)]` a lease of an hour ends in no time, and a test repeats exactly.
//!
//! ```
//! use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
//! use etcd_concurrency::pb::etcdserverpb::{PutRequest, kv_client::KvClient};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tonic::Status> {
//! let fake = FakeEtcd::start();
//! let mut kv = KvClient::new(fake.service());
//!
//! // The reply to the first put is lost on its way: the client sees an error, the key is there.
//! fake.fault(On::rpc(Rpc::Put).once(), Do::lose_reply());
//! let put = PutRequest { key: "greeting".into(), value: "hello".into(), ..Default::default() };
//! assert!(kv.put(put).await.is_err());
//! assert_eq!(fake.snapshot().value("greeting"), Some("hello".as_bytes()));
//! # Ok(())
//! # }
//! ```
//!
//! The page [`guide`] has the five tests that every service should have.
//!
//! # How it is made
//! The server is a pure core (`core`: a multi-version `store`, `txn`, `lessor`, `watch`) that takes each
//! request as a whole and the time as an argument. Around it, `shared` holds the lock, the one timer that
//! ends leases, and the open streams; `service` implements the generated server traits. Faults enter between
//! the two, where production has its network.
//!
//! What a real server leaves to chance is in a fixed order here: watchers are served in the order of their
//! streams and ids, a lease's keys and leases of one deadline are listed in order. A lease ends at its
//! deadline (a real server takes up to half a second more), and a watcher that starts in the past is caught
//! up at once (a real server does that every 100 ms). Keys of equal rank in a sorted range stay in key order (a
//! real server keeps that only up to a dozen). The largest request is that of a server whose member id has its
//! 16th bit clear (half of all servers take one byte less). What permissions say about a range that ends before it
//! starts, a real server answers by the shape of a tree. And the fake survives a transaction that
//! deletes up to the end of all keys (range end `\0`) and then puts one of them with `ignore_value` or
//! `ignore_lease`: a real server dies of it. So it does when such a transaction has put a key again that it had
//! deleted, the history is compacted up to its revision, and the key is read.
//!
//! # Versions
//! Random operations are held against a real 3.7.3, answer by answer, by several clients and users. Where
//! versions differ the fake follows 3.7. Older ones
//! - have no `RangeStream`, tell a key's lease in a keys-only range (3.7 does not), tell of a put's missing key
//!   before its missing lease, and tell the status of authentication to administrators alone;
//! - before 3.6, check the puts of a transaction before its ranges, and make another hash;
//! - before 3.5, take a negative start revision of a watch for the past instead of refusing it, answer progress
//!   requests where later versions hold them back, forget the deletions of the revision that the history is
//!   compacted up to, and let anybody grant and look at leases.
//!
//! But for these, random operations are held against 3.6, 3.5 and 3.4 too.

#[doc = include_str!("guide.md")]
pub mod guide {}

mod auth;
mod builder;
mod chance;
mod check;
mod clients;
mod core;
mod fault;
mod hash;
mod history;
mod keys;
mod lessor;
mod plan;
mod range;
mod refusal;
mod rpc;
mod serve;
mod service;
mod shared;
mod snapshot;
mod store;
mod txn;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::body::Body;
use tonic::{ConnectError, Status};
use tower::util::BoxCloneSyncService;

pub use self::builder::Builder;
pub use self::chance::seed;
pub use self::fault::{Do, Fault, Hold, LoseReply, On};
pub use self::history::{History, Operation, Outcome};
pub use self::plan::{FaultPlan, Trouble};
pub use self::rpc::Rpc;
pub use self::serve::Serving;
pub use self::snapshot::{LeaseSnapshot, Snapshot};

use self::core::Core;
use self::refusal::AuthRefusal;
use self::service::{Door, Server};
use self::shared::Shared;
use crate::pb::etcdserverpb::CompactionRequest;

/// The fake as a tower service; what the generated clients (`KvClient::new(…)`, …) are made from.
///
/// Its one error is that of a stopped server, which is how tonic's own channel tells of a refused connection.
pub type Service = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, ConnectError>;

/// A fake etcd: a handle, cheap to clone. The server lives as long as any handle, service or stream of it.
#[derive(Debug, Clone)]
pub struct FakeEtcd {
    shared: Arc<Shared>,
}

impl FakeEtcd {
    /// Starts a server with default settings. Needs no runtime yet.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Settings for a server.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The server in process, as the client `default`.
    pub fn service(&self) -> Service {
        self.service_for(DEFAULT_CLIENT)
    }

    /// The server in process, as the client of this name, so that faults can strike it alone.
    pub fn service_for(&self, client: &str) -> Service {
        let routes = Server::new(Arc::clone(&self.shared), client).routes();
        BoxCloneSyncService::new(Door::new(Arc::clone(&self.shared), routes))
    }

    /// Serves over TCP, as the client `default`, until the returned handle is dropped.
    /// Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve(&self, addr: SocketAddr) -> io::Result<Serving> {
        self.serve_as(DEFAULT_CLIENT, addr).await
    }

    /// Serves over TCP; whoever connects there is the client of this name.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve_as(&self, client: &str, addr: SocketAddr) -> io::Result<Serving> {
        Serving::start(Arc::clone(&self.shared), client, addr).await
    }

    /// Sets a fault. It stays until it is removed.
    pub fn fault(&self, on: On, does: Do) -> Fault {
        self.shared.with(|state, _| state.faults.set(on, does))
    }

    /// Takes all faults away that were set with [`fault`](Self::fault).
    pub fn clear_faults(&self) {
        self.shared.with(|state, _| state.faults.clear());
    }

    /// Breaks all streams of a client; new ones may be opened.
    pub fn cut_streams(&self, client: &str) {
        self.shared.cut(client, false);
    }

    /// Breaks all streams of a client and all calls of it that hang unanswered.
    pub fn cut(&self, client: &str) {
        self.shared.cut(client, true);
    }

    /// Leaves all streams of a client half-open for good: nothing comes out of them, not even an error, and
    /// what the client says on them is lost. New ones may be opened.
    pub fn stall_streams(&self, client: &str) {
        self.shared.stall(client);
    }

    /// Cuts a client off until [`heal`](Self::heal): its calls wait, its streams are silent, and what it
    /// says meanwhile arrives when healed, unless it has given up.
    pub fn partition(&self, client: &str) {
        self.shared.partition(client);
    }

    /// Ends a client's partition.
    pub fn heal(&self, client: &str) {
        self.shared.heal(client);
    }

    /// The member that this client reads from lags behind: until [`catch_up`](Self::catch_up), what a member answers from
    /// its own state is answered from the state of now.
    ///
    /// That is every serializable read, and every transaction that any member answers by itself: of compares alone, or
    /// with no operations but serializable ranges. A watch that begins with "now" begins with the member's. All else
    /// goes through the leader, and is up to date: two calls of a client may reach two members.
    pub fn lag(&self, client: &str) {
        self.shared.with(|state, now| state.lag(client, now));
    }

    /// Ends what [`lag`](Self::lag) began.
    pub fn catch_up(&self, client: &str) {
        self.shared.with(|state, now| state.catch_up(client, now));
    }

    /// Takes the leader away for a while, as an election or a lost quorum does.
    ///
    /// Meanwhile no lease ends and nothing is written. Calls that ask for a leader (metadata `hasleader: true`)
    /// fail at once with `etcdserver: no leader`, and streams that asked for one after 3 s. Others wait; after
    /// 7 s a linearizable read fails with `etcdserver: request timed out`, a write with `DeadlineExceeded`, and
    /// what the leader's lessor must answer, keep-alives included, with `etcdserver: no leader`. Serializable
    /// reads are answered.
    ///
    /// Then the next leader starts every lease over, plus one second. Writes that waited are applied, reads that
    /// waited fail with `etcdserver: leader changed`. A duration of zero is a change of leaders that nobody
    /// notices but for the leases and the raft term.
    pub fn leader_loss(&self, duration: Duration) {
        self.shared.lose_leader(duration);
    }

    /// Stops the server: what is open breaks, and whoever connects is refused, over TCP too. The data stay, and
    /// no lease ends meanwhile.
    pub async fn stop(&self) {
        self.shared.stop().await;
    }

    /// Starts it again after [`stop`](Self::stop), at the same addresses. Every lease starts over, as with a new
    /// leader; simple tokens are forgotten.
    ///
    /// # Errors
    /// When an address cannot be listened on again.
    pub async fn restart(&self) -> io::Result<()> {
        self.shared.restart().await
    }

    /// What has happened so far, in order.
    pub fn history(&self) -> History {
        self.shared.look(|state, _| state.history.read())
    }

    /// Makes all tokens invalid: whoever has one is told `etcdserver: invalid auth token`.
    pub fn expire_tokens(&self) {
        self.shared.with(|state, now| {
            state.core.auth.expire_tokens();
            state.note(now, "all tokens have expired".into());
        });
    }

    /// The next calls that bring a token are told `etcdserver: invalid auth token`, whatever the token: so a member
    /// answers that has not applied yet that the token was given out.
    pub fn refuse_tokens(&self, times: u64) {
        self.shared.with(|state, _| state.core.auth.refuse_tokens(times, AuthRefusal::InvalidToken));
    }

    /// The next calls that bring a token are told `etcdserver: revision of auth store is old`, as while users and roles
    /// are edited.
    pub fn outdate_tokens(&self, times: u64) {
        self.shared.with(|state, _| state.core.auth.refuse_tokens(times, AuthRefusal::OldRevision));
    }

    /// Ends a lease as if its time were over. Whether there was such a lease.
    pub fn expire_lease(&self, id: i64) -> bool {
        self.end_lease(id, "expired")
    }

    /// Ends a lease as if a client had revoked it. Whether there was such a lease.
    pub fn revoke_lease(&self, id: i64) -> bool {
        self.end_lease(id, "revoked")
    }

    /// Compacts the history up to a revision.
    ///
    /// # Errors
    /// As a client would get: the revision has been compacted already, or is yet to come.
    pub fn compact(&self, revision: i64) -> Result<(), Status> {
        let request = CompactionRequest { revision, physical: true };
        self.shared.with(|state, now| {
            state.core.apply_compaction(&request)?;
            state.note(now, format!("compacted up to {revision}"));
            Ok::<_, Status>(())
        })
    }

    /// Keys, revisions and leases, as they are now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.look(|state, now| Snapshot::of(&state.core, now))
    }

    /// The store's revision; 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.count(|core| core.store.revision())
    }

    /// How many watchers there are, on all streams.
    pub fn watchers(&self) -> usize {
        self.count(|core| core.hub.watchers())
    }

    /// How many leases there are.
    pub fn leases(&self) -> usize {
        self.count(|core| core.lessor.len())
    }

    /// How many streams are open, of watches and of keep-alives.
    pub fn streams(&self) -> usize {
        self.shared.look(|state, _| state.streams())
    }

    /// Waits until something holds, looking again after every change of the server's state; what tests use
    /// instead of sleeping.
    ///
    /// ```no_run
    /// # async fn wait(fake: etcd_concurrency::fake::FakeEtcd) {
    /// fake.until(|fake| fake.watchers() == 2).await;
    /// # }
    /// ```
    pub async fn until(&self, mut condition: impl FnMut(&Self) -> bool) {
        self.shared.until(|| condition(self)).await;
    }

    fn end_lease(&self, id: i64, how: &str) -> bool {
        self.shared.with(|state, now| {
            let ended = state.core.end_lease(id).is_ok();
            if ended {
                state.note(now, format!("lease {id:x} is {how} by hand"));
            }
            ended
        })
    }

    fn count<T>(&self, count: impl FnOnce(&Core) -> T) -> T {
        self.shared.look(|state, _| count(&state.core))
    }
}

/// Who calls, unless a name was given.
const DEFAULT_CLIENT: &str = "default";

#[cfg(test)]
mod tests;
