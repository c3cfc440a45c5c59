//! Reading a queue: what is next, and how many there are.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;

use super::core::Core;
use super::look::{Look, Looked};
use crate::error::Result;
use crate::pb::mvccpb::KeyValue;
use crate::txn::{Op, Txn, TxnReply, count, unexpected};

impl Core {
    /// How many items wait to be taken: one RPC.
    pub(super) async fn len(&self) -> Result<u64> {
        let (items, claims) = (count(&self.keys.items), count(&self.keys.claims));
        let reply = self.session.read(Txn::new().success(items.into()).success(claims.into())).await?;
        let waiting = reply.range(0)?.count.saturating_sub(reply.range(1)?.count);
        Ok(u64::try_from(waiting).unwrap_or(0))
    }

    /// The value of the item that would be taken next.
    pub(super) async fn peek(&self) -> Result<Option<Bytes>> {
        loop {
            let Some(head) = self.look().await?.head else { return Ok(None) };
            let item = Op::get(self.keys.item(&head.place));
            let reply = self.session.read(Txn::new().success(item)).await?;
            // A key of another incarnation was seen by no look of ours.
            let seen = |kv: &&KeyValue| kv.create_revision == head.create_revision;
            if let Some(kv) = reply.found(0)?.first().filter(seen) {
                return Ok(Some(kv.value.clone()));
            }
        }
    }

    /// Looks for the first item that nobody has in hand: one RPC, and another where many are.
    pub(super) async fn look(&self) -> Result<Looked> {
        let look = self.plan();
        self.look_by(look).await
    }

    /// Goes on with a look that did not reach far enough.
    pub(super) async fn in_full(&self, looked: Looked) -> Result<Looked> {
        match looked.more {
            Some(further) => self.look_by(further).await,
            None => Ok(looked),
        }
    }

    async fn look_by(&self, mut look: Look) -> Result<Looked> {
        loop {
            let ops = look.ops(&self.keys);
            let reply = self.session.read(ops.into_iter().fold(Txn::new(), Txn::success)).await?;
            let looked = self.read_look(&look, &reply, 0)?;
            match looked.more {
                Some(further) => look = further,
                None => return Ok(looked),
            }
        }
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
