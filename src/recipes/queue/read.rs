//! Reading a queue: what is next, and how many there are.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::sleep;

use super::core::Core;
use super::look::{Look, Looked};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::transport::retry::Backoff;
use crate::txn::{Txn, TxnReply, count, unexpected};

impl Core {
    /// How many items wait to be taken: one RPC.
    pub(super) async fn len(&self) -> Result<u64> {
        let (items, claims) = (count(&self.keys.items), count(&self.keys.claims));
        let reply = self.session.read(Txn::new().success(items.into()).success(claims.into())).await?;
        let waiting = reply.range(0)?.count.saturating_sub(reply.range(1)?.count);
        Ok(u64::try_from(waiting).unwrap_or(0))
    }

    /// The value of the item that would be taken next, at the revision of the look.
    pub(super) async fn peek(&self) -> Result<Option<Bytes>> {
        let mut backoff = Backoff::default();
        for _ in 0..MOST_LOOKS {
            let looked = self.look().await?;
            let Some(head) = looked.head else { return Ok(None) };
            let (key, revision) = (self.keys.item(&head.place), looked.revision);
            let item = pb::RangeRequest { key, revision, ..Default::default() };
            match self.session.read(Txn::new().success(item.into())).await {
                Ok(reply) => {
                    let kv =
                        reply.found(0)?.first().ok_or_else(|| unexpected("an item was there and was not"))?;
                    return Ok(Some(kv.value.clone()));
                }
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(endless())
    }

    /// Looks for the first item that nobody has in hand: one RPC, and another where many are, or have another priority than the last.
    pub(super) async fn look(&self) -> Result<Looked> {
        let look = self.plan();
        self.look_by(look).await
    }

    /// As [`look`](Self::look), in the midst of a wait: over what time mends.
    pub(super) async fn look_lasting(&self) -> Result<Looked> {
        let mut backoff = Backoff::default();
        loop {
            match self.look().await {
                Ok(looked) => return Ok(looked),
                Err(error) => self.session.outlast(error, &mut backoff).await?,
            }
        }
    }

    /// Goes on with a look that did not reach far enough.
    pub(super) async fn in_full(&self, looked: Looked) -> Result<Looked> {
        match looked.more {
            Some(further) => self.look_by(further).await,
            None => Ok(looked),
        }
    }

    async fn look_by(&self, mut look: Look) -> Result<Looked> {
        let mut backoff = Backoff::default();
        for round in 0..MOST_LOOKS {
            // Where others are quick, what is read grows faster than what they take.
            if round > 1 {
                sleep(backoff.next()).await;
                look = look.further();
            }
            let ops = look.ops(&self.keys);
            let reply = self.session.read(ops.into_iter().fold(Txn::new(), Txn::success)).await?;
            let looked = self.read_look(&look, &reply, 0)?;
            match looked.more {
                Some(further) => look = further,
                None => return Ok(looked),
            }
        }
        Err(endless())
    }

    /// A look that reaches over as many items in hand as were seen last.
    pub(super) fn plan(&self) -> Look {
        let level = self.levels.then(|| self.level().clone());
        Look::new(level, self.shared.claims.load(Ordering::Relaxed))
    }

    pub(super) fn read_look(&self, look: &Look, reply: &TxnReply, from: usize) -> Result<Looked> {
        let looked =
            look.read(&self.keys, reply, from).ok_or_else(|| unexpected("no answer for the queue"))?;
        self.shared.claims.store(looked.claims, Ordering::Relaxed);
        if let Some(head) = looked.head.as_ref().filter(|_| self.levels) {
            *self.level() = head.level();
        }
        Ok(looked)
    }

    fn level(&self) -> MutexGuard<'_, Bytes> {
        self.shared.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn endless() -> Error {
    Error::protocol("the queue is another one at each look", Outcome::NotApplied).at("KV/Txn")
}

/// With what is read doubling each time, no more are needed, unless at each of them the first item is of another priority, and more
/// items have that than were read, or more items are in hand than at the one before. Sixteen thousand are read by then.
const MOST_LOOKS: usize = 16;
