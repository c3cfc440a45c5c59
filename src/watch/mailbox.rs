//! Where the hub's task leaves what a watcher has yet to read.
//!
//! Ten thousand waiters each have one: it allocates nothing while it is empty, and has one reader, whose waker is
//! all that waits. What all mailboxes of a client hold together is bounded too, by their [`Budget`].

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Events;
use crate::error::{Error, Result};

pub(super) struct Mailbox {
    state: Mutex<State>,
    /// How many events it takes before it is full.
    limit: usize,
    budget: Arc<Budget>,
}

/// The bytes that all mailboxes of a client hold, and how many they may.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicUsize,
    most: usize,
}

/// What became of events that were left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Taken,
    /// Taken; what comes next should be held back until the mailbox is drained.
    Full,
    /// Not taken: the mailboxes hold too much together. They are to come again, from this revision on, when this one is
    /// drained.
    Refused(i64),
}

#[derive(Default)]
struct State {
    queue: VecDeque<Events>,
    events: usize,
    bytes: usize,
    /// Targets that the server has yet to acknowledge.
    unacknowledged: usize,
    created: i64,
    /// Something waits for this to be drained.
    full: bool,
    /// It is full for what all hold together: it is drained when it is empty and its reader waits.
    refused: bool,
    /// The server has every target now.
    live: bool,
    /// How often a target was acknowledged again.
    resumed: u32,
    end: Option<Arc<Error>>,
    waker: Option<Waker>,
}

impl Mailbox {
    pub(super) fn new(targets: usize, limit: usize, budget: Arc<Budget>) -> Self {
        Self { state: Mutex::new(State { unacknowledged: targets, ..State::default() }), limit, budget }
    }

    /// A target was acknowledged for the first time.
    pub(super) fn acknowledge(&self, revision: i64) {
        self.change(|state| {
            state.unacknowledged = state.unacknowledged.saturating_sub(1);
            state.created = state.created.max(revision);
        });
    }

    /// A target was acknowledged again: what comes for it from here on comes after this. Wakes no reader.
    pub(super) fn resume(&self) {
        let mut state = self.lock();
        state.resumed = state.resumed.wrapping_add(1);
    }

    pub(super) fn resumed(&self) -> u32 {
        self.lock().resumed
    }

    /// Whether the server has every target now. Wakes no reader: one asks when it has heard nothing for long.
    pub(super) fn set_live(&self, live: bool) {
        self.lock().live = live;
    }

    pub(super) fn is_live(&self) -> bool {
        self.lock().live
    }

    /// Leaves events, and wakes the reader.
    ///
    /// With too much in all mailboxes together only those who wait for something are given it: it does not stay.
    pub(super) fn push(&self, events: Events) -> Pushed {
        let (count, bytes) = weight(&events);
        let first = events.events.first().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
        let held = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        let over = held.saturating_add(bytes) > self.budget.most;
        let mut state = self.lock();
        let is_awaited = state.queue.is_empty() && state.waker.is_some();
        if let Some(revision) = first.filter(|_| over && !is_awaited) {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            (state.full, state.refused) = (true, true);
            return Pushed::Refused(revision);
        }
        drop(state);
        let full = self.change(|state| {
            state.events += count;
            state.bytes += bytes;
            match state.queue.back_mut() {
                // The report before these says nothing that these do not.
                Some(last) if last.target == events.target && last.events.is_empty() => {
                    state.events -= weight(last).0;
                    *last = events;
                }
                _ => state.queue.push_back(events),
            }
            state.full |= state.events > self.limit || state.bytes > MOST_BYTES;
            state.full
        });
        if full { Pushed::Full } else { Pushed::Taken }
    }

    /// Ends it: what was left is still read, then the error. The first end counts.
    pub(super) fn end(&self, error: &Arc<Error>) {
        self.change(|state| {
            state.end.get_or_insert_with(|| error.clone());
        });
    }

    pub(super) fn poll_created(&self, cx: &mut Context<'_>) -> Poll<Result<i64>> {
        let mut state = self.lock();
        match &state.end {
            Some(error) => Poll::Ready(Err(again(error))),
            None if state.unacknowledged == 0 => Poll::Ready(Ok(state.created)),
            None => state.wait(cx),
        }
    }

    /// The next events; and whether what was held back for this is to go on, since it is drained below half.
    pub(super) fn poll_events(&self, cx: &mut Context<'_>) -> (Poll<Result<Events>>, bool) {
        let mut state = self.lock();
        if let Some(events) = state.queue.pop_front() {
            let (weight, bytes) = weight(&events);
            state.events -= weight;
            state.bytes -= bytes;
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            let low = state.events * 2 <= self.limit && state.bytes * 2 <= MOST_BYTES;
            let drained = low && !state.refused && std::mem::take(&mut state.full);
            return (Poll::Ready(Ok(events)), drained);
        }
        if let Some(error) = &state.end {
            return (Poll::Ready(Err(again(error))), false);
        }
        state.refused = false;
        let drained = std::mem::take(&mut state.full);
        (state.wait(cx), drained)
    }

    /// Changes the state, and wakes the reader once the lock is free again.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.budget.held.fetch_sub(state.bytes, Ordering::Relaxed);
    }
}

impl State {
    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// How much of a mailbox these fill: as events, of which a report counts as one, and in bytes.
fn weight(events: &Events) -> (usize, usize) {
    (events.events.len().max(1), events.events.iter().map(super::cursor::size).sum())
}

/// The same error once more: of the same kind, from the same source.
fn again(error: &Arc<Error>) -> Error {
    let mut copy = Error::new(error.kind().clone(), error.outcome());
    if let Some(rpc) = error.rpc() {
        copy = copy.at(rpc);
    }
    if error.source().is_some() { copy.because(Source(error.clone())) } else { copy }
}

/// Stands for the source of an error that several watchers, or calls, share.
#[derive(Debug)]
struct Source(Arc<Error>);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source().map_or(Ok(()), |source| fmt::Display::fmt(source, f))
    }
}

impl StdError for Source {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()?.source()
    }
}

/// What a mailbox holds at most, but for the one response that overfills it.
const MOST_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, Outcome};
    use crate::pb::mvccpb::{Event, KeyValue};

    fn events(target: usize, revision: i64, value_bytes: &[usize]) -> Events {
        let event = |&bytes: &usize| Event {
            kv: Some(KeyValue { key: "k".into(), value: vec![0; bytes].into(), ..Default::default() }),
            ..Default::default()
        };
        Events { target, revision, events: value_bytes.iter().map(event).collect() }
    }

    fn mailbox(targets: usize, limit: usize) -> Mailbox {
        Mailbox::new(targets, limit, Budget::new(usize::MAX))
    }

    fn read(mailbox: &Mailbox) -> (Poll<Result<Events>>, bool) {
        mailbox.poll_events(&mut Context::from_waker(Waker::noop()))
    }

    fn got(mailbox: &Mailbox) -> (i64, bool) {
        match read(mailbox) {
            (Poll::Ready(Ok(events)), drained) => (events.revision, drained),
            other => panic!("{other:?}"),
        }
    }

    fn is_full(pushed: &Pushed) -> bool {
        *pushed == Pushed::Full
    }

    #[test]
    fn a_full_mailbox_says_once_that_it_is_drained_below_half() {
        let mailbox = mailbox(1, 4);
        let full: Vec<_> =
            (1..=6).map(|revision| is_full(&mailbox.push(events(0, revision, &[1])))).collect();
        assert_eq!(full, [false, false, false, false, true, true]);
        let drained: Vec<_> = (1..=6).map(|_| got(&mailbox)).collect();
        assert_eq!(drained, [(1, false), (2, false), (3, false), (4, true), (5, false), (6, false)]);
        assert!(matches!(read(&mailbox), (Poll::Pending, false)));
    }

    #[test]
    fn it_stays_full_until_it_is_drained() {
        let mailbox = mailbox(2, 4);
        for revision in 1..=5 {
            mailbox.push(events(0, revision, &[1]));
        }
        (1..=2).for_each(|revision| assert_eq!(got(&mailbox), (revision, false)));
        // Below its limit again, but what was held back for it still waits.
        assert!(is_full(&mailbox.push(events(1, 6, &[1]))));
        assert_eq!([got(&mailbox), got(&mailbox)], [(3, false), (4, true)]);
    }

    #[test]
    fn a_few_large_events_fill_it_too() {
        let mailbox = mailbox(1, 1024);
        assert!(!is_full(&mailbox.push(events(0, 1, &[MOST_BYTES / 2]))));
        assert!(is_full(&mailbox.push(events(0, 2, &[MOST_BYTES / 2]))));
        assert_eq!(got(&mailbox), (1, false), "bytes beside the values still count");
        assert_eq!(got(&mailbox), (2, true));
    }

    #[test]
    fn reports_that_nobody_reads_do_not_pile_up() {
        let mailbox = mailbox(2, 8);
        for revision in 1..=100 {
            assert!(!is_full(&mailbox.push(events(0, revision, &[]))));
        }
        assert!(!is_full(&mailbox.push(events(1, 101, &[]))));
        assert!(!is_full(&mailbox.push(events(1, 102, &[1]))));
        assert_eq!((got(&mailbox).0, got(&mailbox).0), (100, 102));
        assert!(matches!(read(&mailbox), (Poll::Pending, false)));
        let state = mailbox.lock();
        assert_eq!((state.events, state.bytes), (0, 0));
    }

    #[test]
    fn the_end_comes_after_what_was_left_and_stays() {
        let mailbox = mailbox(1, 8);
        mailbox.push(events(0, 1, &[1]));
        let cause = std::io::Error::other("the cause");
        let error = Error::new(ErrorKind::NoLeader, Outcome::NotApplied).at("Watch/Watch").because(cause);
        mailbox.end(&Arc::new(error));
        mailbox.end(&Arc::new(Error::protocol("a later end", Outcome::NotApplied)));
        assert_eq!(got(&mailbox).0, 1);
        for _ in 0..3 {
            let (Poll::Ready(Err(error)), _) = read(&mailbox) else { panic!("not ended") };
            assert_eq!((error.kind(), error.rpc()), (&ErrorKind::NoLeader, Some("Watch/Watch")));
            assert_eq!(error.source().expect("a source").to_string(), "the cause");
        }
    }

    #[test]
    fn created_waits_for_every_target() {
        let mailbox = mailbox(2, 8);
        let created = |mailbox: &Mailbox| mailbox.poll_created(&mut Context::from_waker(Waker::noop()));
        mailbox.acknowledge(9);
        assert!(created(&mailbox).is_pending());
        mailbox.acknowledge(7);
        assert!(matches!(created(&mailbox), Poll::Ready(Ok(9))));
    }

    /// Ten thousand watchers that were slow held 16 MiB each: 160 GB. What is over the bound stays on the server, and each
    /// reader gets its events all the same, one delivery after the other.
    #[test]
    fn all_mailboxes_together_hold_no_more_than_their_budget() {
        let budget = Budget::new(1 << 20);
        let mailboxes: Vec<_> = (0..100).map(|_| Mailbox::new(1, 1024, budget.clone())).collect();
        let held = || budget.held.load(Ordering::Relaxed);
        let mut refused = 0;
        for revision in 1..=4 {
            for mailbox in &mailboxes {
                match mailbox.push(events(0, revision, &[10_000])) {
                    Pushed::Refused(_) => refused += 1,
                    pushed => assert_eq!(pushed, Pushed::Taken),
                }
                assert!(held() <= 1 << 20);
            }
        }
        assert!(refused >= 290, "{refused}");
        // Whose reader waits gets what comes, however much the others hold; that it waits lets it go on.
        let last = &mailboxes[99];
        while matches!(read(last), (Poll::Ready(_), _)) {}
        assert!(matches!(last.push(events(0, 7, &[1 << 20])), Pushed::Taken | Pushed::Full));
        assert_eq!(got(last).0, 7);
        assert_eq!(last.push(events(0, 8, &[1 << 20])), Pushed::Refused(0));
        assert!(matches!(read(last), (Poll::Pending, true)));
        assert!(matches!(read(last), (Poll::Pending, false)));
        drop(mailboxes);
        assert_eq!(held(), 0);
    }
}
