use super::*;
use crate::pb::authpb::permission::Type;
use crate::pb::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
};

const NOW: Duration = Duration::ZERO;

fn user(name: &str, password: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

fn permission(role: &str, access: Type, key: &str, end: &str) -> AuthRoleGrantPermissionRequest {
    let perm =
        Permission { perm_type: access.into(), key: key.to_owned().into(), range_end: end.to_owned().into() };
    AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) }
}

/// With root, and a user `u` who may read `a` to `c` and write `w`.
fn enabled() -> Auth {
    let mut auth = Auth::new(Duration::from_secs(300), false, 0);
    let build = |auth: &mut Auth| -> Result<(), AuthRefusal> {
        auth.add_user(&user("root", "r"))?;
        auth.grant_role("root", "root")?;
        auth.add_user(&user("u", "p"))?;
        auth.add_role("reader")?;
        auth.grant_permission(&permission("reader", Type::Read, "a", "c"))?;
        auth.grant_permission(&permission("reader", Type::Write, "w", ""))?;
        auth.grant_role("u", "reader")?;
        auth.enable()
    };
    build(&mut auth).expect("all of it is allowed");
    auth
}

fn identity(auth: &mut Auth, name: &str, password: &str) -> Option<Identity> {
    let token = auth.authenticate(name, password, 1, NOW).ok()?;
    auth.identify(&Caller { now: NOW, token: Some(&token) }).ok()?
}

#[test]
fn to_enable_it_root_must_be_there_with_its_role() {
    let mut auth = Auth::new(Duration::from_secs(300), false, 0);
    assert_eq!(auth.enable(), Err(AuthRefusal::RootUserMissing));
    auth.add_user(&user("root", "r")).expect("added");
    assert_eq!(auth.enable(), Err(AuthRefusal::RootRoleMissing));
    auth.grant_role("root", "root").expect("it need not exist");
    assert_eq!(auth.enable(), Ok(()));
    assert_eq!(auth.delete_user("root"), Err(AuthRefusal::InvalidManagement));
    assert_eq!(auth.revoke_role("root", "root"), Err(AuthRefusal::InvalidManagement));
    assert_eq!(auth.delete_role("root"), Err(AuthRefusal::InvalidManagement));
    let before = auth.revision();
    auth.disable();
    assert_eq!((auth.enabled(), auth.revision()), (false, before + 1));
    assert_eq!(auth.delete_user("root"), Ok(()));
}

#[test]
fn checks_what_each_may() {
    let mut auth = enabled();
    let (root, user) = (identity(&mut auth, "root", "r"), identity(&mut auth, "u", "p"));
    let denied = Err(Refusal::Auth(AuthRefusal::PermissionDenied));
    assert_eq!(auth.check(root.as_ref(), Access::Write, b"x", b"\0"), Ok(()));
    assert_eq!(auth.check(user.as_ref(), Access::Read, b"a", b"c"), Ok(()));
    assert_eq!(auth.check(user.as_ref(), Access::Write, b"w", b""), Ok(()));
    assert_eq!(auth.check(user.as_ref(), Access::Write, b"a", b""), denied);
    assert_eq!(auth.check_admin(user.as_ref()), denied);
    assert_eq!(auth.check_admin(root.as_ref()), Ok(()));
    let nobody = Err(Refusal::Auth(AuthRefusal::UserEmpty));
    assert_eq!(auth.check(None, Access::Read, b"a", b""), nobody);
    assert_eq!(auth.check_admin(None), nobody);
}

#[test]
fn only_the_right_password_gets_a_token() {
    let mut auth = enabled();
    assert_eq!(auth.authenticate("u", "wrong", 1, NOW), Err(AuthRefusal::Failed));
    assert_eq!(auth.authenticate("nobody", "p", 1, NOW), Err(AuthRefusal::Failed));
    let old = auth.authenticate("u", "p", 1, NOW).expect("the right one");
    let change =
        AuthUserChangePasswordRequest { name: "u".into(), password: "new".into(), ..Default::default() };
    auth.change_password(&change).expect("changed");
    let refused = auth.identify(&Caller { now: NOW, token: Some(&old) });
    assert_eq!(refused, Err(Refusal::Auth(AuthRefusal::InvalidToken)));
    assert!(identity(&mut auth, "u", "new").is_some());
    auth.expire_tokens();
    auth.disable();
    assert_eq!(auth.authenticate("u", "new", 1, NOW), Err(AuthRefusal::NotEnabled));
    assert_eq!(auth.identify(&Caller { now: NOW, token: Some(&old) }), Ok(None), "nobody asks any more");
}

#[test]
fn granting_twice_changes_nothing_and_roles_end_with_their_holders() {
    let mut auth = enabled();
    let before = auth.revision();
    assert_eq!(auth.grant_role("u", "reader"), Ok(()));
    assert_eq!(auth.revision(), before);
    assert_eq!(auth.delete_role("reader"), Ok(()));
    assert_eq!(auth.roles_of("u"), Ok(vec![]));
    assert_eq!(auth.revoke_role("u", "reader"), Err(AuthRefusal::RoleNotGranted));
    assert_eq!(auth.grant_role("u", "reader"), Err(AuthRefusal::RoleNotFound));
}

#[test]
fn permissions_are_replaced_kept_in_order_and_refused() {
    let mut auth = enabled();
    auth.grant_permission(&permission("reader", Type::Readwrite, "a", "c")).expect("replaced");
    auth.grant_permission(&permission("reader", Type::Read, "a", "b")).expect("another");
    let kinds: Vec<_> = auth
        .role("reader")
        .expect("there")
        .iter()
        .map(|permission| (permission.key.clone(), permission.range_end.clone(), permission.perm_type()))
        .collect();
    let expected = [("a", "c", Type::Readwrite), ("a", "b", Type::Read), ("w", "", Type::Write)];
    assert_eq!(kinds, expected.map(|(key, end, kind)| (key.into(), end.into(), kind)));
    for (key, end) in [("", ""), ("b", "a"), ("b", "b")] {
        let refused = auth.grant_permission(&permission("reader", Type::Read, key, end));
        assert_eq!(refused, Err(AuthRefusal::InvalidManagement));
    }
}
