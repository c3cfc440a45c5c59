//! A barrier that so many enter together, and leave together.

mod enter;
mod leave;
#[cfg(test)]
mod model;
mod seat;
mod wait;

use bytes::Bytes;

use super::{below, is_asked, not_zero};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::owned::holder;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{Op, by_age};
use crate::waitlist::passed_over;
use seat::Place;

/// A barrier for rounds of `count` participants: each waits on entering until all are there, and on leaving until all
/// have left. Go's recipe `DoubleBarrier`.
///
/// The layout is Go's: a key for each participant under `{name}/waiters/`, put with its session's lease, and
/// `{name}/ready` once all are there, which says who they are; so Go's participants and ours make up one round. Ours are
/// `{name}/waiters/{lease in hex}-{16 random hex digits}`, and before that, for a moment, a key of that name under
/// `{name}/coming/`, which counts for nothing: any number of tasks of one session may take part. The
/// participants must agree on the count, which is not stored. Keys of other shapes are passed over here; Go's count them.
///
/// **Who is counted.** As many callers as make up a round, each once: a request that is applied late counts for no one, and of
/// two calls that are made one after the other through one client the second is counted after the first has been taken back,
/// also where that had another session. A caller that gives up counts until the server has heard of it, and one whose process
/// died until its lease ends: what it does meanwhile with another client is another caller's.
///
/// Who is lost while it waits to enter is not counted any more: the others wait for another in its place. The barrier is
/// opened by a transaction that compares the keys of all who are let in; of more than 120, for which the server has no
/// room in a transaction (`--max-txn-ops` is 128), one who is lost in that very moment may still be counted. Who is lost
/// inside counts as one who has left. No caller enters while a round is being left; one that comes then waits for the next. No other client
/// is to delete `{name}/ready`: without it the server does not tell who is inside.
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
    /// The prefix of those who are on their way in, who do not count yet.
    coming: Bytes,
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
        not_zero("count", count)?;
        let [coming, waiters, ready] = below(name.as_ref(), ["coming/", "waiters/", "ready"])?;
        Ok(Self { session: session.clone(), coming, waiters, ready, count })
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
    /// Two RPCs, beside a watch: one to say that one comes, and one to be there, by which the last lets all in. One more for
    /// the last where others came at the same moment, or after a round that is over. When the last one comes it costs the
    /// others nothing, or one RPC each where that is one of Go's. Two more for the last of more than 120, and one where keys
    /// of other shapes are in between.
    ///
    /// # Errors
    /// [`ErrorKind::TooManyClients`] where as many as make up a round are there already. [`ErrorKind::Lost`] as soon as
    /// the session is lost, or the waiting key was deleted by somebody. Whatever keeps the server from answering until
    /// the client's request timeout.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves no key behind: the others wait for another.
    pub async fn enter(&self) -> Result<Inside> {
        let came = self.come().await?;
        let (place, round) = self.session.unless_lost(self.let_in(came)).await?;
        place.check()?;
        Ok(Inside { barrier: self.clone(), round, place: place.handed_out() })
    }

    /// The keys that are there longest.
    fn oldest(&self, limit: i64) -> Op {
        pb::RangeRequest { keys_only: true, ..by_age(&self.waiters, limit) }.into()
    }

    /// Those of the keys that were read who take part.
    fn participants(&self, range: &pb::RangeResponse) -> Vec<KeyValue> {
        let takes_part = |kv: &&KeyValue| {
            let takes_part = is_asked(&self.waiters, &kv.key);
            if !takes_part {
                passed_over(&self.waiters, &kv.key);
            }
            takes_part
        };
        range.kvs.iter().filter(takes_part).cloned().collect()
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
    place: Place,
}

impl Inside {
    /// Waits until all have left; those who are lost count as having left.
    ///
    /// Two RPCs, beside a watch: one to leave, and one that reads after the watch has begun; the one who is there longest
    /// leaves last, with a third. One more where that one is lost, or where a key of another shape is older.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] as soon as the session is lost, or where the key was lost before. [`ErrorKind::Fenced`] of the
    /// outcome [`Unknown`](crate::Outcome::Unknown), once all have left, where an attempt was not answered and the next found
    /// the key gone: whether it was lost before, and the others were let out early, cannot be told. Whatever keeps the server
    /// from answering until the client's request timeout. After an error one has left all the same, or does so in the
    /// background.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves, without waiting for the others.
    pub async fn leave(self) -> Result<()> {
        let Self { barrier, round, place } = self;
        place.check()?;
        barrier.session.unless_lost(barrier.leave(round, &place)).await
    }
}

holder!(Inside, place);

/// Whether one that takes part was let in by this ready key: those who moved in later wait for another round.
fn is_inside(participant: &KeyValue, ready: &KeyValue) -> bool {
    participant.create_revision <= ready.mod_revision
}
