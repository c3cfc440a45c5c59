//! The task that keeps a client's leases alive: one stream, one timer wheel, nothing that looks at idle leases.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue;
use tonic::{Status, Streaming};

use super::clock::{Answer, Due, Moment};
use super::{Command, Lease, Leases};
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use crate::transport::channel::Route;
use crate::transport::retry::{Backoff, avoids_member};

/// The task's state.
pub(super) struct KeepAlive {
    leases: Leases,
    commands: mpsc::UnboundedReceiver<Command>,
    kept: BTreeMap<i64, Kept>,
    /// For each lease, when its clock wants to be looked at.
    timers: DelayQueue<i64>,
    stream: Option<Stream>,
    /// The keep-alives under way on the present stream, the oldest first: each lease's are answered in their order.
    unanswered: VecDeque<Asked>,
    asked: u64,
    backoff: Backoff,
    /// No stream is opened before this.
    not_before: Option<Instant>,
    /// Suspended time as last seen.
    slept: Duration,
}

struct Kept {
    lease: Arc<Lease>,
    timer: delay_queue::Key,
}

/// A keep-alive under way.
struct Asked {
    id: i64,
    /// Counts the keep-alives of the task.
    number: u64,
    /// The lease was given up since. It may be adopted again, and asked for again, before this is answered.
    forgotten: bool,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<LeaseKeepAliveResponse>>> + Send>>;

/// A stream, open or being opened. etcd answers the opening with its first response, so requests go out before.
struct Stream {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Answers,
    route: Route,
    /// When a keep-alive was last answered.
    heard: Option<Moment>,
    /// The latest of the keep-alives that were answered.
    answered: u64,
    /// It is silent, and is listened to until then.
    doubted: Option<Moment>,
}

/// What a keep-alive without an answer says of its stream.
enum Silence {
    /// Nothing before this.
    Wait(Moment),
    /// Later ones were answered: this one was lost on the way.
    Skipped,
    /// The stream is dead.
    Dead,
}

enum Answers {
    Opening(Opening),
    Open(Box<Streaming<LeaseKeepAliveResponse>>),
}

/// What woke the task.
enum Event {
    Command(Option<Command>),
    Timer(i64),
    Answer(Result<LeaseKeepAliveResponse>),
    Tick,
}

impl KeepAlive {
    pub(super) fn new(leases: Leases, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        let slept = leases.time().slept();
        Self {
            leases,
            commands,
            kept: BTreeMap::new(),
            timers: DelayQueue::new(),
            stream: None,
            unanswered: VecDeque::new(),
            asked: 0,
            backoff: Backoff::default(),
            not_before: None,
            slept,
        }
    }

    /// Runs until there is no lease left.
    pub(super) async fn run(mut self) {
        let mut tick = ticks();
        loop {
            let event = self.wait(&mut tick).await;
            match &event {
                Event::Timer(id) => self.timer_fired(*id),
                Event::Command(Some(Command::Keep(lease))) => self.keep(lease.clone()),
                _ => {}
            }
            self.notice_suspension();
            match event {
                Event::Command(Some(Command::Keep(lease))) => self.look_at_now(lease.id()),
                Event::Command(Some(Command::Forget(id))) => self.forget(id),
                Event::Command(None) => return,
                Event::Timer(id) => {
                    self.look_at_now(id);
                    self.renew_those_due_soon();
                }
                Event::Answer(Ok(answer)) => self.answered(&answer),
                Event::Answer(Err(error)) => self.broken(&error),
                Event::Tick => {}
            }
            if self.kept.is_empty() && self.leases.retire(&self.commands) {
                return;
            }
        }
    }

    async fn wait(&mut self, tick: &mut Interval) -> Event {
        tokio::select! {
            // In this order, so that a run on a paused clock repeats exactly; timers first, since losing a lease
            // matters more than renewing another.
            biased;
            Some(expired) = next_timer(&mut self.timers), if !self.timers.is_empty() => {
                Event::Timer(expired.into_inner())
            }
            command = self.commands.recv() => Event::Command(command),
            answer = next_answer(&mut self.stream, &self.leases), if self.stream.is_some() => Event::Answer(answer),
            _ = tick.tick() => Event::Tick,
        }
    }

    /// Takes a lease in. No user's code runs before it is among those that the end of this task ends.
    fn keep(&mut self, lease: Arc<Lease>) {
        let id = lease.id();
        let timer = self.timers.insert(id, Duration::ZERO);
        let earlier = self.kept.insert(id, Kept { lease, timer });
        if let Some(earlier) = earlier {
            // Adopted again after it had ended or was given up, which had not come here yet.
            self.give_up(&earlier);
        }
    }

    fn forget(&mut self, id: i64) {
        // The id may have been adopted again since: only a lost lease is forgotten.
        let now = self.leases.time().now();
        if self.kept.get(&id).is_some_and(|kept| !kept.lease.is_believed(now))
            && let Some(kept) = self.kept.remove(&id)
        {
            self.give_up(&kept);
        }
    }

    /// Keeps a lease no longer: it has ended, or its time has passed with nobody looking.
    fn give_up(&mut self, kept: &Kept) {
        kept.lease.lose(LostReason::Expired);
        self.timers.try_remove(&kept.timer);
        let id = kept.lease.id();
        self.unanswered.iter_mut().filter(|asked| asked.id == id).for_each(|asked| asked.forgotten = true);
    }

    /// A lease's timer is no longer one: the lease gets another, to be set when it is looked at.
    fn timer_fired(&mut self, id: i64) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.timer = self.timers.insert(id, FAR);
        }
    }

    /// Does what the lease's clock wants, and sets its timer.
    fn look_at_now(&mut self, id: i64) {
        let Some(lease) = self.kept.get(&id).map(|kept| kept.lease.clone()) else { return };
        match lease.with_clock(|clock, now| clock.due(now)) {
            Due::At(_) => {}
            Due::Expired => {
                lease.lose(LostReason::Expired);
                return;
            }
            Due::Silent => match self.judge(&lease) {
                Silence::Wait(until) => lease.with_clock(|clock, _| clock.wait_until(until)),
                Silence::Skipped => {
                    tracing::debug!("a keep-alive was not answered, and later ones were");
                    self.close_stream();
                }
                Silence::Dead => {
                    tracing::debug!("the keep-alive stream is silent");
                    self.stream.iter().for_each(|stream| stream.route.avoid());
                    self.close_stream();
                }
            },
            Due::KeepAlive => self.send(&lease),
        }
        self.set_timer(&lease);
    }

    /// An answer is overdue. Where the server has many to give it gives them one after the other, and where this process
    /// stood still the answer may have come and be yet to be read: it is the stream's silence that counts, and only as
    /// far as it was listened to.
    fn judge(&mut self, lease: &Lease) -> Silence {
        // Without one, nothing is under way.
        let Some(stream) = &mut self.stream else { return Silence::Dead };
        let asked = self.unanswered.iter().find(|asked| asked.id == lease.id() && !asked.forgotten);
        if asked.is_some_and(|asked| asked.number < stream.answered) {
            return Silence::Skipped;
        }
        let (now, patience, left) =
            lease.with_clock(|clock, now| (now, clock.patience(now), clock.remaining(now)));
        match (stream.heard, stream.doubted) {
            (Some(heard), _) if now < heard + patience => Silence::Wait(heard + patience),
            (_, None) => {
                let until = now + GRACE.min(left / 4);
                stream.doubted = Some(until);
                Silence::Wait(until)
            }
            (_, Some(until)) if now < until => Silence::Wait(until),
            (_, Some(_)) => Silence::Dead,
        }
    }

    /// Sends along what would be sent soon: ten thousand leases then wake us once a second, not five hundred times.
    fn renew_those_due_soon(&mut self) {
        // Without a stream nothing is sent, and nothing would be due later than now.
        while self.stream.is_some()
            && let Some(next) = self.timers.peek()
            && self.timers.deadline(&next) <= Instant::now() + LONGEST_EARLY
        {
            let id = self.timers.remove(&next).into_inner();
            self.timer_fired(id);
            let Some(lease) = self.kept.get(&id).map(|kept| kept.lease.clone()) else { return };
            let is_due = lease.with_clock(|clock, now| {
                let early = (clock.ttl() / EARLY).min(LONGEST_EARLY);
                clock.due(now + early) == Due::KeepAlive
            });
            if is_due {
                self.send(&lease);
            }
            self.set_timer(&lease);
            if !is_due {
                return;
            }
        }
    }

    fn set_timer(&mut self, lease: &Lease) {
        let Some(kept) = self.kept.get(&lease.id()) else { return };
        let time = self.leases.time();
        let (wake, deadline) = lease.with_clock(|clock, now| {
            let wake = match clock.due(now) {
                Due::At(moment) => moment,
                Due::KeepAlive | Due::Silent | Due::Expired => now,
            };
            (wake, clock.deadline())
        });
        // Not under the clock's lock: the time may be read by a user's code.
        let (wake, deadline) = (time.instant_of(wake), time.instant_of(deadline));
        // Without a stream, the next attempt to open one, but not later than the lease's end.
        let wake = match self.not_before {
            Some(pause) if self.stream.is_none() => wake.max(pause.min(deadline)),
            _ => wake,
        };
        self.timers.reset_at(&kept.timer, wake.min(Instant::now() + FAR));
    }

    fn send(&mut self, lease: &Lease) {
        if self.stream.is_none() {
            if self.not_before.is_some_and(|pause| Instant::now() < pause) {
                return;
            }
            self.open_stream();
        }
        let Some(stream) = &self.stream else { return };
        lease.with_clock(|clock, now| clock.on_send(now));
        // A stream whose receiver is gone tells so by its answers.
        let _ = stream.requests.send(LeaseKeepAliveRequest { id: lease.id() });
        self.asked += 1;
        self.unanswered.push_back(Asked { id: lease.id(), number: self.asked, forgotten: false });
    }

    fn open_stream(&mut self) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let route = Route::default();
        let (transport, on) = (self.leases.shared.transport.clone(), route.clone());
        let opening =
            async move { transport.open_keep_alive(UnboundedReceiverStream::new(receiver), on).await };
        let answers = Answers::Opening(Box::pin(opening));
        let (heard, answered, doubted) = (None, 0, None);
        self.stream = Some(Stream { requests, answers, route, heard, answered, doubted });
    }

    fn answered(&mut self, answer: &LeaseKeepAliveResponse) {
        self.backoff.reset();
        self.not_before = None;
        let asked = self.unanswered.iter().position(|asked| asked.id == answer.id);
        let asked = asked.and_then(|at| self.unanswered.remove(at));
        if let (Some(asked), Some(stream)) = (&asked, &mut self.stream) {
            stream.heard = Some(self.leases.time().now());
            stream.answered = stream.answered.max(asked.number);
            stream.doubted = None;
        }
        // An answer for a lease that was given up in the meantime; adopted again, it was asked for later.
        if asked.is_some_and(|asked| asked.forgotten) {
            return;
        }
        let Some(lease) = self.kept.get(&answer.id).map(|kept| kept.lease.clone()) else { return };
        match lease.with_clock(|clock, now| clock.on_answer(answer.ttl, now)) {
            Answer::Renewed => lease.resume(),
            Answer::Unasked => {}
            Answer::Gone => {
                lease.lose(LostReason::LeaseGone);
            }
            Answer::Revoked => {
                lease.lose(LostReason::Revoked);
            }
        }
        self.set_timer(&lease);
    }

    /// The stream ended.
    fn broken(&mut self, error: &Error) {
        tracing::debug!(%error, "the keep-alive stream broke");
        if let Some(stream) = &self.stream {
            match error.kind() {
                ErrorKind::Timeout => stream.route.avoid(),
                kind if avoids_member(kind) => stream.route.avoid_member(),
                _ => {}
            }
        }
        // One lease that may not be renewed must not hold up the others: it was the one being answered, and asks
        // again only when its turn comes round.
        let culprit = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::Refused { .. } | ErrorKind::Other { .. } => {
                self.unanswered.pop_front()
            }
            _ => None,
        };
        let culprit = culprit.filter(|asked| !asked.forgotten);
        if let Some(lease) = culprit.and_then(|asked| self.kept.get(&asked.id)).map(|kept| kept.lease.clone())
        {
            lease.with_clock(|clock, now| clock.on_break(now + clock.ttl() / 3));
            lease.suspend();
            self.set_timer(&lease);
        }
        self.close_stream();
    }

    /// Drops the stream; what was under way on it is due again after a pause.
    fn close_stream(&mut self) {
        if self.stream.take().is_none() {
            return;
        }
        let pause = self.backoff.next();
        self.not_before = Some(Instant::now() + pause);
        for asked in std::mem::take(&mut self.unanswered).into_iter().filter(|asked| !asked.forgotten) {
            let Some(lease) = self.kept.get(&asked.id).map(|kept| kept.lease.clone()) else { continue };
            lease.with_clock(|clock, now| clock.on_break(now));
            lease.suspend();
            self.set_timer(&lease);
        }
    }

    /// After the machine slept, timers are late by as long as it did: every clock is looked at.
    fn notice_suspension(&mut self) {
        let slept = self.leases.time().slept();
        if slept == self.slept {
            return;
        }
        self.slept = slept;
        tracing::debug!("the machine was suspended");
        let ids: Vec<i64> = self.kept.keys().copied().collect();
        for id in ids {
            self.look_at_now(id);
        }
    }
}

/// The task goes with its runtime, or in a panic: nobody keeps these leases alive any more, nor those that were on their
/// way here.
impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.commands.close();
        let mut leases: Vec<_> =
            std::mem::take(&mut self.kept).into_values().map(|kept| kept.lease).collect();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Keep(lease) = command {
                leases.push(lease);
            }
        }
        for lease in &leases {
            lease.end(LostReason::Closed);
        }
        leases.retain(|lease| lease.state.is_watched());
        if leases.is_empty() {
            return;
        }
        // Whoever ends the runtime may hold a borrow of a state, which the telling waits for.
        let tell = move || leases.iter().for_each(|lease| lease.state.tell_now());
        if let Err(error) = std::thread::Builder::new().name("leases lost".into()).spawn(tell) {
            tracing::warn!(%error, "who watches the state of a session is not told that it is lost");
        }
    }
}

/// Wakes the task now and then, to notice that the machine slept: no timer of tokio's does.
fn ticks() -> Interval {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// The next answer. Cancel safe: the opening and the stream stay where they are.
async fn next_answer(stream: &mut Option<Stream>, leases: &Leases) -> Result<LeaseKeepAliveResponse> {
    let Some(stream) = stream else { return std::future::pending().await };
    loop {
        match &mut stream.answers {
            Answers::Opening(opening) => {
                let open = opening.await?;
                stream.answers = Answers::Open(Box::new(open));
            }
            Answers::Open(open) => {
                let transport = &leases.shared.transport;
                let ended = match open.message().await {
                    Ok(Some(answer)) => {
                        // Another cluster knows nothing of our leases.
                        transport.same_cluster(RPC, answer.header.as_ref(), &stream.route)?;
                        return Ok(answer);
                    }
                    Ok(None) => Status::unavailable("the keep-alive stream ended"),
                    Err(status) => status,
                };
                return Err(transport.stream_error(RPC, ended));
            }
        }
    }
}

async fn next_timer(timers: &mut DelayQueue<i64>) -> Option<delay_queue::Expired<i64>> {
    std::future::poll_fn(|context| timers.poll_expired(context)).await
}

const RPC: &str = "Lease/LeaseKeepAlive";
/// Which share of its TTL a lease may be renewed early, along with others, and how much at most.
const EARLY: u32 = 60;
const LONGEST_EARLY: Duration = Duration::from_secs(1);
/// How long a silent stream is listened to before it counts as dead.
const GRACE: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_secs(1);
/// tokio's wheel reaches two years.
const FAR: Duration = Duration::from_secs(300 * 86_400);
