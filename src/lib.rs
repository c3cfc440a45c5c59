//! Sessions, fenced locks, elections and transactional memory on etcd v3.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod error;
#[cfg(feature = "fake")]
#[cfg_attr(docsrs, doc(cfg(feature = "fake")))]
pub mod fake;
mod key;
mod lease;
pub mod pb;
mod session;
mod transport;
mod txn;
mod watch;

#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use client::TlsOptions;
pub use client::{Client, ClientBuilder, IntoEndpoints};
pub use error::{Error, ErrorKind, LostReason, Outcome, Result};
pub use lease::SessionState;
pub use session::{Session, SessionBuilder};
pub use transport::RawService;
pub use transport::raw::{AuthClient, ClusterClient, KvClient, LeaseClient, MaintenanceClient, WatchClient};
pub use txn::{Compare, CompareOn, Op, Txn, TxnReply};
pub use watch::{Events, Watch, Watcher};
