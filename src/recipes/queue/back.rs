//! Giving items back that no caller was given, and finding out which of them went with their session.
//!
//! An item that was taken for good is bound to the session's lease, and only a put frees it of that. Where none is to be had
//! before the lease ends, since the database is full or the server away, the item goes with the lease, and is put
//! again. **Once:** the key's events tell whether the item was given back by an attempt without an answer, or
//! taken by another, or went with the lease; [`save`](super::save) puts those that did.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::core::Item;
use super::fate::{Fate, fate, read_at};
use super::settle::{Settler, take_back, write_again};
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::lease::End;
use crate::session::cleanup::Debt;
use crate::transport::retry::{Backoff, LONGEST_REFUSED, Repeat, is_of_rights, second_look};
use crate::txn::{Compare, Op, Txn, TxnReply};

impl Settler {
    /// Gives an item back as if it had never been taken.
    pub(super) async fn give_back(&self, mut item: Item, ours: Compare, mut tries: Tries) {
        let created = item.kv.create_revision;
        // The take has written the item, and so will this.
        let returns = item.returns + 2;
        let (key, claim) = (self.keys.item(&item.place), self.keys.claim(&item.place));
        // The lease may have ended, and with it the claim: where no other has had the item since, it is counted all the same.
        let unclaimed = Txn::new()
            .compare(Compare::mod_revision(key.clone()).is(item.kv.mod_revision))
            .compare(Compare::missing(claim))
            .success(write_again(key, 0))
            .success(self.keys.count_returns(&item.place, created, returns));
        let txn = take_back(&self.keys, &item.place, ours, created, returns).failure(Op::txn(unclaimed));
        let given = match tries.is_precious() {
            true => self.give_or_save(&txn, &mut item, &mut tries).await,
            false => self.until(&txn, Repeat::Harmless, &mut tries).await.map(drop),
        };
        if let Err(error) = given {
            tracing::warn!(%error, place = ?item.place, "an item was not given back: it may have gone with its session");
            tries.given_up(&error);
        } else {
            tries.settled();
        }
    }

    async fn give_or_save(&self, back: &Txn, item: &mut Item, tries: &mut Tries) -> Result<()> {
        // What the take itself met is no attempt to give the item back.
        tries.in_doubt = false;
        if self.has_gone(back, item, tries).await? {
            self.save(item, tries).await?;
        }
        Ok(())
    }

    /// Gives an item back, unless it has gone with the lease: whether it has.
    async fn has_gone(&self, back: &Txn, item: &mut Item, tries: &mut Tries) -> Result<bool> {
        loop {
            let mut failed = match self.send(back, Repeat::Harmless).await {
                Ok(answer) if is_given(&answer.value) => return Ok(false),
                Ok(answer) => {
                    tries.in_doubt |= answer.ambiguous;
                    None
                }
                Err(error) => {
                    tries.in_doubt |= error.outcome() == Outcome::Unknown;
                    Some(error)
                }
            };
            let answered = failed.is_none();
            // As long as the lease lives, the item waits for the next attempt. Where that may be refused for hours, it is seen to
            // stand meanwhile: what becomes of it is later then than what the server may have compacted by its lease's end.
            let is_refused = failed.as_ref().is_some_and(|error| {
                *error.kind() == ErrorKind::NoSpace || error.outcome() == Outcome::NotApplied
            });
            if answered || is_refused || self.lease().lost_reason().is_some() {
                match self.went(item, tries).await {
                    Ok(Went::With) => return Ok(true),
                    Ok(Went::Elsewhere) => return Ok(false),
                    // Its claim is another's.
                    Ok(Went::Nowhere) if answered => return Ok(false),
                    Ok(Went::Nowhere) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => return Err(error),
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
            if let Some(error) = failed {
                self.again(tries, error).await?;
            }
        }
    }

    /// Where an item went that a take has bound to the lease. An error where it may have gone with that, and what became of it is
    /// compacted: it may have been given back, and taken by another since.
    async fn went(&self, item: &mut Item, tries: &mut Tries) -> Result<Went> {
        let mut is_forgotten = false;
        let gone_by = match fate(self.client(), &self.keys, item).await? {
            Fate::Unmoved(stood_at) => {
                item.stood_at = stood_at;
                return Ok(Went::Nowhere);
            }
            Fate::Written | Fate::Buried => return Ok(Went::Elsewhere),
            Fate::Deleted(at) | Fate::Gone(at) => {
                match read_at(self.client(), &self.keys.claim(&item.place), at).await {
                    // It was deleted by hand: the lease would have taken both.
                    Ok(Some(_)) => return Ok(Went::Elsewhere),
                    Ok(None) => at,
                    Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => at,
                    Err(error) => return Err(error),
                }
            }
            Fate::Forgotten => {
                is_forgotten = true;
                self.client().transport().revision()
            }
        };
        // While the lease lives, nothing has gone with it.
        if !self.has_ended(gone_by, &mut tries.lived).await? {
            return Ok(Went::Elsewhere);
        }
        if is_forgotten && tries.in_doubt {
            let error = Error::new(ErrorKind::Compacted { revision: 0 }, Outcome::Unknown);
            return Err(error.because("what became of an item since it was taken"));
        }
        Ok(Went::With)
    }

    /// Whether the lease may have ended by the revision by which two keys of it were gone. Asked several times: one that is told to
    /// live may be told so by a member that lags behind, or by a leader that is none any more.
    ///
    /// Whether it ends meanwhile, by its session's own revoke or as its TTL runs out, says nothing of what took those keys. So what
    /// the revoke is answered counts: it goes through the log, and is waited for. Beside it a keep-alive does that was answered after
    /// the keys were gone (`lived`, which outlasts the errors of other looks), where an end that came after it is explained: by the
    /// TTL, or by a revoke of our own that was sent, and of which nothing is told. But not where another, a third party or an
    /// adopter, would have had to revoke the lease in the very seconds between two looks, nor where our revoke found it gone.
    ///
    /// What remains in doubt: a keep-alive can be answered by a leader that is none any more (`lease/fate.rs`). Such an answer loses
    /// an item that went with its lease, where in those seconds the session was lost at its deadline, too, or its own revoke was
    /// sent, and is not answered without doubt. In all other doubts the item comes again: one that an operator deleted, of a lease that
    /// then ended before it was seen to live, or was ended by another.
    pub(super) async fn has_ended(&self, gone_by: i64, lived: &mut bool) -> Result<bool> {
        let mut look = 1;
        loop {
            let lost = self.lease().lost_reason();
            // The revoke waits for this, and not for long: it would be taken for what ended the lease before.
            let is_closing = lost == Some(LostReason::Closed) && self.lease().may_live(lost);
            let ended = match lost {
                None => match self.lease().ask().await? {
                    Some(reason) => matches!(reason, LostReason::LeaseGone | LostReason::Revoked),
                    None => {
                        *lived = true;
                        false
                    }
                },
                Some(_) if is_closing => {
                    let left = self.client().transport().lease_keep_alive(self.lease().id()).await?;
                    *lived |= left > 0;
                    left <= 0
                }
                Some(_) => self.lease().is_over().await?,
            };
            let looks = if lost.is_none() || is_closing { ASKS } else { LOOKS };
            match ended {
                // The answer to the revoke tells more, also than a word that the lease lived.
                true if self.lease().awaits_revoke() && look < LOOKS => {}
                true => return Ok(!self.outlived(gone_by, *lived)),
                false if look >= looks => return Ok(false),
                false => {}
            }
            look += 1;
            sleep(LOOK).await;
        }
    }

    /// Whether the lease, which has ended, was there yet when the keys were gone.
    fn outlived(&self, gone_by: i64, lived: bool) -> bool {
        let told = self.lease().end_told();
        let is_explained = match self.lease().lost_reason() {
            // Its TTL may have run out.
            Some(LostReason::Expired | LostReason::LeaseGone) => true,
            // One that waits for this yet has ended nothing.
            Some(LostReason::Closed) => told.is_none() && self.lease().may_have_revoked(),
            // An adopter's revoke tells nothing here.
            _ => false,
        };
        match told {
            // By the log's word, beside which no other counts.
            Some(end @ End::Revoked { .. }) => end.is_after(gone_by),
            _ => lived && is_explained,
        }
    }

    /// True for what the server will refuse again: also an end of an item that reads, along with that, what is compacted.
    pub(super) fn is_refused(&self, kind: &ErrorKind) -> bool {
        self.client().transport().is_final(kind) || matches!(kind, ErrorKind::Compacted { .. })
    }

    /// Waits for the next attempt; gives the error back where there is to be none.
    pub(super) async fn again(&self, tries: &mut Tries, error: Error) -> Result<()> {
        tries.in_doubt |= error.outcome() == Outcome::Unknown;
        if let Some(debt) = &tries.debt {
            debt.failed(error.kind());
        }
        let precious = tries.is_precious();
        // Space is made by an operator, whenever that is. Only what would be lost is worth waiting for that.
        let full = precious && *error.kind() == ErrorKind::NoSpace;
        let lost = self.lease().lost_reason();
        let is_lost = lost.is_some();
        // An operator edits users and roles, and what is refused meanwhile is not for ever. Of what the end of the lease settles, too,
        // that is waited for as long as it may take, and the lease may stand.
        let stands = matches!(lost, None | Some(LostReason::Orphaned)) || self.lease().may_live(lost);
        let patient = stands && tries.patience > Duration::ZERO;
        let rights = is_of_rights(error.kind()) && (precious || patient);
        // A process that stood still has asked no server meanwhile.
        let took = tries.since.elapsed().min(LONGEST_ROUND);
        tries.in_vain = match full {
            // It is there.
            true => Duration::ZERO,
            false if is_lost => tries.in_vain + took,
            false => tries.in_vain,
        };
        if self.is_refused(error.kind()) && !rights || tries.in_vain > LONGEST {
            return Err(if tries.in_doubt { error.with_outcome(Outcome::Unknown) } else { error });
        }
        tracing::debug!(%error, "an item is not settled yet; trying again");
        tries.lasted += took;
        // Many may wait for the same: the longer, the rarer.
        let rarer = rights || !precious && *error.kind() == ErrorKind::NoSpace;
        let pause = match full && is_lost && tries.lasted > LONGEST {
            true => second_look(),
            false if rarer => tries.backoff.next().max(tries.lasted / 8).min(second_look()),
            false => tries.backoff.next(),
        };
        tries.lasted += pause;
        if rights {
            tries.patience = tries.patience.saturating_sub(pause);
        }
        if is_lost && !full {
            tries.in_vain += pause;
        }
        sleep(pause).await;
        tries.since = Instant::now();
        Ok(())
    }
}

/// Where an item went.
enum Went {
    /// With the lease.
    With,
    /// It was given back, or another took it, or it was deleted by hand.
    Elsewhere,
    /// It is as the take left it.
    Nowhere,
}

fn is_given(back: &TxnReply) -> bool {
    back.succeeded || back.inner_succeeded(1) == Some(true)
}

/// How far one has got with settling something.
pub(super) struct Tries {
    backoff: Backoff,
    /// An attempt may have been applied.
    pub(super) in_doubt: bool,
    /// The lease was told to live by a leader after it was seen that two keys of it are gone.
    pub(super) lived: bool,
    /// When the attempt under way began.
    since: Instant,
    /// How long those took that failed, with the pauses after them.
    lasted: Duration,
    /// How long of that the session was lost, and no server answered, or it refused.
    in_vain: Duration,
    /// For how long yet rights that are refused are waited for, where nothing is lost.
    patience: Duration,
    /// What is lost where it does not succeed.
    debt: Option<Debt>,
}

impl Tries {
    pub(super) fn of(debt: Option<Debt>) -> Self {
        let (backoff, since) = (Backoff::default(), Instant::now());
        let (in_doubt, lived) = (false, false);
        let (lasted, in_vain, patience) = (Duration::ZERO, Duration::ZERO, LONGEST_REFUSED);
        Self { backoff, in_doubt, lived, since, lasted, in_vain, patience, debt }
    }

    /// Of what something else takes the place of, once it is refused.
    pub(super) fn until_refused() -> Self {
        Self { patience: Duration::ZERO, ..Self::of(None) }
    }

    /// Something is lost where it does not succeed.
    pub(super) fn is_precious(&self) -> bool {
        self.debt.is_some()
    }

    /// Waits a moment: for longer each time.
    pub(super) async fn pause(&mut self) {
        sleep(self.backoff.next()).await;
    }

    /// A server has answered.
    pub(super) fn answered(&mut self) {
        (self.in_vain, self.since) = (Duration::ZERO, Instant::now());
    }

    pub(super) fn settled(&self) {
        self.debt.iter().for_each(Debt::saved);
    }

    pub(super) fn given_up(&self, error: &Error) {
        self.debt.iter().for_each(|debt| debt.failed(error.kind()));
    }
}

/// How often, and how far apart, one looks whether a lease has ended.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_secs(1);
/// How often while the lease is not given up, nor revoked: then its leader is asked.
const ASKS: u32 = 3;
/// For how long the server is asked in vain after the session's end: its lease may have been adopted, or may not have ended yet.
const LONGEST: Duration = Duration::from_secs(600);
/// An attempt that took longer stood still.
const LONGEST_ROUND: Duration = Duration::from_secs(60);
