//! Putting items, each once: see [`slip`](super::slip).

use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::core::Core;
use crate::error::{Error, Outcome, Result};
use crate::key::unique_key;
use crate::transport::retry::Repeat;
use crate::txn::{Op, Txn};

impl Core {
    /// Puts an item at the end of its level: one RPC.
    pub(super) async fn enqueue(&self, level: &str, value: Bytes) -> Result<()> {
        self.session.check()?;
        let item = self.keys.item(&unique_key(level.as_bytes(), self.session.lease()));
        let sending = self.session.cleanup().finish(self.clone().send(item, value));
        self.unless_lost(sending, &AtomicBool::new(true)).await
    }

    async fn send(self, item: Bytes, value: Bytes) -> Result<()> {
        let slip = self.shared.slips.take();
        let txn = Txn::new()
            .compare(slip.unwritten())
            .success(Op::put(item.clone(), value))
            .success(Op::put_with_lease(slip.key.clone(), item.clone(), self.session.lease()))
            .failure(Op::get(slip.key.clone()));
        let answer = match self.session.transact(txn, Repeat::Harmless).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.shared.slips.unused(slip);
                }
                return Err(error);
            }
        };
        let reply = answer.value;
        if reply.succeeded {
            self.shared.slips.written(slip, reply.header.revision, answer.ambiguous);
            return Ok(());
        }
        match reply.found(0)?.first() {
            Some(kv) if kv.value == item => {
                self.shared.slips.written(slip, kv.mod_revision, true);
                Ok(())
            }
            _ => {
                let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
                Err(Error::protocol("somebody else writes this queue's slips", outcome).at("KV/Txn"))
            }
        }
    }
}
