//! The task that keeps a client's leases alive: one stream, one timer wheel, nothing that looks at idle leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue;

use super::Lease;
use super::clock::{Answer, Due, LeaseClock, Moment};
use super::registry::{Command, Leases};
use super::stream::{Silence, Stream};
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::pb::etcdserverpb::LeaseKeepAliveResponse;
use crate::transport::retry::Backoff;

/// The task's state.
pub(super) struct KeepAlive {
    leases: Leases,
    commands: mpsc::UnboundedReceiver<Command>,
    kept: BTreeMap<i64, Kept>,
    /// For each lease, when its clock wants to be looked at.
    timers: DelayQueue<i64>,
    stream: Option<Stream>,
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
            answer = next_answer(&mut self.stream, &self.leases) => Event::Answer(answer),
            _ = tick.tick() => Event::Tick,
        }
    }

    /// Takes a lease in. No user's code runs before it is among those that the end of this task ends.
    fn keep(&mut self, lease: Arc<Lease>) {
        let id = lease.id();
        // The thread that adopted the lease may have stood still before it told that, and another have adopted it anew since: that
        // one is kept.
        if self.kept.get(&id).is_some_and(|kept| kept.lease.number > lease.number) {
            lease.lose(LostReason::Expired);
            return;
        }
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
        self.stream.iter_mut().for_each(|stream| stream.forget(kept.lease.id()));
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
                // Here, too: where it had ended before it came to this task, its Forget was ahead of it.
                self.forget(id);
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
                    self.stream.iter().for_each(Stream::is_dead);
                    self.close_stream();
                }
            },
            Due::KeepAlive => self.send(&lease),
        }
        self.set_timer(&lease);
    }

    /// An answer is overdue: what does that say of the stream?
    fn judge(&mut self, lease: &Lease) -> Silence {
        // Without one, nothing is under way.
        let Some(stream) = &mut self.stream else { return Silence::Dead };
        let (now, patience, left) =
            lease.with_clock(|clock, now| (now, clock.patience(now), clock.remaining(now)));
        stream.judge(lease.id(), now, patience, left)
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
            self.stream = Some(Stream::open(self.leases.shared.transport.clone()));
        }
        let Some(stream) = &mut self.stream else { return };
        lease.with_clock(|clock, now| clock.on_send(now));
        stream.ask(lease.id());
    }

    fn answered(&mut self, answer: &LeaseKeepAliveResponse) {
        self.backoff.reset();
        self.not_before = None;
        let now = self.leases.time().now();
        // An answer for a lease that was given up in the meantime; adopted again, it was asked for later.
        if self.stream.as_mut().is_some_and(|stream| !stream.heard(answer.id, now)) {
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
        // One lease that may not be renewed must not hold up the others: it is asked for again after a pause of its own.
        let culprit = self.stream.as_mut().and_then(|stream| stream.ended(error.kind()));
        if let Some(lease) = culprit.and_then(|id| self.kept.get(&id)).map(|kept| kept.lease.clone()) {
            if *error.kind() == ErrorKind::PermissionDenied {
                // The server has answered, and each such lease ends a stream once in its own pause: a pause of all that
                // grows with each would end those that the server renews.
                self.backoff.reset();
            }
            lease.with_clock(|clock, now| clock.on_break(now + after_refusal(clock, now)));
            lease.suspend();
            self.set_timer(&lease);
        }
        self.close_stream();
    }

    /// Drops the stream; what was under way on it is due again after a pause.
    fn close_stream(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        let pause = self.backoff.next();
        self.not_before = Some(Instant::now() + pause);
        for id in stream.into_unanswered() {
            let Some(lease) = self.kept.get(&id).map(|kept| kept.lease.clone()) else { continue };
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

/// The pause of a lease that was refused: a third of what is left of it, so that it is asked for the more often the nearer
/// its end is. A refusal while rights are edited passes.
fn after_refusal(clock: &LeaseClock, now: Moment) -> Duration {
    (clock.remaining(now) / 3).max(clock.ttl() / 20)
}

/// Wakes the task now and then, to notice that the machine slept: no timer of tokio's does.
fn ticks() -> Interval {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// The next answer, if there is a stream.
async fn next_answer(stream: &mut Option<Stream>, leases: &Leases) -> Result<LeaseKeepAliveResponse> {
    match stream {
        Some(stream) => stream.next(&leases.shared.transport).await,
        None => std::future::pending().await,
    }
}

async fn next_timer(timers: &mut DelayQueue<i64>) -> Option<delay_queue::Expired<i64>> {
    std::future::poll_fn(|context| timers.poll_expired(context)).await
}

/// Which share of its TTL a lease may be renewed early, along with others, and how much at most.
const EARLY: u32 = 60;
const LONGEST_EARLY: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_secs(1);
/// tokio's wheel reaches two years.
const FAR: Duration = Duration::from_secs(300 * 86_400);

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::lease::testing::{PATIENCE, adopt, leases};

    /// A thread adopted a lease, and stood still before it told the task. When the time for that had passed, another adopted the
    /// lease anew. The first went on: the task kept its handle, which had no time left, and the other's session was lost.
    #[tokio::test(start_paused = true)]
    async fn a_handle_that_comes_late_to_the_task_ends_no_later_one() {
        let leases = leases();
        let late = adopt(&leases);
        // As though it had not been told yet: the task ends with the handle.
        sleep(PATIENCE * 2).await;
        assert!(!late.is_believed(leases.time().now()));
        let now = adopt(&leases);
        sleep(PATIENCE / 10).await;
        leases.tell(Command::Keep(late.clone()));
        sleep(PATIENCE / 10).await;
        assert_eq!(now.lost_reason(), None, "it has most of its time");
        assert_eq!(late.lost_reason(), Some(LostReason::Expired));
    }
}
