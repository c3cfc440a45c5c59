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

use super::core::{Core, Item, read_returns};
use super::held::Held;
use super::job::Job;
use super::keys::{Freed, Head};
use super::look::Looked;
use super::settle::{Settler, write_again};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::unique_key;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn};
use crate::watch::second_look;

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
    Lost(Looked),
}

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
        let under_way = AtomicBool::new(false);
        let taking = async {
            let looked = self.look().await?;
            self.take_first(looked, take, &under_way).await.map(std::result::Result::ok)
        };
        self.unless_lost(taking, &under_way).await
    }

    /// Waits for an item, and takes it.
    async fn wait_for(&self, take: Take) -> Result<Held> {
        let under_way = AtomicBool::new(false);
        self.unless_lost(self.wait(take, &under_way), &under_way).await
    }

    async fn wait(&self, take: Take, under_way: &AtomicBool) -> Result<Held> {
        let looked = self.look().await?;
        // Where others wait already, one stands behind them.
        if looked.waiting == 0
            && let Ok(held) = self.take_first(looked, take, under_way).await?
        {
            return Ok(held);
        }
        let _place = self.list.enter(Bytes::new()).await?;
        let mut backoff = Backoff::default();
        loop {
            match self.follow(take, under_way).await {
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {}
                other => return other,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Follows the queue until there is an item that is ours.
    async fn follow(&self, take: Take, under_way: &AtomicBool) -> Result<Held> {
        let mut watcher = self.session.client().watch(self.keys.watch());
        // A watch that does not begin tells nothing: then the queue is looked at now and then.
        loop {
            if let Ok(begun) = timeout(second_look(), watcher.created()).await {
                begun?;
                break;
            }
            let looked = self.look_lasting().await?;
            if let Ok(held) = self.take_first(looked, take, under_way).await? {
                return Ok(held);
            }
        }
        let mut looked = self.look_lasting().await?;
        let mut again = Instant::now() + second_look();
        loop {
            let seen_at = match self.take_first(looked, take, under_way).await? {
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
        under_way: &AtomicBool,
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
            let taking = self.session.cleanup().before_revoke().finish(self.clone().claim(head, take));
            under_way.store(true, Ordering::Relaxed);
            let taken = taking.await;
            under_way.store(false, Ordering::Relaxed);
            looked = match taken? {
                Taken::Lost(looked) => self.in_full(looked).await?,
                Taken::Held(held) => {
                    // The answer may have been on its way for longer than the session lasts.
                    held.check()?;
                    return Ok(Ok(held));
                }
            };
        }
        Ok(Err(looked.revision))
    }

    /// Claims an item that is as it was seen; else looks again, in the same transaction.
    async fn claim(self, head: Head, take: Take) -> Result<Taken> {
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
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    self.settle(head, mark, take);
                }
                return Err(error);
            }
        };
        let reply = answer.value;
        let (ours, kvs) = match reply.succeeded {
            true => (Some(reply.header.revision), 2),
            false => {
                let claimed = reply.found(0)?.first().filter(|kv| kv.value == mark);
                (claimed.map(|kv| kv.create_revision), 1)
            }
        };
        match (ours, reply.found(kvs)?.first()) {
            (Some(claimed_at), Some(kv)) => {
                let returns = read_returns(reply.found(kvs + 1)?.first(), kv.create_revision);
                if take == Take::Lend {
                    // One more in hand than the look saw: the next one reads over it at once.
                    self.shared.claims.fetch_add(1, Ordering::Relaxed);
                }
                let item = Item { place: head.place, kv: kv.clone(), returns };
                Ok(Taken::Held(Held::new(self, item, take, claimed_at)))
            }
            (None, found) => {
                // An attempt whose answer was lost may have bound it to the lease, which ended since.
                if found.is_none() && answer.ambiguous && take == Take::Keep {
                    self.settle(head, mark, take);
                }
                Ok(Taken::Lost(self.read_look(&look, &reply, 3)?))
            }
            // Somebody deletes items by hand.
            (Some(_), None) => {
                self.settle(head, mark, take);
                let looked = self.read_look(&look, &reply, 3)?;
                Ok(Taken::Lost(Looked { head: None, more: Some(look), ..looked }))
            }
        }
    }

    /// Settles a take of which nobody knows whether it was applied.
    fn settle(&self, head: Head, mark: Bytes, take: Take) {
        let settler = Settler::new(self);
        let tries = settler.tries(take == Take::Keep);
        let settling = settler.take(head.place, head.mod_revision, mark, tries);
        self.session.cleanup().before_revoke().spawn(settling);
    }
}

/// So many races are lost without a pause, where many consumers meet.
const MOST_RACES: u32 = 16;
