//! The generated clients, over the transport's service.

use super::RawService;
use crate::pb::etcdserverpb as pb;

/// The generated client of etcd's KV service.
pub type KvClient = pb::kv_client::KvClient<RawService>;
/// The generated client of etcd's Watch service.
pub type WatchClient = pb::watch_client::WatchClient<RawService>;
/// The generated client of etcd's Lease service.
pub type LeaseClient = pb::lease_client::LeaseClient<RawService>;
/// The generated client of etcd's Cluster service.
pub type ClusterClient = pb::cluster_client::ClusterClient<RawService>;
/// The generated client of etcd's Maintenance service.
pub type MaintenanceClient = pb::maintenance_client::MaintenanceClient<RawService>;
/// The generated client of etcd's Auth service.
pub type AuthClient = pb::auth_client::AuthClient<RawService>;

pub(crate) fn kv(service: RawService, most: usize) -> KvClient {
    KvClient::new(service).max_decoding_message_size(most)
}

pub(crate) fn watch(service: RawService, most: usize) -> WatchClient {
    WatchClient::new(service).max_decoding_message_size(most)
}

pub(crate) fn lease(service: RawService, most: usize) -> LeaseClient {
    LeaseClient::new(service).max_decoding_message_size(most)
}

pub(crate) fn cluster(service: RawService, most: usize) -> ClusterClient {
    ClusterClient::new(service).max_decoding_message_size(most)
}

pub(crate) fn maintenance(service: RawService, most: usize) -> MaintenanceClient {
    MaintenanceClient::new(service).max_decoding_message_size(most)
}

pub(crate) fn auth(service: RawService, most: usize) -> AuthClient {
    AuthClient::new(service).max_decoding_message_size(most)
}
