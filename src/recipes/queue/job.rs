//! Jobs: items that are lent until they are acknowledged.

use bytes::Bytes;

use super::held::Held;
use crate::error::Result;
#[cfg(doc)]
use crate::error::{ErrorKind, Outcome};
#[cfg(doc)]
use crate::fence::Fence;
use crate::owned::holder;
use crate::txn::Op;

/// An item that is lent to a worker, until it is acknowledged. Made by [`Queue::take`](super::Queue::take). Owned and
/// `'static`: it may move to another task.
///
/// The job is a key of the session. When the session is lost, or the job is dropped or [given back](Self::nack), the
/// item is free again, in its old place, and whoever takes it next is told by [`deliveries`](Self::deliveries) that it
/// is not the first.
///
/// A worker that was paused for longer than its session's TTL does not know, for a moment, that another has the item.
/// So write to etcd through [`Fence::txn`] (a job is its [`Fence`], see there), which the server refuses once the job is
/// lost; hand [`Fence::token`] to whatever else you write to; and stop when [`Fence::lost`] resolves. The last write can
/// be made with the acknowledgement at once: [`ack_with`](Self::ack_with).
///
/// ```
/// # use etcd_concurrency::{Job, Op, Queue, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let queue = Queue::new(&session, "mails")?;
/// queue.enqueue("to ada").await?;
/// let job: Job = queue.take().await?;
/// assert_eq!((&job.value()[..], job.deliveries()), (&b"to ada"[..], 1));
/// job.txn().success(Op::put("mails/log", "sending to ada")).commit().await?;
/// job.ack_with([Op::put("mails/log", "sent to ada")]).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the job gives the item back"]
pub struct Job {
    held: Held,
}

impl Job {
    pub(super) fn new(held: Held) -> Self {
        Self { held: held.lend() }
    }

    /// The item's value.
    pub fn value(&self) -> &Bytes {
        self.held.value()
    }

    /// How often the item was delivered, this time included: 1 at the first.
    ///
    /// Counted on the server, in the transaction that takes the item. A take whose future was dropped, or which got no
    /// answer, does not count, unless its session's lease ended before that could be settled.
    pub fn deliveries(&self) -> u32 {
        self.held.deliveries()
    }

    /// Takes the item off the queue for good: one RPC, behind the fence, so that an item that others have had since is
    /// not acknowledged.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the job was lost before: the item was, or will be, delivered again, or is among the dead
    /// letters. With [`Outcome::Unknown`] it was lost while the acknowledgement was under way. A reply that is lost is made up
    /// for: where the second attempt finds the claim gone, the item's events tell whose doing that was. Any other error with
    /// [`Outcome::Unknown`] means that the acknowledgement goes on in the background until it is settled; closing the session
    /// waits for that, as long as the client's request timeout, and after that the item is delivered again. With
    /// [`Outcome::NotApplied`] the server refused it for good, and the item is given back in the background; where the client has
    /// no right to that either, that is tried for ten minutes, and after that the item stays in hand until the session ends.
    ///
    /// # Cancel safety
    /// Dropping the future lets the acknowledgement go on in the background.
    pub async fn ack(self) -> Result<()> {
        self.held.end([]).await
    }

    /// As [`ack`](Self::ack), and in the same transaction applies these operations: either all of it happens, once, or
    /// nothing. Three operations are the acknowledgement's own, out of the server's `--max-txn-ops`.
    ///
    /// # Errors
    /// As [`ack`](Self::ack); but where the server refuses the operations ([`ErrorKind::TooManyOps`], say, with
    /// [`Outcome::NotApplied`]) the item is given back, as by [`nack`](Self::nack). Where a reply is lost, what was put and
    /// deleted at once with the item tells what became of the operations. It cannot be found out ([`ErrorKind::Lost`], with
    /// [`Outcome::Unknown`]) where all that was to be put or deleted is within a transaction of its own; nor where a third
    /// party had deleted the item before, and all that was to be deleted was missing.
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn ack_with(self, ops: impl IntoIterator<Item = Op>) -> Result<()> {
        self.held.end(ops).await
    }

    /// Gives the item back: others take it from its old place, or find it among the dead letters if this was the
    /// [last](super::Queue::max_deliveries) of its deliveries. One RPC. Dropping the job does the same in the background.
    ///
    /// # Errors
    /// As [`ack`](Self::ack). While the server's database is full, the last of its deliveries is not given back, since that
    /// puts a letter ([`ErrorKind::NoSpace`]): it goes on in the background.
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack(self) -> Result<()> {
        self.held.leave().await
    }
}

holder!(Job, held);
