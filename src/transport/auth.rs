//! The token: fetched once for all callers, dropped when the server refuses it.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response, request};
use http_body_util::{BodyExt, Full};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::channel::Route;
use super::unsent::told;
use super::{RawService, Transport, classify};
use crate::error::{Error, ErrorKind, LostReason, Outcome};

/// The token of a client, shared by all of its calls.
#[derive(Clone)]
pub(crate) struct Tokens(Source);

#[derive(Clone)]
enum Source {
    /// The user's own. It is never replaced.
    Given(HeaderValue),
    User(Arc<User>),
}

struct User {
    name: String,
    password: String,
    /// The same connections and layers, without a token.
    bare: Transport,
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    /// The next request fetches one.
    Wanted,
    Fetching(Arc<Fetching>),
    Held(HeaderValue),
    /// The server has authentication disabled.
    Off,
}

/// A token that is under way. Who waits for it goes on in the order of coming, which a watch channel does not keep.
#[derive(Default)]
struct Fetching {
    fetched: OnceLock<Fetched>,
    /// Also when the runtime has ended, and nothing was fetched.
    done: CancellationToken,
}

/// A token, or none where the server wants none.
type Fetched = Result<Option<HeaderValue>, NoToken>;

/// No token could be had: the request that needed it was not sent.
#[derive(Debug, Clone)]
pub(crate) struct NoToken(Arc<Error>);

/// Puts the token on every request, and another in the place of one that the server refuses.
///
/// A unary request of etcd's is then sent once more: it was refused before it was applied. A stream is its owner's to open
/// again, and so is what another service's method was sent.
#[derive(Clone)]
pub(crate) struct Auth {
    inner: RawService,
    tokens: Tokens,
}

impl Tokens {
    pub(crate) fn given(mut token: HeaderValue) -> Self {
        token.set_sensitive(true);
        Self(Source::Given(token))
    }

    /// Authenticates on first use, with the calls of `bare`, on `runtime`.
    pub(crate) fn of_user(name: String, password: String, bare: Transport, runtime: Handle) -> Self {
        let state = Mutex::new(State::Wanted);
        Self(Source::User(Arc::new(User { name, password, bare, runtime, state })))
    }

    /// Drops the current token, so that the next request fetches another. False where it was supplied by the user.
    pub(crate) fn drop_current(&self) -> bool {
        let Source::User(user) = &self.0 else { return false };
        let mut state = user.state();
        if !matches!(*state, State::Fetching(_)) {
            *state = State::Wanted;
        }
        true
    }

    /// False for a token of the user's own.
    pub(crate) fn are_renewed(&self) -> bool {
        matches!(self.0, Source::User(_))
    }

    /// The token, or none where the server wants none. Fetches it where it must.
    ///
    /// # Cancel safety
    /// Fetching goes on without the caller, for those who wait with it or come later.
    pub(crate) async fn get(&self) -> Fetched {
        let user = match &self.0 {
            Source::Given(token) => return Ok(Some(token.clone())),
            Source::User(user) => user,
        };
        let fetching = match &mut *user.state() {
            State::Held(token) => return Ok(Some(token.clone())),
            State::Off => return Ok(None),
            // One whose task has ended with its runtime would never be done.
            State::Fetching(fetching) if !fetching.done.is_cancelled() => fetching.clone(),
            state => {
                let fetching = user.clone().fetch();
                *state = State::Fetching(fetching.clone());
                fetching
            }
        };
        fetching.done.cancelled().await;
        // The client's runtime has ended: no use in trying again.
        let closed = || Err(NoToken(Arc::new(LostReason::Closed.into())));
        fetching.fetched.get().cloned().unwrap_or_else(closed)
    }

    /// True where this token is no longer the one that requests go with.
    pub(super) fn have_replaced(&self, used: &HeaderValue) -> bool {
        let Source::User(user) = &self.0 else { return false };
        !matches!(&*user.state(), State::Held(token) if token == used)
    }

    /// The server refused this token. One that has been replaced already counts for nothing. False where there is no other.
    pub(super) fn refused(&self, used: Option<&HeaderValue>) -> bool {
        let Source::User(user) = &self.0 else { return false };
        let mut state = user.state();
        let current = match &*state {
            State::Held(token) => Some(token),
            State::Off => None,
            State::Wanted | State::Fetching(_) => return true,
        };
        if current == used {
            *state = State::Wanted;
        }
        true
    }
}

impl User {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(self: Arc<Self>) -> Arc<Fetching> {
        let fetching = Arc::new(Fetching::default());
        let (under_way, done) = (fetching.clone(), fetching.done.clone().drop_guard());
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let fetched = self.authenticate().await;
            *self.state() = match &fetched {
                Ok(Some(token)) => State::Held(token.clone()),
                Ok(None) => State::Off,
                Err(_) => State::Wanted,
            };
            // Nobody else sets it.
            let _ = under_way.fetched.set(fetched);
            drop(done);
        });
        fetching
    }

    async fn authenticate(&self) -> Fetched {
        match self.bare.authenticate(&self.name, &self.password).await {
            Ok(token) => match HeaderValue::try_from(token) {
                Ok(mut token) => {
                    token.set_sensitive(true);
                    Ok(Some(token))
                }
                Err(_) => {
                    let error = Error::protocol("a token that is no header value", Outcome::NotApplied);
                    Err(NoToken(Arc::new(error.at("Auth/Authenticate"))))
                }
            },
            Err(error) if classify::without_auth(error.kind()) => Ok(None),
            Err(error) => Err(NoToken(Arc::new(error))),
        }
    }
}

impl NoToken {
    pub(crate) fn kind(&self) -> &ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no auth token")
    }
}

impl StdError for NoToken {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl Auth {
    pub(crate) fn new(inner: RawService, tokens: Tokens) -> Self {
        Self { inner, tokens }
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let Self { mut inner, tokens } = self;
        let path = request.uri().path();
        if path == AUTHENTICATE || request.headers().contains_key(TOKEN) {
            return inner.ready().await?.call(request).await;
        }
        let renews = matches!(tokens.0, Source::User(_)) && is_unary(path);
        let token = tokens.get().await.map_err(no_token)?;
        let (parts, body) = request.into_parts();
        let route = parts.extensions.get::<Route>().cloned();
        route.iter().for_each(|route| route.goes_with(token.as_ref()));
        if !renews {
            let answer = inner.ready().await?.call(with(&token, parts, body)).await?;
            if refuses(&answer) {
                tokens.refused(token.as_ref());
            }
            return Ok(answer);
        }

        let body = body.collect().await?.to_bytes();
        let whole = || {
            // It has not left yet, or was refused.
            route.iter().for_each(Route::unread);
            told(route.as_ref(), Body::new(Full::new(body.clone())))
        };
        let first = with(&token, parts.clone(), whole());
        let answer = inner.ready().await?.call(first).await?;
        if !refuses(&answer) {
            return Ok(answer);
        }
        tokens.refused(token.as_ref());
        let again = whole();
        let token = tokens.get().await.map_err(no_token)?;
        route.iter().for_each(|route| route.goes_with(token.as_ref()));
        let answer = inner.ready().await?.call(with(&token, parts, again)).await?;
        if refuses(&answer) {
            tokens.refused(token.as_ref());
        }
        Ok(answer)
    }
}

impl Service<Request<Body>> for Auth {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

const TOKEN: &str = "token";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
/// The services of etcd, and the methods of theirs whose requests are streams.
const SERVICES: [&str; 3] = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."];
const STREAMS: [&str; 2] = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"];

/// True for a method that is known to take one message. Any other may take a stream of them, which can be sent but once,
/// and may not end before it is answered.
fn is_unary(path: &str) -> bool {
    SERVICES.iter().any(|service| path.starts_with(service)) && !STREAMS.contains(&path)
}

fn with(token: &Option<HeaderValue>, mut parts: request::Parts, body: Body) -> Request<Body> {
    if let Some(token) = token {
        parts.headers.insert(TOKEN, token.clone());
    }
    Request::from_parts(parts, body)
}

/// Keeps the reason as the status's source.
fn no_token(error: NoToken) -> Status {
    Status::from_error(error.into())
}

/// etcd refuses a token before anything else, with an answer of headers alone.
fn refuses(answer: &Response<Body>) -> bool {
    let refusal =
        answer.headers().get(Status::GRPC_MESSAGE).and_then(|_| Status::from_header_map(answer.headers()));
    refusal.is_some_and(|status| classify::refuses_token(status.message()))
}

#[cfg(test)]
mod tests;
