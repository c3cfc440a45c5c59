//! Putting keys of our own: one transaction, settled whatever becomes of its reply.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::Owned;
use super::leave::Leave;
use crate::error::{Error, LostReason, Outcome, Result};
use crate::key::unique_key;
use crate::lease::Turn;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply, unexpected};

/// Keys to be put, what must hold for that, and what is read and done along with it.
#[derive(Debug)]
pub(crate) struct Plan {
    session: Session,
    leave: Leave,
    /// Of all keys.
    value: Bytes,
    only_if: Vec<Compare>,
    /// Read in any case.
    reads: Vec<Op>,
    /// Done when they are put.
    also: Vec<Op>,
}

/// What became of a plan.
#[derive(Debug)]
pub(crate) struct Planned {
    /// None where a condition did not hold.
    pub(crate) owned: Option<Owned>,
    /// The first key as it was found, where it is ours and was not put by this attempt: the reads may then tell of what
    /// came after it.
    pub(crate) found: Option<KeyValue>,
    /// The answers to the reads, then those to what was done along with the put.
    pub(crate) reply: TxnReply,
}

impl Plan {
    /// A key under this prefix: the session's lease in hex, a dash, and what nobody else draws.
    pub(crate) fn drawn(session: &Session, prefix: &[u8], value: Bytes) -> Self {
        Self::of(session, vec![unique_key(prefix, session.lease())], value)
    }

    /// Keys that nobody else ever puts.
    pub(crate) fn of(session: &Session, keys: Vec<Bytes>, value: Bytes) -> Self {
        Self::new(session, Leave::new(session, keys, None), value)
    }

    /// A key that tasks of this process put in turn.
    pub(crate) fn in_turn(session: &Session, key: Bytes, turn: Turn, value: Bytes) -> Self {
        Self::new(session, Leave::new(session, vec![key], Some(turn)), value)
    }

    fn new(session: &Session, leave: Leave, value: Bytes) -> Self {
        Self {
            session: session.clone(),
            leave,
            value,
            only_if: Vec::new(),
            reads: Vec::new(),
            also: Vec::new(),
        }
    }

    pub(crate) fn only_if(mut self, compare: Compare) -> Self {
        self.only_if.push(compare);
        self
    }

    pub(crate) fn read(mut self, read: impl Into<Op>) -> Self {
        self.reads.push(read.into());
        self
    }

    pub(crate) fn also(mut self, op: Op) -> Self {
        self.also.push(op);
        self
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn value(&self) -> &Bytes {
        &self.value
    }

    /// Puts the keys, if all conditions hold: one RPC. Ends at once with the session. With reads among it, it waits for its
    /// [turn](crate::client::Client::join_turn).
    ///
    /// Dropped at any point, it leaves nothing: it goes on in the background, and is then taken back.
    pub(crate) async fn put(self) -> Result<Planned> {
        self.put_in_turn().await.map(|(planned, _)| planned)
    }

    /// As [`put`](Self::put). What is given beside it is the turn, for who has more of the line to read: to be kept for
    /// that, and not for a wait.
    pub(crate) async fn put_in_turn(self) -> Result<(Planned, Option<OwnedSemaphorePermit>)> {
        let session = self.session.clone();
        session.check()?;
        let turn = match self.reads.is_empty() {
            true => None,
            false => Some(session.unless_lost(async { Ok(session.client().join_turn().await) }).await?),
        };
        // The turn goes along: a put whose caller has gone is under way as any other.
        let committing = async move { (self.commit().await, turn) };
        let committing = session.cleanup().finish(committing);
        let committed = async {
            let (planned, turn) = committing.await;
            Ok((planned?, turn))
        };
        let (planned, turn) = session.unless_lost(committed).await?;
        // The answer may have been on its way for longer than the session lasts.
        planned.owned.as_ref().map_or(Ok(()), Owned::check)?;
        Ok((planned, turn))
    }

    /// What was put before, and stands since this create_revision: nothing is sent. None where it may yet be deleted.
    pub(crate) fn put_before(self, create_revision: i64, header: pb::ResponseHeader) -> Option<Owned> {
        let doomed = self.leave.is_doomed(create_revision);
        (!doomed).then(|| Owned::new(self.session, self.leave, create_revision, header))
    }

    async fn commit(self) -> Result<Planned> {
        let Self { session, leave, value, only_if, reads, also } = self;
        // One RPC more where a delete is in doubt. Nothing was put if that fails.
        leave.end_doomed().await.map_err(|error| error.with_outcome(Outcome::NotApplied))?;
        let mut txn = only_if.into_iter().fold(Txn::new(), Txn::compare);
        for key in leave.keys() {
            txn = txn.compare(Compare::missing(key.clone()));
            txn = txn.success(Op::put_with_lease(key.clone(), value.clone(), session.lease()));
            txn = txn.failure(Op::get(key.clone()));
        }
        txn = reads.into_iter().fold(txn, |txn, read| txn.success(read.clone()).failure(read));
        txn = also.into_iter().fold(txn, Txn::success);
        let answer = match session.transact(txn, Repeat::Harmless).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    leave.settle();
                }
                return Err(error);
            }
        };
        let (mut reply, unanswered) = (answer.value, answer.unanswered);
        let revision = reply.header.revision;
        let ours = ours(leave.keys(), &reply);
        // What is left are the answers to the reads.
        reply.responses.drain(..leave.keys().len().min(reply.responses.len()));
        match ours {
            Ok(Some(Ours { found: Some(_), .. })) if leave.may_be_anothers() => {
                // Where an attempt may have put it, it is taken back once this client is known to have the lease.
                let error = session.check().err().unwrap_or_else(|| LostReason::Orphaned.into());
                if unanswered == 0 {
                    return Err(error);
                }
                leave.settle();
                Err(error.with_outcome(Outcome::Unknown))
            }
            // What others put has never stood in the line: its create_revision must give no place, however old it is.
            Ok(Some(Ours { found: Some(kv), .. })) if kv.lease != session.lease() => {
                if unanswered > 0 {
                    leave.suspect(0, unanswered, revision);
                }
                let outcome = if unanswered > 0 { Outcome::Unknown } else { Outcome::NotApplied };
                let ours = "is the one that this session puts, and is there without the session's lease";
                let why = format!("{:?} {ours}: another client has put it, and may delete it", kv.key);
                Err(Error::invalid("key", why).with_outcome(outcome))
            }
            Ok(Some(Ours { create_revision, found })) => {
                // What is there was put by one of them, which puts it no more.
                let came = found.is_some() && leave.is_fresh();
                let to_come = unanswered.saturating_sub(u32::from(came));
                if to_come > 0 {
                    leave.suspect(create_revision, to_come, revision);
                }
                let owned = Owned::new(session, leave, create_revision, reply.header);
                Ok(Planned { owned: Some(owned), found, reply })
            }
            // An attempt of unknown fate may put them yet, when what did not hold now holds again.
            Ok(None) => {
                if unanswered > 0 {
                    leave.suspect(0, unanswered, revision);
                }
                Ok(Planned { owned: None, found: None, reply })
            }
            Err(error) => {
                leave.settle();
                Err(error)
            }
        }
    }
}

impl Planned {
    /// The answer to the read of this index.
    pub(crate) fn read(&self, index: usize) -> Result<&pb::RangeResponse> {
        self.reply.range(index)
    }
}

/// Keys of ours that are there.
struct Ours {
    create_revision: i64,
    /// The first of them, if an earlier attempt put it.
    found: Option<KeyValue>,
}

/// None where there is no key of ours.
fn ours(keys: &[Bytes], reply: &TxnReply) -> Result<Option<Ours>> {
    if reply.succeeded {
        return Ok(Some(Ours { create_revision: reply.header.revision, found: None }));
    }
    let mut there = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        match reply.found(index)? {
            [kv] if kv.key == *key => there.push(kv),
            [kv, ..] => return Err(unexpected(format!("the key {:?} for our own", kv.key))),
            [] => {}
        }
    }
    let Some(first) = there.first() else { return Ok(None) };
    let create_revision = first.create_revision;
    if there.len() < keys.len() || there.iter().any(|kv| kv.create_revision != create_revision) {
        // We put all of them at once: somebody deletes them.
        return Err(LostReason::KeyDeleted.into());
    }
    Ok(Some(Ours { create_revision, found: Some((*first).clone()) }))
}
