//! Why the server refuses a request: every refusal with etcd's own code and words.

use tonic::{Code, Status};

/// A refusal, as etcd names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    EmptyKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    InvalidSort,
    Compacted,
    FutureRevision,
    RequestTooLarge,
    NoSpace,
    Corrupt,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    MessageTooLarge {
        size: usize,
        limit: usize,
    },
    NoLeader,
    LeaderChanged,
    /// A linearizable read waited too long for a leader.
    TimedOut,
    /// So did a proposal: raft gives the deadline's own error back, and so does the server.
    DeadlineExceeded,
    Auth(AuthRefusal),
    /// One that only a single RPC knows, in full.
    Other(Code, &'static str),
}

/// What the users, roles and tokens refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthRefusal {
    NotEnabled,
    RootUserMissing,
    RootRoleMissing,
    UserExists,
    UserEmpty,
    UserNotFound,
    RoleExists,
    RoleEmpty,
    RoleNotFound,
    RoleNotGranted,
    PermissionNotGiven,
    PermissionNotGranted,
    PermissionDenied,
    Failed,
    /// A password for a user that has none.
    NoPassword,
    PasswordTooLong,
    InvalidToken,
    InvalidManagement,
    OldRevision,
}

impl Refusal {
    /// What goes over the wire.
    pub(crate) fn status(self) -> Status {
        if let Self::MessageTooLarge { size, limit } = self {
            let message = format!("grpc: received message larger than max ({size} vs. {limit})");
            return Status::resource_exhausted(message);
        }
        let (code, message) = self.words();
        Status::new(code, message)
    }

    /// Its code and message.
    pub(crate) fn words(self) -> (Code, &'static str) {
        match self {
            Self::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Self::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            Self::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            Self::TooManyOps => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            Self::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            Self::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
            Self::Compacted => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            Self::FutureRevision => {
                (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            Self::RequestTooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
            Self::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
            Self::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            Self::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            Self::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            Self::MessageTooLarge { .. } => {
                (Code::ResourceExhausted, "grpc: received message larger than max")
            }
            Self::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
            Self::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
            Self::TimedOut => (Code::Unavailable, "etcdserver: request timed out"),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "context deadline exceeded"),
            Self::Auth(refusal) => refusal.words(),
            Self::Other(code, message) => (code, message),
        }
    }
}

impl AuthRefusal {
    fn words(self) -> (Code, &'static str) {
        match self {
            Self::NotEnabled => (Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
            Self::RootUserMissing => (Code::FailedPrecondition, "etcdserver: root user does not exist"),
            Self::RootRoleMissing => {
                (Code::FailedPrecondition, "etcdserver: root user does not have root role")
            }
            Self::UserExists => (Code::FailedPrecondition, "etcdserver: user name already exists"),
            Self::UserEmpty => (Code::InvalidArgument, "etcdserver: user name is empty"),
            Self::UserNotFound => (Code::FailedPrecondition, "etcdserver: user name not found"),
            Self::RoleExists => (Code::FailedPrecondition, "etcdserver: role name already exists"),
            Self::RoleEmpty => (Code::InvalidArgument, "etcdserver: role name is empty"),
            Self::RoleNotFound => (Code::FailedPrecondition, "etcdserver: role name not found"),
            Self::RoleNotGranted => (Code::FailedPrecondition, "etcdserver: role is not granted to the user"),
            Self::PermissionNotGiven => (Code::InvalidArgument, "etcdserver: permission not given"),
            Self::PermissionNotGranted => {
                (Code::FailedPrecondition, "etcdserver: permission is not granted to the role")
            }
            Self::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
            Self::Failed => {
                (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
            }
            // The server has no code for these two.
            Self::NoPassword => {
                (Code::Unknown, "auth: authentication failed, password was given for no password user")
            }
            Self::PasswordTooLong => (Code::Unknown, "bcrypt: password length exceeds 72 bytes"),
            Self::InvalidToken => (Code::Unauthenticated, "etcdserver: invalid auth token"),
            Self::InvalidManagement => (Code::InvalidArgument, "etcdserver: invalid auth management"),
            Self::OldRevision => (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        }
    }
}

impl From<AuthRefusal> for Refusal {
    fn from(refusal: AuthRefusal) -> Self {
        Self::Auth(refusal)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.status()
    }
}
