//! Queues in which the urgent come first.

use bytes::Bytes;

#[cfg(doc)]
use super::Queue;
use super::core::{Core, Take};
use super::held::Held;
use super::{DeadLetter, Job};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::session::Session;

/// A queue on a name, in which the item of the lowest priority number is the first; items of one priority are in the
/// order in which the server took them.
///
/// All that is said of [`Queue`] holds here, with another order. An item that is given back goes to its old place, and a
/// dead letter that is put again keeps its priority. The names of a `Queue` and a `PriorityQueue` must differ.
///
/// # Cost
/// As that of a [`Queue`], and one RPC more to find the first item when it is of another priority than the one before.
/// The server walks over the items of that priority only.
///
/// ```
/// # use etcd_concurrency::{PriorityQueue, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let queue = PriorityQueue::new(&session, "repairs")?;
/// queue.enqueue("paint", 20).await?;
/// queue.enqueue("leak", 1).await?;
/// assert_eq!(queue.dequeue().await?, "leak");
/// let job = queue.take().await?;
/// assert_eq!(*job.value(), "paint");
/// job.ack().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct PriorityQueue {
    core: Core,
}

impl PriorityQueue {
    /// The queue of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        Ok(Self { core: Core::new(session, name.as_ref(), true)? })
    }

    /// As [`Queue::max_deliveries`].
    ///
    /// # Errors
    /// As there.
    pub fn max_deliveries(mut self, deliveries: u32) -> Result<Self> {
        self.core.set_max_deliveries(deliveries)?;
        Ok(self)
    }

    /// The session that items are put and taken with. Items outlive it.
    pub fn session(&self) -> &Session {
        &self.core.session
    }

    /// Puts an item behind all of its priority, and before all of greater numbers: one RPC. See [`Queue::enqueue`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn enqueue(&self, value: impl Into<Bytes>, priority: u32) -> Result<()> {
        // Of one width, so that the order of the keys is that of the numbers.
        self.core.enqueue(&format!("{priority:010}/"), value.into()).await
    }

    /// Waits for an item, takes it off the queue and returns its value. See [`Queue::dequeue`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn dequeue(&self) -> Result<Bytes> {
        Ok(self.core.take(Take::Keep).await?.keep())
    }

    /// Takes the first item off the queue if there is one. See [`Queue::try_dequeue`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn try_dequeue(&self) -> Result<Option<Bytes>> {
        Ok(self.core.try_take(Take::Keep).await?.map(Held::keep))
    }

    /// Waits for an item, and borrows it until it is acknowledged. See [`Queue::take`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn take(&self) -> Result<Job> {
        self.core.take(Take::Lend).await.map(Job::new)
    }

    /// Borrows the first item if there is one. See [`Queue::try_take`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn try_take(&self) -> Result<Option<Job>> {
        Ok(self.core.try_take(Take::Lend).await?.map(Job::new))
    }

    /// As [`Queue::dead_letters`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        self.core.dead_letters().await
    }

    /// As [`Queue::requeue`]; the priority is kept.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn requeue(&self, letter: &DeadLetter) -> Result<bool> {
        self.core.requeue(letter).await
    }

    /// As [`Queue::discard`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<bool> {
        self.core.discard(letter).await
    }

    /// The value of the item that would be taken next, if there is one: two RPCs, or three. See [`Queue::peek`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn peek(&self) -> Result<Option<Bytes>> {
        self.core.peek().await
    }

    /// How many items wait to be taken. See [`Queue::len`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn len(&self) -> Result<u64> {
        self.core.len().await
    }

    /// Whether no item waits to be taken. See [`Queue::is_empty`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }
}
