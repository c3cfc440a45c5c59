//! A key of our own: put once under a name that nobody else has, written in order, and taken back whatever happens.
//!
//! The name is drawn anew each time, so a put that is repeated finds itself, and a delete hits nobody else's.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::key::unique_key;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};

/// A key that is put with a session's lease. Dropped, it is deleted in the background.
pub(crate) struct Owned {
    session: Session,
    fence: Fence,
    writes: Writes,
    /// What must be deleted on leaving; None once it is in hand.
    leave: Mutex<Option<Leave>>,
}

/// A key to be put, what must hold for that, and what is read and done along with it: one transaction.
#[derive(Debug)]
pub(crate) struct Plan {
    key: Bytes,
    value: Bytes,
    only_if: Vec<Compare>,
    /// Read in any case.
    reads: Vec<Op>,
    /// Done when it is put.
    also: Vec<Op>,
}

/// What became of a plan, and the answers to its reads.
#[derive(Debug)]
pub(crate) struct Planned {
    /// None where a condition did not hold.
    pub(crate) owned: Option<Owned>,
    reply: TxnReply,
}

/// The writes of a key that is held, one at a time: each knows what the one before it left.
#[derive(Debug)]
pub(crate) struct Writes {
    /// The revision of the last.
    last: tokio::sync::Mutex<i64>,
}

#[derive(Debug)]
struct Leave {
    session: Session,
    key: Bytes,
    /// A put of ours got no answer, and may be applied yet.
    ambiguous: bool,
}

impl Plan {
    /// A key under this prefix: the session's lease in hex, a dash, and what nobody else draws.
    pub(crate) fn new(session: &Session, prefix: &[u8], value: Bytes) -> Self {
        let key = unique_key(prefix, session.lease());
        Self { key, value, only_if: Vec::new(), reads: Vec::new(), also: Vec::new() }
    }

    pub(crate) fn only_if(mut self, compare: Compare) -> Self {
        self.only_if.push(compare);
        self
    }

    pub(crate) fn read(mut self, read: Op) -> Self {
        self.reads.push(read);
        self
    }

    pub(crate) fn also(mut self, op: Op) -> Self {
        self.also.push(op);
        self
    }

    /// Puts the key, if all conditions hold. Ends at once with the session; dropped at any point, it leaves nothing.
    pub(crate) async fn put(self, session: &Session) -> Result<Planned> {
        session.check()?;
        let putting = session.cleanup().finish(self.commit(session.clone()));
        let planned = tokio::select! {
            biased;
            reason = session.lost() => return Err(reason.into()),
            planned = putting => planned?,
        };
        if let Some(owned) = &planned.owned {
            // The answer may have been on its way for longer than the session lasts.
            owned.fence.check()?;
        }
        Ok(planned)
    }

    async fn commit(self, session: Session) -> Result<Planned> {
        let own = Compare::missing(self.key.clone());
        let put = Op::put_with_lease(self.key.clone(), self.value, session.lease());
        let mut txn = Txn::new().compare(own).success(put).failure(Op::get(self.key.clone()));
        txn = self.only_if.into_iter().fold(txn, Txn::compare);
        txn = self.reads.into_iter().fold(txn, |txn, read| txn.success(read.clone()).failure(read));
        txn = self.also.into_iter().fold(txn, Txn::success);
        let mut leave = Leave { session: session.clone(), key: self.key, ambiguous: false };
        let answer = session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        let answer = match session.lease_handle().learn(answer) {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    leave.ambiguous = true;
                    leave.spawn();
                }
                return Err(error);
            }
        };
        leave.ambiguous = answer.ambiguous;
        let reply = match TxnReply::try_from(answer.value) {
            Ok(reply) => reply,
            Err(error) => {
                leave.spawn();
                return Err(error);
            }
        };
        // Nobody else draws our name: what is found there an earlier attempt put.
        let found = reply.kvs(0).unwrap_or_default().first();
        let revision =
            found.map(|kv| kv.create_revision).or(reply.succeeded.then_some(reply.header.revision));
        let Some(revision) = revision else {
            // An attempt of unknown fate may put it yet, when what did not hold now holds again.
            if leave.ambiguous {
                leave.spawn();
            }
            return Ok(Planned { owned: None, reply });
        };
        let fence = Fence::new(&session, leave.key.clone(), revision);
        let (writes, leave) = (Writes::new(&fence), Mutex::new(Some(leave)));
        Ok(Planned { owned: Some(Owned { session, fence, writes, leave }), reply })
    }
}

impl Planned {
    /// Whether the reads are of the very revision at which the key was put; else an earlier attempt put it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.reply.succeeded
    }

    /// The answer to the read of this index.
    pub(crate) fn read(&self, index: usize) -> Result<&pb::RangeResponse> {
        let missing = || Error::protocol("a read that was not answered", Outcome::Unknown).at("KV/Txn");
        self.reply.ranged(index + 1).ok_or_else(missing)
    }
}

impl Owned {
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Writes another value: see [`Writes::write`].
    pub(crate) async fn write(&self, value: Bytes) -> Result<()> {
        self.writes.write(&self.session, &self.fence, value).await.map(drop)
    }

    /// Deletes the key. Goes on in the background when it fails or is dropped. Nobody believes in it from here on.
    pub(crate) async fn release(&self) -> Result<()> {
        self.fence.check()?;
        let Some(leave) = self.take_leave() else { return Err(LostReason::Released.into()) };
        self.fence.fall(LostReason::Released);
        match self.session.cleanup().finish(leave.release()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fence.why().await.into()),
            Err(error) => Err(self.session.lease_handle().lost_reason().map_or(error, Error::from)),
        }
    }

    /// The key was deleted along with something else: there is nothing to take back.
    pub(crate) fn released(&self) {
        self.fence.fall(LostReason::Released);
        if let Some(leave) = self.take_leave().filter(|leave| leave.ambiguous) {
            leave.look_again();
        }
    }

    fn take_leave(&self) -> Option<Leave> {
        self.leave.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Writes {
    pub(crate) fn new(fence: &Fence) -> Self {
        Self { last: tokio::sync::Mutex::new(fence.token()) }
    }

    /// Writes a value: one RPC, which the server refuses once the key is gone.
    ///
    /// Each write is guarded by the revision of the one before it, so one that is late never covers a newer one, and
    /// one whose reply was lost is settled by reading it back.
    pub(crate) async fn write(
        &self,
        session: &Session,
        fence: &Fence,
        value: Bytes,
    ) -> Result<pb::ResponseHeader> {
        let mut last = self.last.lock().await;
        // Two rounds, unless somebody else writes our key all the time.
        loop {
            fence.check()?;
            let txn = Txn::new()
                .compare(Compare::mod_revision(fence.key().clone()).is(*last))
                .success(Op::put_with_lease(fence.key().clone(), value.clone(), session.lease()))
                .failure(Op::get(fence.key().clone()));
            let answer = session.client().transport().txn(txn.into(), Repeat::Harmless).await;
            let answer = session.lease_handle().learn(answer)?;
            let reply = TxnReply::try_from(answer.value)?;
            if reply.succeeded {
                *last = reply.header.revision;
                return Ok(reply.header);
            }
            let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
            let found = reply.kvs(0).unwrap_or_default().first();
            let Some(kv) = found.filter(|kv| kv.create_revision == fence.token()) else {
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

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(leave) = self.take_leave()
            && self.fence.lost_reason().is_none_or(|reason| reason == LostReason::Released)
        {
            self.fence.fall(LostReason::Released);
            leave.spawn();
        }
    }
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("fence", &self.fence).finish_non_exhaustive()
    }
}

impl Leave {
    /// Deletes the key. False if it was gone.
    async fn release(self) -> Result<bool> {
        let deleted = self.delete().await;
        match &deleted {
            Ok(_) => self.look_again_if_ambiguous(),
            Err(_) => self.spawn(),
        }
        deleted
    }

    /// Deletes the key in the background, until it is settled or the lease's end settles it.
    fn spawn(self) {
        let cleanup = self.session.cleanup().clone();
        cleanup.spawn(async move {
            self.session.settle("a key of our own", || async { self.delete().await.map(drop) }).await;
            self.look_again_if_ambiguous();
        });
    }

    fn look_again_if_ambiguous(&self) {
        if self.ambiguous {
            self.look_again();
        }
    }

    fn look_again(&self) {
        let (client, key) = (self.session.client().clone(), self.key.clone());
        self.session.settle_again("a key of our own", async move {
            let txn = Txn::new().success(Op::delete(key));
            client.transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
        });
    }

    async fn delete(&self) -> Result<bool> {
        let txn = Txn::new().success(Op::delete(self.key.clone()));
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        let answer = self.session.lease_handle().learn(answer)?;
        let deleted = TxnReply::try_from(answer.value)?.deleted(0).unwrap_or_default() > 0;
        // With an attempt of unknown fate before it, it was most likely that one which deleted the key.
        Ok(deleted || answer.ambiguous)
    }
}
