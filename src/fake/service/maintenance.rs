//! The Maintenance service.

use tonic::{Request, Response, Status};

use super::responses::Responses;
use super::{Server, methods};
use crate::fake::core::Core;
use crate::fake::rpc::Rpc;
use crate::fake::shared::Reply;
use crate::pb::etcdserverpb::maintenance_server::Maintenance;
use crate::pb::etcdserverpb::*;

methods! {
    Maintenance {
        type SnapshotStream = Responses<SnapshotResponse>;

        async fn snapshot(
            &self,
            request: Request<SnapshotRequest>,
        ) -> Result<Response<Self::SnapshotStream>, Status> {
            let needs_leader = Self::needs_leader(&request);
            let messages = self.call(Rpc::Snapshot, request, Core::snapshot).await?.into_inner();
            self.messages(Rpc::Snapshot, needs_leader, messages.into_iter().map(Reply::Snapshot)).await
        }
    }
    status: Status, StatusRequest => StatusResponse;
    alarm: Alarm, AlarmRequest => AlarmResponse;
    defragment: Defragment, DefragmentRequest => DefragmentResponse;
    hash: Hash, HashRequest => HashResponse;
    hash_kv: HashKv, HashKvRequest => HashKvResponse;
    move_leader: MoveLeader, MoveLeaderRequest => MoveLeaderResponse;
    downgrade: Downgrade, DowngradeRequest => DowngradeResponse;
}
