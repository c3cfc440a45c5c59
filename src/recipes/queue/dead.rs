//! Dead letters: items that were delivered often enough.

use std::fmt;
use std::num::NonZeroU32;

use bytes::Bytes;

use super::core::{Core, deliveries, read_returns};
use super::keys::{Head, level};
use crate::error::quote::Payload;
use crate::error::{Error, Result};
use crate::key::unique_key;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, by_age};

/// An item that was given up: see [`Queue::max_deliveries`](super::Queue::max_deliveries).
///
/// ```
/// # use etcd_concurrency::{DeadLetter, Queue, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let queue = Queue::new(&session, "mails")?.max_deliveries(1)?;
/// queue.enqueue("to nobody").await?;
/// queue.take().await?.nack().await?;
/// let letters: Vec<DeadLetter> = queue.dead_letters().await?;
/// assert_eq!(letters[0].value, "to nobody");
/// queue.requeue(&letters[0]).await?;
/// assert_eq!(queue.take().await?.deliveries(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its key.
    pub key: Bytes,
    /// The item's value.
    pub value: Bytes,
    /// The revision at which it was given up.
    pub revision: i64,
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DeadLetter");
        shown.field("key", &Payload(&self.key)).field("value", &Payload(&self.value));
        shown.field("revision", &self.revision).finish()
    }
}

impl Core {
    pub(super) fn set_max_deliveries(&mut self, deliveries: u32) -> Result<()> {
        let most = NonZeroU32::new(deliveries);
        self.max_deliveries = Some(most.ok_or_else(|| Error::invalid("max_deliveries", "it is zero"))?);
        Ok(())
    }

    /// Whether an item of so many deliveries is given up.
    pub(super) fn is_spent(&self, deliveries: u32) -> bool {
        self.max_deliveries.is_some_and(|most| deliveries >= most.get())
    }

    /// Whether an item whose key was written so often may be spent: returns are yet to be counted.
    pub(super) fn may_be_spent(&self, version: i64) -> bool {
        self.is_spent(deliveries(version, 0))
    }

    /// Gives up an item that is spent and in nobody's hand. False if it is neither spent nor changed.
    pub(super) async fn bury(&self, head: &Head) -> Result<bool> {
        let (item, returns) = (self.keys.item(&head.place), self.keys.returns(&head.place));
        let read = Txn::new().success(Op::get(item.clone())).success(Op::get(returns.clone()));
        let reply = self.session.read(read).await?;
        let Some(kv) = reply.found(0)?.first().filter(|kv| kv.mod_revision == head.mod_revision) else {
            return Ok(true);
        };
        if !self.is_spent(deliveries(kv.version, read_returns(reply.found(1)?.first(), kv.create_revision))) {
            return Ok(false);
        }
        let txn = Txn::new()
            .compare(Compare::mod_revision(item.clone()).is(head.mod_revision))
            .compare(Compare::missing(self.keys.claim(&head.place)))
            .success(Op::delete(item))
            .success(Op::delete(returns))
            .success(Op::put(self.keys.undelivered(&head.place), kv.value.clone()));
        self.session.transact(txn, Repeat::Harmless).await?;
        Ok(true)
    }

    pub(super) async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let all = by_age(&self.keys.undelivered, 0);
        let range = self.session.client().transport().range(all).await?;
        let letters = range.kvs.into_iter();
        Ok(letters
            .map(|kv| DeadLetter { key: kv.key, value: kv.value, revision: kv.create_revision })
            .collect())
    }

    /// Puts a dead letter at the end of the queue, as a new item in a new place. False if it is no longer there.
    pub(super) async fn requeue(&self, letter: &DeadLetter) -> Result<bool> {
        let place = self.place_of(letter)?;
        let item = self.keys.item(&unique_key(&level(&place), self.session.lease()));
        self.once(item.clone(), remove(letter).success(Op::put(item, letter.value.clone()))).await
    }

    /// Deletes a dead letter. False if it is no longer there.
    pub(super) async fn discard(&self, letter: &DeadLetter) -> Result<bool> {
        self.place_of(letter)?;
        self.once(unique_key(b"", self.session.lease()), remove(letter)).await
    }

    fn place_of(&self, letter: &DeadLetter) -> Result<Bytes> {
        let place = letter.key.strip_prefix(&self.keys.undelivered[..]);
        place
            .map(|place| letter.key.slice_ref(place))
            .ok_or_else(|| Error::invalid("letter", "it is another queue's"))
    }
}

fn remove(letter: &DeadLetter) -> Txn {
    Txn::new()
        .compare(Compare::create_revision(letter.key.clone()).is(letter.revision))
        .success(Op::delete(letter.key.clone()))
}
