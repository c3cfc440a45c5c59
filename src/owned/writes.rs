//! Writing a key that is held, in order.

use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::turns::Turns;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::{Repeat, Rounds};
use crate::txn::{Compare, Op, Txn};

/// The writes of a key that is held, one at a time: each knows what the one before it left.
#[derive(Debug)]
pub(super) struct Writes {
    last: Turns<Last>,
}

/// The last write of a key that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) mod_revision: i64,
    /// How many writes of the key there had been by then, since it was created.
    version: i64,
}

impl From<&KeyValue> for Last {
    fn from(kv: &KeyValue) -> Self {
        Self { mod_revision: kv.mod_revision, version: kv.version }
    }
}

impl Last {
    /// The write after this one, which was made at this revision.
    pub(crate) fn next(self, mod_revision: i64) -> Self {
        Self { mod_revision, version: self.version.saturating_add(1) }
    }
}

impl Writes {
    pub(super) fn new(create_revision: i64) -> Self {
        Self::after(Last { mod_revision: create_revision, version: 1 })
    }

    /// Of a key that was read: its owner before may have written it.
    pub(super) fn after(last: Last) -> Self {
        Self { last: Turns::new(last) }
    }

    /// Writes a value: one RPC, which the server refuses once the key is gone.
    ///
    /// Each write is guarded by the revision of the one before it, so one that is late never covers a newer one, and
    /// one whose reply was lost is settled by reading it back. What is found then may be another's write over ours, as the
    /// key's version tells: that is not written over again.
    pub(super) async fn write(
        &self,
        session: &Session,
        fence: &Fence,
        value: Bytes,
    ) -> Result<pb::ResponseHeader> {
        let mut last = self.turn(session).await?;
        // Two rounds, unless another client writes our key all the time.
        let mut rounds = Rounds::new();
        loop {
            rounds.again().await;
            fence.check()?;
            let txn = Txn::new()
                .compare(Compare::mod_revision(fence.key().clone()).is(last.mod_revision))
                .success(Op::put_with_lease(fence.key().clone(), value.clone(), session.lease()))
                .failure(Op::get(fence.key().clone()));
            let answer = session.transact(txn, Repeat::Harmless).await?;
            let reply = answer.value;
            if reply.succeeded {
                *last = last.next(reply.header.revision);
                fence.stood_at(reply.header.revision);
                return Ok(reply.header);
            }
            let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
            let Some(kv) = reply.first(0).filter(|kv| kv.create_revision == fence.token()) else {
                fence.fall(LostReason::KeyDeleted);
                return Err(Error::new(ErrorKind::Fenced, outcome).at("KV/Txn"));
            };
            if kv.mod_revision <= last.mod_revision {
                let detail = "a compare failed that holds for what was read";
                return Err(Error::protocol(detail, outcome).at("KV/Txn"));
            }
            let written = kv.version.saturating_sub(last.version);
            *last = Last::from(kv);
            if answer.ambiguous && kv.value == value {
                return Ok(pb::ResponseHeader { revision: kv.mod_revision, ..reply.header });
            }
            if answer.ambiguous && written != 1 {
                return Err(Error::new(ErrorKind::Timeout, Outcome::Unknown)
                    .at("KV/Txn")
                    .because(WRITTEN_OVER));
            }
            // Of two or more writes one may have been ours. A single one was another's, and the attempts without an answer
            // can be applied no more: their compare holds for no later revision.
        }
    }

    /// Waits until the writes before this one are done.
    async fn turn(&self, session: &Session) -> Result<MutexGuard<'_, Last>> {
        // What was lost before is told with the reason for which the fence fell.
        if let Some(last) = self.last.try_next() {
            return Ok(last);
        }
        let longest = session.client().transport().limits().request_timeout;
        session.unless_lost(async { self.last.next(longest).await.ok_or_else(not_ended) }).await
    }
}

/// The error for a write that was not begun, since one before it has not ended.
fn not_ended() -> Error {
    let why = "a write of this key that was begun before has not ended in time: its future may be kept, and not polled";
    Error::new(ErrorKind::Timeout, Outcome::NotApplied).because(why)
}

const WRITTEN_OVER: &str = "an attempt was not answered, and the key has been written several times since: one of them may have been that";
