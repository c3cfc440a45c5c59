//! A barrier that so many enter together, and leave together.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::fence::Fence;
use crate::key::{name_prefix, prefix_end};
use crate::owned::{Owned, Plan, Planned};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::view::View;
use crate::waitlist::checked;

/// A barrier for rounds of `count` participants: each waits on entering until all are there, and on leaving until all
/// have left. Go's recipe `DoubleBarrier`.
///
/// The layout is Go's: a key for each participant under `{name}/waiters/`, put with its session's lease, and
/// `{name}/ready` once all are there; so Go's participants and ours make up one round. Ours are
/// `{name}/waiters/{lease in hex}-{16 random hex digits}`: any number of tasks of one session may take part. The
/// participants must agree on the count, which is not stored.
///
/// Who is lost while it waits to enter is not counted any more: the others wait for another in its place. Who is lost
/// inside counts as one who has left. Nobody enters while a round is being left; who comes then waits for the next.
///
/// Beside Go's participants, give each round a name of its own: Go's enter while a round is being left, and make up a
/// round with those who are still there; and one of Go's that leaves waits for ever for one that is back already.
///
/// Any etcd from 3.4 on will do.
///
/// ```
/// # use etcd_concurrency::{DoubleBarrier, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let round = DoubleBarrier::new(&session, "simulation/step", 2)?;
/// let step = |round: DoubleBarrier| async move {
///     let inside = round.enter().await?;
///     // Both are here: compute.
///     inside.leave().await
///     // Both have done so.
/// };
/// tokio::try_join!(step(round.clone()), step(round))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct DoubleBarrier {
    session: Session,
    waiters: Bytes,
    ready: Bytes,
    count: u32,
}

impl DoubleBarrier {
    /// The barrier of this name, for so many participants. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, or a count of zero.
    pub fn new(session: &Session, name: impl AsRef<[u8]>, count: u32) -> Result<Self> {
        checked(name.as_ref())?;
        if count == 0 {
            return Err(Error::invalid("count", "it is zero"));
        }
        let prefix = name_prefix(name.as_ref());
        let below = |part: &[u8]| Bytes::from([&prefix[..], part].concat());
        Ok(Self { session: session.clone(), waiters: below(b"waiters/"), ready: below(b"ready"), count })
    }

    /// The session that the participants are there with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How many make up a round.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Waits until all are there.
    ///
    /// Two RPCs, beside a watch: one to be there, and one that lets all in, by the last, or that reads after the watch
    /// has begun, by the others. When the last one comes it costs the others nothing.
    ///
    /// # Errors
    /// [`ErrorKind::TooManyClients`] where as many as make up a round are there already. [`ErrorKind::Lost`] as soon as
    /// the session is lost, or the waiting key was deleted by somebody. Whatever keeps the server from answering until
    /// the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves no key behind: the others wait for another.
    pub async fn enter(&self) -> Result<Inside> {
        let mut planned =
            self.plan().only_if(Compare::missing(self.ready.clone())).put(&self.session).await?;
        let owned = loop {
            let ready = planned.read(1)?.kvs.first().cloned();
            match (planned.owned.take(), ready) {
                (Some(owned), _) => break self.in_place(owned, &planned).await?,
                (None, Some(ready)) => planned = self.after(&ready, &planned).await?,
                (None, None) => return Err(unexpected("a key was not put though nothing was in the way")),
            }
        };
        let (owned, is_last) = owned;
        let round = tokio::select! {
            biased;
            reason = self.session.lost() => return Err(reason.into()),
            round = self.let_in(&owned, is_last) => round?,
        };
        owned.fence().check()?;
        Ok(Inside { barrier: self.clone(), round, owned })
    }

    /// To be there; and to read who is there, the oldest first, and whether they are inside.
    fn plan(&self) -> Plan {
        let ready = Op::get(self.ready.clone());
        Plan::new(&self.session, &self.waiters, Bytes::new()).read(self.oldest(1)).read(ready)
    }

    /// There: tells whether we are the last of the round.
    async fn in_place(&self, owned: Owned, planned: &Planned) -> Result<(Owned, bool)> {
        let place = match planned.is_fresh() {
            true => planned.read(0)?.count,
            // An earlier attempt put it, and others came after it.
            false => self.place(&owned).await?,
        };
        if place > i64::from(self.count) {
            // Whether or not that succeeds now, it goes on.
            if let Err(error) = owned.release().await {
                tracing::debug!(%error, "leaving a full barrier goes on in the background");
            }
            return Err(self.too_many());
        }
        Ok((owned, place == i64::from(self.count)))
    }

    /// How many were there when we came, with us, as far as they are still there.
    async fn place(&self, owned: &Owned) -> Result<i64> {
        let request = pb::RangeRequest {
            key: self.waiters.clone(),
            range_end: prefix_end(&self.waiters),
            keys_only: true,
            max_create_revision: owned.fence().token(),
            ..Default::default()
        };
        let range = self.session.client().transport().range(request).await?;
        Ok(i64::try_from(range.kvs.len()).unwrap_or(i64::MAX))
    }

    /// What is ready is another round: waits for its end where somebody is inside, and takes its place.
    async fn after(&self, ready: &KeyValue, seen: &Planned) -> Result<Planned> {
        let there = seen.read(0)?;
        // Whoever came after it was made ready is not inside: they, too, wait for all to be there.
        let inside = there.kvs.first().is_some_and(|oldest| oldest.create_revision < ready.mod_revision);
        if inside && there.count >= i64::from(self.count) {
            return Err(self.too_many());
        }
        let mut nobody = there.kvs.is_empty();
        if inside {
            let mut view = View::new(self.session.client(), &self.waiters).and_key(&self.ready);
            view.until(&self.session, |view| self.is_over(view, ready.create_revision).then_some(())).await?;
            nobody = view.by_age().all(|kv| kv.key == self.ready);
        }
        // All who were inside were lost, it may be, and nobody took it away.
        let nobody_inside = match nobody {
            true => Compare::none_with_prefix(self.waiters.clone()),
            false => {
                let younger = Compare::create_revision(self.waiters.clone()).greater_than(ready.mod_revision);
                younger.with_prefix()
            }
        };
        let over = self
            .plan()
            .only_if(Compare::mod_revision(self.ready.clone()).is(ready.mod_revision))
            .only_if(nobody_inside)
            .also(Op::delete(self.ready.clone()))
            .put(&self.session)
            .await?;
        match over.owned.is_none() && over.read(1)?.kvs.is_empty() {
            true => self.plan().only_if(Compare::missing(self.ready.clone())).put(&self.session).await,
            false => Ok(over),
        }
    }

    /// Whether the round of which the ready key was made at this revision is over.
    fn is_over(&self, view: &View, round: i64) -> bool {
        let Some(ready) = view.get(&self.ready).filter(|ready| ready.create_revision == round) else {
            return true;
        };
        let oldest = view.by_age().find(|kv| kv.key != self.ready);
        oldest.is_none_or(|oldest| oldest.create_revision > ready.mod_revision)
    }

    async fn let_in(&self, owned: &Owned, is_last: bool) -> Result<i64> {
        if is_last { self.open(owned).await } else { self.opened(owned).await }
    }

    /// Lets all in. Gives the revision that the round began at.
    async fn open(&self, owned: &Owned) -> Result<i64> {
        let txn = Txn::new()
            .compare(owned.fence().is_owner())
            .compare(Compare::missing(self.ready.clone()))
            .success(Op::put(self.ready.clone(), Bytes::new()))
            .failure(Op::get(self.ready.clone()))
            .failure(Op::get(owned.fence().key().clone()));
        let reply = self.commit(txn).await?.0;
        if reply.succeeded {
            return Ok(reply.header.revision);
        }
        let found = |index| reply.kvs(index).unwrap_or_default().first();
        match (found(1), found(0)) {
            (None, _) => Err(owned.fence().why().await.into()),
            (Some(_), Some(ready)) => Ok(ready.create_revision),
            (Some(_), None) => Err(unexpected("a compare failed that holds for what was read")),
        }
    }

    /// Waits until all are let in. Gives the revision that the round began at.
    async fn opened(&self, owned: &Owned) -> Result<i64> {
        let (own, token) = (owned.fence().key(), owned.fence().token());
        let mut view = View::keys(self.session.client(), [&self.ready, own]);
        let shown = view.until(&self.session, |view| {
            let ready = view.get(&self.ready).filter(|ready| ready.mod_revision > token);
            match view.get(own) {
                None => Some(None),
                Some(_) => ready.map(|ready| Some(ready.create_revision)),
            }
        });
        match shown.await? {
            Some(round) => Ok(round),
            None => Err(owned.fence().why().await.into()),
        }
    }

    /// Waits until nobody of the round is inside any more; `oldest` is who was there longest.
    async fn left(&self, round: i64, mut oldest: Bytes) -> Result<()> {
        loop {
            let mut view = View::keys(self.session.client(), [&self.ready, &oldest]);
            let is_ready =
                |view: &View| view.get(&self.ready).is_some_and(|ready| ready.create_revision == round);
            // The last of ours takes both keys away at once; Go's takes its own away last.
            let at_once = is_ours(&oldest);
            let over = view.until(&self.session, |view| match (is_ready(view), view.get(&oldest)) {
                (true, Some(_)) => None,
                (true, None) => Some(false),
                (false, Some(_)) => at_once.then_some(true),
                (false, None) => Some(true),
            });
            if over.await? {
                return Ok(());
            }
            // Of what happened at once, each key is told for itself.
            let rest = view.until(&self.session, |view| (!is_ready(view)).then_some(()));
            if timeout(REST, rest).await.is_ok_and(|rest| rest.is_ok()) {
                return Ok(());
            }
            // The one who was to leave last did not: it was lost. Who is it now?
            let txn = Txn::new().success(self.oldest(1)).success(Op::get(self.ready.clone()));
            let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
            let reply = TxnReply::try_from(answer.value)?;
            let first = |index| reply.kvs(index).unwrap_or_default().first();
            oldest = match (first(0), first(1)) {
                (Some(kv), Some(ready))
                    if ready.create_revision == round && kv.create_revision < ready.mod_revision =>
                {
                    kv.key.clone()
                }
                _ => return Ok(()),
            };
        }
    }

    async fn commit(&self, txn: Txn) -> Result<(TxnReply, bool)> {
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        let answer = self.session.lease_handle().learn(answer)?;
        Ok((TxnReply::try_from(answer.value)?, answer.ambiguous))
    }

    /// Those who are there longest.
    fn oldest(&self, limit: i64) -> Op {
        pb::RangeRequest {
            key: self.waiters.clone(),
            range_end: prefix_end(&self.waiters),
            limit,
            sort_order: pb::range_request::SortOrder::Ascend.into(),
            sort_target: pb::range_request::SortTarget::Create.into(),
            keys_only: true,
            ..Default::default()
        }
        .into()
    }

    fn too_many(&self) -> Error {
        Error::new(ErrorKind::TooManyClients { count: self.count }, Outcome::NotApplied)
    }
}

/// Inside a [`DoubleBarrier`], with all others of the round. Owned and `'static`: it may move to another task.
///
/// Dropping it leaves in the background, without waiting for the others.
///
/// ```
/// # use etcd_concurrency::{DoubleBarrier, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let inside = DoubleBarrier::new(&session, "alone", 1)?.enter().await?;
/// tokio::select! {
///     reason = inside.lost() => println!("the others take us for gone: {reason}"),
///     () = async { /* work */ } => {}
/// }
/// inside.leave().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping it leaves the barrier"]
pub struct Inside {
    barrier: DoubleBarrier,
    /// The revision at which the ready key was made.
    round: i64,
    owned: Owned,
}

impl Inside {
    /// What is held: a handle that may be cloned and handed on.
    pub fn fence(&self) -> &Fence {
        self.owned.fence()
    }

    /// Waits until all have left; those who are lost count as having left.
    ///
    /// Two RPCs, beside a watch: one to leave, and one that reads after the watch has begun; the one who is there longest
    /// leaves last, with a third. One more where that one is lost.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] as soon as the session is lost, or where the key was lost before. Whatever keeps the server
    /// from answering until the client's request timeout. After an error one has left all the same, or does so in the
    /// background.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves, without waiting for the others.
    pub async fn leave(self) -> Result<()> {
        let Self { barrier, round, owned } = self;
        owned.fence().check()?;
        let session = barrier.session.clone();
        tokio::select! {
            biased;
            reason = session.lost() => Err(reason.into()),
            left = barrier.leave(round, &owned) => left,
        }
    }
}

impl DoubleBarrier {
    async fn leave(&self, round: i64, owned: &Owned) -> Result<()> {
        let (own, token) = (owned.fence().key(), owned.fence().token());
        let not_older = Compare::create_revision(self.waiters.clone()).greater_than(token - 1);
        let txn = Txn::new()
            .compare(not_older.with_prefix())
            .success(Op::get(own.clone()))
            .success(self.oldest(2))
            .failure(Op::delete(own.clone()))
            .failure(self.oldest(1));
        let (reply, ambiguous) = self.commit(txn).await?;
        let there = reply.ranged(1).ok_or_else(|| unexpected("who is inside was not answered"))?;
        let stands = reply.succeeded && !reply.kvs(0).unwrap_or_default().is_empty();
        if stands {
            // Nobody was there before us: we leave last.
            if there.count > 1 {
                self.alone(owned).await?;
            }
            return self.close(round, owned).await;
        }
        if !ambiguous && (reply.succeeded || reply.deleted(0) == Some(0)) {
            return Err(owned.fence().why().await.into());
        }
        owned.released();
        match there.kvs.first() {
            Some(oldest) => self.left(round, oldest.key.clone()).await,
            // Whoever was to leave last was lost before.
            None => self.clear(round).await,
        }
    }

    /// Waits until nobody is there but us.
    async fn alone(&self, owned: &Owned) -> Result<()> {
        let own = owned.fence().key();
        let mut view = View::new(self.session.client(), &self.waiters);
        let shown = view.until(&self.session, |view| match view.get(own) {
            None => Some(false),
            Some(_) => (view.len() == 1).then_some(true),
        });
        match shown.await? {
            true => Ok(()),
            false => Err(owned.fence().why().await.into()),
        }
    }

    /// The last one leaves: the round is over.
    async fn close(&self, round: i64, owned: &Owned) -> Result<()> {
        let txn = Txn::new()
            .compare(Compare::create_revision(self.ready.clone()).is(round))
            .success(Op::delete(owned.fence().key().clone()))
            .success(Op::delete(self.ready.clone()))
            .failure(Op::delete(owned.fence().key().clone()));
        let (reply, ambiguous) = self.commit(txn).await?;
        if reply.deleted(0) == Some(0) && !ambiguous {
            return Err(owned.fence().why().await.into());
        }
        owned.released();
        Ok(())
    }

    /// Takes the ready key of a round away that is over.
    async fn clear(&self, round: i64) -> Result<()> {
        let txn = Txn::new()
            .compare(Compare::create_revision(self.ready.clone()).is(round))
            .compare(Compare::none_with_prefix(self.waiters.clone()))
            .success(Op::delete(self.ready.clone()));
        self.commit(txn).await.map(drop)
    }
}

/// Being inside is its fence: [`lost`](Fence::lost), [`txn`](Fence::txn) and the rest are the fence's.
impl Deref for Inside {
    type Target = Fence;

    fn deref(&self) -> &Fence {
        self.fence()
    }
}

/// Go's keys are numbers.
fn is_ours(key: &[u8]) -> bool {
    key.rsplit(|byte| *byte == b'/').next().is_some_and(|own| own.contains(&b'-'))
}

/// How long the second half of what happened at once is waited for before it is read.
const REST: Duration = Duration::from_millis(100);

fn unexpected(detail: &str) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}
