//! What all queues share: items in an order, claims on them, and waiting for an item.
//!
//! **A take** is a look, which reads the keys of the first items and of all claims, and a transaction that puts the
//! claim if the item still is as it was seen and nobody claims it. The claim's value is drawn anew for each take, so
//! a repeated transaction that finds it knows that an earlier attempt was applied. The same transaction writes the item
//! again, as it is: that counts the delivery, in the key's version, and leaves the item's place, its create_revision,
//! alone. Where the taker is to keep the item, this write binds it to the session's lease.
//!
//! **Waiting.** Who waits stands in a waitlist, and only the first of it watches items and claims. The watch is
//! acknowledged before the queue is read, so nothing falls between the two.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::held::Held;
use super::keys::{Freed, Head, Keys};
use super::look::{Look, Looked};
use super::slip::Slips;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::unique_key;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::waitlist::{Waitlist, checked};
use crate::watch::second_look;

/// A queue, seen through a session.
#[derive(Debug, Clone)]
pub(super) struct Core {
    pub(super) session: Session,
    pub(super) keys: Arc<Keys>,
    /// After so many deliveries an item is given up.
    pub(super) max_deliveries: Option<NonZeroU32>,
    /// Whether places begin with a priority.
    levels: bool,
    list: Waitlist,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    slips: Slips,
    /// How many items were in hand when that was seen last: so many does a look read over.
    claims: AtomicUsize,
    /// The level of the first item when that was seen last: where a look looks first.
    level: Mutex<Bytes>,
}

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
    pub(super) fn new(session: &Session, name: &[u8], levels: bool) -> Result<Self> {
        checked(name)?;
        let keys = Arc::new(Keys::new(name));
        let list = Waitlist::new(session, &keys.waiting)?;
        let slips = Slips::new(session, &keys.senders);
        let shared = Shared { slips, claims: AtomicUsize::new(0), level: Mutex::default() };
        Ok(Self {
            session: session.clone(),
            keys,
            max_deliveries: None,
            levels,
            list,
            shared: Arc::new(shared),
        })
    }

    /// Puts an item at the end of its level: one RPC.
    pub(super) async fn enqueue(&self, level: &str, value: Bytes) -> Result<()> {
        self.session.check()?;
        let item = self.keys.item(&unique_key(level.as_bytes(), self.session.lease()));
        let sending = self.session.cleanup().finish(self.clone().send(item, value));
        self.unless_lost(sending, &AtomicBool::new(true)).await
    }

    async fn send(self, item: Bytes, value: Bytes) -> Result<()> {
        let slip = self.shared.slips.take();
        let txn = Txn::new()
            .compare(slip.unwritten())
            .success(Op::put(item.clone(), value))
            .success(Op::put_with_lease(slip.key.clone(), item.clone(), self.session.lease()))
            .failure(Op::get(slip.key.clone()));
        let answer = match self.transact(txn, Repeat::Harmless).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.shared.slips.unused(slip);
                }
                return Err(error);
            }
        };
        let reply = answer.reply;
        if reply.succeeded {
            self.shared.slips.written(slip, reply.header.revision, answer.ambiguous);
            return Ok(());
        }
        match found(&reply, 0)?.first() {
            Some(kv) if kv.value == item => {
                self.shared.slips.written(slip, kv.mod_revision, true);
                Ok(())
            }
            _ => {
                let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
                Err(Error::protocol("somebody else writes this queue's slips", outcome).at("KV/Txn"))
            }
        }
    }

    /// How many items wait to be taken: one RPC.
    pub(super) async fn len(&self) -> Result<u64> {
        let reply =
            self.read(Txn::new().success(count(&self.keys.items)).success(count(&self.keys.claims))).await?;
        let count = |index| reply.ranged(index).map_or(0, |range| u64::try_from(range.count).unwrap_or(0));
        Ok(count(0).saturating_sub(count(1)))
    }

    /// The value of the item that would be taken next.
    pub(super) async fn peek(&self) -> Result<Option<Bytes>> {
        loop {
            let Some(head) = self.look().await?.head else { return Ok(None) };
            let reply = self.read(Txn::new().success(Op::get(self.keys.item(&head.place)))).await?;
            // A key of another incarnation was seen by no look of ours.
            if let Some(kv) =
                found(&reply, 0)?.first().filter(|kv| kv.create_revision == head.create_revision)
            {
                return Ok(Some(kv.value.clone()));
            }
        }
    }

    /// Takes the first item, if there is one.
    pub(super) async fn try_take(&self, take: Take) -> Result<Option<Held>> {
        self.session.check()?;
        let under_way = AtomicBool::new(false);
        let taking = async {
            let looked = self.look().await?;
            self.take_first(looked, take, &under_way).await.map(std::result::Result::ok)
        };
        self.unless_lost(taking, &under_way).await
    }

    /// Waits for an item, and takes it.
    pub(super) async fn take(&self, take: Take) -> Result<Held> {
        let under_way = AtomicBool::new(false);
        self.unless_lost(self.wait(take, &under_way), &under_way).await
    }

    /// Ends with the session, at once. What is under way then goes on in the background.
    pub(super) async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T>>,
        under_way: &AtomicBool,
    ) -> Result<T> {
        tokio::select! {
            biased;
            reason = self.session.lost() => {
                let outcome = match under_way.load(Ordering::Relaxed) {
                    true => Outcome::Unknown,
                    false => Outcome::NotApplied,
                };
                Err(Error::from(reason).with_outcome(outcome))
            }
            done = work => done,
        }
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
        loop {
            match self.follow(take, under_way).await {
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {}
                other => return other,
            }
        }
    }

    /// Follows the queue until there is an item that is ours.
    async fn follow(&self, take: Take, under_way: &AtomicBool) -> Result<Held> {
        let mut watcher = self.session.client().watch(self.keys.watch());
        watcher.created().await?;
        let mut looked = self.look().await?;
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
                    Some(Freed::Again) => break self.look().await?,
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
        while let Some(head) = looked.head {
            if self.may_be_spent(head.version) && self.bury(&head).await? {
                looked = self.look().await?;
                continue;
            }
            let taking = self.session.cleanup().finish(self.clone().claim(head, take));
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
        let answer = match self.transact(txn, Repeat::Harmless).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    self.settle(head.place, mark);
                }
                return Err(error);
            }
        };
        let reply = answer.reply;
        let (ours, kvs) = match reply.succeeded {
            true => (Some(reply.header.revision), 2),
            false => {
                let claimed = found(&reply, 0)?.first().filter(|kv| kv.value == mark);
                (claimed.map(|kv| kv.create_revision), 1)
            }
        };
        match (ours, found(&reply, kvs)?.first()) {
            (Some(claimed_at), Some(kv)) => {
                let returns = found(&reply, kvs + 1)?.first().map_or(0, read_returns);
                if take == Take::Lend {
                    // One more in hand than the look saw: the next one reads over it at once.
                    self.shared.claims.fetch_add(1, Ordering::Relaxed);
                }
                let item = Item { place: head.place, kv: kv.clone(), returns };
                Ok(Taken::Held(Held::new(self, item, take, claimed_at)))
            }
            (None, _) => Ok(Taken::Lost(self.read_look(&look, &reply, 3)?)),
            // Somebody deletes items by hand.
            (Some(_), None) => {
                self.settle(head.place, mark);
                let looked = self.read_look(&look, &reply, 3)?;
                Ok(Taken::Lost(Looked { head: None, more: Some(look), ..looked }))
            }
        }
    }

    /// Takes back a claim of which nobody knows whether it was put.
    fn settle(&self, place: Bytes, mark: Bytes) {
        let core = self.clone();
        self.session.cleanup().spawn(async move {
            let take_back =
                || core.take_back(&place, Compare::value(core.keys.claim(&place)).is(mark.clone()));
            core.session.settle("a claim", || core.transact_done(take_back())).await;
            let (client, txn) = (core.session.client().clone(), take_back());
            core.session.settle_again("a claim", async move {
                client.transport().txn(txn.into(), Repeat::Harmless).await.map(drop)
            });
        });
    }

    /// Deletes a claim, and leaves the item to others.
    pub(super) fn take_back(&self, place: &[u8], ours: Compare) -> Txn {
        let (item, claim) = (self.keys.item(place), self.keys.claim(place));
        let unclaim = Txn::new().compare(ours.clone()).success(Op::delete(claim.clone()));
        // An item that is not there cannot be written again: the server would refuse the whole.
        Txn::new()
            .compare(ours)
            .compare(Compare::exists(item.clone()))
            .success(Op::delete(claim))
            .success(write_again(item, 0))
            .failure(Op::txn(unclaim))
    }

    pub(super) async fn transact_done(&self, txn: Txn) -> Result<()> {
        self.transact(txn, Repeat::Harmless).await.map(drop)
    }

    pub(super) async fn transact(&self, txn: Txn, repeat: Repeat) -> Result<Answered> {
        let answer = self.session.client().transport().txn(txn.into(), repeat).await;
        let answer = self.session.lease_handle().learn(answer)?;
        Ok(Answered { reply: TxnReply::try_from(answer.value)?, ambiguous: answer.ambiguous })
    }

    pub(super) async fn read(&self, txn: Txn) -> Result<TxnReply> {
        self.transact(txn, Repeat::Read).await.map(|answer| answer.reply)
    }

    /// Looks for the first item that nobody has in hand: one RPC, and another where many are.
    pub(super) async fn look(&self) -> Result<Looked> {
        let look = self.plan();
        self.look_by(look).await
    }

    /// Goes on with a look that did not reach far enough.
    async fn in_full(&self, looked: Looked) -> Result<Looked> {
        match looked.more {
            Some(further) => self.look_by(further).await,
            None => Ok(looked),
        }
    }

    async fn look_by(&self, mut look: Look) -> Result<Looked> {
        loop {
            let ops = look.ops(&self.keys);
            let reply = self.read(ops.into_iter().fold(Txn::new(), Txn::success)).await?;
            let looked = self.read_look(&look, &reply, 0)?;
            match looked.more {
                Some(further) => look = further,
                None => return Ok(looked),
            }
        }
    }

    /// A look that reaches over as many items in hand as were seen last.
    fn plan(&self) -> Look {
        let level = self.levels.then(|| self.level().clone());
        Look::new(level, self.shared.claims.load(Ordering::Relaxed))
    }

    fn read_look(&self, look: &Look, reply: &TxnReply, from: usize) -> Result<Looked> {
        let looked =
            look.read(&self.keys, reply, from).ok_or_else(|| unexpected("no answer for the queue"))?;
        self.shared.claims.store(looked.claims, Ordering::Relaxed);
        if let Some(head) = looked.head.as_ref().filter(|_| self.levels) {
            *self.level() = head.level();
        }
        Ok(looked)
    }

    fn level(&self) -> MutexGuard<'_, Bytes> {
        self.shared.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item in hand.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) place: Bytes,
    /// As the take left it.
    pub(super) kv: KeyValue,
    /// How many of its writes were no deliveries.
    pub(super) returns: i64,
}

impl Item {
    /// How often it was given to somebody, with this time.
    pub(super) fn deliveries(&self) -> u32 {
        deliveries(self.kv.version, self.returns)
    }
}

/// A key's version counts its writes, and the first of them was no delivery.
pub(super) fn deliveries(version: i64, returns: i64) -> u32 {
    u32::try_from(version - 1 - returns).unwrap_or(0)
}

/// A transaction's answer.
pub(super) struct Answered {
    pub(super) reply: TxnReply,
    /// An earlier attempt got no answer.
    pub(super) ambiguous: bool,
}

/// Writes a key as it is, with another lease, or none.
fn write_again(key: Bytes, lease: i64) -> Op {
    pb::PutRequest { key, lease, ignore_value: true, ..Default::default() }.into()
}

fn count(prefix: &Bytes) -> Op {
    let range_end = crate::key::prefix_end(prefix);
    pb::RangeRequest { key: prefix.clone(), range_end, count_only: true, ..Default::default() }.into()
}

pub(super) fn read_returns(kv: &KeyValue) -> i64 {
    std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(super) fn found(reply: &TxnReply, index: usize) -> Result<&[KeyValue]> {
    reply.kvs(index).ok_or_else(|| unexpected("no answer for a read"))
}

fn unexpected(detail: &str) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}
