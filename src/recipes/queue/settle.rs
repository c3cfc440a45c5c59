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
use tokio::time::sleep;

use super::back::Tries;
use super::core::{Core, Item, read_returns};
use super::fate::{first_event, read_at};
use super::keys::Keys;
use crate::client::Client;
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::lease::Lease;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::pb::mvccpb::event::EventType;
use crate::session;
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, TxnReply, unexpected};

/// What settles takes in the background. It holds no session, which is not to stay open for it.
#[derive(Clone)]
pub(super) struct Settler {
    session: session::settle::Settler,
    pub(super) keys: Arc<Keys>,
}

impl Settler {
    pub(super) fn new(core: &Core) -> Self {
        Self { session: core.session.settler().clone(), keys: core.keys.clone() }
    }

    pub(super) fn client(&self) -> &Client {
        self.session.client()
    }

    pub(super) fn lease(&self) -> &Arc<Lease> {
        self.session.lease()
    }

    /// Gives a lease of this TTL back in the background, which is not the session's.
    pub(super) fn give_lease_back(&self, lease: i64, ttl: Duration) {
        self.session.give_back(lease, ttl);
    }

    /// Settles a take: takes it back, or sees to it that it never is applied.
    pub(super) async fn take(self, mut take: Unsettled, mut tries: Tries) {
        match self.settle(&mut take, &mut tries).await {
            Ok(Some(item)) => {
                let ours = Compare::value(self.keys.claim(&take.place)).is(take.mark);
                self.give_back(item, ours, tries).await;
            }
            Ok(None) => tries.settled(),
            Err(error) => {
                tracing::warn!(%error, "a take may hold its item until the session's end");
                tries.given_up(&error);
            }
        }
    }

    /// The item that is to be given back, if the take was applied.
    async fn settle(&self, take: &mut Unsettled, tries: &mut Tries) -> Result<Option<Item>> {
        let goes_with_session = tries.is_precious();
        let item = pb::RangeRequest {
            key: self.keys.item(&take.place),
            // The value is needed where the item goes with the lease.
            keys_only: !goes_with_session,
            ..Default::default()
        };
        let read = Txn::new()
            .success(Op::get(self.keys.claim(&take.place)))
            .success(item.into())
            .success(Op::get(self.keys.returns(&take.place)));
        let mut backoff = Backoff::default();
        for _ in 0..MOST_ROUNDS {
            let reply = self.until(&read, Repeat::Read, tries).await?.value;
            match self.end_of(take, &reply) {
                Err(error) => self.again(tries, error).await?,
                Ok(End::GiveBack(item)) => return Ok(Some(item)),
                Ok(End::Send(end)) => {
                    if self.until(&end, Repeat::Harmless, tries).await?.value.succeeded {
                        return Ok(None);
                    }
                    // It was applied, or another took the item, between the two.
                    sleep(backoff.next()).await;
                }
                Ok(End::Unclaimed(stands)) if goes_with_session => {
                    return self.taken(take, stands, tries).await;
                }
                Ok(End::Unclaimed(_) | End::Settled) => return Ok(None),
            }
        }
        Err(unexpected("a take was not settled: the answers fit no state of the queue"))
    }

    /// What settles a take, by what there is.
    fn end_of(&self, take: &mut Unsettled, reply: &TxnReply) -> Result<End> {
        let (place, mark, stood_at) = (&take.place, &take.mark, reply.header.revision);
        let found = reply.found(0)?.first();
        let claimed = found.is_some_and(|kv| kv.value == *mark);
        let (item, claim) = (self.keys.item(place), self.keys.claim(place));
        let Some(kv) = reply.found(1)?.first() else {
            // The claim alone is left where the item was deleted by hand.
            let unclaim = Txn::new().compare(Compare::value(claim.clone()).is(mark.clone()));
            return Ok(if claimed {
                End::Send(unclaim.success(Op::delete(claim)))
            } else {
                End::Unclaimed(None)
            });
        };
        let returns = read_returns(reply.found(2)?.first(), kv.create_revision);
        let stands = || Item { place: place.clone(), kv: kv.clone(), returns, stood_at };
        if claimed {
            return Ok(End::GiveBack(stands()));
        }
        if kv.mod_revision != take.seen {
            // Where a third party deleted the claim, the take has left the item bound to the lease.
            let is_bound = found.is_none() && kv.lease == self.lease().id();
            return Ok(if is_bound { End::Unclaimed(Some(stands())) } else { End::Settled });
        }
        let again = pb::PutRequest {
            key: item.clone(),
            ignore_value: true,
            ignore_lease: true,
            ..Default::default()
        };
        let counted = self.keys.count_returns(place, kv.create_revision, returns + 1);
        let unmoved = Txn::new().compare(Compare::mod_revision(item).is(take.seen));
        take.seen_at = stood_at;
        Ok(End::Send(unmoved.success(again.into()).success(counted)))
    }

    /// The item of a take that was applied, and whose claim is gone since, as far as the server still tells. None where it was
    /// another's.
    async fn taken(&self, take: &Unsettled, stands: Option<Item>, tries: &mut Tries) -> Result<Option<Item>> {
        loop {
            let told = match &stands {
                // No event is needed for that: it was written last when it was bound.
                Some(item) => {
                    let took = self.took(take, &item.kv).await;
                    took.map(|took| took.then(|| item.clone()))
                }
                None => match self.taken_once(take).await {
                    // While the lease lives, nothing has gone with it.
                    Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                        let gone_by = self.client().transport().revision();
                        let ended = self.has_ended(gone_by, &mut tries.lived).await;
                        ended.and_then(|ended| if ended { Err(error) } else { Ok(None) })
                    }
                    told => told,
                },
            };
            match told {
                Err(error) if !matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    self.again(tries, error).await?;
                }
                told => return told,
            }
        }
    }

    async fn taken_once(&self, take: &Unsettled) -> Result<Option<Item>> {
        let event = first_event(self.client(), &self.keys.item(&take.place), take.seen_at).await?;
        let Some(event) = event else {
            let error = Error::new(ErrorKind::Compacted { revision: 0 }, Outcome::Unknown);
            return Err(error.because("whether a take was applied"));
        };
        let Some(kv) = event.kv.filter(|_| event.r#type == i32::from(EventType::Put)) else {
            return Ok(None);
        };
        let took = self.took(take, &kv).await?;
        let (place, stood_at) = (take.place.clone(), kv.mod_revision);
        Ok(took.then_some(Item { place, kv, returns: 0, stood_at }))
    }

    /// Whether a take has written an item as it is here.
    async fn took(&self, take: &Unsettled, kv: &KeyValue) -> Result<bool> {
        // That write put the claim as well.
        let claim = read_at(self.client(), &self.keys.claim(&take.place), kv.mod_revision).await?;
        Ok(claim.is_some_and(|claim| claim.value == take.mark))
    }

    /// Sends a transaction until it is answered; where what is refused is refused for good, another instead.
    pub(super) async fn one_of(self, txn: Txn, otherwise: Option<Txn>) {
        let mut tries = match otherwise {
            Some(_) => Tries::until_refused(),
            None => Tries::of(None),
        };
        let mut sent = self.until(&txn, Repeat::Harmless, &mut tries).await.map(drop);
        if let (Err(error), Some(otherwise)) = (&sent, otherwise) {
            tracing::debug!(%error, "an item's end was refused");
            sent = self.until(&otherwise, Repeat::Harmless, &mut Tries::of(None)).await.map(drop);
        }
        if let Err(error) = sent {
            tracing::warn!(%error, "an item may be in hand until the session's end");
        }
    }

    /// The same for what the end of the lease does, too. Where the session is orphaned another may keep the lease alive, and
    /// after its deadline, or a close whose revoke was refused, this client, if it adopts the lease again.
    pub(super) async fn while_leased(self, txn: Txn) {
        let lease = self.lease().clone();
        let ended = async {
            let is_kept = match lease.lost().await {
                LostReason::Orphaned => true,
                LostReason::Expired | LostReason::Closed => lease.is_away() || lease.adopted_again().await,
                _ => false,
            };
            if is_kept {
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
    pub(super) async fn until(
        &self,
        txn: &Txn,
        repeat: Repeat,
        tries: &mut Tries,
    ) -> Result<Answer<TxnReply>> {
        loop {
            match self.send(txn, repeat).await {
                Ok(answer) => {
                    tries.answered();
                    return Ok(Answer { ambiguous: answer.ambiguous || tries.in_doubt, ..answer });
                }
                Err(error) => self.again(tries, error).await?,
            }
        }
    }

    pub(super) async fn send(&self, txn: &Txn, repeat: Repeat) -> Result<Answer<TxnReply>> {
        let Answer { value, ambiguous, unanswered } =
            self.client().transport().txn(txn.clone().into(), repeat).await?;
        Ok(Answer { value: TxnReply::try_from(value)?, ambiguous, unanswered })
    }
}

/// A take of which it is not known whether it was applied.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) place: Bytes,
    /// The item's mod_revision before it.
    pub(super) seen: i64,
    /// When the item was seen with that last: the take comes later, if ever.
    pub(super) seen_at: i64,
    /// The claim's value.
    pub(super) mark: Bytes,
}

/// What settles a take.
enum End {
    /// It was applied.
    GiveBack(Item),
    /// This.
    Send(Txn),
    /// The item is gone, or stands without a claim as a take has left it: its past tells whether that was this one.
    Unclaimed(Option<Item>),
    /// It never will be applied.
    Settled,
}

/// Deletes a claim, and leaves the item of this create_revision to others with so many returns.
pub(super) fn take_back(keys: &Keys, place: &[u8], ours: Compare, created: i64, returns: i64) -> Txn {
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

/// More than any take's states.
const MOST_ROUNDS: usize = 10;
