//! Taking items: claims on them, and waiting for an item.
//!
//! **A take** is a look, which reads the keys of the first items and of all claims, and a transaction that puts the
//! claim if the item still is as it was seen and nobody claims it. The claim's value is drawn anew for each take, so
//! a repeated transaction that finds it knows that an earlier attempt was applied. The same transaction writes the item
//! again, as it is: that counts the delivery, in the key's version, and leaves the item's place, its create_revision,
//! alone. Where the taker is to keep the item, this write binds it to the session's lease.
//!
//! **Waiting.** Who waits stands in a waitlist, and only the first of it watches items and claims. The watch is
//! acknowledged before the queue is read, so nothing falls between the two.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::back::Tries;
use super::core::{Core, Item, read_returns};
use super::held::Held;
use super::job::Job;
use super::keys::{Freed, Head};
use super::look::Looked;
use super::settle::{Settler, Unsettled, write_again};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::unique_key;
use crate::pb::mvccpb::KeyValue;
use crate::session::cleanup::Debt;
use crate::transport::retry::{Backoff, Repeat, second_look};
use crate::txn::{Compare, Op, Txn, TxnReply};

/// What becomes of an item that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// It is kept: it goes with the session.
    Keep,
    /// It is lent: when the session ends, others take it.
    Lend,
}

/// What became of a take.
enum Taken {
    Held(Held),
    /// Somebody else was faster; this is how the queue looks now.
    Lost(Looked, InDoubt),
}

/// Whether an earlier attempt may have taken the item for good, which is settled in the background.
type InDoubt = bool;

impl Core {
    pub(super) async fn dequeue(&self) -> Result<Bytes> {
        Ok(self.wait_for(Take::Keep).await?.keep())
    }

    pub(super) async fn try_dequeue(&self) -> Result<Option<Bytes>> {
        Ok(self.if_any(Take::Keep).await?.map(Held::keep))
    }

    pub(super) async fn take(&self) -> Result<Job> {
        self.wait_for(Take::Lend).await.map(Job::new)
    }

    pub(super) async fn try_take(&self) -> Result<Option<Job>> {
        Ok(self.if_any(Take::Lend).await?.map(Job::new))
    }

    /// Takes the first item, if there is one.
    async fn if_any(&self, take: Take) -> Result<Option<Held>> {
        self.session.check()?;
        let in_doubt = AtomicBool::new(false);
        let taking = async {
            let looked = self.look().await?;
            self.take_first(looked, take, &in_doubt).await.map(std::result::Result::ok)
        };
        self.told(taking, &in_doubt).await
    }

    /// Waits for an item, and takes it.
    async fn wait_for(&self, take: Take) -> Result<Held> {
        let in_doubt = AtomicBool::new(false);
        self.told(self.wait(take, &in_doubt), &in_doubt).await
    }

    /// Ends with the session, and says where an item may have been taken that the caller does not get.
    async fn told<T>(&self, taking: impl Future<Output = Result<T>>, in_doubt: &AtomicBool) -> Result<T> {
        let is_unknown = || in_doubt.load(Ordering::Relaxed);
        let taken = self.unless_lost(taking, in_doubt).await;
        taken.map_err(|error| if is_unknown() { error.with_outcome(Outcome::Unknown) } else { error })
    }

    async fn wait(&self, take: Take, in_doubt: &AtomicBool) -> Result<Held> {
        let looked = self.look().await?;
        // Where others wait already, one stands behind them.
        if looked.waiting == 0
            && let Ok(held) = self.take_first(looked, take, in_doubt).await?
        {
            return Ok(held);
        }
        let _place = self.list.enter(Bytes::new()).await?;
        let mut backoff = Backoff::default();
        loop {
            match self.follow(take, in_doubt).await {
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {}
                other => return other,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Follows the queue until there is an item that is ours.
    async fn follow(&self, take: Take, in_doubt: &AtomicBool) -> Result<Held> {
        let mut watcher = self.session.client().watch(self.keys.watch());
        // A watch that does not begin tells nothing: then the queue is looked at now and then.
        loop {
            if let Ok(begun) = timeout(second_look(), watcher.created()).await {
                begun?;
                break;
            }
            let looked = self.look_lasting().await?;
            if let Ok(held) = self.take_first(looked, take, in_doubt).await? {
                return Ok(held);
            }
        }
        let mut looked = self.look_lasting().await?;
        let mut again = Instant::now() + second_look();
        loop {
            let seen_at = match self.take_first(looked, take, in_doubt).await? {
                Ok(held) => return Ok(held),
                Err(seen_at) => seen_at,
            };
            looked = loop {
                let freed = tokio::select! {
                    biased;
                    events = watcher.next() => self.keys.freed(&events?.events, seen_at),
                    () = tokio::time::sleep_until(again) => {
                        // Servers before 3.4.36 and 3.5.18 can lose a delete at the edge of a compaction.
                        again = Instant::now() + second_look();
                        Some(Freed::Again)
                    }
                };
                match freed {
                    Some(Freed::New(head)) => break Looked::at(head),
                    Some(Freed::Again) => break self.look_lasting().await?,
                    None => {}
                }
            };
        }
    }

    /// Takes the first item that nobody else takes before; where there is none, the revision at which that was seen.
    async fn take_first(
        &self,
        mut looked: Looked,
        take: Take,
        in_doubt: &AtomicBool,
    ) -> Result<std::result::Result<Held, i64>> {
        let (mut races, mut backoff) = (0, Backoff::default());
        let mut last: Option<Head> = None;
        while let Some(head) = looked.head {
            if last.replace(head.clone()).as_ref() == Some(&head) {
                // It is as it was seen and claimed by no other, and yet it was not to be had.
                return Err(Error::protocol("a compare failed that holds", Outcome::NotApplied).at("KV/Txn"));
            }
            races += 1;
            if races > MOST_RACES {
                sleep(backoff.next()).await;
            }
            if self.may_be_spent(head.version) && self.bury(&head).await? {
                looked = self.look().await?;
                continue;
            }
            // Made before the request: closing the session tells of it also where no task polls this meanwhile.
            let debt = (take == Take::Keep).then(|| self.session.cleanup().debt());
            let taking = self.session.cleanup().before_revoke().finish(self.clone().claim(
                head,
                looked.revision,
                take,
                debt,
            ));
            let was_in_doubt = in_doubt.swap(true, Ordering::Relaxed);
            let taken = taking.await;
            let is_in_doubt = match &taken {
                Ok(Taken::Held(_)) => take == Take::Keep,
                Ok(Taken::Lost(_, in_doubt)) => *in_doubt,
                Err(error) => error.outcome() == Outcome::Unknown,
            };
            in_doubt.store(was_in_doubt || is_in_doubt, Ordering::Relaxed);
            looked = match taken? {
                Taken::Lost(looked, _) => self.in_full(looked).await?,
                Taken::Held(held) => {
                    // The answer may have been on its way for longer than the session lasts.
                    held.check()?;
                    return Ok(Ok(held));
                }
            };
        }
        Ok(Err(looked.revision))
    }

    /// Claims an item that is as it was seen, last at this revision; else looks again, in the same transaction.
    async fn claim(self, head: Head, seen_at: i64, take: Take, debt: Option<Debt>) -> Result<Taken> {
        let (item, claim) = (self.keys.item(&head.place), self.keys.claim(&head.place));
        let lease = self.session.lease();
        let mark = unique_key(b"", lease);
        let lasts = match take {
            Take::Keep => lease,
            Take::Lend => 0,
        };
        let look = self.plan();
        let read = [Op::get(item.clone()), Op::get(self.keys.returns(&head.place))];
        let mut txn = Txn::new()
            .compare(Compare::mod_revision(item.clone()).is(head.mod_revision))
            .compare(Compare::missing(claim.clone()))
            .success(Op::put_with_lease(claim.clone(), mark.clone(), lease))
            .success(write_again(item, lasts))
            .failure(Op::get(claim.clone()));
        for op in read {
            txn = txn.success(op.clone()).failure(op);
        }
        txn = look.ops(&self.keys).into_iter().fold(txn, Txn::failure);
        if take == Take::Keep && head.version > 1 {
            // What is counted of it goes where it goes.
            let returns = self.keys.returns(&head.place);
            let bind = Txn::new().compare(Compare::exists(returns.clone()));
            txn = txn.success(Op::txn(bind.success(write_again(returns, lease))));
        }
        let answer = tokio::select! {
            biased;
            // The item may go with the lease: no time to wait for the answer.
            reason = self.session.lost() => Err(Error::from(reason).with_outcome(Outcome::Unknown)),
            answer = self.session.transact(txn, Repeat::Harmless) => answer,
        };
        let taking = Unsettled { place: head.place, seen: head.mod_revision, seen_at, mark };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                match error.outcome() {
                    Outcome::NotApplied => paid(debt),
                    _ => self.settle(taking, debt),
                }
                return Err(error);
            }
        };
        let reply = answer.value;
        let (ours, found, returns) = match claimed(&reply, &taking.mark) {
            Ok(read) => read,
            Err(error) => {
                // It may have been applied all the same.
                self.settle(taking, debt);
                return Err(error.with_outcome(Outcome::Unknown));
            }
        };
        match (ours, found) {
            (Some(claimed_at), Some(kv)) => {
                let returns = read_returns(returns, kv.create_revision);
                if take == Take::Lend {
                    // One more in hand than the look saw: the next one reads over it at once.
                    self.shared.claims.fetch_add(1, Ordering::Relaxed);
                }
                let (place, stood_at) = (taking.place, reply.header.revision);
                let item = Item { place, kv: kv.clone(), returns, stood_at };
                Ok(Taken::Held(Held::new(self, item, claimed_at, debt)))
            }
            (None, found) => {
                // An attempt whose answer was lost may have bound it to the lease, which ended since, or its claim was deleted.
                let may_be_ours = found.is_none_or(|kv| kv.lease == lease);
                let in_doubt = may_be_ours && answer.ambiguous && take == Take::Keep;
                if in_doubt {
                    self.settle(taking, debt);
                } else {
                    paid(debt);
                }
                Ok(Taken::Lost(self.read_look(&look, &reply, 3)?, in_doubt))
            }
            // Somebody deletes items by hand.
            (Some(_), None) => {
                self.settle(taking, debt);
                let looked = self.read_look(&look, &reply, 3)?;
                Ok(Taken::Lost(Looked { head: None, more: Some(look), ..looked }, false))
            }
        }
    }

    /// Settles a take of which nobody knows whether it was applied.
    fn settle(&self, taking: Unsettled, debt: Option<Debt>) {
        let settling = Settler::new(self).take(taking, Tries::of(debt));
        self.session.cleanup().before_revoke().spawn(settling);
    }
}

/// What the answer to a take tells: when the claim was put, if that is the take's; the item; and what is counted of it.
fn claimed<'a>(reply: &'a TxnReply, mark: &[u8]) -> Result<(Option<i64>, Found<'a>, Found<'a>)> {
    let (ours, item) = match reply.succeeded {
        true => (Some(reply.header.revision), 2),
        false => {
            let claim = reply.found(0)?.first().filter(|kv| kv.value == mark);
            (claim.map(|kv| kv.create_revision), 1)
        }
    };
    Ok((ours, reply.found(item)?.first(), reply.found(item + 1)?.first()))
}

type Found<'a> = Option<&'a KeyValue>;

/// Nothing is to be saved.
fn paid(debt: Option<Debt>) {
    debt.iter().for_each(Debt::saved);
}

/// So many races are lost without a pause, where many consumers meet.
const MOST_RACES: u32 = 16;
