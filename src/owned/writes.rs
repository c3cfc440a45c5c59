//! Writing a key that is held, in order.

use bytes::Bytes;
use tokio::sync::Mutex;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::transport::retry::{Repeat, Rounds};
use crate::txn::{Compare, Op, Txn};

/// The writes of a key that is held, one at a time: each knows what the one before it left.
#[derive(Debug)]
pub(super) struct Writes {
    /// The revision of the last.
    last: Mutex<i64>,
}

impl Writes {
    pub(super) fn new(create_revision: i64) -> Self {
        Self { last: Mutex::new(create_revision) }
    }

    /// Writes a value: one RPC, which the server refuses once the key is gone.
    ///
    /// Each write is guarded by the revision of the one before it, so one that is late never covers a newer one, and
    /// one whose reply was lost is settled by reading it back.
    pub(super) async fn write(
        &self,
        session: &Session,
        fence: &Fence,
        value: Bytes,
    ) -> Result<pb::ResponseHeader> {
        let mut last = self.last.lock().await;
        // Two rounds, unless another client writes our key all the time.
        let mut rounds = Rounds::new();
        loop {
            rounds.again().await;
            fence.check()?;
            let txn = Txn::new()
                .compare(Compare::mod_revision(fence.key().clone()).is(*last))
                .success(Op::put_with_lease(fence.key().clone(), value.clone(), session.lease()))
                .failure(Op::get(fence.key().clone()));
            let answer = session.transact(txn, Repeat::Harmless).await?;
            let reply = answer.value;
            if reply.succeeded {
                *last = reply.header.revision;
                return Ok(reply.header);
            }
            let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
            let Some(kv) = reply.first(0).filter(|kv| kv.create_revision == fence.token()) else {
                fence.fall(LostReason::KeyDeleted);
                return Err(Error::new(ErrorKind::Fenced, outcome).at("KV/Txn"));
            };
            if kv.mod_revision <= *last {
                let detail = "a compare failed that holds for what was read";
                return Err(Error::protocol(detail, outcome).at("KV/Txn"));
            }
            *last = kv.mod_revision;
            if answer.ambiguous && kv.value == value {
                return Ok(pb::ResponseHeader { revision: kv.mod_revision, ..reply.header });
            }
        }
    }
}
