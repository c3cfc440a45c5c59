//! What the tests stand on: servers, networks that break, counters.
#![allow(dead_code, reason = "a kit: not every tool is in use at every time")]

pub(crate) mod backend;
pub(crate) mod count;
pub(crate) mod etcd;
pub(crate) mod part;
pub(crate) mod poll;
pub(crate) mod port;
pub(crate) mod proxy;
pub(crate) mod queue;
pub(crate) mod rival;
pub(crate) mod supervisor;
