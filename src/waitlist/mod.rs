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
//! can join with an older create_revision. Otherwise one read confirms that nobody older is left and that our key, of
//! our create_revision, stands. Keys are told apart by create_revision, never by existence: a session uses its key
//! again.

mod guard;
mod line;
mod place;
mod ticket;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::{name_prefix, owner_key};
use crate::lease::Turn;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
pub(crate) use guard::guard;
pub(crate) use line::{Line, Look, Predecessor, Standing};
pub(crate) use place::Place;
pub(crate) use ticket::{Joined, Ticket};

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
    pub(crate) async fn enter(&self, value: Bytes) -> Result<Place> {
        enter(self.ticket(self.local_turn().await?), &[self.line()], value).await
    }

    /// Takes the first place if nobody is there: one RPC, that leaves nothing behind otherwise.
    pub(crate) async fn try_enter(&self, value: Bytes) -> Result<Place> {
        try_enter(self.ticket(self.try_local_turn()?), &[self.line()], value).await
    }

    /// The first place, if our key of this create_revision has it: one RPC, that only reads.
    pub(crate) async fn come_back(&self, create_revision: i64) -> Result<Option<Place>> {
        let (line, ticket) = (self.line(), self.ticket(self.try_local_turn()?));
        let txn = Txn::new().success(line.last_two(create_revision)).success(line.own());
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
        let reply = TxnReply::try_from(answer.value)?;
        let own = found(reply.kvs(1), "our key")?.first();
        let stands = own.is_some_and(|kv| line.is_own(kv, create_revision));
        let first = found(reply.kvs(0), "the queue")?.len() == 1;
        self.session.check()?;
        Ok((stands && first).then(|| Place::new(ticket, create_revision, reply.header)))
    }

    fn line(&self) -> Line {
        Line::behind(&self.prefix, &self.key)
    }

    fn ticket(&self, turn: Turn) -> Ticket {
        Ticket::in_turn(&self.session, self.key.clone(), turn)
    }

    /// One's turn among the tasks of this process.
    async fn local_turn(&self) -> Result<Turn> {
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(reason.into()),
            turn = self.session.lease_handle().locals().turn(&self.prefix) => Ok(turn),
        }
    }

    fn try_local_turn(&self) -> Result<Turn> {
        self.session.check()?;
        self.session.lease_handle().locals().try_turn(&self.prefix).ok_or_else(locked)
    }
}

/// Joins with a ticket, all of whose keys have the same value, and waits until one's turn has come in every line.
///
/// Dropped at any point, it leaves nothing behind.
pub(crate) async fn enter(ticket: Ticket, lines: &[Line], value: Bytes) -> Result<Place> {
    let joined = join(ticket, lines, Vec::new(), value).await?;
    let (mut place, standings) = joined.ok_or_else(|| unexpected("a join put no key and found none"))?;
    let mut waited = false;
    for (line, mut standing) in lines.iter().zip(standings) {
        while let Standing::Behind(predecessor) = standing {
            waited = true;
            standing = line.wait_for(line, &mut place, predecessor).await?;
        }
    }
    if waited && lines.len() > 1 {
        // What was proven in one line is old once one has waited in another.
        place.confirm().await?;
    }
    // The proof may have been on its way for longer than the session lasts.
    place.check()?;
    Ok(place)
}

/// Takes the first place in lines that are all empty: one RPC, that leaves nothing behind otherwise.
pub(crate) async fn try_enter(ticket: Ticket, lines: &[Line], value: Bytes) -> Result<Place> {
    let only_if = lines.iter().map(Line::is_empty).collect();
    match join(ticket, lines, only_if, value).await? {
        Some((place, standings)) if standings.iter().all(|standing| *standing == Standing::First) => {
            place.check()?;
            Ok(place)
        }
        // A key of ours behind others is left of an earlier attempt: it goes as the place is dropped.
        Some(_) | None => Err(locked()),
    }
}

/// Puts a ticket's keys under a condition, and reads who stands before them: one transaction.
///
/// None where the condition does not hold and there is no key of ours.
async fn join(
    ticket: Ticket,
    lines: &[Line],
    only_if: Vec<Compare>,
    value: Bytes,
) -> Result<Option<(Place, Vec<Standing>)>> {
    let reads = lines.iter().map(|line| line.last_two(0)).collect();
    let Some(joined) = ticket.put(only_if, value.clone(), reads).await? else { return Ok(None) };
    let Joined { place, found, reply } = joined;
    if let Some(kv) = found.as_ref().filter(|kv| kv.value != value) {
        replace(&place, kv, value).await?;
    }
    let mut standings = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let (token, revision) = (place.fence().token(), reply.header.revision);
        let standing = line.standing(reply.ranged(index), token, found.is_none(), revision)?;
        standings.push(match standing {
            Some(standing) => standing,
            None => line.look(&place).await?,
        });
    }
    Ok(Some((place, standings)))
}

/// Gives a key that was found (of an earlier owner of the lease, say) our value, if nobody has written it since.
async fn replace(place: &Place, found: &KeyValue, value: Bytes) -> Result<()> {
    let txn = Txn::new()
        .compare(Compare::mod_revision(found.key.clone()).is(found.mod_revision))
        .success(Op::put_with_lease(found.key.clone(), value, place.session().lease()));
    let answer = place.session().client().transport().txn(txn.into(), Repeat::Harmless).await;
    place.session().lease_handle().learn(answer).map(drop)
}

/// A name that is none would be every other name's prefix.
pub(crate) fn checked(name: &[u8]) -> Result<&[u8]> {
    if name.is_empty() { Err(Error::invalid("name", "it is empty")) } else { Ok(name) }
}

fn found<'a>(kvs: Option<&'a [KeyValue]>, what: &str) -> Result<&'a [KeyValue]> {
    kvs.ok_or_else(|| unexpected(format!("no answer for {what}")))
}

fn unexpected(detail: impl Into<String>) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}

fn locked() -> Error {
    Error::new(ErrorKind::Locked, Outcome::NotApplied)
}
