//! The server's messages, as etcd 3.4 to 3.7 word them, and what each says of the write that it answers.
//!
//! A write passes three places: the member that was asked looks at it (the front), the leader appends it to the log,
//! and every member applies it. An error of the first place comes before anything can have been written. One of the last
//! comes from the look at the state before the first operation, with one exception: when its own database is over its
//! quota, a member applies the write and answers with an error all the same. Once an operation of a transaction has
//! begun, a member that cannot end it panics, so no error tells of half a transaction.
//!
//! | Message (after `etcdserver: `) | Who says it, of a write | The write |
//! |---|---|---|
//! | key is not provided, value is provided, lease is provided, too many operations in txn request, duplicate key given in txn request, invalid sort option | the front | not applied |
//! | request is too large | the front | not applied |
//! | gRPC's own "received message larger than max (S vs. M)" | the front, of a request of S bytes; or a proxy on the way, of either direction: then S may be the size of the answer to a write that was applied | not applied where the request is of S bytes, else unknown |
//! | too many requests | the front: too much is committed and not applied | not applied |
//! | not capable, rpc not supported for learner, invalid client api version | the front | not applied |
//! | no leader | the front, for a request that asked to be refused then (all of ours do) | not applied |
//! | `raft proposal dropped` (no prefix) | the log, before it appends | not applied |
//! | invalid auth token, authentication failed | the front | not applied |
//! | user name is empty, revision of auth store is old, permission denied | the front; and apply, which looks at all keys, those of nested transactions too, before it does anything | not applied |
//! | requested lease not found, key not found, mvcc: required revision has been compacted, mvcc: required revision is a future revision | apply, which looks at every operation of the branches taken before it begins the first | not applied |
//! | lease already exists, too large lease TTL | apply, before the grant; the lease that exists may be that of an earlier attempt | not applied |
//! | corrupt cluster | apply, in the place of everything: the alarm is in the log, so all members refuse alike | not applied |
//! | mvcc: database space exceeded | the front; apply in the place of everything while the alarm is raised; and **apply after the write**, by the member whose database went over its quota. All in the same words | unknown |
//! | request timed out (all forms), leader changed, server stopped, request canceled; `raft: stopped`, `context deadline exceeded`, `context canceled` (no prefix) | who waited for the log or for apply | unknown |
//! | unhealthy cluster, and every message that is not here with another code than InvalidArgument and FailedPrecondition | not looked into | unknown |
//!
//! InvalidArgument and FailedPrecondition are the codes of the front and of apply's look before the first operation; with
//! etcd's prefix they say "not applied" whatever the message.

use tonic::Code;

use crate::error::{ErrorKind, Outcome, quote};

/// What a message says, if it is one that has a kind of its own.
pub(super) fn by_message(message: &str) -> Option<(ErrorKind, Outcome)> {
    use Outcome::{NotApplied, Unknown};
    let words = || quote::bounded(message);
    // Raft's, the lessor's and gRPC's own errors come without the prefix.
    if message.contains("not a primary lessor") {
        return Some((ErrorKind::LeaderChanged, NotApplied));
    }
    if message.contains("raft proposal dropped") {
        return Some((ErrorKind::NoLeader, NotApplied));
    }
    if message == "raft: stopped" {
        return Some((ErrorKind::Unavailable { message: words() }, Unknown));
    }
    if message.contains(LARGER) {
        return Some((ErrorKind::AnswerTooLarge { message: words() }, Unknown));
    }
    let said = message.strip_prefix(SERVER)?;
    Some(match said {
        "requested lease not found" => (ErrorKind::LeaseNotFound, NotApplied),
        "lease already exists" => (ErrorKind::LeaseExists, NotApplied),
        "too large lease TTL" => (ErrorKind::Refused { message: words() }, NotApplied),
        "mvcc: required revision has been compacted" => (ErrorKind::Compacted { revision: 0 }, NotApplied),
        "mvcc: required revision is a future revision" => (ErrorKind::FutureRevision, NotApplied),
        // The front's and apply's words are the same.
        "mvcc: database space exceeded" => (ErrorKind::NoSpace, Unknown),
        // How many of what is known where the request is.
        "too many operations in txn request" => {
            (ErrorKind::TooManyOps { compares: 0, success: 0, failure: 0 }, NotApplied)
        }
        "request is too large" => (ErrorKind::TooLarge, NotApplied),
        "too many requests" => (ErrorKind::TooManyRequests, NotApplied),
        "no leader" => (ErrorKind::NoLeader, NotApplied),
        "leader changed" => (ErrorKind::LeaderChanged, Unknown),
        "server stopped" => (ErrorKind::Unavailable { message: words() }, Unknown),
        "corrupt cluster" => (ErrorKind::Other { code: Code::DataLoss, message: words() }, NotApplied),
        "permission denied" => (ErrorKind::PermissionDenied, NotApplied),
        "invalid auth token" | "revision of auth store is old" => (ErrorKind::InvalidToken, NotApplied),
        NO_USER | "authentication failed, invalid user ID or password" => {
            (ErrorKind::Unauthenticated { message: words() }, NotApplied)
        }
        _ if said.starts_with("request timed out") => (ErrorKind::ServerTimeout, Unknown),
        _ if said.starts_with("not capable") || said.starts_with("rpc not supported for learner") => {
            (ErrorKind::Unsupported { message: words() }, NotApplied)
        }
        _ => return None,
    })
}

/// True where gRPC says of a message of this many bytes that it is too large for whom it reached.
pub(super) fn is_too_large(message: &str, size: impl Fn() -> usize) -> bool {
    let said = message.split_once(LARGER).and_then(|(_, said)| said.strip_prefix(" ("));
    said.and_then(|said| said.split_once(' ')).is_some_and(|(found, _)| found.parse() == Ok(size()))
}

const LARGER: &str = "received message larger than max";
/// Before all that etcd's server says for itself.
pub(super) const SERVER: &str = "etcdserver: ";
/// What a member says to a request without a token.
pub(super) const NO_USER: &str = "user name is empty";

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::super::{error, error_of};
    use super::*;

    /// Each row of the table above, with the code that the server sends.
    #[test]
    fn every_message_says_what_became_of_the_write() {
        use Code::{Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound};
        use Code::{OutOfRange, PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable};
        let not_applied = [
            (InvalidArgument, "etcdserver: key is not provided"),
            (InvalidArgument, "etcdserver: value is provided"),
            (InvalidArgument, "etcdserver: lease is provided"),
            (InvalidArgument, "etcdserver: too many operations in txn request"),
            (InvalidArgument, "etcdserver: duplicate key given in txn request"),
            (InvalidArgument, "etcdserver: invalid sort option"),
            (InvalidArgument, "etcdserver: request is too large"),
            (ResourceExhausted, "etcdserver: too many requests"),
            (FailedPrecondition, "etcdserver: not capable"),
            (Unavailable, "etcdserver: rpc not supported for learner"),
            (InvalidArgument, "etcdserver: invalid client api version"),
            (Unavailable, "etcdserver: no leader"),
            (Code::Unknown, "raft proposal dropped"),
            (Unauthenticated, "etcdserver: invalid auth token"),
            (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            (InvalidArgument, "etcdserver: user name is empty"),
            (InvalidArgument, "etcdserver: revision of auth store is old"),
            (PermissionDenied, "etcdserver: permission denied"),
            (NotFound, "etcdserver: requested lease not found"),
            (InvalidArgument, "etcdserver: key not found"),
            (OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            (FailedPrecondition, "etcdserver: lease already exists"),
            (OutOfRange, "etcdserver: too large lease TTL"),
            (DataLoss, "etcdserver: corrupt cluster"),
        ];
        let unknown = [
            (ResourceExhausted, "grpc: received message larger than max (2097200 vs. 2097152)"),
            (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Unavailable, "etcdserver: request timed out"),
            (Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Unavailable, "etcdserver: request timed out, possibly due to connection lost"),
            (Unavailable, "etcdserver: request timed out, waiting for the applied index took too long"),
            (Unavailable, "etcdserver: leader changed"),
            (Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "etcdserver: request cancelled"),
            (Cancelled, "etcdserver: request canceled"),
            (Code::Unknown, "raft: stopped"),
            (DeadlineExceeded, "context deadline exceeded"),
            (Cancelled, "context canceled"),
            (Unavailable, "etcdserver: unhealthy cluster"),
            (Code::Unknown, "etcdserver: words of a version to come"),
        ];
        for (rows, outcome) in [(&not_applied[..], Outcome::NotApplied), (&unknown[..], Outcome::Unknown)] {
            for (code, message) in rows {
                let said = error("KV/Txn", Status::new(*code, *message));
                assert_eq!(said.outcome(), outcome, "{message}");
            }
        }
    }

    /// A proxy that takes answers of 4 MiB at most said this of the answer to a write, and the write was told to be not
    /// applied.
    #[test]
    fn what_is_too_large_is_the_request_only_where_it_has_that_size() {
        let said = "grpc: received message larger than max (2097200 vs. 2097152)";
        assert!(is_too_large(said, || 2_097_200));
        assert!(!is_too_large(said, || 2_097_152) && !is_too_large("too large", || 12));
        let said = || Status::new(Code::ResourceExhausted, said);
        let of_request = error_of("KV/Txn", said(), || 2_097_200);
        assert_eq!((of_request.kind(), of_request.outcome()), (&ErrorKind::TooLarge, Outcome::NotApplied));
        let of_answer = error_of("KV/Txn", said(), || 300);
        assert!(matches!(of_answer.kind(), ErrorKind::AnswerTooLarge { .. }), "{of_answer}");
        assert_eq!(of_answer.outcome(), Outcome::Unknown);
    }

    /// A gateway between client and server may have passed a write on before it answered for itself.
    #[test]
    fn words_that_are_not_etcds_say_nothing_of_the_write() {
        for code in
            [Code::InvalidArgument, Code::FailedPrecondition, Code::PermissionDenied, Code::Unauthenticated]
        {
            let said = error("KV/Txn", Status::new(code, "blocked by policy"));
            assert_eq!(said.outcome(), Outcome::Unknown, "{code:?}");
        }
    }
}
