//! Queues: items in the order in which the server took them.

mod core;
mod dead;
mod held;
mod job;
mod keys;
mod look;
mod priority;
mod slip;

use bytes::Bytes;

use self::core::{Core, Take};
pub use self::dead::DeadLetter;
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
///   before. A caller that crashes with an item takes it along.
/// - **Done once:** [`take`](Self::take) lends an item until it is acknowledged; whoever is lost, crashes or is cut off
///   leaves it to the next, in its old place. No item is lost, and none is acknowledged twice; it may be *delivered* more
///   than once, and whoever gets it is told how often it was.
/// - **In their order:** a consumer gets items in the order of the queue. With several, items are taken in that order.
/// - **Not lost on the way:** an item that was taken for a future that was dropped, or for a reply that never came,
///   goes back to its place in the order. If the session ends meanwhile it goes to the end of the queue, or, where
///   the server cannot be reached before the lease's end, it is lost: a dequeue that was waited for then fails with
///   [`Outcome::Unknown`].
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
/// enqueues that were ever under way at once.
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

    /// Gives an item up that was delivered so often without being acknowledged: it goes to the
    /// [dead letters](Self::dead_letters). By default items are delivered for ever.
    ///
    /// It is a setting of this handle and its clones, and is applied by whoever gives an item back or would take it next:
    /// let all handles of a queue have the same.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for zero.
    pub fn max_deliveries(mut self, deliveries: u32) -> Result<Self> {
        self.core.set_max_deliveries(deliveries)?;
        Ok(self)
    }

    /// The session that items are put and taken with. Items outlive it.
    pub fn session(&self) -> &Session {
        &self.core.session
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

    /// Waits for an item, takes it off the queue and returns its value. Use [`tokio::time::timeout`] for a limit.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] as soon as the session is lost, with [`Outcome::Unknown`] if an item may have gone with it.
    /// Whatever keeps the server from answering until the client's request timeout: an item that was taken goes back.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place among those who wait. An item that was on its way goes back to its place
    /// in the queue.
    pub async fn dequeue(&self) -> Result<Bytes> {
        Ok(self.core.take(Take::Keep).await?.keep())
    }

    /// Takes the first item off the queue if there is one, before all who wait.
    ///
    /// # Errors
    /// As [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    /// As [`dequeue`](Self::dequeue).
    pub async fn try_dequeue(&self) -> Result<Option<Bytes>> {
        Ok(self.core.try_take(Take::Keep).await?.map(held::Held::keep))
    }

    /// Waits for an item, and borrows it until it is acknowledged. Use [`tokio::time::timeout`] for a limit.
    ///
    /// Two RPCs for an item that waits, one for an item that comes, and one for the acknowledgement.
    ///
    /// # Errors
    /// As [`dequeue`](Self::dequeue), but the item never is lost.
    ///
    /// # Cancel safety
    /// As [`dequeue`](Self::dequeue). An item that was on its way goes back to its place, and that does not count as a
    /// delivery.
    pub async fn take(&self) -> Result<Job> {
        self.core.take(Take::Lend).await.map(Job::new)
    }

    /// Borrows the first item if there is one, before all who wait.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    ///
    /// # Cancel safety
    /// As [`take`](Self::take).
    pub async fn try_take(&self) -> Result<Option<Job>> {
        Ok(self.core.try_take(Take::Lend).await?.map(Job::new))
    }

    /// All items that were given up, the first of them first: one RPC.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        self.core.dead_letters().await
    }

    /// Puts a dead letter at the end of the queue, as a new item; false if it is no longer there. One RPC.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for another queue's letter. Whatever keeps the server from answering until the
    /// client's request timeout: calling again is harmless.
    ///
    /// # Cancel safety
    /// A letter whose future is dropped may have been moved, or not; calling again is harmless.
    pub async fn requeue(&self, letter: &DeadLetter) -> Result<bool> {
        self.core.requeue(letter).await
    }

    /// Deletes a dead letter; false if it is no longer there. One RPC.
    ///
    /// # Errors
    /// As [`requeue`](Self::requeue).
    ///
    /// # Cancel safety
    /// As [`requeue`](Self::requeue).
    pub async fn discard(&self, letter: &DeadLetter) -> Result<bool> {
        self.core.discard(letter).await
    }

    /// The value of the item that would be taken next, if there is one: two RPCs.
    ///
    /// # Errors
    /// Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn peek(&self) -> Result<Option<Bytes>> {
        self.core.peek().await
    }

    /// How many items wait to be taken; those in somebody's hand are not counted. One RPC.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn len(&self) -> Result<u64> {
        self.core.len().await
    }

    /// Whether no item waits to be taken. One RPC.
    ///
    /// # Errors
    /// As [`peek`](Self::peek).
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }
}
