//! The Cluster service's requests: a cluster of one, to which others may be added that never start.
//!
//! A real cluster of one that is given a second voting member stops until that member has started; this one
//! goes on.

use tonic::Code;

use super::{Caller, Core, MEMBER_ID};
use crate::fake::refusal::Refusal;
use crate::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};

type Result<T = ()> = std::result::Result<T, Refusal>;

impl Core {
    /// Tells clients of an address where they find the server.
    pub(crate) fn serve_at(&mut self, url: String) {
        let served = std::mem::replace(&mut self.served, true);
        let Ok(own) = self.member(MEMBER_ID) else { return };
        if !served {
            own.client_ur_ls.clear();
        }
        own.client_ur_ls.push(url);
    }

    pub(crate) fn member_list(
        &mut self,
        _: &MemberListRequest,
        caller: &Caller<'_>,
    ) -> Result<MemberListResponse> {
        self.auth.require(caller)?;
        // This service's headers carry no revision.
        Ok(MemberListResponse { header: self.header_at(0), members: self.members.clone() })
    }

    pub(crate) fn member_add(
        &mut self,
        request: &MemberAddRequest,
        caller: &Caller<'_>,
    ) -> Result<MemberAddResponse> {
        if request.peer_ur_ls.is_empty() || !request.peer_ur_ls.iter().all(|url| is_peer_url(url)) {
            return Err(BAD_URLS);
        }
        self.change_members(request, caller)?;
        // A real member's id is made of its addresses and the time; two of one second are one.
        if self.members.iter().any(|member| member.peer_ur_ls == request.peer_ur_ls) {
            return Err(MEMBER_EXISTS);
        }
        if request.is_learner && self.members.iter().any(|member| member.is_learner) {
            return Err(TOO_MANY_LEARNERS);
        }
        self.members_made += 1;
        let member = Member {
            id: self.members_made,
            peer_ur_ls: request.peer_ur_ls.clone(),
            is_learner: request.is_learner,
            ..Default::default()
        };
        self.members.push(member.clone());
        self.members.sort_by_key(|member| member.id);
        let (header, members) = (self.header_at(0), self.members.clone());
        Ok(MemberAddResponse { header, member: Some(member), members })
    }

    pub(crate) fn member_remove(
        &mut self,
        request: &MemberRemoveRequest,
        caller: &Caller<'_>,
    ) -> Result<MemberRemoveResponse> {
        self.change_members(request, caller)?;
        self.member(request.id)?;
        if request.id == MEMBER_ID {
            return Err(NOT_ENOUGH_STARTED);
        }
        self.members.retain(|member| member.id != request.id);
        Ok(MemberRemoveResponse { header: self.header_at(0), members: self.members.clone() })
    }

    pub(crate) fn member_update(
        &mut self,
        request: &MemberUpdateRequest,
        caller: &Caller<'_>,
    ) -> Result<MemberUpdateResponse> {
        self.change_members(request, caller)?;
        self.member(request.id)?.peer_ur_ls.clone_from(&request.peer_ur_ls);
        Ok(MemberUpdateResponse { header: self.header_at(0), members: self.members.clone() })
    }

    pub(crate) fn member_promote(
        &mut self,
        request: &MemberPromoteRequest,
        caller: &Caller<'_>,
    ) -> Result<MemberPromoteResponse> {
        self.change_members(request, caller)?;
        Err(if self.member(request.id)?.is_learner { LEARNER_NOT_READY } else { NOT_A_LEARNER })
    }

    fn member(&mut self, id: u64) -> Result<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id).ok_or(MEMBER_NOT_FOUND)
    }

    fn change_members(&mut self, request: &impl prost::Message, caller: &Caller<'_>) -> Result {
        let identity = self.auth.identify(caller)?;
        self.auth.check_admin(identity.as_ref())?;
        self.propose(request)
    }
}

/// `http://host:port`, and nothing more.
fn is_peer_url(url: &str) -> bool {
    let Some((scheme, authority)) = url.split_once("://") else { return false };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    ["http", "https"].contains(&scheme) && !host.is_empty() && port.parse::<u16>().is_ok()
}

const BAD_URLS: Refusal = Refusal::Other(Code::InvalidArgument, "etcdserver: given member URLs are invalid");
const MEMBER_EXISTS: Refusal =
    Refusal::Other(Code::FailedPrecondition, "etcdserver: member ID already exist");
const MEMBER_NOT_FOUND: Refusal = Refusal::Other(Code::NotFound, "etcdserver: member not found");
const TOO_MANY_LEARNERS: Refusal =
    Refusal::Other(Code::FailedPrecondition, "etcdserver: too many learner members in cluster");
const NOT_A_LEARNER: Refusal =
    Refusal::Other(Code::FailedPrecondition, "etcdserver: can only promote a learner member");
const LEARNER_NOT_READY: Refusal = Refusal::Other(
    Code::FailedPrecondition,
    "etcdserver: can only promote a learner member which is in sync with leader",
);
// The server forgets this one's code.
const NOT_ENOUGH_STARTED: Refusal =
    Refusal::Other(Code::Unknown, "etcdserver: re-configuration failed due to not enough started members");
