//! etcd's wire types, compiled from `proto/`: messages, clients and, under the feature `fake`, servers.
//!
//! Their packages have etcd's names. What the messages mean is said by etcd's own
//! [API reference](https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/).
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

pub(crate) mod codec;
mod debug;

/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// Requests, responses and services.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// Keys, values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// The server-side election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// The server-side lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
