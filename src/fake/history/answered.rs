//! Answers in short.

use std::fmt;

use bytes::Bytes;

use crate::pb::etcdserverpb::*;
use crate::pb::{v3electionpb, v3lockpb};

/// What an answer says, as far as a history tells it.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Nothing,
    Keys(i64),
    Deleted(i64),
    Branch(bool),
    Lease(i64, i64),
    Ttl(i64),
    Watcher(i64),
    /// A lock's or a candidate's key.
    Key(Bytes),
    Text(&'static str),
}

/// A response.
pub(crate) trait Answered: Send + 'static {
    fn answer(&self) -> Answer {
        Answer::Nothing
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Keys(1) => f.write_str("1 key"),
            Self::Keys(count) => write!(f, "{count} keys"),
            Self::Deleted(count) => write!(f, "{count} deleted"),
            Self::Branch(true) => f.write_str("succeeded"),
            Self::Branch(false) => f.write_str("failed"),
            Self::Lease(id, ttl) => write!(f, "{id:x} for {ttl} s"),
            Self::Ttl(ttl) => write!(f, "{ttl} s"),
            Self::Watcher(id) => write!(f, "watcher {id}"),
            Self::Key(key) => write!(f, "{}", key.escape_ascii()),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Answered for RangeResponse {
    fn answer(&self) -> Answer {
        Answer::Keys(self.count)
    }
}

impl Answered for DeleteRangeResponse {
    fn answer(&self) -> Answer {
        Answer::Deleted(self.deleted)
    }
}

impl Answered for TxnResponse {
    fn answer(&self) -> Answer {
        Answer::Branch(self.succeeded)
    }
}

impl Answered for LeaseGrantResponse {
    fn answer(&self) -> Answer {
        Answer::Lease(self.id, self.ttl)
    }
}

impl Answered for LeaseKeepAliveResponse {
    fn answer(&self) -> Answer {
        Answer::Ttl(self.ttl)
    }
}

impl Answered for LeaseTimeToLiveResponse {
    fn answer(&self) -> Answer {
        Answer::Ttl(self.ttl)
    }
}

impl Answered for v3lockpb::LockResponse {
    fn answer(&self) -> Answer {
        Answer::Key(self.key.clone())
    }
}

impl Answered for v3electionpb::CampaignResponse {
    fn answer(&self) -> Answer {
        self.leader.as_ref().map_or(Answer::Nothing, |leader| Answer::Key(leader.key.clone()))
    }
}

impl Answered for v3electionpb::LeaderResponse {
    fn answer(&self) -> Answer {
        self.kv.as_ref().map_or(Answer::Nothing, |kv| Answer::Key(kv.key.clone()))
    }
}

impl<T: Send + 'static> Answered for Vec<T> {}

macro_rules! nothing_to_tell {
    ($($response:ty),* $(,)?) => { $(impl Answered for $response {})* };
}

nothing_to_tell!(
    PutResponse,
    CompactionResponse,
    LeaseRevokeResponse,
    LeaseLeasesResponse,
    MemberAddResponse,
    MemberRemoveResponse,
    MemberUpdateResponse,
    MemberListResponse,
    MemberPromoteResponse,
    AlarmResponse,
    StatusResponse,
    DefragmentResponse,
    HashResponse,
    HashKvResponse,
    MoveLeaderResponse,
    DowngradeResponse,
    AuthEnableResponse,
    AuthDisableResponse,
    AuthStatusResponse,
    AuthenticateResponse,
    AuthUserAddResponse,
    AuthUserGetResponse,
    AuthUserListResponse,
    AuthUserDeleteResponse,
    AuthUserChangePasswordResponse,
    AuthUserGrantRoleResponse,
    AuthUserRevokeRoleResponse,
    AuthRoleAddResponse,
    AuthRoleGetResponse,
    AuthRoleListResponse,
    AuthRoleDeleteResponse,
    AuthRoleGrantPermissionResponse,
    AuthRoleRevokePermissionResponse,
    v3lockpb::UnlockResponse,
    v3electionpb::ProclaimResponse,
    v3electionpb::ResignResponse,
);
