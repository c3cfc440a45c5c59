//! Queues in which the urgent come first.

use bytes::Bytes;

#[cfg(doc)]
use super::Queue;
use super::core::Core;
use super::facade::queue;
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
/// As that of a [`Queue`], and one RPC more to find the first item when it is of another priority than the one before, and
/// not the only one of it. The server walks over the items of that priority only.
///
/// A consumer whose looks are each followed by others' takes goes on looking, over more items each time. It fails with
/// [`ErrorKind::Protocol`] where the first priority is another one at each of sixteen looks, with thousands of items each time.
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
}

queue!(PriorityQueue);
