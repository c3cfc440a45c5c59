//! Users, roles and permissions: what is done with them, drawn from a seed.

use bytes::Bytes;
use etcd_concurrency::pb::authpb::{Permission, UserAddOptions, permission};
use etcd_concurrency::pb::etcdserverpb::auth_client::AuthClient;
use etcd_concurrency::pb::etcdserverpb::*;
use fastrand::Rng;

use super::side::{Answer, Client, answer};
use super::stream::MARKER;
use crate::support::etcd::Version;

#[derive(Clone, Debug)]
pub(super) enum AuthOp {
    Enable(AuthEnableRequest),
    Disable(AuthDisableRequest),
    Status(AuthStatusRequest),
    /// The client goes on with the token that it gets.
    LogIn(AuthenticateRequest),
    AddUser(AuthUserAddRequest),
    GetUser(AuthUserGetRequest),
    Users(AuthUserListRequest),
    DeleteUser(AuthUserDeleteRequest),
    Password(AuthUserChangePasswordRequest),
    GrantRole(AuthUserGrantRoleRequest),
    RevokeRole(AuthUserRevokeRoleRequest),
    AddRole(AuthRoleAddRequest),
    GetRole(AuthRoleGetRequest),
    Roles(AuthRoleListRequest),
    DeleteRole(AuthRoleDeleteRequest),
    Permit(AuthRoleGrantPermissionRequest),
    Forbid(AuthRoleRevokePermissionRequest),
}

/// Whom each client logs in as; the last never does.
const USERS: [&str; 3] = ["runner", "alice", "bob"];

/// So is everybody's password at first.
const PASSWORD: &str = "x";

pub(super) async fn answer_to(client: Client, op: &AuthOp) -> Answer {
    let mut auth = AuthClient::new(client.service.clone());
    // Each by its method; all responses have a header.
    macro_rules! answers {
        ($($name:ident: $method:ident),* $(,)?) => {
            match op.clone() {
                AuthOp::LogIn(request) => {
                    let mut response = auth.authenticate(request).await;
                    if let Ok(response) = &mut response {
                        client.token.set(&std::mem::take(&mut response.get_mut().token));
                    }
                    answer(response, |r| &mut r.header)
                }
                $(AuthOp::$name(request) => answer(auth.$method(request).await, |r| &mut r.header),)*
            }
        };
    }
    answers! {
        Enable: auth_enable, Disable: auth_disable, Status: auth_status, AddUser: user_add, GetUser: user_get,
        Users: user_list, DeleteUser: user_delete, Password: user_change_password, GrantRole: user_grant_role,
        RevokeRole: user_revoke_role, AddRole: role_add, GetRole: role_get, Roles: role_list,
        DeleteRole: role_delete, Permit: role_grant_permission, Forbid: role_revoke_permission,
    }
}

/// What a sequence with users begins with.
pub(super) fn first() -> Vec<AuthOp> {
    let user = |name: &str| {
        AuthOp::AddUser(AuthUserAddRequest {
            name: name.into(),
            password: PASSWORD.into(),
            ..Default::default()
        })
    };
    let role = |name: &str| AuthOp::AddRole(AuthRoleAddRequest { name: name.into() });
    let grant = |user: &str, role: &str| {
        AuthOp::GrantRole(AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
    };
    let mut ops = vec![role("root"), role("marker"), role("some"), user("root"), grant("root", "root")];
    // Nobody loses the role `marker`: every stream has to see the marker.
    ops.push(permit("marker", permission::Type::Read.into(), MARKER, Bytes::new()));
    ops.push(permit("some", permission::Type::Readwrite.into(), "a".into(), "c".into()));
    ops.push(permit("some", permission::Type::Read.into(), "k/".into(), "k0".into()));
    for name in USERS {
        ops.extend([user(name), grant(name, "marker")]);
    }
    ops.extend([grant("runner", "root"), grant("alice", "some")]);
    ops.push(AuthOp::Enable(AuthEnableRequest {}));
    ops
}

pub(super) fn log_in(client: usize) -> Option<AuthOp> {
    let name = (*USERS.get(client)?).into();
    Some(AuthOp::LogIn(AuthenticateRequest { name, password: PASSWORD.into() }))
}

fn permit(role: &str, perm_type: i32, key: Bytes, range_end: Bytes) -> AuthOp {
    let perm = Some(Permission { perm_type, key, range_end });
    AuthOp::Permit(AuthRoleGrantPermissionRequest { name: role.into(), perm })
}

/// Any operation, with a range of keys for those about permissions. The runner and the marker are left alone.
pub(super) fn draw(rng: &mut Rng, version: Version, key: Bytes, range_end: Bytes) -> AuthOp {
    let mut pick = |texts: &[&str]| texts[rng.usize(0..texts.len())].to_owned();
    let user = pick(&["alice", "alice", "bob", "bob", "carol", "carol", "root", ""]);
    let role = pick(&["some", "some", "other", "other", "third", ""]);
    let password = pick(&[PASSWORD, PASSWORD, PASSWORD, "y", ""]);
    match rng.u32(0..40) {
        0 => AuthOp::Enable(AuthEnableRequest {}),
        1 => AuthOp::Disable(AuthDisableRequest {}),
        // Before 3.7 it is for administrators alone.
        2..4 if version >= Version::V3_7 => AuthOp::Status(AuthStatusRequest {}),
        2..12 => AuthOp::LogIn(AuthenticateRequest { name: user, password }),
        12..15 => {
            let options = Some(UserAddOptions { no_password: rng.u32(0..4) == 0 });
            AuthOp::AddUser(AuthUserAddRequest { name: user, password, options, ..Default::default() })
        }
        15..17 => AuthOp::GetUser(AuthUserGetRequest { name: user }),
        17 => AuthOp::Users(AuthUserListRequest {}),
        18 if user != "root" => AuthOp::DeleteUser(AuthUserDeleteRequest { name: user }),
        18 | 19 => {
            AuthOp::Password(AuthUserChangePasswordRequest { name: user, password, ..Default::default() })
        }
        20..24 => {
            let role = if rng.u32(0..12) == 0 { "root".into() } else { role };
            AuthOp::GrantRole(AuthUserGrantRoleRequest { user, role })
        }
        24..26 => {
            let role = if rng.u32(0..4) == 0 && user != "root" { "root".into() } else { role };
            AuthOp::RevokeRole(AuthUserRevokeRoleRequest { name: user, role })
        }
        26..28 => AuthOp::AddRole(AuthRoleAddRequest { name: role }),
        28..30 => AuthOp::GetRole(AuthRoleGetRequest { role }),
        30 => AuthOp::Roles(AuthRoleListRequest {}),
        31 => AuthOp::DeleteRole(AuthRoleDeleteRequest { role }),
        32..37 => permit(&role, rng.i32(0..3), key, range_end),
        _ => AuthOp::Forbid(AuthRoleRevokePermissionRequest { role, key, range_end }),
    }
}
