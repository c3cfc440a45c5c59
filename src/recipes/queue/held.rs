//! An item in hand: handed out, or left to others again.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::back::Tries;
use super::core::{Core, Item};
use super::ends::{Along, Ends, was_ended};
use super::settle::Settler;
use crate::error::{Error, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::session::Session;
use crate::session::cleanup::Debt;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn};

/// An item that is claimed. Dropped before it was handed out, it goes back to its place in the background.
#[derive(Debug)]
pub(super) struct Held {
    hand: Hand,
    /// It goes with the session unless it is saved: it was taken for good, and no caller has it.
    debt: Option<Debt>,
    /// Somebody was given it.
    delivered: bool,
    /// What is to become of it is decided.
    settled: AtomicBool,
}

/// What its end is made of.
#[derive(Debug, Clone)]
struct Hand {
    core: Core,
    item: Item,
    fence: Fence,
}

impl Held {
    /// With the debt that it is where it was taken for good.
    pub(super) fn new(core: Core, item: Item, claimed_at: i64, debt: Option<Debt>) -> Self {
        let fence = Fence::new(&core.session, core.keys.claim(&item.place), claimed_at);
        let hand = Hand { core, item, fence };
        Self { hand, debt, delivered: false, settled: AtomicBool::new(false) }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.hand.fence.check()
    }

    /// The value, for good: the item is deleted in the background, by the end of the session at the latest.
    pub(super) fn keep(self) -> Bytes {
        debug_assert!(self.debt.is_some(), "what is not bound to the session may be delivered again");
        self.settled.store(true, Ordering::Relaxed);
        self.in_background(self.hand.delete_kept());
        self.debt.iter().for_each(Debt::saved);
        self.hand.item.kv.value.clone()
    }

    /// Lends it: from here on it counts as delivered.
    pub(super) fn lend(mut self) -> Self {
        self.delivered = true;
        self
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.hand.fence
    }

    pub(super) fn session(&self) -> &Session {
        &self.hand.core.session
    }

    pub(super) fn value(&self) -> &Bytes {
        &self.hand.item.kv.value
    }

    pub(super) fn deliveries(&self) -> u32 {
        self.hand.item.deliveries()
    }

    /// Ends the item, together with operations of the caller's.
    pub(super) async fn end(&self, ops: impl IntoIterator<Item = Op>) -> Result<()> {
        let ops = Vec::from_iter(ops);
        let ends = Ends::With(Along::of(&ops));
        let delete = self.hand.delete().failure(self.hand.own_item());
        self.decide(ops.into_iter().fold(delete, Txn::success), ends).await
    }

    /// Leaves the item to others.
    pub(super) async fn leave(&self) -> Result<()> {
        let ends = match self.hand.core.is_spent(self.hand.item.deliveries()) {
            true => Ends::Buries,
            false => Ends::Not,
        };
        self.decide(self.hand.unclaim().failure(self.hand.own_item()), ends).await
    }

    /// Sends what is decided, once for all: what fails goes on in the background.
    async fn decide(&self, txn: Txn, ends: Ends) -> Result<()> {
        self.hand.fence.check()?;
        self.settled.store(true, Ordering::Relaxed);
        self.hand.fence.fall(LostReason::Released);
        let deciding = self.hand.clone().decide(txn, ends);
        let deciding = self.hand.core.session.cleanup().before_revoke().finish(deciding);
        self.hand.core.unless_lost(deciding, &AtomicBool::new(true)).await
    }

    /// Gives the item back as if nobody had ever taken it.
    fn give_back(&mut self) {
        let (item, ours) = (self.hand.item.clone(), self.hand.fence.is_owner());
        let settler = Settler::new(&self.hand.core);
        let tries = Tries::of(self.debt.take());
        let giving = async move { settler.give_back(item, ours, tries).await };
        self.hand.core.session.cleanup().before_revoke().spawn(giving);
    }

    /// What the end of the session does as well.
    fn in_background(&self, txn: Txn) {
        self.hand.core.session.cleanup().spawn(Settler::new(&self.hand.core).while_leased(txn));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.settled.swap(true, Ordering::Relaxed) {
            return;
        }
        self.hand.fence.fall(LostReason::Released);
        if self.delivered {
            self.in_background(self.hand.unclaim());
        } else {
            self.give_back();
        }
    }
}

impl Hand {
    /// Sends a transaction behind an item's fence, and reads from the answer what became of the item.
    async fn decide(self, txn: Txn, ends: Ends) -> Result<()> {
        let Self { core, item, fence } = &self;
        let client = core.session.client();
        let sent_at = client.transport().revision();
        let answer = match core.session.transact(txn.clone(), Repeat::Harmless).await {
            Ok(answer) if answer.value.succeeded => return Ok(()),
            Ok(answer) => answer,
            Err(error) => {
                // What the server refuses it will refuse again: others may have the item.
                let settler = Settler::new(core);
                let refused = error.outcome() == Outcome::NotApplied && settler.is_refused(error.kind());
                let unclaim = self.unclaim();
                // To leave the item to others is tried again all the same.
                let goes_on = !refused || !matches!(ends, Ends::With(_));
                let (first, otherwise) = if refused { (unclaim, None) } else { (txn, Some(unclaim)) };
                let settling = settler.one_of(first, otherwise);
                core.session.cleanup().before_revoke().spawn(settling);
                return Err(if goes_on { error.with_outcome(Outcome::Unknown) } else { error });
            }
        };
        let stands = answer.value.found(0)?.iter().any(|kv| kv.create_revision == item.kv.create_revision);
        // The claim is gone. Was it an earlier attempt of ours?
        let done = match ends {
            _ if !answer.ambiguous => Some(false),
            // While the lease stands it was us, or another has given the item back for us.
            Ends::Not => matches!(core.session.lease_handle().ask().await, Ok(None)).then_some(true),
            _ if stands => Some(false),
            ends => was_ended(core, fence, item, ends, sent_at).await,
        };
        match done {
            Some(true) => Ok(()),
            Some(false) => Err(fence.why().await.into()),
            None => Err(Error::from(fence.why().await).with_outcome(Outcome::Unknown)),
        }
    }

    /// Deletes the item and the claim, if that still is ours.
    fn delete(&self) -> Txn {
        self.deletes(Txn::new().compare(self.fence.is_owner()))
    }

    fn deletes(&self, txn: Txn) -> Txn {
        let (keys, place) = (&self.core.keys, &self.item.place);
        txn.success(Op::delete(keys.item(place)))
            .success(Op::delete(keys.claim(place)))
            .success(Op::delete(keys.returns(place)))
    }

    /// Deletes the item that a caller was given for good, as long as it is as the take left it: a third party may have deleted the
    /// claim, and the item would be free. Another consumer's take writes the item, and has it then. Where the item was written by
    /// hand the claim decides.
    fn delete_kept(&self) -> Txn {
        let (keys, place) = (&self.core.keys, &self.item.place);
        let unmoved = Compare::mod_revision(keys.item(place)).is(self.item.kv.mod_revision);
        self.deletes(Txn::new().compare(unmoved)).failure(Op::txn(self.delete()))
    }

    /// Deletes the claim, if it still is ours; an item that was delivered often enough goes to the dead letters.
    fn unclaim(&self) -> Txn {
        if self.core.is_spent(self.item.deliveries()) {
            let dead = self.core.keys.undelivered(&self.item.place);
            return self.delete().success(Op::put(dead, self.item.kv.value.clone()));
        }
        let claim = self.core.keys.claim(&self.item.place);
        Txn::new().compare(self.fence.is_owner()).success(Op::delete(claim))
    }

    fn own_item(&self) -> Op {
        let key = self.core.keys.item(&self.item.place);
        pb::RangeRequest { key, keys_only: true, ..Default::default() }.into()
    }
}
