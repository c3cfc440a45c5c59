//! A latch that opens after so many count-downs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::sleep;

use super::{below, mismatch, not_zero};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::{drawn, is_random, prefix_end};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, TxnReply, count, unexpected};
use crate::view::View;

/// A latch on a name: all who wait go on once it was counted down so many times, by whomever.
///
/// The first client that counts down or waits makes it, with its count, in `{name}/count`; others must have the same.
/// Each count-down is a key of its own, `{name}/down/{16 random hex digits}`: a request that is repeated counts once,
/// and no two are ever in each other's way. Keys of other shapes below `down/` count for nothing. The keys have no lease: what is counted stays counted when its client dies.
/// [`reset`](Self::reset) takes them away and closes the latch for another round.
///
/// Every count-down is told to all who wait, as an event of a few bytes and without an RPC; the latch is meant for
/// counts up to some thousands. An open latch gains no keys: one that is put while it opens is taken away again,
/// unless an attempt that got no answer puts it once more after that.
///
/// Any etcd from 3.4 on will do.
///
/// ```
/// # use etcd_concurrency::{CountDownLatch, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let parts = CountDownLatch::new(&session, "import/parts", 2)?;
/// assert_eq!(parts.count_down().await?, 1);
/// assert_eq!(parts.count_down().await?, 0);
/// parts.wait().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct CountDownLatch {
    session: Session,
    /// Where the count is kept.
    total: Bytes,
    /// The prefix of the count-downs, which sorts behind that.
    downs: Bytes,
    count: u32,
    round: Arc<Mutex<Option<Round>>>,
}

/// What is known of the present round.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// The revision at which it began: that of the last write of the count.
    began: i64,
    /// The latch is open until the next.
    open: bool,
}

impl CountDownLatch {
    /// The latch of this name, for so many count-downs. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, or a count of zero.
    pub fn new(session: &Session, name: impl AsRef<[u8]>, count: u32) -> Result<Self> {
        not_zero("count", count)?;
        let [total, downs] = below(name.as_ref(), ["count", "down/"])?;
        Ok(Self { session: session.clone(), total, downs, count, round: Arc::default() })
    }

    /// The session that bounds the waits.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Counts down by one, once, also where the reply is lost. Returns how many are left; one RPC, and one more for the
    /// first of this latch and its clones. An open latch stays open.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the latch was made with another count; nothing was counted. [`ErrorKind::Lost`] when
    /// the session is lost. Whatever keeps the server from answering until the client's request timeout. For all of them
    /// [`Error::outcome`] says whether it was counted.
    ///
    /// # Cancel safety
    /// Once begun, it goes on in the background: it is counted, unless the server cannot be reached.
    pub async fn count_down(&self) -> Result<u32> {
        self.session.check()?;
        let counting = self.session.cleanup().finish(self.clone().put());
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(Error::from(reason).with_outcome(Outcome::Unknown)),
            left = counting => left,
        }
    }

    /// Waits until the latch is open; returns at once if it is.
    ///
    /// One RPC, beside a watch, and one more where the latch is yet to be made; none when it opens, unless the watch's
    /// stream was opened again. Every one to two minutes one more looks after what old servers may have lost.
    ///
    /// A latch that is reset so soon after it opened that the server has compacted both before this client could be told
    /// is waited for again; so is one that opened and was reset while the member that tells this client of it lagged behind the
    /// others by several seconds. A count-down that others delete by hand may be counted for up to two minutes, where a server
    /// before 3.4.36 or 3.5.18 has lost its deletion.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the latch was made with another count. [`ErrorKind::Lost`] as soon as the session
    /// is lost. Whatever keeps the server from answering until the client's request timeout, and refusals of the watch. Where
    /// no watch can be opened the server is asked without one, within two minutes.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn wait(&self) -> Result<()> {
        // One watch over both, since two have no order between them: the count of one latch is not to meet the count-downs
        // of another that was made under its name.
        let mut view = View::range(self.session.client(), &self.total, prefix_end(&self.downs));
        let (mut rounds, mut backoff) = (0u32, Backoff::default());
        loop {
            let shown = view.until(&self.session, |view| match view.get(&self.total) {
                None => Some(Ok(false)),
                Some(kv) => match self.check(kv) {
                    Ok(()) => self.is_open(view).then_some(Ok(true)),
                    Err(error) => Some(Err(error)),
                },
            });
            match shown.await?? {
                true => return Ok(()),
                false => drop(self.session.unless_lost(self.begin()).await?),
            }
            if rounds > 0 {
                sleep(backoff.next()).await;
            }
            rounds += 1;
        }
    }

    /// How many count-downs are left until the latch opens: one RPC.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the latch was made with another count. Whatever keeps the server from answering
    /// until the client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn count(&self) -> Result<u32> {
        let txn = Txn::new().success(Op::get(self.total.clone())).success(self.count_downs());
        let reply = self.session.read(txn).await?;
        match reply.first(0) {
            None => Ok(self.count),
            Some(kv) => {
                self.check(kv)?;
                Ok(self.left(self.counted(&reply, 1)?))
            }
        }
    }

    /// Closes the latch: all that was counted is forgotten, and as many count-downs as at first open it again. Two
    /// RPCs.
    ///
    /// A count-down that is under way meanwhile counts before the reset or after it, never in both rounds.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the latch was made with another count; nothing was changed. Whatever keeps the
    /// server from answering until the client's request timeout; [`Error::outcome`] says whether it was reset.
    ///
    /// # Cancel safety
    /// Once begun, it goes on in the background.
    pub async fn reset(&self) -> Result<()> {
        self.session.cleanup().finish(self.clone().close()).await
    }

    /// Those of the rounds before, whose deletion an old server may have lost (etcd#18089), are older than the count.
    fn is_open(&self, view: &View) -> bool {
        let began = view.get(&self.total).map_or(i64::MAX, |total| total.mod_revision);
        let is_down = |kv: &&KeyValue| is_down(&self.downs, &kv.key) && kv.create_revision > began;
        // Other keys may stand among the count-downs, and between the count and those.
        view.len() > self.count as usize && view.by_age().filter(is_down).count() >= self.count as usize
    }

    async fn put(self) -> Result<u32> {
        let own = Bytes::from([&self.downs[..], drawn().as_bytes()].concat());
        let (mut ambiguous, mut backoff) = (false, Backoff::default());
        loop {
            let round = self.begun().await.map_err(|error| unknown_if(ambiguous, error))?;
            let this_round = Compare::mod_revision(self.total.clone()).is(round.began);
            let mut txn = Txn::new()
                .compare(this_round)
                .success(self.count_downs())
                .failure(self.count_downs())
                .failure(Op::get(own.clone()))
                .failure(Op::get(self.total.clone()));
            if !round.open {
                let put = Op::put(own.clone(), Bytes::new());
                txn = txn.compare(Compare::missing(own.clone())).success(put);
            }
            let answer = self.session.transact(txn, Repeat::Harmless).await;
            let answer = answer.map_err(|error| unknown_if(ambiguous, error))?;
            ambiguous |= answer.ambiguous && !round.open;
            let reply = answer.value;
            // What is counted in the transaction was counted before its put.
            let counted = match reply.succeeded {
                true if round.open => {
                    let counted = self.counted(&reply, 0)?;
                    if self.left(counted) > 0 {
                        // Count-downs were deleted by others: it is shut again, in the same round.
                        self.is_shut(round.began);
                        continue;
                    }
                    Some(counted)
                }
                true => {
                    let before = self.counted(&reply, 0)?;
                    if before >= i64::from(self.count) {
                        self.take_away(own.clone());
                    }
                    Some(before + 1)
                }
                false => match reply.first(1) {
                    // An attempt before this one put it.
                    Some(ours) => {
                        if self.older(&reply, 0, ours)? >= i64::from(self.count) {
                            self.take_away(own.clone());
                        }
                        Some(self.counted(&reply, 0)?)
                    }
                    None => None,
                },
            };
            if let Some(counted) = counted {
                let left = self.left(counted);
                self.knows(Round { open: left == 0, ..round });
                return Ok(left);
            }
            if reply.first(2).is_some_and(|kv| kv.mod_revision == round.began) {
                return Err(unknown_if(ambiguous, unexpected("a compare failed that holds")));
            }
            // There is another round. Where the one before it may have counted us, we are not to count again.
            *self.round() = None;
            if ambiguous {
                let error = Error::new(ErrorKind::Disconnected, Outcome::Unknown).at("KV/Txn");
                return Err(error.because("the latch was reset while it was counted down"));
            }
            sleep(backoff.next()).await;
        }
    }

    /// Takes away a count-down of a latch that was open already: as many as open it are older, and stay.
    fn take_away(&self, own: Bytes) {
        let delete = Txn::new().success(Op::delete(own));
        self.session.settler().settle_for_good("a count-down of an open latch", None, delete, |_, _| ());
    }

    async fn close(self) -> Result<()> {
        // Read anew: only of a round that was there in the meantime is the end a reset.
        let round = self.begin().await?;
        let txn = Txn::new()
            .compare(Compare::mod_revision(self.total.clone()).is(round.began))
            .success(Op::delete_prefix(self.downs.clone()))
            .success(Op::put(self.total.clone(), self.value()));
        let answer = self.session.transact(txn, Repeat::Harmless).await;
        *self.round() = None;
        let reply = answer?.value;
        if reply.succeeded {
            self.knows(Round { began: reply.header.revision, open: false });
        }
        // Else it was reset by an attempt of ours whose answer was lost, or by somebody who was quicker.
        Ok(())
    }

    /// The present round, as far as it is known here.
    async fn begun(&self) -> Result<Round> {
        let known = *self.round();
        match known {
            Some(round) => Ok(round),
            None => self.begin().await,
        }
    }

    /// Makes the latch, where nobody has, or finds it.
    async fn begin(&self) -> Result<Round> {
        let txn = Txn::new()
            .compare(Compare::missing(self.total.clone()))
            .success(Op::put(self.total.clone(), self.value()))
            .success(Op::delete_prefix(self.downs.clone()))
            .failure(Op::get(self.total.clone()))
            .failure(self.count_downs());
        let reply = self.session.transact(txn, Repeat::Harmless).await?.value;
        let round = match reply.first(0) {
            _ if reply.succeeded => Round { began: reply.header.revision, open: false },
            Some(kv) => {
                self.check(kv)?;
                Round { began: kv.mod_revision, open: self.left(self.counted(&reply, 1)?) == 0 }
            }
            None => return Err(unexpected("the latch is neither made nor found")),
        };
        self.knows(round);
        Ok(round)
    }

    fn check(&self, total: &KeyValue) -> Result<()> {
        if total.value == self.value() {
            return Ok(());
        }
        Err(mismatch("count", total))
    }

    fn value(&self) -> Bytes {
        self.count.to_string().into()
    }

    fn left(&self, counted: i64) -> u32 {
        self.count.saturating_sub(u32::try_from(counted).unwrap_or(u32::MAX))
    }

    /// Their names alone, since other keys may stand among them.
    fn count_downs(&self) -> Op {
        pb::RangeRequest { count_only: false, keys_only: true, ..count(&self.downs) }.into()
    }

    fn counted(&self, reply: &TxnReply, index: usize) -> Result<i64> {
        self.counted_if(reply, index, |_| true)
    }

    /// How many were counted before this one.
    fn older(&self, reply: &TxnReply, index: usize, than: &KeyValue) -> Result<i64> {
        self.counted_if(reply, index, |kv| kv.create_revision < than.create_revision)
    }

    fn counted_if(&self, reply: &TxnReply, index: usize, is: impl Fn(&KeyValue) -> bool) -> Result<i64> {
        let downs = reply.found(index)?.iter().filter(|kv| is_down(&self.downs, &kv.key) && is(kv));
        Ok(i64::try_from(downs.count()).unwrap_or(i64::MAX))
    }

    /// Of two rounds the later one is known.
    fn knows(&self, round: Round) {
        let mut known = self.round();
        if known.is_none_or(|known| (known.began, known.open) <= (round.began, round.open)) {
            *known = Some(round);
        }
    }

    /// The round that began at this revision, if it is the present one, is not open after all.
    fn is_shut(&self, began: i64) {
        if let Some(known) = self.round().as_mut().filter(|known| known.began == began) {
            known.open = false;
        }
    }

    fn round(&self) -> MutexGuard<'_, Option<Round>> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_down(downs: &[u8], key: &[u8]) -> bool {
    key.strip_prefix(downs).is_some_and(is_random)
}

/// What an earlier attempt did stays unknown, whatever became of this one.
fn unknown_if(ambiguous: bool, error: Error) -> Error {
    if ambiguous { error.with_outcome(Outcome::Unknown) } else { error }
}
