//! The Auth service.

use tonic::{Request, Response, Status};

use super::{Server, methods};
use crate::fake::core::Core;
use crate::fake::rpc::Rpc;
use crate::pb::etcdserverpb::auth_server::Auth;
use crate::pb::etcdserverpb::*;

methods! {
    Auth {}
    auth_enable: AuthEnable, AuthEnableRequest => AuthEnableResponse;
    auth_disable: AuthDisable, AuthDisableRequest => AuthDisableResponse;
    auth_status: AuthStatus, AuthStatusRequest => AuthStatusResponse;
    authenticate: Authenticate, AuthenticateRequest => AuthenticateResponse;
    user_add: UserAdd, AuthUserAddRequest => AuthUserAddResponse;
    user_get: UserGet, AuthUserGetRequest => AuthUserGetResponse;
    user_list: UserList, AuthUserListRequest => AuthUserListResponse;
    user_delete: UserDelete, AuthUserDeleteRequest => AuthUserDeleteResponse;
    user_change_password: UserChangePassword, AuthUserChangePasswordRequest => AuthUserChangePasswordResponse;
    user_grant_role: UserGrantRole, AuthUserGrantRoleRequest => AuthUserGrantRoleResponse;
    user_revoke_role: UserRevokeRole, AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse;
    role_add: RoleAdd, AuthRoleAddRequest => AuthRoleAddResponse;
    role_get: RoleGet, AuthRoleGetRequest => AuthRoleGetResponse;
    role_list: RoleList, AuthRoleListRequest => AuthRoleListResponse;
    role_delete: RoleDelete, AuthRoleDeleteRequest => AuthRoleDeleteResponse;
    role_grant_permission: RoleGrantPermission, AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse;
    role_revoke_permission: RoleRevokePermission, AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse;
}
