//! Queues: items in the order in which the server took them.

mod back;
mod core;
mod dead;
mod ends;
mod facade;
mod fate;
mod held;
mod job;
mod keys;
mod look;
#[cfg(test)]
mod model;
mod priority;
mod read;
mod save;
mod send;
mod settle;
mod slip;
mod take;

use bytes::Bytes;

use self::core::Core;
pub use self::dead::DeadLetter;
use self::facade::queue;
pub use self::job::Job;
pub use self::priority::PriorityQueue;
use crate::error::Result;
#[cfg(doc)]
use crate::error::{Error, ErrorKind, Outcome};
use crate::session::Session;

/// A queue on a name: what was enqueued first is dequeued first. The order is that of the server, no clock is asked.
///
/// Any number of processes may put and take. Who waits for an item waits in the order of asking, and one item wakes
/// one consumer.
///
/// # What is guaranteed
/// - **Once in:** an enqueue is applied once, however often its reply is lost. Where it cannot be known whether it was
///   applied at all, the error says so ([`Outcome::Unknown`]).
/// - **Once out:** [`dequeue`](Self::dequeue) gives each item to one caller, at most once. From the moment it is taken
///   the item belongs to the session: it is deleted in the background, and goes with the session if that ends
///   before. A caller that crashes with an item takes it along. In one case it is given to two: a third party deletes
///   its claim, and another consumer takes it, or begins to, before the item's own deletion has arrived.
/// - **Done once:** [`take`](Self::take) lends an item until it is acknowledged; whoever is lost, crashes or is cut off
///   leaves it to the next, in its old place. No item is lost, and none is acknowledged twice; it may be *delivered* more
///   than once, and whoever gets it is told how often it was.
/// - **In their order:** a consumer gets items in the order of the queue. With several, items are taken in that order.
/// - **Not lost on the way:** an item that was taken for a future that was dropped, or for a reply that never came,
///   goes back to its place in the order, at once when the session is closed: [`Session::close`] waits for that, as long
///   as the client's request timeout, before it revokes the lease. Where the lease ended all the same, since the server
///   was away or its database full, the item goes to the end of the queue as soon as it can be put there, and
///   [`Session::close`] fails with what keeps it from that. It is lost in three cases, in each of which a dequeue that was
///   waited for fails with [`Outcome::Unknown`]: the client's process, or the runtime that the client was made on, ends before
///   the item is back; the server is asked for ten minutes after the session's end, and cannot be reached, or refuses; or the
///   server has compacted what became of the item before this client could ask. However long the database is full, an item that
///   this client has read is kept for that long.
///
/// # Cost
/// Enqueue: one RPC. Dequeue of an item that waits: two RPCs (a look, which reads keys only, and the take), and one in
/// the background that deletes it; one more for each race lost. A wait makes none, except for a look every one to two
/// minutes. An item that comes costs the consumer whom it wakes one RPC.
///
/// To find the oldest item the server walks over all items of the queue, values included, so each take costs it time in
/// proportion to the backlog; and each look brings the keys of all items in hand. For backlogs of many thousands of items
/// keep the values elsewhere, or spread them over several queues.
///
/// While the queue's handle lives, it keeps one small key of the session under `{name}/senders/` for each of the
/// enqueues (and moves of dead letters) that were ever under way at once.
///
/// # Interplay
/// All keys are under `{name}/`, so that a queue `job` has nothing to do with a queue `job2`; other names should not
/// begin with `{name}/`. Go's `recipe.Queue` is another queue even on the same name: its keys have clocks in them, and
/// its prefix has no slash.
///
/// ```
/// # use etcd_concurrency::{Queue, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let queue = Queue::new(&session, "mails")?;
/// queue.enqueue("to ada").await?;
/// queue.enqueue("to grace").await?;
/// assert_eq!(queue.len().await?, 2);
/// assert_eq!(queue.dequeue().await?, "to ada");
/// assert_eq!(queue.try_dequeue().await?.as_deref(), Some(&b"to grace"[..]));
/// assert_eq!(queue.try_dequeue().await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Queue {
    core: Core,
}

impl Queue {
    /// The queue of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        Ok(Self { core: Core::new(session, name.as_ref(), false)? })
    }

    /// Puts an item at the end of the queue: one RPC.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] when the session is lost. [`ErrorKind::TooLarge`] for a value that the server does not take
    /// (1.5 MiB by default). Whatever keeps the server from answering until the client's request timeout.
    /// [`Error::outcome`] says whether the item may be in the queue all the same.
    ///
    /// # Cancel safety
    /// Dropping the future lets the enqueue go on in the background: the item may be in the queue, once.
    pub async fn enqueue(&self, value: impl Into<Bytes>) -> Result<()> {
        self.core.enqueue("", value.into()).await
    }
}

queue!(Queue);
