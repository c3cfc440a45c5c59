use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;
use tower::service_fn;

use super::*;
use crate::pb::etcdserverpb as pb;
use crate::transport::namespace::Namespace;
use crate::transport::{Limits, raw};

/// A member with authentication, over which a test has the say.
#[derive(Clone)]
struct Member(Arc<Inner>);

struct Inner {
    /// Requests by method.
    seen: Mutex<BTreeMap<String, usize>>,
    /// What it takes for a token. None: authentication is disabled.
    valid: Mutex<Option<String>>,
    password: String,
    /// Lets authentications through, and calls.
    gate: Semaphore,
    calls: Semaphore,
}

impl Member {
    fn new() -> Self {
        Self(Arc::new(Inner {
            seen: Mutex::default(),
            valid: Mutex::new(Some("token-0".into())),
            password: "right".into(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            calls: Semaphore::new(Semaphore::MAX_PERMITS),
        }))
    }

    /// A transport with the token's service in it.
    fn transport(&self, password: &str) -> (Transport, Tokens) {
        let bare = Transport::new(self.service(), None, Namespace::new(""), limits());
        let tokens = Tokens::of_user("root".into(), password.into(), bare, Handle::current());
        (self.with(tokens.clone()), tokens)
    }

    fn with(&self, tokens: Tokens) -> Transport {
        let service = RawService::new(Auth::new(self.service(), tokens.clone()));
        Transport::new(service, Some(tokens), Namespace::new(""), limits())
    }

    fn service(&self) -> RawService {
        let member = self.clone();
        RawService::new(service_fn(move |request| member.clone().answer(request)))
    }

    fn seen(&self, method: &str) -> usize {
        self.0.seen.lock().expect("sound").get(method).copied().unwrap_or(0)
    }

    /// All tokens handed out so far are void.
    fn expire(&self) {
        let mut valid = self.0.valid.lock().expect("sound");
        *valid = Some(format!("token-{}", self.seen("Authenticate") + 1));
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let method = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        *self.0.seen.lock().expect("sound").entry(method.clone()).or_default() += 1;
        let valid = self.0.valid.lock().expect("sound").clone();
        if method == "Authenticate" {
            let body = body.collect().await.expect("whole").to_bytes();
            let request = pb::AuthenticateRequest::decode(&body[5..]).expect("well-formed");
            let _permit = self.0.gate.acquire().await.expect("open");
            let Some(token) = valid else {
                return Ok(refusal(Code::FailedPrecondition, "authentication is not enabled"));
            };
            if request.password != self.0.password {
                let message = "authentication failed, invalid user ID or password";
                return Ok(refusal(Code::InvalidArgument, message));
            }
            return Ok(ok(&pb::AuthenticateResponse { token, ..Default::default() }));
        }
        let _permit = self.0.calls.acquire().await.expect("open");
        match (parts.headers.get(TOKEN), valid) {
            (None, Some(_)) => Ok(refusal(Code::InvalidArgument, "user name is empty")),
            (Some(given), Some(valid)) if *given != *valid => {
                Ok(refusal(Code::Unauthenticated, "invalid auth token"))
            }
            _ => Ok(ok(&pb::RangeResponse::default())),
        }
    }
}

fn limits() -> Limits {
    Limits { request_timeout: Duration::from_secs(10), answer: 32 << 20 }
}

fn refusal(code: Code, message: &str) -> Response<Body> {
    Status::new(code, format!("etcdserver: {message}")).into_http()
}

fn ok(message: &impl Message) -> Response<Body> {
    let mut data = vec![0];
    let length: u32 = message.encoded_len().try_into().expect("short");
    data.extend(length.to_be_bytes());
    data.extend(message.encode_to_vec());
    let trailers = http::HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
    let frames = [http_body::Frame::data(Bytes::from(data)), http_body::Frame::trailers(trailers)];
    let frames = frames.map(Ok::<_, std::convert::Infallible>);
    let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
}

async fn range(transport: &Transport) -> crate::error::Result<()> {
    transport.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await.map(|_| ())
}

#[tokio::test]
async fn a_hundred_callers_with_an_expired_token_authenticate_once() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    range(&transport).await.expect("the first token");
    assert_eq!((member.seen("Authenticate"), member.seen("Range")), (1, 1));

    member.expire();
    member.0.calls.forget_permits(Semaphore::MAX_PERMITS);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let transport = transport.clone();
        callers.spawn(async move { range(&transport).await });
    }
    // All of them carry the old token.
    while member.seen("Range") < 101 {
        tokio::task::yield_now().await;
    }
    member.0.calls.add_permits(1);
    callers.join_all().await.into_iter().for_each(|answer| answer.expect("a new token"));
    assert_eq!(member.seen("Authenticate"), 2);
    assert_eq!(member.seen("Range"), 201);
}

#[tokio::test]
async fn fetching_goes_on_when_the_first_caller_is_gone() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    member.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    let call = || {
        let transport = transport.clone();
        tokio::spawn(async move { range(&transport).await })
    };
    let first = call();
    while member.seen("Authenticate") == 0 {
        tokio::task::yield_now().await;
    }
    let second = call();
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    member.0.gate.add_permits(1);
    second.await.expect("no panic").expect("the token that the first asked for");
    assert_eq!(member.seen("Authenticate"), 1);
}

#[tokio::test]
async fn when_all_callers_are_gone_the_next_finds_the_token() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    member.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    // Dropped after each number of polls, from none on.
    for polls in 0..5 {
        let call = range(&transport);
        let mut call = std::pin::pin!(call);
        for _ in 0..polls {
            let _ = futures_poll(call.as_mut()).await;
        }
    }
    member.0.gate.add_permits(1);
    range(&transport).await.expect("a token");
    assert_eq!(member.seen("Authenticate"), 1);
}

/// Polls once, and lets others run.
async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
    tokio::task::yield_now().await;
    polled
}

#[tokio::test]
async fn a_token_of_the_users_is_never_replaced() {
    let member = Member::new();
    let transport = member.with(Tokens::given(HeaderValue::from_static("token-0")));
    range(&transport).await.expect("valid");
    member.expire();
    let error = range(&transport).await.expect_err("expired");
    assert_eq!(*error.kind(), ErrorKind::InvalidToken);
    assert_eq!((member.seen("Authenticate"), member.seen("Range")), (0, 2));
    assert!(!transport.note_auth(&error, &Route::default()));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_sent_again_and_not_for_ever() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    range(&transport).await.expect("the first token");
    // This one is never handed out.
    *member.0.valid.lock().expect("sound") = Some("another".into());
    let handed_out = member.clone();
    let stale = service_fn(move |request: Request<Body>| {
        let member = handed_out.clone();
        async move {
            if request.uri().path() == AUTHENTICATE {
                return Ok(ok(&pb::AuthenticateResponse { token: "stale".into(), ..Default::default() }));
            }
            member.answer(request).await
        }
    });
    let bare = Transport::new(RawService::new(stale.clone()), None, Namespace::new(""), limits());
    let tokens = Tokens::of_user("root".into(), "right".into(), bare, Handle::current());
    let service = RawService::new(Auth::new(RawService::new(stale), tokens.clone()));
    let transport = Transport::new(service, Some(tokens), Namespace::new(""), limits());
    let started = tokio::time::Instant::now();
    let error = range(&transport).await.expect_err("refused to the end");
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::InvalidToken, Outcome::NotApplied));
    // A pause is a second at most, and no attempt is made in the last tenth of one.
    let (first, last) = (Duration::from_millis(8_900), Duration::from_secs(10));
    assert!((first..=last).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert!((10..50).contains(&member.seen("Range")), "{}", member.seen("Range"));
}

#[tokio::test]
async fn the_generated_clients_get_a_new_token_too() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    let mut kv = raw::kv(transport.raw(), 1 << 20);
    kv.range(pb::RangeRequest::default()).await.expect("the first token");
    member.expire();
    kv.range(pb::RangeRequest::default()).await.expect("the second");
    assert_eq!(member.seen("Authenticate"), 2);
}

/// A proxy gave a server's refusal as a head and trailers of their own, where the server gives one of headers alone. The
/// client took it for an answer of the call's, kept the token, and had it refused until the deadline.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_in_trailers_is_renewed() {
    let member = Member::new();
    let behind = member.clone();
    let proxy = service_fn(move |request: Request<Body>| {
        let member = behind.clone();
        async move {
            let mut answer = member.answer(request).await?;
            let mut trailers = http::HeaderMap::new();
            for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE] {
                if let Some(value) = answer.headers_mut().remove(&name) {
                    trailers.insert(name, value);
                }
            }
            if !trailers.is_empty() {
                let frames = [Ok::<_, std::convert::Infallible>(http_body::Frame::trailers(trailers))];
                *answer.body_mut() = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            }
            Ok::<_, Status>(answer)
        }
    });
    let bare = Transport::new(member.service(), None, Namespace::new(""), limits());
    let tokens = Tokens::of_user("root".into(), "right".into(), bare, Handle::current());
    let service = RawService::new(Auth::new(RawService::new(proxy), tokens.clone()));
    let transport = Transport::new(service, Some(tokens), Namespace::new(""), limits());
    range(&transport).await.expect("the first token");
    member.expire();
    let started = tokio::time::Instant::now();
    range(&transport).await.expect("the second token");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!((member.seen("Authenticate"), member.seen("Range")), (2, 3));
}

/// A server took six seconds to hand out a token. The first attempt of a grant ended meanwhile, counted as one that may
/// come yet, and the client looked out for it.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_ends_while_it_waits_for_the_token_was_not_sent() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    member.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    let (granted, ()) = tokio::join!(transport.lease_grant(7, 5), async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        member.0.gate.add_permits(1);
    });
    let granted = granted.expect("with the token");
    assert_eq!((granted.unanswered, granted.ambiguous), (0, false));
    assert_eq!(member.seen("LeaseGrant"), 1);
    // The same while it waits for another, after a refusal.
    member.expire();
    let (granted, ()) = tokio::join!(transport.lease_grant(7, 5), async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        member.0.gate.add_permits(1);
    });
    assert_eq!(granted.expect("with another").unanswered, 0);
}

/// An upload through the client's service never began: the token's layer waited for its end first.
#[tokio::test(start_paused = true)]
async fn a_stream_of_another_service_begins_before_it_ends() {
    let member = Member::new();
    let (transport, _) = member.transport("right");
    let open = http_body::Frame::data(Bytes::from_static(&[0; 5]));
    let open = tokio_stream::once(Ok::<_, std::convert::Infallible>(open));
    let open = tokio_stream::StreamExt::chain(open, tokio_stream::pending());
    let upload = Request::post("/files.v1.Files/Upload").body(Body::new(StreamBody::new(open)));
    let answer = transport.raw().oneshot(upload.expect("a request"));
    let answer = tokio::time::timeout(Duration::from_secs(1), answer).await.expect("it begins");
    assert!(!refuses(&answer.expect("an answer")));
    assert_eq!(member.seen("Upload"), 1);
}

#[tokio::test]
async fn a_refused_stream_is_its_owners_to_open_again() {
    let member = Member::new();
    let (transport, tokens) = member.transport("right");
    range(&transport).await.expect("the first token");
    member.expire();
    let open = || transport.open_keep_alive(tokio_stream::pending(), Default::default());
    let error = open().await.expect_err("refused");
    assert_eq!(*error.kind(), ErrorKind::InvalidToken);
    assert_eq!((member.seen("LeaseKeepAlive"), member.seen("Authenticate")), (1, 1));
    open().await.expect("with a new token");
    assert_eq!((member.seen("LeaseKeepAlive"), member.seen("Authenticate")), (2, 2));

    // What ends a stream in its midst.
    member.expire();
    let refusal = || Status::unauthenticated("etcdserver: invalid auth token");
    let route = route(&tokens).await;
    transport.stream_error("Lease/LeaseKeepAlive", refusal(), &route);
    open().await.expect("with a new token");
    assert_eq!((member.seen("LeaseKeepAlive"), member.seen("Authenticate")), (3, 3));

    // Another stream ends for the same token: the one that has replaced it stays.
    transport.stream_error("Watch/Watch", refusal(), &route);
    open().await.expect("with the same");
    assert_eq!((member.seen("LeaseKeepAlive"), member.seen("Authenticate")), (4, 3));
    // One that does not know its token, since a layer of the user's lost it.
    transport.stream_error("Watch/Watch", refusal(), &Route::default());
    open().await.expect("with a new token");
    assert_eq!(member.seen("Authenticate"), 4);
}

/// The route of a stream that goes with the current token.
async fn route(tokens: &Tokens) -> Route {
    let route = Route::default();
    route.goes_with(tokens.get().await.expect("a token").as_ref());
    route
}

/// A stream was open for hours, and its token had been replaced meanwhile. A member of 3.4.21 refused a new watch on it as
/// one without permission, and the wait for a lock ended.
#[tokio::test]
async fn a_watch_that_is_refused_for_an_old_token_is_opened_again() {
    let member = Member::new();
    let (transport, tokens) = member.transport("right");
    range(&transport).await.expect("the first token");
    let old = route(&tokens).await;
    assert!(!transport.has_another_token(&old), "its token is the current one, and the refusal is believed");
    member.expire();
    range(&transport).await.expect("the second token");
    assert!(transport.has_another_token(&old));
    assert!(!transport.has_another_token(&route(&tokens).await));
    assert!(!transport.has_another_token(&Route::default()));
}

#[tokio::test]
async fn where_authentication_is_disabled_it_goes_on_without() {
    let member = Member::new();
    let valid = member.0.valid.lock().expect("sound").take();
    let (transport, _) = member.transport("right");
    range(&transport).await.expect("no token wanted");
    range(&transport).await.expect("no token wanted");
    assert_eq!(member.seen("Authenticate"), 1, "it is not asked for again");

    *member.0.valid.lock().expect("sound") = valid;
    range(&transport).await.expect("a token, now that one is wanted");
    assert_eq!((member.seen("Authenticate"), member.seen("Range")), (2, 4));
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_once() {
    let member = Member::new();
    let (transport, _) = member.transport("wrong");
    let error = range(&transport).await.expect_err("wrong");
    assert!(matches!(error.kind(), ErrorKind::Unauthenticated { .. }), "{error:?}");
    assert_eq!((error.outcome(), error.rpc()), (Outcome::NotApplied, Some("Auth/Authenticate")));
    assert_eq!((member.seen("Authenticate"), member.seen("Range")), (1, 0));

    let status =
        raw::kv(transport.raw(), 1 << 20).range(pb::RangeRequest::default()).await.expect_err("wrong");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("invalid user ID or password"), "{status:?}");
}

#[test]
fn a_runtime_that_ends_while_fetching_leaves_nobody_waiting() {
    let member = Member::new();
    member.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    let other = tokio::runtime::Runtime::new().expect("a runtime");
    let (transport, tokens) = other.block_on(async { member.transport("right") });
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    here.block_on(async {
        let waiting = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.get().await }
        });
        while member.seen("Authenticate") == 0 {
            tokio::task::yield_now().await;
        }
        other.shutdown_background();
        waiting.await.expect("no panic").expect_err("nobody fetches it any more");
        tokens.get().await.expect_err("nor will anybody");
        assert_eq!(range(&transport).await.expect_err("no token").outcome(), Outcome::NotApplied);
    });
}

#[tokio::test]
async fn a_token_shows_in_no_log() {
    let member = Member::new();
    let seen = Arc::new(Mutex::new(String::new()));
    let (log, inner) = (seen.clone(), member.service());
    let logged = service_fn(move |request: Request<Body>| {
        log.lock().expect("sound").push_str(&format!("{:?}", request.headers()));
        inner.clone().oneshot(request)
    });
    let bare = Transport::new(member.service(), None, Namespace::new(""), limits());
    let tokens = Tokens::of_user("root".into(), "right".into(), bare, Handle::current());
    let service = RawService::new(Auth::new(RawService::new(logged), tokens));
    raw::kv(service, 1 << 20).range(pb::RangeRequest::default()).await.expect("answered");
    let seen = seen.lock().expect("sound");
    assert!(seen.contains("Sensitive") && !seen.contains("token-0"), "{seen}");
}
