//! Changing users, roles and permissions.

use bytes::Bytes;

use super::{Auth, Identity, ROOT, User};
use crate::fake::refusal::AuthRefusal::{self, *};
use crate::pb::authpb::{Permission, permission};
use crate::pb::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest,
};

type Result<T = ()> = std::result::Result<T, AuthRefusal>;

impl Auth {
    pub(crate) fn enable(&mut self) -> Result {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(RootUserMissing)?;
        if !root.is_root() {
            return Err(RootRoleMissing);
        }
        self.enabled = true;
        Ok(())
    }

    pub(crate) fn disable(&mut self) {
        if self.enabled {
            self.enabled = false;
            self.tokens.restart();
            self.changed();
        }
    }

    pub(crate) fn add_user(&mut self, request: &AuthUserAddRequest) -> Result {
        let no_password = request.options.is_some_and(|options| options.no_password);
        if !no_password {
            check_length(&request.password)?;
        }
        if request.name.is_empty() {
            return Err(UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(UserExists);
        }
        // A hash that came along is replaced by the password's own, even by that of none.
        let password = Some(request.password.clone()).filter(|_| !no_password);
        self.users.insert(request.name.clone(), User { password, no_password, roles: Vec::new() });
        self.changed();
        Ok(())
    }

    pub(crate) fn delete_user(&mut self, name: &str) -> Result {
        if self.enabled && name == ROOT {
            return Err(InvalidManagement);
        }
        self.users.remove(name).ok_or(UserNotFound)?;
        self.changed();
        self.tokens.forget_user(name);
        Ok(())
    }

    pub(crate) fn change_password(&mut self, request: &AuthUserChangePasswordRequest) -> Result {
        check_length(&request.password)?;
        let user = self.users.get_mut(&request.name).ok_or(UserNotFound)?;
        user.password =
            Some(request.password.clone()).filter(|password| !user.no_password && !password.is_empty());
        self.changed();
        self.tokens.forget_user(&request.name);
        Ok(())
    }

    pub(crate) fn grant_role(&mut self, user: &str, role: &str) -> Result {
        let user = self.users.get_mut(user).ok_or(UserNotFound)?;
        // The root role need not exist.
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(RoleNotFound);
        }
        if let Err(place) = user.roles.binary_search_by(|held| held.as_str().cmp(role)) {
            user.roles.insert(place, role.to_owned());
            self.changed();
        }
        Ok(())
    }

    pub(crate) fn revoke_role(&mut self, user: &str, role: &str) -> Result {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(InvalidManagement);
        }
        let held = &mut self.users.get_mut(user).ok_or(UserNotFound)?.roles;
        let place = held.iter().position(|held| held == role).ok_or(RoleNotGranted)?;
        held.remove(place);
        self.changed();
        Ok(())
    }

    pub(crate) fn roles_of(&self, user: &str) -> Result<Vec<String>> {
        self.users.get(user).map(|user| user.roles.clone()).ok_or(UserNotFound)
    }

    pub(crate) fn users(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    pub(crate) fn add_role(&mut self, name: &str) -> Result {
        if name.is_empty() {
            return Err(RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(RoleExists);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        self.changed();
        Ok(())
    }

    pub(crate) fn delete_role(&mut self, name: &str) -> Result {
        if self.enabled && name == ROOT {
            return Err(InvalidManagement);
        }
        self.roles.remove(name).ok_or(RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.retain(|role| role != name);
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn roles(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    pub(crate) fn role(&self, name: &str) -> Result<Vec<Permission>> {
        let permissions = self.roles.get(name).ok_or(RoleNotFound)?;
        if name == ROOT {
            let everything = Permission {
                perm_type: permission::Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            };
            return Ok(vec![everything]);
        }
        Ok(permissions.clone())
    }

    pub(crate) fn has_role(&self, identity: Option<&Identity>, role: &str) -> bool {
        let user = identity.and_then(|identity| self.users.get(&identity.user));
        user.is_some_and(|user| user.roles.iter().any(|held| held == role))
    }

    pub(crate) fn grant_permission(&mut self, request: &AuthRoleGrantPermissionRequest) -> Result {
        let granted = request.perm.as_ref().ok_or(PermissionNotGiven)?;
        let (key, end) = (&granted.key, &granted.range_end);
        if key.is_empty() || !(end.is_empty() || end.as_ref() == [0] || key < end) {
            return Err(InvalidManagement);
        }
        let permissions = self.roles.get_mut(&request.name).ok_or(RoleNotFound)?;
        // Only the first of a key's permissions is looked at, so others may come to be there twice.
        let place = permissions.partition_point(|permission| permission.key < key);
        match permissions.get_mut(place) {
            Some(permission) if permission.key == key && permission.range_end == end => {
                permission.perm_type = granted.perm_type;
            }
            _ => {
                let after = permissions.partition_point(|permission| permission.key <= key);
                permissions.insert(after, granted.clone());
            }
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn revoke_permission(&mut self, request: &AuthRoleRevokePermissionRequest) -> Result {
        let permissions = self.roles.get_mut(&request.role).ok_or(RoleNotFound)?;
        let before = permissions.len();
        permissions
            .retain(|permission| permission.key != request.key || permission.range_end != request.range_end);
        if permissions.len() == before {
            return Err(PermissionNotGranted);
        }
        self.changed();
        Ok(())
    }

    fn changed(&mut self) {
        self.revision += 1;
    }
}

/// What bcrypt takes.
fn check_length(password: &str) -> Result {
    if password.len() > 72 { Err(PasswordTooLong) } else { Ok(()) }
}
