//! Watches: all of a client's on one stream, which is opened again wherever it breaks.
//!
//! From the outside in: [`Watcher`] reads its [`mailbox`]; the [`hub`]'s task owns the stream and fills the
//! mailboxes; the [`table`] knows every watch and what the server has of it; a [`cursor`] says from which revision
//! on one watch goes on; the [`pulse`] tells a silent stream from a dead one.

mod cursor;
mod hub;
mod mailbox;
mod pulse;
mod table;
#[cfg(test)]
mod testing;
mod trials;
#[cfg(test)]
mod wire;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc::UnboundedSender;

use crate::error::{Error, Result};
use crate::key::prefix_end;
use crate::pb::mvccpb::Event;
#[cfg(test)]
pub(crate) use cursor::Cursor;
use hub::Command;
pub(crate) use hub::Hub;
use mailbox::Mailbox;

/// What to watch: one or several keys or ranges, read as one [`Watcher`].
///
/// The options [`from_revision`](Self::from_revision), [`prev_kv`](Self::prev_kv), [`no_put`](Self::no_put),
/// [`no_delete`](Self::no_delete) and [`progress`](Self::progress) hold for the targets that are there when they are
/// called; targets that are added later have their own.
///
/// ```
/// # use etcd_concurrency::Watch;
/// // One watcher for a key's end and for all that happens below a prefix since revision 7.
/// let watch = Watch::key("leader").no_put().and(Watch::prefix("tasks/").from_revision(7));
/// ```
#[derive(Debug, Clone)]
pub struct Watch {
    targets: Vec<Target>,
    needs_leader: bool,
    buffer: usize,
}

/// One key or range.
#[derive(Debug, Clone)]
struct Target {
    key: Bytes,
    /// Empty for one key, `\0` for no end.
    end: Bytes,
    /// 0 for now.
    from: i64,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    progress: bool,
}

impl Watch {
    /// One key. It must not be empty.
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        Self::target(Bytes::copy_from_slice(key.as_ref()), Bytes::new())
    }

    /// All keys that start with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        Self::target(Bytes::copy_from_slice(prefix), prefix_end(prefix))
    }

    /// The keys from `start` up to, without, `end`. An `end` of `\0` is the end of the key space.
    pub fn range(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        let (start, end) = (start.as_ref(), end.as_ref());
        // An empty end would mean one key: a range that is empty either way is refused when it is watched.
        let end = if end.is_empty() { start } else { end };
        Self::target(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end))
    }

    /// Adds one key, as the next target.
    #[must_use]
    pub fn and_key(self, key: impl AsRef<[u8]>) -> Self {
        self.and(Self::key(key))
    }

    /// Adds the targets of `other`, after those that are here. Of the two buffers the larger one counts, and one
    /// [`end_without_leader`](Self::end_without_leader) is enough.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.targets.extend(other.targets);
        self.needs_leader |= other.needs_leader;
        self.buffer = self.buffer.max(other.buffer);
        self
    }

    /// Starts at this revision: events of it, and of all later ones, are delivered. The default, 0, is now.
    ///
    /// The server serves a watch that starts in the past every 100 ms only, until it has caught up.
    #[must_use]
    pub fn from_revision(self, revision: i64) -> Self {
        self.each(|target| target.from = revision)
    }

    /// Events bring what the key held before, unless that is compacted.
    #[must_use]
    pub fn prev_kv(self) -> Self {
        self.each(|target| target.prev_kv = true)
    }

    /// Leaves out puts.
    #[must_use]
    pub fn no_put(self) -> Self {
        self.each(|target| target.no_put = true)
    }

    /// Leaves out deletions.
    #[must_use]
    pub fn no_delete(self) -> Self {
        self.each(|target| target.no_delete = true)
    }

    /// Delivers [`Events`] without events now and then (every 10 minutes by the server's default) while nothing
    /// happens: all events up to their revision have been delivered.
    ///
    /// A watch on which nothing happens for long goes on from such a report after a broken connection. Without, it
    /// goes on from the last event, and ends if that revision is compacted by then.
    #[must_use]
    pub fn progress(self) -> Self {
        self.each(|target| target.progress = true)
    }

    /// Ends with [`ErrorKind::NoLeader`](crate::ErrorKind::NoLeader) when the member that serves the watch has no
    /// leader. By default the watch outlives that: it goes on through another member, or waits.
    #[must_use]
    pub fn end_without_leader(mut self) -> Self {
        self.needs_leader = true;
        self
    }

    /// How many events may wait to be read, 1,024 by default and at least 1; 16 MiB of them at most. When more
    /// wait, the watch pauses on the server, and goes on from there when half of them are read: nothing is lost. All
    /// watches of a client together hold 256 MiB at most; what is over that waits on the server until it is asked for.
    #[must_use]
    pub fn buffer(mut self, events: usize) -> Self {
        self.buffer = events.max(1);
        self
    }

    fn target(key: Bytes, end: Bytes) -> Self {
        let target =
            Target { key, end, from: 0, prev_kv: false, no_put: false, no_delete: false, progress: false };
        Self { targets: vec![target], needs_leader: false, buffer: DEFAULT_BUFFER }
    }

    fn each(mut self, set: impl FnMut(&mut Target)) -> Self {
        self.targets.iter_mut().for_each(set);
        self
    }

    /// What the server would refuse.
    fn check(&self) -> Result<()> {
        for target in &self.targets {
            if target.key.is_empty() && target.end.is_empty() {
                return Err(Error::invalid("key", "an empty key cannot be watched"));
            }
            if !target.end.is_empty() && target.end != b"\0"[..] && target.end <= target.key {
                return Err(Error::invalid("range", "its end is not above its start"));
            }
            if target.from < 0 {
                return Err(Error::invalid("revision", "it is negative"));
            }
        }
        Ok(())
    }
}

/// What happened on one target of a [`Watch`]: whole revisions, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    /// Which target of the watch, counted from 0 in the order in which they were added.
    pub target: usize,
    /// The store's revision when the member sent this: not below that of the last event.
    pub revision: i64,
    /// The events, the oldest first. None for a [progress](Watch::progress) report.
    pub events: Vec<Event>,
}

impl Events {
    /// The revision of the last event: up to there the target has been told of in full. [`revision`](Self::revision) may be
    /// later: in catching up a member sends its own, while it owes events of before it.
    pub(crate) fn told_up_to(&self) -> i64 {
        self.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max().unwrap_or(0)
    }
}

/// A running [`Watch`]: a stream of what happens on its targets.
///
/// Each event is delivered once, and the events of one target in order, over any number of broken connections. An
/// error is the end: its reason was compaction, a refusal or whatever else cannot be mended by trying again.
/// A watch that cannot reach a server waits; bound it with `tokio::time::timeout` where that is too long.
///
/// Dropping it cancels the watch on the server.
///
/// ```
/// # use etcd_concurrency::{Op, Txn, Watch, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// let client = FakeEtcd::start().client();
/// let mut watcher = client.watch(Watch::prefix("config/").prev_kv());
/// // From here on nothing is missed; what is there already is read now.
/// watcher.created().await?;
/// client.txn(Txn::new().success(Op::put("config/a", "1"))).await?;
/// let events = watcher.next().await?;
/// assert_eq!(events.events[0].kv.as_ref().expect("a key").key, "config/a");
/// # Ok(()) }
/// ```
#[must_use = "dropping it cancels the watch"]
pub struct Watcher {
    mailbox: Arc<Mailbox>,
    /// To the hub's task; none where the hub never heard of this watch.
    commands: Option<UnboundedSender<Command>>,
    id: u64,
    /// As a [`Stream`], it has yielded its error.
    done: bool,
}

impl Watcher {
    /// Waits until the server has acknowledged every target, and gives the greatest revision that it answered with.
    ///
    /// What happens after that revision will be delivered. What was true up to it can be read, at that revision
    /// or later.
    ///
    /// # Errors
    /// The error that ended the watch.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn created(&mut self) -> Result<i64> {
        poll_fn(|cx| self.mailbox.poll_created(cx)).await
    }

    /// Waits for the next events.
    ///
    /// # Errors
    /// The error that ended the watch, again at every further call:
    /// [`Compacted`](crate::ErrorKind::Compacted) where events that are yet to be delivered are gone from the
    /// server's history: read again, then watch again.
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) and other refusals.
    /// [`WatchCanceled`](crate::ErrorKind::WatchCanceled) by the server, with its words.
    /// [`NoLeader`](crate::ErrorKind::NoLeader) with [`end_without_leader`](Watch::end_without_leader) only.
    /// [`InvalidInput`](crate::error::ErrorKind::InvalidInput) for an empty key or range, or a negative revision.
    /// [`Protocol`](crate::ErrorKind::Protocol) where the server's answers make no sense, and where the events of one revision
    /// alone take more than 256 MiB: the deletion of a range of about a million keys, say.
    /// [`Lost`](crate::ErrorKind::Lost) when the client's runtime ended.
    /// What a watch's own answers break the client's stream with, where they have done so five times in a row at one
    /// event and the stream was well without them (one that is too large for a proxy on the way, say).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what it would have returned is there for the next call.
    pub async fn next(&mut self) -> Result<Events> {
        poll_fn(|cx| self.poll_events(cx)).await
    }

    /// Whether the server has every target now. Where it has not, as the stream broke and cannot be opened again, what
    /// happens is told late.
    pub(crate) fn is_live(&self) -> bool {
        self.mailbox.is_live()
    }

    /// How often a target was made again on the server since this began: after a stream that broke, or for a reader that was
    /// too slow. Each time servers before 3.4.36 and 3.5.18 may have lost the deletions of one revision (etcd#18089): of a key
    /// of which nothing was told it is not known then whether it stands, until it is read. Events that come after such a time
    /// find it counted here.
    pub(crate) fn resumed(&self) -> u32 {
        self.mailbox.resumed()
    }

    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Result<Events>> {
        let (events, drained) = self.mailbox.poll_events(cx);
        if drained {
            self.tell(Command::Drained(self.id));
        }
        events
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Where the task has ended, there is no watch left to do anything about.
            let _ = commands.send(command);
        }
    }
}

impl Stream for Watcher {
    type Item = Result<Events>;

    /// The error that ended the watch is the last item.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_events(cx));
        self.done = item.is_err();
        Poll::Ready(Some(item))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tell(Command::Drop(self.id));
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What failed of following keys by a watch and by reads beside it.
pub(crate) enum Failed {
    Watch(Error),
    Read(Error),
}

const DEFAULT_BUFFER: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_hold_for_the_targets_before_them() {
        let watch = Watch::key("a").prev_kv().from_revision(7).and(Watch::prefix("b/").no_put().buffer(5000));
        assert_eq!(
            (watch.targets[0].prev_kv, watch.targets[0].from, watch.targets[0].no_put),
            (true, 7, false)
        );
        assert_eq!(
            (watch.targets[1].prev_kv, watch.targets[1].from, watch.targets[1].no_put),
            (false, 0, true)
        );
        assert_eq!((&watch.targets[1].key[..], &watch.targets[1].end[..]), (&b"b/"[..], &b"b0"[..]));
        assert_eq!(watch.buffer, 5000);
    }

    #[test]
    fn what_cannot_be_watched_is_said_here() {
        for (watch, what) in [
            (Watch::key(""), "key"),
            (Watch::range("b", "b"), "range"),
            (Watch::range("b", ""), "range"),
            (Watch::key("a").from_revision(-1), "revision"),
            (Watch::key("a").and_key(""), "key"),
        ] {
            let error = watch.check().expect_err("not watched");
            assert!(
                matches!(error.kind(), crate::error::ErrorKind::InvalidInput { what: culprit, .. } if *culprit == what),
                "{error:?}"
            );
        }
        for watch in [Watch::prefix(""), Watch::range("b", "\0"), Watch::prefix("\u{ff}"), Watch::key("\0")] {
            watch.check().expect("watched");
        }
    }

    #[test]
    fn bounds() {
        fn is<T: Send + Sync + Unpin + 'static>() {}
        is::<Watcher>();
        is::<Watch>();
        is::<Hub>();
    }
}
