//! The Cluster service.

use tonic::{Request, Response, Status};

use super::{Server, methods};
use crate::fake::core::Core;
use crate::fake::rpc::Rpc;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::pb::etcdserverpb::*;

methods! {
    Cluster {}
    member_list: MemberList, MemberListRequest => MemberListResponse;
    member_add: MemberAdd, MemberAddRequest => MemberAddResponse;
    member_remove: MemberRemove, MemberRemoveRequest => MemberRemoveResponse;
    member_update: MemberUpdate, MemberUpdateRequest => MemberUpdateResponse;
    member_promote: MemberPromote, MemberPromoteRequest => MemberPromoteResponse;
}
