//! Statuses to errors: the server's message first, then the code, then tonic's own ways of telling a broken
//! connection.

mod said;

use std::error::Error as StdError;

use tonic::{Code, Status};

use super::auth::NoToken;
use super::channel::NotSent;
use crate::error::{Error, ErrorKind, Outcome, quote};
use said::{NO_USER, SERVER, by_message, is_too_large};

/// The error that a status is.
pub(crate) fn error(rpc: &'static str, status: Status) -> Error {
    if let Some(no_token) = in_chain::<NoToken>(&status) {
        // Whatever became of the authentication: the call itself was not sent.
        let kind = no_token.kind().clone();
        return Error::new(kind, Outcome::NotApplied).at("Auth/Authenticate").because(status);
    }
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

/// The error that a status is which answers a request of this many bytes.
pub(super) fn error_of(rpc: &'static str, status: Status, size: impl Fn() -> usize) -> Error {
    if status.source().is_none() && is_too_large(status.message(), size) {
        return Error::new(ErrorKind::TooLarge, Outcome::NotApplied).at(rpc).because(status);
    }
    error(rpc, status)
}

/// The error that a cancelled watch's reason is.
///
/// Members word it as a bare message or as gRPC prints a status: `rpc error: code = X desc = message`.
pub(crate) fn cancel_reason(reason: &str) -> Error {
    let message = reason.rsplit_once("desc = ").map_or(reason, |(_, message)| message);
    let kind = by_message(message)
        .map_or_else(|| ErrorKind::WatchCanceled { reason: quote::bounded(reason) }, |(kind, _)| kind);
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

/// The same of a server's message.
pub(crate) fn refuses_token(message: &str) -> bool {
    by_message(message).is_some_and(|(kind, _)| wants_new_token(&kind))
}

/// True for words of etcd's own, which no proxy on the way has.
pub(crate) fn is_etcds(message: &str) -> bool {
    message.starts_with(SERVER) || by_message(message).is_some()
}

/// True where the server wants no token at all.
pub(crate) fn without_auth(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Refused { message } if message.ends_with("authentication is not enabled"))
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
    if in_chain::<hyper::Error>(status).is_some_and(hyper::Error::is_canceled) {
        // The connection ended while the request was still in the queue before it: over HTTP/2 hyper says this of
        // nothing else.
        return (ErrorKind::Disconnected, Outcome::NotApplied);
    }
    if let Some(error) = in_chain::<h2::Error>(status) {
        if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
            // By definition before any of it was processed.
            return (ErrorKind::Disconnected, Outcome::NotApplied);
        }
        // This side closed the connection, because of what the other side sent; if that was only much, then another
        // connection may do.
        let much = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        if error.is_go_away() && error.is_library() && !much {
            return (ErrorKind::Protocol { detail: format!("no HTTP/2: {error}") }, Outcome::Unknown);
        }
    }
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
    let words = || quote::bounded(message);
    // What etcd itself refuses with these codes, it refuses before it has done anything; others may have passed it on.
    let refused = if message.starts_with(SERVER) { Outcome::NotApplied } else { Outcome::Unknown };
    match status.code() {
        // tonic's own words for an answer that it does not take, before it has read it.
        Code::OutOfRange if message.contains("message length too large") => {
            (ErrorKind::AnswerTooLarge { message: words() }, Outcome::Unknown)
        }
        // A balancer without anybody to pass the request on to (429, 502, 503, 504) is as good as a server that is away.
        code if message.contains(NOT_GRPC) && code != Code::Unavailable => {
            (ErrorKind::Protocol { detail: words() }, Outcome::Unknown)
        }
        Code::Unavailable => (ErrorKind::Unavailable { message: words() }, Outcome::Unknown),
        // tonic's words for a gRPC answer that ends without its status: a server that stops, or a proxy on the way, may
        // close its streams without an error, which hyper gives as a clean end.
        Code::Unknown if message.contains(CUT_SHORT) => (ErrorKind::Disconnected, Outcome::Unknown),
        Code::Unimplemented if message.contains(ENCODED) => {
            (ErrorKind::Protocol { detail: words() }, Outcome::Unknown)
        }
        Code::Unimplemented => {
            let is_unknown = UNKNOWN_METHOD.iter().any(|words| message.starts_with(words));
            let outcome = if is_unknown { Outcome::NotApplied } else { refused };
            (ErrorKind::Unsupported { message: words() }, outcome)
        }
        Code::Unauthenticated => (ErrorKind::Unauthenticated { message: words() }, refused),
        Code::PermissionDenied => (ErrorKind::PermissionDenied, refused),
        Code::InvalidArgument | Code::FailedPrecondition => {
            (ErrorKind::Refused { message: words() }, refused)
        }
        // Neither comes from etcd without a message of its own: the answer was not gRPC, or was cut short.
        Code::Internal | Code::Unknown if !message.starts_with(SERVER) => {
            (ErrorKind::Protocol { detail: words() }, Outcome::Unknown)
        }
        code => (ErrorKind::Other { code, message: words() }, Outcome::Unknown),
    }
}

/// tonic's words for a gRPC answer without its end.
const CUT_SHORT: &str = "missing grpc-status trailer";
/// tonic's words for an HTTP answer that is no gRPC.
const NOT_GRPC: &str = "grpc-status header missing";
/// tonic's words for an answer in an encoding that this crate did not ask for.
const ENCODED: &str = "Content is compressed with";
/// grpc-go's words for a method that it does not have: nothing was done.
const UNKNOWN_METHOD: [&str; 3] = ["unknown service ", "unknown method ", "malformed method name"];

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

    #[tokio::test]
    async fn what_waits_for_a_connection_that_ends_was_not_applied() {
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let (near, _far) = tokio::io::duplex(1024);
        let connecting = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near));
        let (mut sender, connection) = connecting.await.expect("needs no answer");
        let request = http::Request::new(tonic::body::Body::empty());
        let answer = sender.send_request(request);
        drop(connection);
        let canceled = answer.await.expect_err("nobody sent it");
        let error = error("KV/Txn", Status::from_error(Box::new(canceled)));
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Disconnected, Outcome::NotApplied));
    }

    #[test]
    fn a_refused_stream_was_not_applied() {
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        let error = error("KV/Txn", Status::from_error(Box::new(Wrapped(refused))));
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Disconnected, Outcome::NotApplied));
    }

    /// A proxy compressed its answers unasked. tonic refuses such an answer with a status of its own, whose code was taken
    /// for the server's word that it knows no such method: a lock that was taken was told as not taken, and kept.
    #[test]
    fn an_answer_in_an_encoding_of_its_own_leaves_a_write_unknown() {
        let said = "Content is compressed with `gzip` which isn't supported";
        let (kind_of, outcome) = kind(Code::Unimplemented, said);
        assert!(matches!(kind_of, ErrorKind::Protocol { .. }), "{kind_of:?}");
        assert_eq!(outcome, Outcome::Unknown);
        // A gateway may use the code after it has passed the request on.
        assert_eq!(kind(Code::Unimplemented, "not here").1, Outcome::Unknown);
        for said in ["unknown service etcdserverpb.KV", "unknown method Txn for service etcdserverpb.KV"] {
            let (kind_of, outcome) = kind(Code::Unimplemented, said);
            assert!(matches!(kind_of, ErrorKind::Unsupported { .. }), "{kind_of:?}");
            assert_eq!(outcome, Outcome::NotApplied);
        }
    }

    /// A server that was restarted closed its streams without an error. hyper gives that as a clean end, and tonic then
    /// misses the answer's status: this was told to be no gRPC, by whose words watches end, and calls are not repeated.
    #[tokio::test]
    async fn an_answer_that_is_cut_short_is_a_broken_connection() {
        let cut = tower::service_fn(|_: http::Request<tonic::body::Body>| async {
            let answer = http::Response::builder().header("content-type", "application/grpc");
            Ok::<_, std::convert::Infallible>(answer.body(tonic::body::Body::empty()).expect("an answer"))
        });
        let mut client = crate::pb::etcdserverpb::kv_client::KvClient::new(cut);
        let status = client.txn(crate::pb::etcdserverpb::TxnRequest::default()).await.expect_err("cut short");
        let error = error("KV/Txn", status);
        assert_eq!(
            (error.kind(), error.outcome()),
            (&ErrorKind::Disconnected, Outcome::Unknown),
            "{error:?}"
        );
    }

    /// As tonic and hyper wrap it.
    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Wrapped(#[source] h2::Error);

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
