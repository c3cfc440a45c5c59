//! The Auth service's requests, and the permissions of all others.

use super::{Caller, Core};
use crate::fake::auth::{Access, Identity};
use crate::fake::refusal::Refusal;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::*;

type Result<T = ()> = std::result::Result<T, Refusal>;

impl Core {
    pub(crate) fn auth_enable(
        &mut self,
        request: &AuthEnableRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthEnableResponse> {
        self.administer(request, caller)?;
        self.auth.enable()?;
        Ok(AuthEnableResponse { header: self.header() })
    }

    pub(crate) fn auth_disable(
        &mut self,
        request: &AuthDisableRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthDisableResponse> {
        self.administer(request, caller)?;
        self.auth.disable();
        Ok(AuthDisableResponse { header: self.header() })
    }

    pub(crate) fn auth_status(
        &mut self,
        request: &AuthStatusRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthStatusResponse> {
        self.identified_proposal(request, caller)?;
        let (enabled, auth_revision) = (self.auth.enabled(), self.auth.revision());
        Ok(AuthStatusResponse { header: self.header(), enabled, auth_revision })
    }

    pub(crate) fn authenticate(
        &mut self,
        request: &AuthenticateRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthenticateResponse> {
        let index = self.index + 1;
        let token = self.auth.authenticate(&request.name, &request.password, index, caller.now)?;
        self.propose(request)?;
        Ok(AuthenticateResponse { header: self.header(), token })
    }

    pub(crate) fn user_add(
        &mut self,
        request: &AuthUserAddRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserAddResponse> {
        self.administer(request, caller)?;
        self.auth.add_user(request)?;
        Ok(AuthUserAddResponse { header: self.header() })
    }

    /// For administrators, and for users who ask about themselves.
    pub(crate) fn user_get(
        &mut self,
        request: &AuthUserGetRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserGetResponse> {
        let identity = self.identified_proposal(request, caller)?;
        let own_name = identity.as_ref().map_or("", |identity| &identity.user);
        if request.name != own_name {
            self.auth.check_admin(identity.as_ref())?;
        }
        let roles = self.auth.roles_of(&request.name)?;
        Ok(AuthUserGetResponse { header: self.header(), roles })
    }

    pub(crate) fn user_list(
        &mut self,
        request: &AuthUserListRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserListResponse> {
        self.administer(request, caller)?;
        Ok(AuthUserListResponse { header: self.header(), users: self.auth.users() })
    }

    pub(crate) fn user_delete(
        &mut self,
        request: &AuthUserDeleteRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserDeleteResponse> {
        self.administer(request, caller)?;
        self.auth.delete_user(&request.name)?;
        Ok(AuthUserDeleteResponse { header: self.header() })
    }

    pub(crate) fn user_change_password(
        &mut self,
        request: &AuthUserChangePasswordRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserChangePasswordResponse> {
        self.administer(request, caller)?;
        self.auth.change_password(request)?;
        Ok(AuthUserChangePasswordResponse { header: self.header() })
    }

    pub(crate) fn user_grant_role(
        &mut self,
        request: &AuthUserGrantRoleRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserGrantRoleResponse> {
        self.administer(request, caller)?;
        self.auth.grant_role(&request.user, &request.role)?;
        Ok(AuthUserGrantRoleResponse { header: self.header() })
    }

    pub(crate) fn user_revoke_role(
        &mut self,
        request: &AuthUserRevokeRoleRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthUserRevokeRoleResponse> {
        self.administer(request, caller)?;
        self.auth.revoke_role(&request.name, &request.role)?;
        Ok(AuthUserRevokeRoleResponse { header: self.header() })
    }

    pub(crate) fn role_add(
        &mut self,
        request: &AuthRoleAddRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleAddResponse> {
        self.administer(request, caller)?;
        self.auth.add_role(&request.name)?;
        Ok(AuthRoleAddResponse { header: self.header() })
    }

    /// For administrators, and for users who hold the role.
    pub(crate) fn role_get(
        &mut self,
        request: &AuthRoleGetRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleGetResponse> {
        let identity = self.identified_proposal(request, caller)?;
        if !self.auth.has_role(identity.as_ref(), &request.role) {
            self.auth.check_admin(identity.as_ref())?;
        }
        let perm = self.auth.role(&request.role)?;
        Ok(AuthRoleGetResponse { header: self.header(), perm })
    }

    pub(crate) fn role_list(
        &mut self,
        request: &AuthRoleListRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleListResponse> {
        self.administer(request, caller)?;
        Ok(AuthRoleListResponse { header: self.header(), roles: self.auth.roles() })
    }

    pub(crate) fn role_delete(
        &mut self,
        request: &AuthRoleDeleteRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleDeleteResponse> {
        self.administer(request, caller)?;
        self.auth.delete_role(&request.role)?;
        Ok(AuthRoleDeleteResponse { header: self.header() })
    }

    pub(crate) fn role_grant_permission(
        &mut self,
        request: &AuthRoleGrantPermissionRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleGrantPermissionResponse> {
        self.administer(request, caller)?;
        self.auth.grant_permission(request)?;
        Ok(AuthRoleGrantPermissionResponse { header: self.header() })
    }

    pub(crate) fn role_revoke_permission(
        &mut self,
        request: &AuthRoleRevokePermissionRequest,
        caller: &Caller<'_>,
    ) -> Result<AuthRoleRevokePermissionResponse> {
        self.administer(request, caller)?;
        self.auth.revoke_permission(request)?;
        Ok(AuthRoleRevokePermissionResponse { header: self.header() })
    }

    /// A proposal, with the name of who makes it.
    pub(super) fn identified_proposal(
        &mut self,
        request: &impl prost::Message,
        caller: &Caller<'_>,
    ) -> Result<Option<Identity>> {
        let identity = self.auth.identify(caller)?;
        self.propose(request)?;
        Ok(identity)
    }

    pub(super) fn may_read(&self, identity: Option<&Identity>, key: &[u8], range_end: &[u8]) -> Result {
        self.auth.check(identity, Access::Read, key, range_end)
    }

    pub(super) fn may_put(&self, identity: Option<&Identity>, request: &PutRequest) -> Result {
        self.auth.check(identity, Access::Write, &request.key, b"")?;
        // Whoever cannot write all keys of a lease cannot revoke it, and must not hang more keys on it.
        self.may_write_keys_of(identity, request.lease)?;
        if request.prev_kv { self.may_read(identity, &request.key, b"") } else { Ok(()) }
    }

    pub(super) fn may_delete(&self, identity: Option<&Identity>, request: &DeleteRangeRequest) -> Result {
        self.auth.check(identity, Access::Write, &request.key, &request.range_end)?;
        if request.prev_kv { self.may_read(identity, &request.key, &request.range_end) } else { Ok(()) }
    }

    /// All of a transaction, whichever branch it will take.
    pub(super) fn may_txn(&self, identity: Option<&Identity>, request: &TxnRequest) -> Result {
        for compare in &request.compare {
            self.may_read(identity, &compare.key, &compare.range_end)?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    self.may_read(identity, &range.key, &range.range_end)?
                }
                Some(Request::RequestPut(put)) => self.may_put(identity, put)?,
                Some(Request::RequestDeleteRange(delete)) => self.may_delete(identity, delete)?,
                Some(Request::RequestTxn(inner)) => self.may_txn(identity, inner)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Every key that hangs on a lease; one that does not exist has none.
    pub(super) fn may_write_keys_of(&self, identity: Option<&Identity>, lease: i64) -> Result {
        self.may_all_keys_of(identity, lease, Access::Write)
    }

    pub(super) fn may_read_keys_of(&self, identity: Option<&Identity>, lease: i64) -> Result {
        self.may_all_keys_of(identity, lease, Access::Read)
    }

    fn may_all_keys_of(&self, identity: Option<&Identity>, lease: i64, access: Access) -> Result {
        let Some(lease) = self.lessor.get(lease) else { return Ok(()) };
        if self.auth.check_admin(identity).is_ok() {
            return Ok(());
        }
        lease.keys.iter().try_for_each(|key| self.auth.check(identity, access, key, b""))
    }

    fn administer(&mut self, request: &impl prost::Message, caller: &Caller<'_>) -> Result {
        let identity = self.identified_proposal(request, caller)?;
        self.auth.check_admin(identity.as_ref())
    }
}
