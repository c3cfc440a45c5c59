//! What the tests stand on: servers, networks that break, counters.
#![allow(dead_code, reason = "a kit: not every tool is in use at every time")]

pub(crate) mod answers;
pub(crate) mod append;
pub(crate) mod backend;
pub(crate) mod count;
pub(crate) mod etcd;
pub(crate) mod go;
pub(crate) mod lies;
pub(crate) mod lists;
pub(crate) mod part;
pub(crate) mod poll;
pub(crate) mod port;
pub(crate) mod proxy;
pub(crate) mod queue;
pub(crate) mod requests;
pub(crate) mod rival;
pub(crate) mod supervisor;

/// The number in an environment variable, if it is set.
pub(crate) fn env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}
