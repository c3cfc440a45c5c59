//! A caller's place in a double barrier, and how it is given up.
//!
//! **Whom a key stands for.** A caller announces itself with a key below `coming/`, which counts for nothing, and moves in
//! by a transaction that compares that key's create_revision, deletes it, and puts the caller's key below `waiters/`. Both
//! names are drawn for this one call. So:
//! - Only a caller that was told of its announcement can move in. An announcement that is applied late is never counted.
//! - A caller moves in once at most, however often the transaction is sent, and however late it is applied.
//! - Once both keys have been deleted it never moves in again.
//!
//! A call that ends in any other way than by leaving deletes both keys in one transaction, until that is done, and whatever
//! becomes of its session. The next call of this client on the barrier begins after that: of the keys that are counted at one
//! revision, no two are of calls that were made one after the other.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::client::Departure;
use crate::error::{LostReason, Result};
use crate::fence::Fence;
use crate::key::others;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{Compare, Op, Txn};

/// The two keys of a caller. Dropped, they are deleted in the background.
pub(super) struct Seat {
    session: Session,
    waiters: Bytes,
    /// What lets all in.
    ready: Bytes,
    /// What announces the caller, and its create_revision.
    coming: Bytes,
    announced_at: i64,
    /// What is counted.
    key: Bytes,
    /// The user was given it: it stays where the session is orphaned.
    handed_out: bool,
    /// Both keys are gone.
    is_gone: AtomicBool,
}

/// A caller that has moved in.
pub(super) struct Place {
    fence: Fence,
    seat: Seat,
}

impl Seat {
    /// For a caller that has announced itself by a key below `coming`.
    pub(super) fn new(session: &Session, [coming, waiters, ready]: [&Bytes; 3], announced: &Fence) -> Self {
        let own = announced.key().strip_prefix(&coming[..]).unwrap_or_default();
        Self {
            session: session.clone(),
            waiters: waiters.clone(),
            ready: ready.clone(),
            coming: announced.key().clone(),
            announced_at: announced.token(),
            key: [&waiters[..], own].concat().into(),
            handed_out: false,
            is_gone: AtomicBool::new(false),
        }
    }

    /// The key that is counted.
    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    /// What announces the caller stands, and so it has not moved in.
    pub(super) fn is_announced(&self) -> Compare {
        Compare::create_revision(self.coming.clone()).is(self.announced_at)
    }

    /// Two operations: what is counted is put, and what announced it goes.
    pub(super) fn move_in(&self) -> [Op; 2] {
        let put = Op::put_with_lease(self.key.clone(), Bytes::new(), self.session.lease());
        [put, Op::delete(self.coming.clone())]
    }

    /// Reads what announces the caller.
    pub(super) fn look(&self) -> Op {
        Op::get(self.coming.clone())
    }

    /// Whether this is what announces the caller.
    pub(super) fn announces(&self, kv: &KeyValue) -> bool {
        kv.key == self.coming && kv.create_revision == self.announced_at
    }

    /// Takes the ready key along, which has no lease, where no other takes part. Late, it meets none that lets anyone in: those
    /// who are let in are there.
    fn ends_round(&self) -> Txn {
        let none = others(&self.waiters, &self.key).map(|(from, to)| Compare::missing(from).up_to(to));
        none.into_iter().fold(Txn::new(), Txn::compare).success(Op::delete(self.ready.clone()))
    }

    /// Why neither key is there.
    pub(super) async fn why(&self) -> LostReason {
        Fence::new(&self.session, self.coming.clone(), self.announced_at).why().await
    }

    /// The caller has moved in at this revision.
    pub(super) fn moved_in(self, create_revision: i64) -> Place {
        Place { fence: Fence::new(&self.session, self.key.clone(), create_revision), seat: self }
    }
}

impl Place {
    pub(super) fn fence(&self) -> &Fence {
        &self.fence
    }

    pub(super) fn session(&self) -> &Session {
        &self.seat.session
    }

    pub(super) fn check(&self) -> Result<()> {
        self.fence.check()
    }

    /// The user is given it.
    pub(super) fn handed_out(mut self) -> Self {
        self.seat.handed_out = true;
        self
    }

    /// The key was deleted: there is nothing to take back.
    pub(super) fn released(&self) {
        self.seat.is_gone.store(true, Ordering::Relaxed);
        if self.fence.is_valid() {
            self.fence.fall(LostReason::Released);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.fence.lost_reason() {
            None => self.fence.fall(LostReason::Released),
            // What announced it had gone before.
            Some(LostReason::KeyDeleted) => self.seat.is_gone.store(true, Ordering::Relaxed),
            Some(_) => {}
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let is_gone = self.is_gone.load(Ordering::Relaxed)
            || match self.session.lease_handle().lost_reason() {
                Some(LostReason::Revoked | LostReason::LeaseGone) => true,
                Some(LostReason::Orphaned) => self.handed_out,
                _ => false,
            };
        if is_gone {
            return;
        }
        let departure = Departure::begin(self.session.client(), &self.waiters);
        let both = Txn::new()
            .success(Op::delete(self.coming.clone()))
            .success(Op::delete(self.key.clone()))
            .success(Op::txn(self.ends_round()));
        // The lease's end would settle it, too, but may be far off where the session was given up on this side alone. What that
        // leaves is a ready key without participants, which the next round takes away: no reason for a close to fail.
        let gone = move |_, _| drop(departure);
        self.session.settler().settle_for_good("a participant of a double barrier", None, both, gone);
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("fence", &self.fence).finish_non_exhaustive()
    }
}
