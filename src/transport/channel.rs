//! Connections: several endpoints, fail-over, pings.

mod dial;
mod marks;
mod stream;

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{BoxError, Service};

use super::unsent::Message;
pub(crate) use dial::{Dialer, Options};
use marks::{Marks, Trouble};

/// The connections to all endpoints, as one service.
#[derive(Clone)]
pub(crate) struct Endpoints(Arc<Shared>);

struct Shared {
    marks: Marks,
    links: Box<[Link]>,
    runtime: Handle,
    since: Instant,
    /// Looks after dead connections. They end with the last handle.
    checks: Mutex<JoinSet<()>>,
}

/// The connection to one endpoint.
struct Link {
    dialer: Dialer,
    current: Mutex<Current>,
}

struct Current {
    channel: Channel,
    /// Counts the channels of this endpoint, so that what is said of an old one does not hit a new one.
    number: u64,
    /// Somebody is finding out whether the peer still answers on it.
    doubted: bool,
}

/// Rides on a request and learns which endpoint it went to; whoever sent the request can then call that endpoint bad.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    hop: Option<Hop>,
    /// The endpoints that this call went to: a bit each.
    tried: u64,
    /// Whether the message is to tell that it is read.
    tells: bool,
    message: Message,
    /// The token that it went with.
    token: Option<HeaderValue>,
}

/// One channel of one endpoint.
#[derive(Clone)]
struct Hop {
    endpoints: Arc<Shared>,
    index: usize,
    number: u64,
}

/// The request never left this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}")]
pub(crate) struct NotSent {
    endpoint: String,
    source: BoxError,
}

/// Whoever waits this long for the beginning of an answer and then gives up has seen a silent endpoint.
const SILENCE: Duration = Duration::from_secs(1);

impl Endpoints {
    /// Connects to nothing yet. `runtime` drives the connections.
    pub(crate) fn new(dialers: Vec<Dialer>, runtime: Handle) -> Self {
        let _context = runtime.enter();
        let links: Box<[_]> = dialers
            .into_iter()
            .map(|dialer| {
                let current = Mutex::new(Current { channel: dialer.lazy(), number: 0, doubted: false });
                Link { dialer, current }
            })
            .collect();
        let marks = Marks::new(links.len(), fastrand::usize(..links.len()));
        let (since, checks) = (Instant::now(), Mutex::default());
        Self(Arc::new(Shared { marks, links, runtime: runtime.clone(), since, checks }))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.links.iter().map(|link| link.dialer.name())
    }
}

impl Route {
    /// Of a call that may change something: whether it can have done so is told by whether its message was read.
    pub(super) fn of_write() -> Self {
        Self(Arc::new(Mutex::new(Taken { tells: true, ..Taken::default() })))
    }

    /// The endpoint, once the request went to one.
    pub(crate) fn endpoint(&self) -> Option<String> {
        self.taken().hop.as_ref().map(|hop| hop.link().dialer.name().to_owned())
    }

    /// The endpoint says nothing: it is avoided, and asked whether it still answers on this connection. If it does not,
    /// it gets a new one; the old one lives on as long as a stream uses it.
    pub(crate) fn avoid(&self) {
        if let Some(hop) = &self.taken().hop {
            hop.silent();
        }
    }

    /// The endpoint answers, but cannot serve now: it is avoided for a while.
    pub(crate) fn avoid_member(&self) {
        if let Some(Hop { endpoints, index, .. }) = &self.taken().hop {
            endpoints.marks.fail(*index, Trouble::Member, endpoints.now());
        }
    }

    /// True where an endpoint is left that is not avoided and that this call did not go to.
    pub(crate) fn elsewhere(&self) -> bool {
        let taken = self.taken();
        let hop = taken.hop.as_ref();
        hop.is_some_and(|hop| hop.endpoints.marks.elsewhere(taken.tried, || hop.endpoints.now()))
    }

    /// The route of the same call's next attempt, which goes to an endpoint not yet tried where there is one.
    pub(crate) fn next(&self) -> Self {
        let Taken { tried, tells, .. } = *self.taken();
        Self(Arc::new(Mutex::new(Taken { tried, tells, ..Taken::default() })))
    }

    pub(super) fn tells(&self) -> bool {
        self.taken().tells
    }

    /// The message is read, and may be sent. False where it is not to be: it was given up.
    pub(super) fn reads(&self) -> bool {
        let message = &mut self.taken().message;
        if *message == Message::Unread {
            *message = Message::Read;
        }
        *message == Message::Read
    }

    /// What was read of the message has not left, or was refused as a whole.
    pub(super) fn unread(&self) {
        let message = &mut self.taken().message;
        if *message == Message::Read {
            *message = Message::Unread;
        }
    }

    /// The attempt is over. True where no server has got the message; then none will.
    pub(super) fn gives_up(&self) -> bool {
        let Taken { tells, message, .. } = &mut *self.taken();
        if !*tells {
            return false;
        }
        if *message == Message::Unread {
            *message = Message::GivenUp;
        }
        *message == Message::GivenUp
    }

    pub(super) fn goes_with(&self, token: Option<&HeaderValue>) {
        self.taken().token = token.cloned();
    }

    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.taken().token.clone()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NotSent {
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.since.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
    }

    /// Connects to an endpoint in the background, and lets requests go there again once it answers.
    fn check(self: &Arc<Self>, index: usize) {
        if self.links[index].current().doubted {
            // What is under way tells of it, too, and may spare the connection.
            return;
        }
        self.in_background(index, async move |dialer, shared| match dialer.checked().await {
            Ok(channel) => shared.upgrade().is_some_and(|shared| shared.replace(index, channel)),
            Err(error) => {
                tracing::debug!(endpoint = dialer.name(), error = &*error, "still unreachable");
                false
            }
        });
    }

    /// Finds out in the background whether an endpoint that said nothing still answers on its connection, and gives it
    /// another if not.
    ///
    /// A server that is only slow keeps its connection: if each request that was given up brought a new one, all clients
    /// of an overloaded server would connect to it all the time. And one whose connection is dead while no request is
    /// left on it gets another: nothing else would end it, and it would swallow the next requests, too, until the kernel
    /// gives up on it. The new one has to answer before it is used, or, if that fails, connects anew with the next
    /// request; then the endpoint is avoided for longer, and there is no other until that time is over.
    fn doubt(self: &Arc<Self>, index: usize, channel: Channel, number: u64) {
        self.in_background(index, async move |dialer, shared| {
            if dialer.answers(channel, SILENCE).await {
                let Some(shared) = shared.upgrade() else { return true };
                shared.links[index].trust(number);
                // What answers here says nothing of what left the request without an answer.
                shared.marks.sound(index);
                return true;
            }
            let checked = dialer.checked().await;
            let Some(shared) = shared.upgrade() else { return true };
            match checked {
                Ok(channel) => shared.replace(index, channel),
                Err(error) => {
                    tracing::debug!(endpoint = dialer.name(), error = &*error, "silent, and unreachable");
                    shared.links[index].replace(dialer.lazy());
                    false
                }
            }
        });
    }

    fn replace(&self, index: usize, channel: Channel) -> bool {
        self.links[index].replace(channel);
        self.marks.answered(index);
        true
    }

    /// Does work that tells whether an endpoint is alive. It ends with the last handle.
    fn in_background<F>(self: &Arc<Self>, index: usize, work: impl FnOnce(Dialer, Weak<Self>) -> F)
    where
        F: Future<Output = bool> + Send + 'static,
    {
        // Not the whole: the last handle's end shall be the end of this too.
        let shared = Arc::downgrade(self);
        let work = work(self.links[index].dialer.clone(), shared.clone());
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        while checks.try_join_next().is_some() {}
        let work = async move {
            if !work.await
                && let Some(shared) = shared.upgrade()
            {
                shared.marks.still_dead(index, shared.now());
            }
        };
        checks.spawn_on(work, &self.runtime);
    }
}

impl Link {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, channel: Channel) {
        let mut current = self.current();
        *current = Current { channel, number: current.number + 1, doubted: false };
    }

    /// The channel of this number has answered.
    fn trust(&self, number: u64) {
        let mut current = self.current();
        if current.number == number {
            current.doubted = false;
        }
    }
}

impl Hop {
    fn link(&self) -> &Link {
        &self.endpoints.links[self.index]
    }

    /// Avoids the endpoint, and doubts its connection, if this is still the endpoint's: one at a time, and no more often
    /// than it is marked anew.
    fn silent(&self) {
        let mut current = self.link().current();
        if current.number != self.number || current.doubted || !self.broken() {
            return;
        }
        current.doubted = true;
        let channel = current.channel.clone();
        drop(current);
        self.endpoints.doubt(self.index, channel, self.number);
    }

    /// True where this marks it anew.
    fn broken(&self) -> bool {
        self.endpoints.marks.fail(self.index, Trouble::Line, self.endpoints.now())
    }
}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hop").field(&self.link().dialer.name()).field(&self.number).finish()
    }
}

impl Service<Request<Body>> for Endpoints {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Which endpoint it will be is known by the request. What goes wrong here would lose its type on the way.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let shared = &self.0;
        let route = request.extensions().get::<Route>().cloned();
        let tried = route.as_ref().map_or(0, |route| route.taken().tried);
        let pick = shared.marks.pick(tried, || shared.now());
        if let Some(dead) = pick.check {
            shared.check(dead);
        }
        let (channel, number) = {
            let current = shared.links[pick.index].current();
            (current.channel.clone(), current.number)
        };
        let hop = Hop { endpoints: shared.clone(), index: pick.index, number };
        if let Some(route) = &route {
            let mut taken = route.taken();
            taken.tried |= marks::bit(pick.index);
            taken.hop = Some(hop.clone());
        }
        Answer { hop, channel, since: Instant::now(), state: State::Waiting(Some(request)) }
    }
}

/// The answer to one request.
pub(crate) struct Answer {
    hop: Hop,
    channel: Channel,
    since: Instant,
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "one for each request, inside of its future")]
enum State {
    /// For a place in the channel's queue.
    Waiting(Option<Request<Body>>),
    Sent(tonic::transport::channel::ResponseFuture),
    Done,
}

impl Future for Answer {
    type Output = Result<Response<Body>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let answer = loop {
            match &mut this.state {
                State::Waiting(request) => match ready!(this.channel.poll_ready(cx)) {
                    Ok(()) => {
                        let request = request.take().expect("taken once");
                        this.state = State::Sent(this.channel.call(request));
                    }
                    Err(error) => break Err(error),
                },
                State::Sent(answer) => break ready!(Pin::new(answer).poll(cx)),
                State::Done => panic!("polled after its end"),
            }
        };
        this.state = State::Done;
        Poll::Ready(match answer {
            Ok(answer) => {
                this.hop.endpoints.marks.answered(this.hop.index);
                Ok(answer)
            }
            Err(error) => Err(this.hop.failed(error)),
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !matches!(self.state, State::Done) && self.since.elapsed() >= SILENCE {
            self.hop.silent();
        }
    }
}

impl Hop {
    fn failed(&self, error: tonic::transport::Error) -> Status {
        if has::<tonic::TimeoutExpired>(&error) {
            // The caller's own deadline.
            return Status::from_error(error.into());
        }
        if self.link().current().number == self.number {
            self.broken();
        }
        if has::<tonic::ConnectError>(&error) {
            let endpoint = self.link().dialer.name().to_owned();
            let not_sent = NotSent { endpoint, source: error.into() };
            return Status::from_error(not_sent.into());
        }
        Status::from_error(error.into())
    }
}

fn has<T: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<T>() {
            return true;
        }
        next = error.source();
    }
    false
}
