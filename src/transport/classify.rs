//! Statuses to errors: the server's message first, then the code, then tonic's own ways of telling a broken
//! connection.

use std::error::Error as StdError;

use tonic::{Code, Status};

use super::channel::NotSent;
use crate::error::{Error, ErrorKind, Outcome};

/// The error that a status is.
pub(crate) fn error(rpc: &'static str, status: Status) -> Error {
    let (kind, outcome) = if let Some(not_sent) = in_chain::<NotSent>(&status) {
        (ErrorKind::Connect { endpoint: not_sent.endpoint().to_owned() }, Outcome::NotApplied)
    } else if in_chain::<tonic::ConnectError>(&status).is_some() {
        (ErrorKind::Connect { endpoint: "the endpoint".into() }, Outcome::NotApplied)
    } else if status.source().is_some() {
        // A status with a source was made on this side of the wire.
        local(&status)
    } else {
        served(&status)
    };
    Error::new(kind, outcome).at(rpc).because(status)
}

/// The error that a cancelled watch's reason is.
///
/// Members word it as a bare message or as gRPC prints a status: `rpc error: code = X desc = message`.
pub(crate) fn cancel_reason(reason: &str) -> Error {
    let message = reason.rsplit_once("desc = ").map_or(reason, |(_, message)| message);
    let kind = by_message(message)
        .map_or_else(|| ErrorKind::WatchCanceled { reason: reason.to_owned() }, |(kind, _)| kind);
    Error::new(kind, Outcome::NotApplied).at("Watch/Watch")
}

/// True where another token may mend it.
pub(crate) fn wants_new_token(kind: &ErrorKind) -> bool {
    match kind {
        ErrorKind::InvalidToken => true,
        // What a member says to a request without a token, as it may be sent while auth is being enabled.
        ErrorKind::Unauthenticated { message } => message.ends_with(NO_USER),
        _ => false,
    }
}

fn in_chain<T: StdError + 'static>(status: &Status) -> Option<&T> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// tonic names a broken pipe in mid-stream Unknown or Internal, a reset Cancelled, too many pings ResourceExhausted,
/// and a refused connection Unavailable: the code says little, the source that it never left the client's side.
fn local(status: &Status) -> (ErrorKind, Outcome) {
    match status.code() {
        Code::Internal if status.message().contains("decod") => {
            (ErrorKind::Protocol { detail: status.message().to_owned() }, Outcome::Unknown)
        }
        Code::DeadlineExceeded => (ErrorKind::Timeout, Outcome::Unknown),
        _ => (ErrorKind::Disconnected, Outcome::Unknown),
    }
}

/// A status that came over the wire, or that tonic made of an answer that is no gRPC.
fn served(status: &Status) -> (ErrorKind, Outcome) {
    let message = status.message();
    if let Some(known) = by_message(message) {
        return known;
    }
    let words = || message.to_owned();
    match status.code() {
        _ if message.contains(NOT_GRPC) => (ErrorKind::Protocol { detail: words() }, Outcome::Unknown),
        Code::Unavailable => (ErrorKind::Unavailable { message: words() }, Outcome::Unknown),
        Code::Unimplemented => (ErrorKind::Unsupported { message: words() }, Outcome::NotApplied),
        Code::Unauthenticated => (ErrorKind::Unauthenticated { message: words() }, Outcome::NotApplied),
        Code::PermissionDenied => (ErrorKind::PermissionDenied, Outcome::NotApplied),
        Code::InvalidArgument | Code::FailedPrecondition => {
            (ErrorKind::Refused { message: words() }, Outcome::NotApplied)
        }
        // Neither comes from etcd without a message of its own: the answer was not gRPC, or was cut short.
        Code::Internal | Code::Unknown if !message.starts_with(SERVER) => {
            (ErrorKind::Protocol { detail: words() }, Outcome::Unknown)
        }
        code => (ErrorKind::Other { code, message: words() }, Outcome::Unknown),
    }
}

/// The server's messages, as etcd 3.4 to 3.7 word them.
fn by_message(message: &str) -> Option<(ErrorKind, Outcome)> {
    use Outcome::{NotApplied, Unknown};
    // Raft's and the lessor's own errors come without the prefix.
    if message.contains("not a primary lessor") {
        return Some((ErrorKind::LeaderChanged, NotApplied));
    }
    if message.contains("raft proposal dropped") {
        return Some((ErrorKind::NoLeader, NotApplied));
    }
    let said = message.strip_prefix(SERVER)?;
    let words = || message.to_owned();
    Some(match said {
        "requested lease not found" => (ErrorKind::LeaseNotFound, NotApplied),
        "lease already exists" => (ErrorKind::LeaseExists, NotApplied),
        "mvcc: required revision has been compacted" => (ErrorKind::Compacted { revision: 0 }, NotApplied),
        "mvcc: required revision is a future revision" => (ErrorKind::FutureRevision, NotApplied),
        "mvcc: database space exceeded" => (ErrorKind::NoSpace, NotApplied),
        "too many operations in txn request" => (ErrorKind::TooManyOps, NotApplied),
        "request is too large" => (ErrorKind::TooLarge, NotApplied),
        "too many requests" => (ErrorKind::TooManyRequests, NotApplied),
        "no leader" => (ErrorKind::NoLeader, NotApplied),
        "leader changed" => (ErrorKind::LeaderChanged, Unknown),
        "server stopped" => (ErrorKind::Unavailable { message: words() }, Unknown),
        "permission denied" => (ErrorKind::PermissionDenied, NotApplied),
        // Each of these is answered before anything is proposed, and goes away with a new token.
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

const SERVER: &str = "etcdserver: ";
const NO_USER: &str = "user name is empty";
/// tonic's words for an HTTP answer that is no gRPC.
const NOT_GRPC: &str = "grpc-status header missing";

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: Code, message: &str) -> (ErrorKind, Outcome) {
        let error = error("KV/Txn", Status::new(code, message));
        (error.kind().clone(), error.outcome())
    }

    #[test]
    fn the_message_comes_before_the_code() {
        // The server sends this as Unknown.
        assert_eq!(kind(Code::Unknown, "lease: not a primary lessor").0, ErrorKind::LeaderChanged);
        // And this as InvalidArgument, though nothing is wrong with the argument.
        let stale = kind(Code::InvalidArgument, "etcdserver: revision of auth store is old");
        assert_eq!(stale, (ErrorKind::InvalidToken, Outcome::NotApplied));
    }

    #[test]
    fn all_forms_of_a_servers_timeout_leave_a_write_unknown() {
        for tail in ["", ", possibly due to previous leader failure", ", possibly due to connection lost"] {
            let said = format!("etcdserver: request timed out{tail}");
            assert_eq!(kind(Code::Unavailable, &said), (ErrorKind::ServerTimeout, Outcome::Unknown));
        }
    }

    #[test]
    fn a_status_with_a_source_is_a_broken_connection() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let status = Status::from_error(Box::new(broken));
        let error = error("KV/Txn", status);
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Disconnected, Outcome::Unknown));
        assert!(error.source().is_some());
    }

    #[test]
    fn a_cancel_reason_is_read_with_and_without_grpcs_wrapping() {
        for reason in [
            "etcdserver: permission denied",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
        ] {
            assert_eq!(*cancel_reason(reason).kind(), ErrorKind::PermissionDenied);
        }
        let other = cancel_reason("the moon");
        assert_eq!(*other.kind(), ErrorKind::WatchCanceled { reason: "the moon".into() });
    }
}
