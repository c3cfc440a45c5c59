//! How messages are shown that hold what belongs in no log: passwords and tokens not at all, values by their beginning.

use std::fmt;

use super::authpb::User;
use super::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse, Compare,
    PutRequest, SnapshotResponse,
};
use super::mvccpb::KeyValue;
use super::v3electionpb::{CampaignRequest, ProclaimRequest};
use crate::error::quote::{Payload, Secret};

/// `shown!(Message { plain, fields }, payload: [value], secret: [password])`
macro_rules! shown {
    ($message:ident { $($field:ident),* }, payload: [$($payload:ident),*], secret: [$($secret:ident),*]) => {
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))*
                    $(.field(stringify!($payload), &Payload(&self.$payload)))*
                    $(.field(stringify!($secret), &Secret(&self.$secret)))*
                    .finish()
            }
        }
    };
}

shown!(KeyValue { create_revision, mod_revision, version, lease }, payload: [key, value], secret: []);
shown!(PutRequest { lease, prev_kv, ignore_value, ignore_lease }, payload: [key, value], secret: []);
shown!(SnapshotResponse { header, remaining_bytes, version }, payload: [blob], secret: []);
shown!(CampaignRequest { name, lease }, payload: [value], secret: []);
shown!(ProclaimRequest { leader }, payload: [value], secret: []);
shown!(AuthenticateRequest { name }, payload: [], secret: [password]);
shown!(AuthenticateResponse { header }, payload: [], secret: [token]);
shown!(AuthUserAddRequest { name, options }, payload: [], secret: [password, hashed_password]);
shown!(AuthUserChangePasswordRequest { name }, payload: [], secret: [password, hashed_password]);

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.password.is_empty() { "" } else { "***" };
        f.debug_struct("User")
            .field("name", &self.name)
            .field("password", &Secret(password))
            .field("roles", &self.roles)
            .field("options", &self.options)
            .finish()
    }
}

// With a message go the types within it.

impl fmt::Debug for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compare")
            .field("result", &self.result())
            .field("target", &self.target())
            .field("key", &Payload(&self.key))
            .field("range_end", &Payload(&self.range_end))
            .field("target_union", &self.target_union)
            .finish()
    }
}

impl fmt::Debug for CompareResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str_name())
    }
}

impl fmt::Debug for CompareTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str_name())
    }
}

impl fmt::Debug for TargetUnion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, number) = match self {
            Self::Value(value) => return f.debug_tuple("Value").field(&Payload(value)).finish(),
            Self::Version(version) => ("Version", version),
            Self::CreateRevision(revision) => ("CreateRevision", revision),
            Self::ModRevision(revision) => ("ModRevision", revision),
            Self::Lease(lease) => ("Lease", lease),
        };
        f.debug_tuple(name).field(number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{RangeResponse, TxnRequest};

    /// A program logged the request by which it signed in, and with it the password; another a transaction with its
    /// megabyte of somebody's data.
    #[test]
    fn secrets_and_payloads_are_not_shown() {
        let secret = || "hunter2".to_owned();
        let asked = AuthenticateRequest { name: "root".into(), password: secret() };
        let answered = AuthenticateResponse { header: None, token: secret() };
        let added =
            AuthUserAddRequest { password: secret(), hashed_password: secret(), ..Default::default() };
        let changed = AuthUserChangePasswordRequest {
            password: secret(),
            hashed_password: secret(),
            ..Default::default()
        };
        let stored = User { password: secret().into(), ..Default::default() };
        let shown = format!("{asked:?} {answered:?} {added:?} {changed:?} {stored:?}");
        assert!(!shown.contains("hunter2") && shown.contains("root"), "{shown}");

        let large = bytes::Bytes::from(vec![b'x'; 1_000_000]);
        let kv = KeyValue { key: "k".into(), value: large.clone(), ..Default::default() };
        let range = RangeResponse { kvs: vec![kv], ..Default::default() };
        let txn = crate::txn::Txn::new()
            .compare(crate::txn::Compare::value("k").is(large.clone()))
            .success(crate::txn::Op::put("k", large.clone()))
            .failure(crate::txn::Op::txn(crate::txn::Txn::new().success(crate::txn::Op::put("k", large))));
        let shown = format!("{range:?} {txn:?} {:?}", TxnRequest::from(txn.clone()));
        assert!(shown.len() < 4000 && shown.contains("(1000000 bytes)"), "{} bytes", shown.len());
    }
}
