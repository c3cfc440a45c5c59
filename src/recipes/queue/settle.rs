//! Settling takes: those that got no answer, and those whose item goes back.
//!
//! **No take is applied after it was settled**, however late its request arrives. A take compares the item's mod_revision
//! with the one that was seen, and a key never has a mod_revision twice. So settling ends when the item has another one, or
//! is gone: because the take was applied, and then the claim is found by its mark and taken back; because another
//! wrote the item since; or because settling writes the item again, as it is. After that the server refuses the take
//! for good, and nothing is left to watch for.
//!
//! **Deliveries** are the item's writes but the first and those that are counted in the key of its returns. Each transaction
//! that writes an item without a delivery in it counts that write there, and, where it undoes a take, the take's too; all of
//! them compare what they were reckoned from. So an item was delivered as often as a consumer got it in hand, save for
//! a take whose session's lease ended before it was settled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::core::{Core, Item, read_returns};
use super::keys::Keys;
use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::lease::Lease;
use crate::pb::etcdserverpb as pb;
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat, may_pass};
use crate::txn::{Compare, Op, Txn, TxnReply};

/// What settles takes in the background. It holds no session, which is not to stay open for it.
#[derive(Clone)]
pub(super) struct Settler {
    client: Client,
    lease: Arc<Lease>,
    keys: Arc<Keys>,
}

impl Settler {
    pub(super) fn new(core: &Core) -> Self {
        let (client, lease) = (core.session.client().clone(), core.session.lease_handle().clone());
        Self { client, lease, keys: core.keys.clone() }
    }

    /// Settles a take of an item that was seen with this mod_revision: takes it back, or sees to it that it never is applied.
    pub(super) async fn take(self, place: Bytes, seen: i64, mark: Bytes) {
        let read = Txn::new()
            .success(Op::get(self.keys.claim(&place)))
            .success(
                pb::RangeRequest { key: self.keys.item(&place), keys_only: true, ..Default::default() }
                    .into(),
            )
            .success(Op::get(self.keys.returns(&place)));
        let mut backoff = Backoff::default();
        for _ in 0..MOST_ROUNDS {
            let settled = async {
                let reply = self.until_answered(&read, Repeat::Read).await?.value;
                match self.end_of(&place, seen, &mark, &reply)? {
                    Some(end) => {
                        Ok::<_, Error>(self.until_answered(&end, Repeat::Harmless).await?.value.succeeded)
                    }
                    None => Ok(true),
                }
            };
            match settled.await {
                Ok(true) => return,
                // It was applied, or another took the item, between the two.
                Ok(false) => sleep(backoff.next()).await,
                Err(error) => {
                    tracing::warn!(%error, "a take may hold its item until the session's end");
                    return;
                }
            }
        }
        tracing::warn!("a take was not settled: the server's answers fit no state of the queue");
    }

    /// What settles a take, by what there is. None where nothing is left to do.
    fn end_of(&self, place: &[u8], seen: i64, mark: &Bytes, reply: &TxnReply) -> Result<Option<Txn>> {
        let claimed = reply.found(0)?.first().is_some_and(|kv| kv.value == *mark);
        let (item, claim) = (self.keys.item(place), self.keys.claim(place));
        let Some(kv) = reply.found(1)?.first() else {
            // It was deleted by hand.
            let unclaim = Txn::new().compare(Compare::value(claim.clone()).is(mark.clone()));
            return Ok(claimed.then(|| unclaim.success(Op::delete(claim))));
        };
        let returns = read_returns(reply.found(2)?.first(), kv.create_revision);
        if claimed {
            let ours = Compare::value(claim).is(mark.clone());
            return Ok(Some(take_back(&self.keys, place, ours, kv.create_revision, returns + 2)));
        }
        if kv.mod_revision != seen {
            return Ok(None);
        }
        let again = pb::PutRequest {
            key: item.clone(),
            ignore_value: true,
            ignore_lease: true,
            ..Default::default()
        };
        let counted = self.keys.count_returns(place, kv.create_revision, returns + 1);
        let unmoved = Txn::new().compare(Compare::mod_revision(item).is(seen));
        Ok(Some(unmoved.success(again.into()).success(counted)))
    }

    /// Gives an item back as if it had never been taken.
    pub(super) async fn give_back(self, item: Item, ours: Compare, goes_with_session: bool) {
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
        match self.until_answered(&txn, Repeat::Harmless).await {
            Ok(answer) if answer.value.succeeded || answer.value.inner_succeeded(1) == Some(true) => {}
            Ok(answer) if goes_with_session => self.save(&item, answer.ambiguous).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "an item was not given back"),
        }
    }

    /// Saves an item that no caller was given, and that went with its session: it is put at the end of the queue. Where it
    /// may have been given back before, others may have had it since.
    async fn save(&self, item: &Item, in_doubt: bool) {
        let key = self.keys.item(&item.place);
        let put =
            Txn::new().compare(Compare::missing(key.clone())).success(Op::put(key, item.kv.value.clone()));
        let saved = match in_doubt {
            true => Ok(false),
            false => self.send(&put, Repeat::Never).await.map(|answer| answer.value.succeeded),
        };
        match saved {
            Ok(true) => {}
            Ok(false) => tracing::warn!(place = ?item.place, "an item may have gone with its session"),
            Err(error) => {
                tracing::warn!(%error, place = ?item.place, "an item may have gone with its session");
            }
        }
    }

    /// Sends a transaction until it is answered; where what is refused is refused for good, another instead.
    pub(super) async fn one_of(self, txn: Txn, otherwise: Option<Txn>) {
        let mut sent = self.until_answered(&txn, Repeat::Harmless).await.map(drop);
        if let (Err(error), Some(otherwise)) = (&sent, otherwise) {
            tracing::debug!(%error, "an item's end was refused");
            sent = self.until_answered(&otherwise, Repeat::Harmless).await.map(drop);
        }
        if let Err(error) = sent {
            tracing::warn!(%error, "an item may be in hand until the session's end");
        }
    }

    /// The same for what the end of the lease does, too. Where the session is orphaned another may keep the lease alive.
    pub(super) async fn while_leased(self, txn: Txn) {
        let lease = self.lease.clone();
        let ended = async {
            if lease.lost().await == LostReason::Orphaned {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = ended => {}
            () = self.one_of(txn, None) => {}
        }
    }

    /// Sends a transaction until it is answered, whatever becomes of the session; for some minutes where that is lost.
    async fn until_answered(&self, txn: &Txn, repeat: Repeat) -> Result<Answer<TxnReply>> {
        let (mut backoff, mut in_doubt, mut lost_at) = (Backoff::default(), false, None);
        loop {
            let error = match self.send(txn, repeat).await {
                Ok(answer) => return Ok(Answer { ambiguous: answer.ambiguous || in_doubt, ..answer }),
                Err(error) => error,
            };
            in_doubt |= error.outcome() == Outcome::Unknown;
            if self.lease.lost_reason().is_some() {
                lost_at.get_or_insert_with(Instant::now);
            }
            if !passes(error.kind()) || lost_at.is_some_and(|at| at.elapsed() > LONGEST) {
                return Err(if in_doubt { error.with_outcome(Outcome::Unknown) } else { error });
            }
            tracing::debug!(%error, "an item is not settled yet; trying again");
            sleep(backoff.next()).await;
        }
    }

    async fn send(&self, txn: &Txn, repeat: Repeat) -> Result<Answer<TxnReply>> {
        let Answer { value, ambiguous, unanswered } =
            self.client.transport().txn(txn.clone().into(), repeat).await?;
        Ok(Answer { value: TxnReply::try_from(value)?, ambiguous, unanswered })
    }
}

/// Deletes a claim, and leaves the item of this create_revision to others with so many returns.
fn take_back(keys: &Keys, place: &[u8], ours: Compare, created: i64, returns: i64) -> Txn {
    let (item, claim) = (keys.item(place), keys.claim(place));
    let unclaim = Txn::new().compare(ours.clone()).success(Op::delete(claim.clone()));
    // An item that is not there cannot be written again: the server would refuse the whole.
    Txn::new()
        .compare(ours)
        .compare(Compare::create_revision(item.clone()).is(created))
        .success(Op::delete(claim))
        .success(write_again(item, 0))
        .success(keys.count_returns(place, created, returns))
        .failure(Op::txn(unclaim))
}

/// Writes a key as it is, with another lease, or none.
pub(super) fn write_again(key: Bytes, lease: i64) -> Op {
    pb::PutRequest { key, lease, ignore_value: true, ..Default::default() }.into()
}

/// True for what settling waits to be over: also for a full database, and for tokens that are refused again and again.
pub(super) fn passes(kind: &ErrorKind) -> bool {
    may_pass(kind) || matches!(kind, ErrorKind::NoSpace | ErrorKind::InvalidToken)
}

/// More than any take's states.
const MOST_ROUNDS: usize = 10;
/// How long after the session's end the server is asked: its lease may have been adopted, or may not have ended yet.
const LONGEST: Duration = Duration::from_secs(600);
