//! Sessions, fenced locks, elections and transactional memory on etcd v3: the job of Go's `clientv3/concurrency`, at the level of the protocol.
//!
//! A [`Client`] speaks etcd's own gRPC, over connections of its own or over any tower service. A [`Session`] is a
//! lease that is kept alive, and believed in no longer than the server keeps it. A [`Mutex`] is a lock that is taken
//! with a session; its [`MutexGuard`] has a fencing token, and transactions that the server refuses once the lock is
//! lost. An [`Election`] is a lock whose holder has something to say, and whom everybody can follow. An [`Stm`] runs a
//! closure that reads and writes keys, and commits it as a whole.
//!
//! ```
//! use etcd_concurrency::{Mutex, Op, Session};
//! # use etcd_concurrency::fake::FakeEtcd;
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
//! # let client = FakeEtcd::start().client();
//! // let client = Client::connect("http://127.0.0.1:2379").await?;
//! let session = Session::builder(&client).ttl(Duration::from_secs(10)).open().await?;
//! let guard = Mutex::new(&session, "jobs/nightly")?.lock().await?;
//! guard.txn().success(Op::put("jobs/nightly-owner", "worker-7")).commit().await?;
//! guard.unlock().await?;
//! session.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Which one do I need?
//! | I want to | use |
//! |---|---|
//! | be the only one who does something | [`Mutex::lock`], and inside it [`MutexGuard::run`] |
//! | try, and go on if another does it | [`Mutex::try_lock`] |
//! | be the one of many processes that does a job for good | [`Election::lead`] |
//! | know who does it | [`Election::leader`], [`Election::observe`] |
//! | share among readers, or have it alone as a writer | [`RwLock`] |
//! | be one of a limited number | [`Semaphore`] |
//! | hold several locks without waiting in a circle | [`MultiLock`] |
//! | hand work to one of many processes, surely done once | [`Queue::take`], [`Job::ack`]; urgent first: [`PriorityQueue`] |
//! | hand over values, each at most once | [`Queue::dequeue`] |
//! | hold many back until I say so | [`Barrier`] |
//! | start and finish in step with others | [`DoubleBarrier`] |
//! | wait until so many things are done | [`CountDownLatch`] |
//! | count across processes, each once | [`Counter`] |
//! | be seen, and see who is here | [`Membership`] |
//! | change several keys as if nobody else did | [`Stm::run`] |
//! | the same only while I hold a lock | [`Stm::fenced`] |
//! | know that it was done once, even if the reply is lost | [`Stm::exactly_once`] |
//! | write to etcd only while I hold the lock | [`Fence::txn`] |
//! | write elsewhere only while I hold the lock | [`Fence::token`], checked by who is written to |
//! | know when I lost it, and why | [`Fence::lost`], [`LostReason`] |
//! | have keys that go when I do | [`Session::lease`] |
//! | know whether a failed write was applied | [`Error::outcome`] |
//! | follow keys | [`Client::watch`] |
//! | anything else that etcd can do | [`Client::kv_client`] and its sisters |
//! | test what happens when a lock is lost | the feature `fake` |
//!
//! # Servers
//! Tested against etcd 3.4 to 3.7. Prefer a release with the known faults of leases and watches mended: 3.4.38,
//! 3.5.23, 3.6.5 or later.
//!
//! # Features
//! - `fake`: a fake etcd that speaks the real protocol, for tests.
//! - `tls`: TLS with rustls and ring; needs a C compiler.
//!
//! Without features the crate needs neither protoc nor a C compiler.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod election;
mod error;
#[cfg(feature = "fake")]
#[cfg_attr(docsrs, doc(cfg(feature = "fake")))]
pub mod fake;
mod fence;
mod ids;
mod key;
mod lease;
#[cfg(test)]
mod model;
mod mutex;
mod owned;
pub mod pb;
mod recipes;
mod session;
mod steps;
mod stm;
mod transport;
mod txn;
mod view;
mod waitlist;
mod watch;

#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use client::TlsOptions;
pub use client::{Client, ClientBuilder, IntoEndpoints};
pub use election::{Candidate, Election, Leadership, Observer};
pub use error::{Error, ErrorKind, LostReason, Outcome, Result};
pub use fence::{Fence, FencedTxn};
pub use lease::SessionState;
pub use mutex::{Mutex, MutexGuard};
pub use recipes::{Barrier, CountDownLatch, Counter, DoubleBarrier, Inside};
pub use recipes::{DeadLetter, Job, PriorityQueue, Queue};
pub use recipes::{Member, MemberChange, MemberChanges, Membership, Peer, Resident};
pub use recipes::{MultiLock, MultiLockGuard};
pub use recipes::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use recipes::{Semaphore, SemaphorePermit};
pub use session::{Session, SessionBuilder};
pub use stm::{Committed, Isolation, Stm, StmTxn};
pub use transport::RawService;
pub use transport::raw::{AuthClient, ClusterClient, KvClient, LeaseClient, MaintenanceClient, WatchClient};
pub use txn::{Compare, CompareOn, Op, Txn, TxnReply};
pub use watch::{Events, Watch, Watcher};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
