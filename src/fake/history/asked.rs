//! Requests: what each needs of the cluster, what is wrong with it at first sight, and how it reads in short.

use std::any::Any;
use std::fmt;

use prost::Message;

use super::super::core::Config;
use super::super::refusal::Refusal;
use super::super::{check, range, txn};
use crate::pb::etcdserverpb::compare::{CompareResult, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::*;
use crate::pb::v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest};
use crate::pb::v3lockpb::{LockRequest, UnlockRequest};

/// What a request needs of the cluster before it can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// This member alone.
    Nothing,
    /// That this member is up to date: a linearizable read.
    Read,
    /// A proposal.
    Proposal,
    /// The leader itself, which keeps the leases.
    Leader,
}

/// A request.
pub(crate) trait Asked: Send + Sync + 'static {
    fn need(&self) -> Need {
        Need::Proposal
    }

    /// What the server refuses before anything else.
    fn check(&self, _: &Config) -> Result<(), Refusal> {
        Ok(())
    }

    /// The message as it came.
    fn message(&self) -> &dyn Any
    where
        Self: Sized,
    {
        self
    }

    /// Its size on the wire.
    fn size(&self) -> usize;

    /// The request in short, without secrets.
    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Need {
    /// What a call gets that waited in vain. A proposal's deadline passes in raft, whose error has no words of
    /// etcd's.
    pub(crate) fn in_vain(self) -> Refusal {
        match self {
            Self::Nothing | Self::Read => Refusal::TimedOut,
            Self::Proposal => Refusal::DeadlineExceeded,
            Self::Leader => Refusal::NoLeader,
        }
    }
}

impl Asked for RangeRequest {
    fn need(&self) -> Need {
        if self.serializable { Need::Nothing } else { Need::Read }
    }

    fn check(&self, _: &Config) -> Result<(), Refusal> {
        range::check(self)
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys(f, &self.key, &self.range_end)?;
        if self.revision > 0 {
            write!(f, " at {}", self.revision)?;
        }
        if self.limit > 0 {
            write!(f, " limit {}", self.limit)?;
        }
        for (set, name) in [
            (self.keys_only, " keys only"),
            (self.count_only, " count only"),
            (self.serializable, " serializable"),
        ] {
            if set {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// A range whose answer is streamed.
#[derive(Debug)]
pub(crate) struct Streamed(pub(crate) RangeRequest);

impl Asked for Streamed {
    fn need(&self) -> Need {
        self.0.need()
    }

    fn check(&self, _: &Config) -> Result<(), Refusal> {
        range::check_stream(&self.0)
    }

    fn message(&self) -> &dyn Any {
        &self.0
    }

    fn size(&self) -> usize {
        self.0.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.short(f)
    }
}

impl Asked for PutRequest {
    fn check(&self, _: &Config) -> Result<(), Refusal> {
        check::put(self)
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = ", self.key.escape_ascii())?;
        if self.ignore_value {
            f.write_str("(as it is)")?
        } else {
            value(f, &self.value)?
        }
        if self.lease == 0 { Ok(()) } else { write!(f, " lease {:x}", self.lease) }
    }
}

impl Asked for DeleteRangeRequest {
    fn check(&self, _: &Config) -> Result<(), Refusal> {
        check::delete_range(self)
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys(f, &self.key, &self.range_end)
    }
}

impl Asked for TxnRequest {
    fn need(&self) -> Need {
        if !txn::is_read_only(self) {
            Need::Proposal
        } else if txn::is_serializable(self) {
            Need::Nothing
        } else {
            Need::Read
        }
    }

    fn check(&self, config: &Config) -> Result<(), Refusal> {
        check::txn(self, config.max_txn_ops)
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.compare.is_empty() {
            f.write_str("if ")?;
            for (index, one) in self.compare.iter().enumerate() {
                f.write_str(if index > 0 { " and " } else { "" })?;
                compare(f, one)?;
            }
            f.write_str(" then ")?;
        }
        operations(f, &self.success)?;
        if self.failure.is_empty() {
            return Ok(());
        }
        f.write_str(" else ")?;
        operations(f, &self.failure)
    }
}

impl Asked for WatchCreateRequest {
    fn need(&self) -> Need {
        Need::Nothing
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        keys(f, &self.key, &self.range_end)?;
        if self.start_revision == 0 { Ok(()) } else { write!(f, " from {}", self.start_revision) }
    }
}

impl Asked for MemberListRequest {
    fn need(&self) -> Need {
        if self.linearizable { Need::Read } else { Need::Nothing }
    }

    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Asked for UnlockRequest {
    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn short(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key.escape_ascii())
    }
}

/// Requests that need no more than a line each.
macro_rules! asked {
    ($($request:ty: $need:ident, |$this:ident, $f:ident| $short:expr;)*) => { $(
        impl Asked for $request {
            fn need(&self) -> Need {
                Need::$need
            }

            fn size(&self) -> usize {
                self.encoded_len()
            }

            fn short(&self, $f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $this = self;
                $short
            }
        }
    )* };
}

asked! {
    CompactionRequest: Proposal, |this, f| write!(f, "up to {}", this.revision);
    WatchCancelRequest: Nothing, |this, f| write!(f, "cancel watcher {}", this.watch_id);
    LeaseGrantRequest: Proposal, |this, f| write!(f, "{:x} for {} s", this.id, this.ttl);
    LeaseRevokeRequest: Proposal, |this, f| write!(f, "{:x}", this.id);
    LeaseKeepAliveRequest: Leader, |this, f| write!(f, "{:x}", this.id);
    LeaseTimeToLiveRequest: Leader, |this, f| write!(f, "{:x}", this.id);
    LeaseLeasesRequest: Nothing, |_this, _f| Ok(());
    MemberAddRequest: Proposal, |this, f| write!(f, "{}", this.peer_ur_ls.join(","));
    MemberRemoveRequest: Proposal, |this, f| write!(f, "{:x}", this.id);
    MemberUpdateRequest: Proposal, |this, f| write!(f, "{:x} {}", this.id, this.peer_ur_ls.join(","));
    MemberPromoteRequest: Leader, |this, f| write!(f, "{:x}", this.id);
    AlarmRequest: Proposal, |this, f| write!(f, "{:?} {:?}", this.action(), this.alarm());
    StatusRequest: Nothing, |_this, _f| Ok(());
    DefragmentRequest: Nothing, |_this, _f| Ok(());
    HashRequest: Nothing, |_this, _f| Ok(());
    HashKvRequest: Nothing, |this, f| write!(f, "at {}", this.revision);
    SnapshotRequest: Nothing, |_this, _f| Ok(());
    MoveLeaderRequest: Nothing, |this, f| write!(f, "to {:x}", this.target_id);
    DowngradeRequest: Proposal, |this, f| write!(f, "{:?} {}", this.action(), this.version);
    AuthEnableRequest: Proposal, |_this, _f| Ok(());
    AuthDisableRequest: Proposal, |_this, _f| Ok(());
    AuthStatusRequest: Proposal, |_this, _f| Ok(());
    AuthenticateRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthUserAddRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthUserGetRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthUserListRequest: Proposal, |_this, _f| Ok(());
    AuthUserDeleteRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthUserChangePasswordRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthUserGrantRoleRequest: Proposal, |this, f| write!(f, "{} to {}", this.role, this.user);
    AuthUserRevokeRoleRequest: Proposal, |this, f| write!(f, "{} from {}", this.role, this.name);
    AuthRoleAddRequest: Proposal, |this, f| f.write_str(&this.name);
    AuthRoleGetRequest: Proposal, |this, f| f.write_str(&this.role);
    AuthRoleListRequest: Proposal, |_this, _f| Ok(());
    AuthRoleDeleteRequest: Proposal, |this, f| f.write_str(&this.role);
    AuthRoleGrantPermissionRequest: Proposal, |this, f| {
        let Some(permission) = &this.perm else { return f.write_str(&this.name) };
        write!(f, "{:?} ", permission.perm_type())?;
        keys(f, &permission.key, &permission.range_end)?;
        write!(f, " to {}", this.name)
    };
    AuthRoleRevokePermissionRequest: Proposal, |this, f| {
        keys(f, &this.key, &this.range_end)?;
        write!(f, " from {}", this.role)
    };
    LockRequest: Proposal, |this, f| write!(f, "{} lease {:x}", this.name.escape_ascii(), this.lease);
    CampaignRequest: Proposal, |this, f| {
        write!(f, "{} lease {:x} with ", this.name.escape_ascii(), this.lease)?;
        value(f, &this.value)
    };
    ProclaimRequest: Proposal, |this, f| {
        let key = this.leader.as_ref().map(|leader| &*leader.key).unwrap_or_default();
        write!(f, "{} = ", key.escape_ascii())?;
        value(f, &this.value)
    };
    LeaderRequest: Read, |this, f| write!(f, "{}", this.name.escape_ascii());
    ResignRequest: Proposal, |this, f| {
        let key = this.leader.as_ref().map(|leader| &*leader.key).unwrap_or_default();
        write!(f, "{}", key.escape_ascii())
    };
}

/// A key, `prefix*`, or `[start, end)`.
fn keys(f: &mut fmt::Formatter<'_>, key: &[u8], end: &[u8]) -> fmt::Result {
    let start = key.escape_ascii();
    match end {
        [] => write!(f, "{start}"),
        [0] if key == [0] => f.write_str("*"),
        [0] => write!(f, "[{start}, ...)"),
        end if crate::key::prefix_end(key) == end => write!(f, "{start}*"),
        end => write!(f, "[{start}, {})", end.escape_ascii()),
    }
}

fn value(f: &mut fmt::Formatter<'_>, value: &[u8]) -> fmt::Result {
    match value.get(..MAX_VALUE) {
        Some(head) if value.len() > MAX_VALUE => {
            write!(f, "\"{}\"... ({} bytes)", head.escape_ascii(), value.len())
        }
        _ => write!(f, "\"{}\"", value.escape_ascii()),
    }
}

fn compare(f: &mut fmt::Formatter<'_>, compare: &Compare) -> fmt::Result {
    let sign = match compare.result() {
        CompareResult::Equal => "=",
        CompareResult::NotEqual => "!=",
        CompareResult::Greater => ">",
        CompareResult::Less => "<",
    };
    write!(f, "{}(", format!("{:?}", compare.target()).to_lowercase())?;
    keys(f, &compare.key, &compare.range_end)?;
    write!(f, ") {sign} ")?;
    match &compare.target_union {
        Some(
            TargetUnion::Version(number)
            | TargetUnion::CreateRevision(number)
            | TargetUnion::ModRevision(number),
        ) => write!(f, "{number}"),
        Some(TargetUnion::Lease(lease)) => write!(f, "{lease:x}"),
        Some(TargetUnion::Value(bytes)) => value(f, bytes),
        None => f.write_str("nothing"),
    }
}

fn operations(f: &mut fmt::Formatter<'_>, operations: &[RequestOp]) -> fmt::Result {
    if operations.is_empty() {
        return f.write_str("nothing");
    }
    for (index, operation) in operations.iter().enumerate() {
        f.write_str(if index > 0 { ", " } else { "" })?;
        match &operation.request {
            Some(Request::RequestRange(range)) => {
                f.write_str("get ")?;
                range.short(f)?;
            }
            Some(Request::RequestPut(put)) => {
                f.write_str("put ")?;
                put.short(f)?;
            }
            Some(Request::RequestDeleteRange(delete)) => {
                f.write_str("delete ")?;
                delete.short(f)?;
            }
            Some(Request::RequestTxn(txn)) => {
                f.write_str("(")?;
                txn.short(f)?;
                f.write_str(")")?;
            }
            None => f.write_str("?")?,
        }
    }
    Ok(())
}

/// Longer values are cut.
const MAX_VALUE: usize = 40;
