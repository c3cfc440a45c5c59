//! Slips: what makes an enqueue happen once, however often it is sent.
//!
//! An item that is put if it is missing would be put twice if it was consumed between two attempts. So each
//! enqueue also writes a slip, a key of the sender's lease, if nobody has written that since: the second
//! attempt finds it written, and reads there whether it was by the first.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::key::unique_key;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn};

/// The slips of one handle of a queue and its clones: as many as it ever had enqueues under way at once.
pub(super) struct Slips {
    session: Session,
    prefix: Bytes,
    free: Mutex<Vec<Slip>>,
}

/// The right to write one slip. Not given back, it is not used again.
#[derive(Debug)]
pub(super) struct Slip {
    pub(super) key: Bytes,
    /// As it was written last; 0 if it never was.
    mod_revision: i64,
    /// A first write got no answer, and may yet come: the slip must stay until the session's end.
    keep: bool,
}

impl Slips {
    pub(super) fn new(session: &Session, prefix: &Bytes) -> Self {
        Self { session: session.clone(), prefix: prefix.clone(), free: Mutex::default() }
    }

    pub(super) fn take(&self) -> Slip {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| self.draw())
    }

    /// One that was never written.
    pub(super) fn draw(&self) -> Slip {
        let key = unique_key(&self.prefix, self.session.lease());
        Slip { key, mod_revision: 0, keep: false }
    }

    /// Takes back a slip that was written at a revision.
    pub(super) fn written(&self, slip: Slip, mod_revision: i64, ambiguous: bool) {
        let keep = slip.keep || ambiguous && slip.mod_revision == 0;
        self.unused(Slip { mod_revision, keep, ..slip });
    }

    /// Takes back a slip as it was taken.
    pub(super) fn unused(&self, slip: Slip) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slip);
    }
}

impl Slip {
    /// Nobody has written it since.
    pub(super) fn unwritten(&self) -> Compare {
        Compare::mod_revision(self.key.clone()).is(self.mod_revision)
    }

    /// The same of what was read.
    pub(super) fn is_as_known(&self, found: Option<&KeyValue>) -> bool {
        found.map_or(0, |kv| kv.mod_revision) == self.mod_revision
    }
}

/// The last handle is gone, and with it the slips; those that do not fit into one transaction go with the session.
impl Drop for Slips {
    fn drop(&mut self) {
        let free = std::mem::take(self.free.get_mut().unwrap_or_else(PoisonError::into_inner));
        let done: Vec<_> = free.into_iter().filter(|slip| !slip.keep).take(MOST_DELETES).collect();
        if done.is_empty() || !self.session.is_valid() {
            return;
        }
        let txn = done.into_iter().fold(Txn::new(), |txn, slip| txn.success(Op::delete(slip.key)));
        let client = self.session.client().clone();
        self.session.cleanup().spawn(async move {
            if let Err(error) = client.transport().txn(txn.into(), Repeat::Harmless).await {
                tracing::debug!(%error, "slips stay until the session's end");
            }
        });
    }
}

impl fmt::Debug for Slips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slips").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A server takes 128 operations by default.
const MOST_DELETES: usize = 100;
