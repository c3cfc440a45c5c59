//! Users, roles, permissions and tokens, as etcd keeps them.
//!
//! Pure: time is an argument. Passwords are kept as they are; this is no place for real ones.

mod admin;
mod permissions;
mod tokens;

use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) use self::permissions::Access;
use self::permissions::permits;
use self::tokens::Tokens;
use super::core::Caller;
use super::refusal::{AuthRefusal, Refusal};
use crate::pb::authpb::Permission;

/// Who may do what.
#[derive(Debug)]
pub(crate) struct Auth {
    enabled: bool,
    /// Counts every change.
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<Permission>>,
    tokens: Tokens,
    /// So many tokens are refused, whatever they are.
    refused: (u64, AuthRefusal),
}

/// Who calls, as the server believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    /// The revision of users and roles that the token is good for.
    revision: u64,
}

#[derive(Debug, Clone, Default)]
struct User {
    /// `None` for a hash that came ready-made: it fits no password.
    password: Option<String>,
    no_password: bool,
    /// In order.
    roles: Vec<String>,
}

/// The user and the role that may do everything.
const ROOT: &str = "root";

impl Auth {
    pub(crate) fn new(token_ttl: Duration, jwt: bool, seed: u64) -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            tokens: Tokens::new(token_ttl, jwt, seed),
            refused: (0, AuthRefusal::InvalidToken),
        }
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes all tokens invalid.
    pub(crate) fn expire_tokens(&mut self) {
        self.tokens.clear();
    }

    /// Refuses the next tokens.
    pub(crate) fn refuse_tokens(&mut self, times: u64, with: AuthRefusal) {
        self.refused = (times, with);
    }

    /// The server has stopped: simple tokens lived in its memory.
    pub(crate) fn restart(&mut self) {
        self.tokens.restart();
    }

    /// A token for a user who knows the password; `index` is where raft is.
    pub(crate) fn authenticate(
        &mut self,
        name: &str,
        password: &str,
        index: u64,
        now: Duration,
    ) -> Result<String, AuthRefusal> {
        if !self.enabled {
            return Err(AuthRefusal::NotEnabled);
        }
        let user = self.users.get(name).ok_or(AuthRefusal::Failed)?;
        if user.no_password {
            return Err(AuthRefusal::NoPassword);
        }
        if user.password.as_deref() != Some(password) {
            return Err(AuthRefusal::Failed);
        }
        Ok(self.tokens.issue(name, self.revision, index, now))
    }

    /// Who calls: nobody where there is no token, or no auth.
    pub(crate) fn identify(&mut self, caller: &Caller<'_>) -> Result<Option<Identity>, Refusal> {
        let Some(token) = caller.token.filter(|_| self.enabled) else { return Ok(None) };
        if let (left @ 1.., with) = &mut self.refused {
            *left -= 1;
            return Err((*with).into());
        }
        let identity = self.tokens.look_up(token, self.revision, caller.now);
        identity.map(Some).ok_or_else(|| AuthRefusal::InvalidToken.into())
    }

    /// Who calls, where somebody must.
    pub(crate) fn require(&mut self, caller: &Caller<'_>) -> Result<Option<Identity>, Refusal> {
        let identity = self.identify(caller)?;
        if self.enabled && identity.is_none() {
            return Err(AuthRefusal::UserEmpty.into());
        }
        Ok(identity)
    }

    /// Whether somebody may read or write a range; an empty end means the key alone.
    pub(crate) fn check(
        &self,
        identity: Option<&Identity>,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let identity = identity.ok_or(AuthRefusal::UserEmpty)?;
        if identity.revision < self.revision {
            return Err(AuthRefusal::OldRevision.into());
        }
        let user = self.users.get(&identity.user).ok_or(AuthRefusal::PermissionDenied)?;
        if user.is_root() || permits(self.permissions_of(user), access, key, range_end) {
            Ok(())
        } else {
            Err(AuthRefusal::PermissionDenied.into())
        }
    }

    /// Whether somebody may do everything.
    pub(crate) fn check_admin(&self, identity: Option<&Identity>) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let identity = identity.ok_or(AuthRefusal::UserEmpty)?;
        let user = self.users.get(&identity.user).ok_or(AuthRefusal::UserNotFound)?;
        if user.is_root() { Ok(()) } else { Err(AuthRefusal::PermissionDenied.into()) }
    }

    fn permissions_of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Permission> {
        user.roles.iter().filter_map(|role| self.roles.get(role)).flatten()
    }
}

impl User {
    fn is_root(&self) -> bool {
        self.roles.iter().any(|role| role == ROOT)
    }
}

#[cfg(test)]
mod tests;
