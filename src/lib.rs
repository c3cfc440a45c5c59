//! Sessions, fenced locks, elections and transactional memory on etcd v3.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
#[cfg(feature = "fake")]
#[cfg_attr(docsrs, doc(cfg(feature = "fake")))]
pub mod fake;
mod key;
pub mod pb;
mod transport;

pub use error::{Error, ErrorKind, LostReason, Outcome, Result};
pub use transport::RawService;
