//! Markers: how a run learns what became of a commit that nobody answered.
//!
//! A marker is a key of the session that is put in the same transaction as the run's writes, under the condition that
//! it still is of the revision that was last known. So of all the attempts that expect this revision at most one can
//! ever be applied, however often each was sent and however late it arrives; and the marker's value tells which.
//! A client that has to know for certain that none was or will be puts the marker itself.
//! Why none is applied after its run is over stands in [`known`](super::known).

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::known::{Found, Known};
use crate::client::Client;
use crate::error::{Error, Outcome, Result};
use crate::key::drawn;
use crate::lease::Lease;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat, may_pass};
use crate::txn::{Compare, Op, Txn, TxnReply};

/// The markers of an `Stm` and its clones: as many as it ever had runs at once.
#[derive(Debug)]
pub(super) struct Markers {
    client: Client,
    session: Session,
    prefix: Bytes,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    free: Vec<Slot>,
    made: usize,
}

/// A marker's key, and what is known of it.
#[derive(Debug, Default)]
struct Slot {
    key: Bytes,
    known: Known,
}

impl Markers {
    pub(super) fn new(client: &Client, session: &Session, prefix: &[u8]) -> Arc<Self> {
        let own = format!("{:x}/{}-", session.lease(), drawn());
        let prefix = [prefix, own.as_bytes()].concat().into();
        let (client, session) = (client.clone(), session.clone());
        Arc::new(Self { client, session, prefix, slots: Mutex::default() })
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// What all keys of markers begin with.
    pub(super) fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// A marker for one run.
    pub(super) fn take(self: &Arc<Self>) -> Mark {
        let mut slots = self.slots();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.made += 1;
            let key = [&self.prefix[..], format!("{:x}", slots.made).as_bytes()].concat().into();
            Slot { key, known: Known::default() }
        });
        let run = format!("{}/", drawn());
        let mut mark = Mark { markers: Arc::clone(self), slot, run };
        mark.slot.known.begins();
        mark
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last run and the last `Stm` are gone: so are the markers, as soon as the server hears of it, but for those that
/// must stay until the session's end.
impl Drop for Markers {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut *self.slots());
        let gone: Vec<Bytes> = slots.free.into_iter().filter_map(Slot::spent).collect();
        if gone.is_empty() {
            return;
        }
        let delete_all = |keys: &[Bytes]| keys.iter().cloned().map(Op::delete).fold(Txn::new(), Txn::success);
        let deletes = gone.chunks(MOST_DELETES).map(delete_all).collect();
        // Not the session: it is not to be kept open for this.
        let lease = self.session.lease_handle().clone();
        self.session.cleanup().spawn(delete(self.client.clone(), lease, deletes));
    }
}

impl Slot {
    /// The key, where it may be there and may be deleted.
    fn spent(self) -> Option<Bytes> {
        self.known.is_spent().then_some(self.key)
    }
}

/// Deletes markers: again and again until it is done, or the lease's end does it.
async fn delete(client: Client, lease: Arc<Lease>, deletes: Vec<Txn>) {
    let again = async {
        for txn in deletes {
            let mut backoff = Backoff::default();
            while let Err(error) = client.transport().txn(txn.clone().into(), Repeat::Harmless).await {
                if client.transport().is_final(error.kind()) {
                    tracing::warn!(%error, "markers stay until the session's end");
                    return;
                }
                tracing::debug!(%error, "deleting markers failed; trying again");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    };
    tokio::select! {
        biased;
        _ = lease.lost() => {}
        () = again => {}
    }
}

/// A server takes 128 operations by default.
const MOST_DELETES: usize = 100;

/// A marker in use by one run. Dropped, it goes back to the others.
#[derive(Debug)]
pub(super) struct Mark {
    markers: Arc<Markers>,
    slot: Slot,
    /// What the values begin with that this run puts.
    run: String,
}

impl Mark {
    /// The marker is as it was last known.
    pub(super) fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.slot.key.clone()).is(self.slot.known.revision())
    }

    /// Says that an attempt was committed.
    pub(super) fn put(&self, attempt: u32) -> Op {
        self.put_value(format!("{}{attempt}", self.run))
    }

    pub(super) fn get(&self) -> Op {
        Op::get(self.slot.key.clone())
    }

    pub(super) fn in_doubt(&self) -> bool {
        self.slot.known.is_in_doubt()
    }

    /// Sends a transaction that expects the marker [unchanged](Self::unchanged) before it writes anything.
    pub(super) async fn send(&mut self, txn: Txn) -> Result<Answer<pb::TxnResponse>> {
        let before = self.slot.known.sends();
        let transport = self.markers.client.transport();
        let answer = transport.txn(txn.into(), Repeat::Harmless).await;
        let certain = match &answer {
            Ok(answer) => !answer.ambiguous,
            Err(error) => error.outcome() == Outcome::NotApplied,
        };
        self.slot.known.answered(before, certain);
        answer
    }

    /// A transaction that puts the marker was committed.
    pub(super) fn committed(&mut self, revision: i64) {
        self.slot.known.committed(revision);
    }

    /// Reads what [`get`](Self::get) brought, where the marker was not expected to be unchanged for certain.
    pub(super) fn look(&mut self, found: &[KeyValue]) -> Found {
        self.slot.known.look(found, &self.run)
    }

    /// Finds out which attempt of this run was committed. None for none; then none ever will be, either.
    ///
    /// Goes on until it is certain. An error says that it never will be: the session is lost, or the server refuses.
    pub(super) async fn settle(&mut self) -> Result<Option<(u32, i64)>> {
        let session = self.markers.session.clone();
        let mut backoff = Backoff::default();
        loop {
            let claim = Txn::new()
                .compare(self.unchanged())
                .success(self.put_value(format!("{}-", self.run)))
                .failure(self.get());
            let answer = tokio::select! {
                biased;
                reason = session.lost() => return Err(reason.into()),
                answer = self.send(claim) => session.lease_handle().learn(answer),
            };
            match answer {
                Ok(answer) => {
                    let reply = TxnReply::try_from(answer.value)?;
                    if reply.succeeded {
                        self.committed(reply.header.revision);
                        return Ok(None);
                    }
                    let unclear = |why| Err(Error::protocol(why, Outcome::Unknown).at("KV/Txn"));
                    return match self.look(reply.kvs(0).unwrap_or_default()) {
                        Found::Committed { attempt, revision } => Ok(Some((attempt, revision))),
                        Found::Other => Ok(None),
                        Found::Gone => unclear("somebody deleted the marker"),
                        Found::Unchanged => unclear("a compare failed that holds"),
                    };
                }
                // Less is waited out than in the background: the run's caller waits.
                Err(error) if may_pass(error.kind()) => {
                    tracing::debug!(%error, "settling a commit failed; trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                reason = session.lost() => return Err(reason.into()),
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    fn put_value(&self, value: String) -> Op {
        Op::put_with_lease(self.slot.key.clone(), value, self.markers.session.lease())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let slot = std::mem::take(&mut self.slot);
        self.markers.slots().free.push(slot);
    }
}
