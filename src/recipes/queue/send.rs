//! What is done once: putting items, and taking dead letters away. See [`slip`](super::slip).

use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::core::Core;
use super::slip::Slip;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::unique_key;
use crate::transport::retry::Repeat;
use crate::txn::{Op, Txn};

impl Core {
    /// Puts an item at the end of its level: one RPC.
    pub(super) async fn enqueue(&self, level: &str, value: Bytes) -> Result<()> {
        let item = self.keys.item(&unique_key(level.as_bytes(), self.session.lease()));
        match self.once(item.clone(), Txn::new().success(Op::put(item, value))).await? {
            true => Ok(()),
            false => Err(Error::protocol("a compare failed that holds", Outcome::NotApplied).at("KV/Txn")),
        }
    }

    /// Applies a transaction once, however often it is sent, under a mark of its own. False where its compares did not
    /// hold; they must be such as never hold again after that. It has no operations for that case.
    pub(super) async fn once(&self, mark: Bytes, txn: Txn) -> Result<bool> {
        self.session.check()?;
        let sending = self.session.cleanup().before_revoke().finish(self.clone().send(mark, txn));
        self.unless_lost(sending, &AtomicBool::new(true)).await
    }

    async fn send(self, mark: Bytes, txn: Txn) -> Result<bool> {
        let slip = self.shared.slips.take();
        if let Some(done) = self.send_with(slip, &mark, txn.clone()).await? {
            return Ok(done);
        }
        let done = self.send_with(self.shared.slips.draw(), &mark, txn).await?;
        done.ok_or_else(|| Error::protocol("a key that was never put is gone", Outcome::Unknown).at("KV/Txn"))
    }

    /// None where another has deleted the slip, and nothing was applied.
    async fn send_with(&self, slip: Slip, mark: &Bytes, txn: Txn) -> Result<Option<bool>> {
        let txn = txn
            .compare(slip.unwritten())
            .success(Op::put_with_lease(slip.key.clone(), mark.clone(), self.session.lease()))
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
            return Ok(Some(true));
        }
        let found = reply.found(0)?.first();
        if let Some(kv) = found.filter(|kv| kv.value == *mark) {
            self.shared.slips.written(slip, kv.mod_revision, true);
            return Ok(Some(true));
        }
        let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
        match found {
            // No attempt has written it, nor will one: not even one that is still under way.
            Some(_) if slip.is_as_known(found) => {}
            None if slip.is_as_known(found) && !answer.ambiguous => {}
            // It went with the lease, or was deleted by another: an attempt may have written it before.
            None => {
                let error = Error::new(ErrorKind::Disconnected, outcome).at("KV/Txn");
                let error = error.because("it cannot be told what an attempt without an answer did");
                let error = self.session.settler().whose_lease(error).await;
                let unapplied = !answer.ambiguous && error.lost_reason().is_none();
                return if unapplied { Ok(None) } else { Err(error) };
            }
            Some(_) => {
                let error = Error::protocol("another client writes this queue's slips", outcome);
                return Err(error.at("KV/Txn"));
            }
        }
        self.shared.slips.unused(slip);
        Ok(Some(false))
    }
}
