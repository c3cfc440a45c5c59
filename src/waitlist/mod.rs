//! Join, wait for one's turn, leave: the one algorithm under every lock.
//!
//! Who waits has a key under the name's prefix, put with the session's lease; the order is that of the keys'
//! create_revisions, and the first one's turn it is. Each waits for the one before it alone, so a release wakes one.
//!
//! **Why nothing is missed.** The transaction that puts the key also reads who stands before it. A watch on that
//! predecessor (and on one's own key) starts at "now"; its acknowledgement carries the revision of that "now". If
//! it is above what was read, the queue is read again, and from there the watch tells everything.
//!
//! **Why the turn is one's own.** When the predecessor was the only one before us, its deletion is the proof: nobody
//! can join with an older create_revision, and the [watch](wait) that tells of it tells of our own key's end, too, in the
//! order of the revisions. Otherwise one read confirms that nobody older is left and that our key, of our
//! create_revision, stands. Keys are told apart by create_revision, never by existence: a session uses its key again.
//!
//! **Who counts.** Keys of contenders have a shape of their own, and the lease that they name; what else is put below a name
//! is passed over. The youngest two keys of a line, which are read anyway, tell mostly who is before us. Only where they are
//! no contenders' is more of it read.

mod decide;
mod foreign;
mod line;
#[cfg(test)]
mod model;
mod sift;
mod wait;

use std::future::Future;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::{name_prefix, owner_key};
use crate::lease::Turn;
use crate::owned::{Last, Owned, Plan};
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::{Backoff, Repeat, Rounds};
use crate::txn::{Compare, Op, Txn, TxnReply, unexpected};
#[cfg(test)]
pub(crate) use decide::{Wait, Word};
pub(crate) use foreign::passed_over;
pub(crate) use line::{Line, Look, Predecessor, Standing};

/// A queue of sessions on one name. Tasks of one process that share a session share its key, and queue here.
#[derive(Debug, Clone)]
pub(crate) struct Waitlist {
    session: Session,
    prefix: Bytes,
    key: Bytes,
}

impl Waitlist {
    pub(crate) fn new(session: &Session, name: &[u8]) -> Result<Self> {
        let prefix = name_prefix(checked(name)?);
        let key = owner_key(&prefix, session.lease());
        Ok(Self { session: session.clone(), prefix, key })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The prefix of all keys of the queue.
    pub(crate) fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// The key of our session in this queue.
    pub(crate) fn key(&self) -> &Bytes {
        &self.key
    }

    /// Joins with a value, and waits until one is first.
    ///
    /// Dropped at any point, it leaves nothing behind.
    pub(crate) async fn enter(&self, value: Bytes) -> Result<Owned> {
        enter(self.plan(self.local_turn().await?, value), &[self.line()]).await
    }

    /// Takes the first place if no contender is there: one RPC, that leaves nothing behind otherwise.
    pub(crate) async fn try_enter(&self, value: Bytes) -> Result<Owned> {
        try_enter(|| Ok((self.plan(self.try_local_turn()?, value.clone()), vec![self.line()]))).await
    }

    /// The first place, if our key of this create_revision has it: one RPC, that only reads.
    pub(crate) async fn come_back(&self, create_revision: i64) -> Result<Option<Owned>> {
        let turn = self.try_local_turn()?;
        let before = self.line().before(&self.session, create_revision).await?;
        self.session.check()?;
        Ok(match before {
            Some((Standing::First, header, last)) => {
                let mut place = self.plan(turn, Bytes::new()).put_before(create_revision, header);
                if let Some(place) = &mut place {
                    place.after(last);
                    self.line().keep_clear(place);
                }
                place
            }
            Some((Standing::Behind(_), ..)) | None => None,
        })
    }

    fn line(&self) -> Line {
        Line::behind(&self.prefix, &self.key)
    }

    fn plan(&self, turn: Turn, value: Bytes) -> Plan {
        Plan::in_turn(&self.session, self.key.clone(), turn, value)
    }

    /// One's turn among the tasks of this process.
    async fn local_turn(&self) -> Result<Turn> {
        let turn = async { Ok(self.session.lease_handle().locals().turn(&self.prefix).await) };
        self.session.unless_lost(turn).await
    }

    fn try_local_turn(&self) -> Result<Turn> {
        self.session.check()?;
        self.session.lease_handle().locals().try_turn(&self.prefix).ok_or_else(locked)
    }
}

/// Joins with a plan's keys, and waits until one's turn has come in every line.
///
/// Dropped at any point, it leaves nothing behind.
#[expect(clippy::manual_async_fn, reason = "an async fn would hold the plan twice, for as long as it waits")]
pub(crate) fn enter(plan: Plan, lines: &[Line]) -> impl Future<Output = Result<Owned>> {
    async move {
        // Boxed: it takes most memory, and whoever waits is past it.
        let joined = Box::pin(join(plan, lines)).await?;
        let Joined::There(mut place, standings) = joined else {
            return Err(unexpected("a join put no key and found none"));
        };
        let (mut waited, mut rounds) = (false, Rounds::new());
        for (line, mut standing) in lines.iter().zip(standings) {
            while let Standing::Behind(predecessor) = standing {
                if waited {
                    rounds.again().await;
                }
                waited = true;
                standing = line.wait_for(line, &mut place, predecessor).await?;
            }
        }
        if waited && lines.len() > 1 {
            // What was proven in one line is old once one has waited in another.
            Box::pin(confirm(&mut place)).await?;
        }
        // The proof may have been on its way for longer than the session lasts.
        place.check()?;
        Ok(place)
    }
}

/// Proves that a place stands, over what time mends.
async fn confirm(place: &mut Owned) -> Result<()> {
    let (session, mut backoff) = (place.session().clone(), Backoff::default());
    while let Err(error) = session.unless_lost(place.confirm()).await {
        session.unless_lost(session.outlast(error, &mut backoff)).await?;
    }
    Ok(())
}

/// Takes the first place in lines in which no contender is: one RPC, that leaves nothing behind otherwise. Where there are
/// keys of others than contenders, it takes a few.
pub(crate) async fn try_enter(ask: impl Fn() -> Result<(Plan, Vec<Line>)>) -> Result<Owned> {
    // The revision at which each line was seen without a contender.
    let mut vacant = Vec::new();
    for _ in 0..MOST_TRIES {
        let (plan, lines) = ask()?;
        let session = plan.session().clone();
        let since = |index| vacant.get(index).copied();
        let conditions = lines.iter().enumerate().map(|(index, line)| line.is_vacant(since(index)));
        let plan = conditions.fold(plan, Plan::only_if);
        let reply = match Box::pin(join(plan, &lines)).await? {
            Joined::There(place, standings) => {
                // A key of ours behind others is left of an earlier attempt: it goes as the place is dropped.
                let first = standings.iter().all(|standing| *standing == Standing::First);
                place.check()?;
                return first.then_some(place).ok_or_else(locked);
            }
            Joined::Refused(reply) => reply,
        };
        vacant.clear();
        for (index, line) in lines.iter().enumerate() {
            let looking = Box::pin(line.vacant(&session, &reply, index));
            vacant.push(session.unless_lost(looking).await?.ok_or_else(locked)?);
        }
    }
    Err(locked())
}

/// What became of a join.
enum Joined {
    /// Our keys are there, and stand so in each line.
    There(Owned, Vec<Standing>),
    /// A condition does not hold, and there is no key of ours; and the youngest two of each line.
    Refused(TxnReply),
}

/// Puts a plan's keys, and reads who stands before them: one transaction.
async fn join(plan: Plan, lines: &[Line]) -> Result<Joined> {
    let value = plan.value().clone();
    let plan = lines.iter().map(Line::last_two).fold(plan, Plan::read);
    // The turn is kept while more of the line is read.
    let (planned, _turn) = plan.put_in_turn().await?;
    let Some(mut place) = planned.owned else { return Ok(Joined::Refused(planned.reply)) };
    lines.iter().take(1).for_each(|line| line.keep_clear(&place));
    let standings = match planned.found {
        None => {
            let (mut standings, mut further) = (Vec::with_capacity(lines.len()), false);
            for (index, line) in lines.iter().enumerate() {
                standings.push(match line.standing(&planned.reply, index)? {
                    Some(standing) => standing,
                    None => {
                        further = true;
                        let session = place.session().clone();
                        session.unless_lost(Box::pin(line.look_further(&mut place))).await?
                    }
                });
            }
            // One who has to wait proves it afterwards.
            let waits = standings.iter().any(|standing| *standing != Standing::First);
            if further && lines.len() > 1 && !waits {
                // What the put has shown of the other lines is old by now.
                let session = place.session().clone();
                session.unless_lost(Box::pin(place.confirm())).await?;
            }
            standings
        }
        // Rare, so that every other join is spared to ask for it in vain.
        Some(kv) => {
            let session = place.session().clone();
            session.unless_lost(Box::pin(find(&mut place, lines, &kv, value))).await?
        }
    };
    Ok(Joined::There(place, standings))
}

/// Joins with a key that is there already, put by an attempt without a reply or by an earlier owner of the lease.
async fn find(place: &mut Owned, lines: &[Line], found: &KeyValue, value: Bytes) -> Result<Vec<Standing>> {
    let last = match found.value != value {
        true => replace(place, found, value).await?,
        false => found.into(),
    };
    // What is written next must follow that, and not the put of a fresh key.
    place.after(last);
    let mut standings = Vec::with_capacity(lines.len());
    for line in lines {
        standings.push(line.look(place).await?);
    }
    if lines.len() > 1 {
        // Each was looked at by itself; what was proven of the first is old by now.
        place.confirm().await?;
    }
    Ok(standings)
}

/// Gives a key that was found our value, whatever an earlier owner of the lease still writes to it. Which write that was.
async fn replace(place: &Owned, found: &KeyValue, value: Bytes) -> Result<Last> {
    let (key, mut last) = (&found.key, Last::from(found));
    let mut rounds = Rounds::new();
    loop {
        rounds.again().await;
        let txn = Txn::new()
            .compare(Compare::mod_revision(key.clone()).is(last.mod_revision))
            .success(Op::put_with_lease(key.clone(), value.clone(), place.session().lease()))
            .failure(Op::get(key.clone()));
        let reply = place.session().transact(txn, Repeat::Harmless).await?.value;
        if reply.succeeded {
            return Ok(last.next(reply.header.revision));
        }
        match reply.first(0).filter(|kv| kv.create_revision == place.fence().token()) {
            None => return Err(place.fence().why().await.into()),
            // By an attempt whose answer was lost.
            Some(kv) if kv.value == value && kv.lease == place.session().lease() => return Ok(kv.into()),
            Some(kv) if kv.mod_revision <= last.mod_revision => {
                return Err(unexpected("a compare failed that holds for what was read"));
            }
            Some(kv) => last = kv.into(),
        }
    }
}

/// A name that is none would be every other name's prefix.
pub(crate) fn checked(name: &[u8]) -> Result<&[u8]> {
    if name.is_empty() { Err(Error::invalid("name", "it is empty")) } else { Ok(name) }
}

/// How often keys that are no contenders' may come in between.
const MOST_TRIES: usize = 16;

fn locked() -> Error {
    Error::new(ErrorKind::Locked, Outcome::NotApplied)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most of a lock's future was for joining, and each of ten thousand waiters had 2.6 KB of it.
    #[test]
    fn who_waits_holds_little_memory() {
        fn size<T>(_: impl FnOnce(&'static Waitlist) -> T) -> usize {
            size_of::<T>()
        }
        let size = size(|waitlist| waitlist.enter(Bytes::new()));
        assert!(size <= 1536, "{size} bytes");
    }
}
