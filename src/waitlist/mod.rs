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

mod leave;
mod place;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::fence::Fence;
use crate::key::{name_prefix, owner_key, prefix_end};
use crate::lease::Turn;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::watch::{Events, Watch};
use leave::Leave;
pub(crate) use place::Place;

/// A queue of sessions on one name.
#[derive(Debug, Clone)]
pub(crate) struct Waitlist {
    session: Session,
    prefix: Bytes,
    key: Bytes,
}

/// Who stands before a place.
#[derive(Debug, Clone, PartialEq)]
enum Standing {
    /// Nobody.
    First,
    /// Somebody: at least this one.
    Behind(Predecessor),
}

#[derive(Debug, Clone, PartialEq)]
struct Predecessor {
    key: Bytes,
    create_revision: i64,
    /// Nobody was before it.
    is_first: bool,
    /// The revision at which this was read.
    seen_at: i64,
}

impl Waitlist {
    pub(crate) fn new(session: &Session, name: &[u8]) -> Result<Self> {
        if name.is_empty() {
            return Err(Error::invalid("name", "it is empty"));
        }
        let prefix = name_prefix(name);
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
        let turn = self.local_turn().await?;
        let (mut place, mut standing) = self.join(value, turn).await?;
        while let Standing::Behind(predecessor) = standing {
            standing = self.wait_for(&mut place, predecessor).await?;
        }
        // The proof may have been on its way for longer than the session lasts.
        place.fence.check()?;
        Ok(place)
    }

    /// Takes the first place if nobody is there: one RPC, that leaves nothing behind otherwise.
    pub(crate) async fn try_enter(&self, value: Bytes) -> Result<Place> {
        self.session.check()?;
        let turn = self.session.lease_handle().locals().try_turn(&self.prefix).ok_or_else(locked)?;
        let only_if = Compare::none_with_prefix(self.prefix.clone());
        match self.session.cleanup().finish(self.clone().put(only_if, value, turn)).await? {
            Some((place, Standing::First)) => {
                place.fence.check()?;
                Ok(place)
            }
            // A key of ours behind others is left of an earlier attempt: it goes as the place is dropped.
            Some(_) | None => Err(locked()),
        }
    }

    /// The first place, if our key of this create_revision has it: one RPC, that only reads.
    pub(crate) async fn come_back(&self, create_revision: i64) -> Result<Option<Place>> {
        self.session.check()?;
        let turn = self.session.lease_handle().locals().try_turn(&self.prefix).ok_or_else(locked)?;
        let txn = Txn::new().success(self.last_two(create_revision)).success(self.own());
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
        let reply = TxnReply::try_from(answer.value)?;
        let stands =
            found(reply.kvs(1), "our key")?.first().is_some_and(|kv| self.is_own(kv, create_revision));
        let first = found(reply.kvs(0), "the queue")?.len() == 1;
        self.session.check()?;
        Ok((stands && first).then(|| self.place(create_revision, reply.header, turn, false)))
    }

    /// One's turn among the tasks of this process.
    async fn local_turn(&self) -> Result<Turn> {
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(reason.into()),
            turn = self.session.lease_handle().locals().turn(&self.prefix) => Ok(turn),
        }
    }

    async fn join(&self, value: Bytes, turn: Turn) -> Result<(Place, Standing)> {
        let only_if = Compare::missing(self.key.clone());
        let joining = self.session.cleanup().finish(self.clone().put(only_if, value, turn));
        let joined = tokio::select! {
            biased;
            reason = self.session.lost() => return Err(reason.into()),
            joined = joining => joined?,
        };
        joined.ok_or_else(|| unexpected("a join put no key and found none"))
    }

    /// Puts our key under a condition, and reads who stands before it: one transaction.
    ///
    /// Where the condition does not hold but the key is there, an earlier attempt put it, and it is ours. None where
    /// there is no key of ours.
    async fn put(self, only_if: Compare, value: Bytes, turn: Turn) -> Result<Option<(Place, Standing)>> {
        let txn = Txn::new()
            .compare(only_if)
            .success(Op::put_with_lease(self.key.clone(), value.clone(), self.session.lease()))
            .success(self.last_two(0))
            .failure(Op::get(self.key.clone()))
            .failure(self.last_two(0));
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        let answer = match self.session.lease_handle().learn(answer) {
            Ok(answer) => answer,
            Err(error) => {
                if error.outcome() != Outcome::NotApplied {
                    self.settle(turn);
                }
                return Err(error);
            }
        };
        let put = match self.read_put(answer.value) {
            Ok(Some(put)) => put,
            nothing => {
                if answer.ambiguous || nothing.is_err() {
                    self.settle(turn);
                }
                return nothing.map(|_| None);
            }
        };
        let place = self.place(put.create_revision, put.header, turn, answer.ambiguous);
        if let Some(kv) = put.found.filter(|kv| kv.value != value) {
            self.replace(kv.mod_revision, value).await?;
        }
        let standing = match put.standing {
            Some(standing) => standing,
            // Others joined after an earlier attempt of ours: the last two do not tell who is before us.
            None => self.look(&place).await?,
        };
        Ok(Some((place, standing)))
    }

    /// Reads the answer of [`put`](Self::put). None where there is no key of ours.
    fn read_put(&self, answer: pb::TxnResponse) -> Result<Option<Put>> {
        let reply = TxnReply::try_from(answer)?;
        let revision = reply.header.revision;
        let found = match reply.succeeded {
            true => None,
            false => match found(reply.kvs(0), "our key")?.first() {
                Some(kv) if kv.key == self.key => Some(kv.clone()),
                Some(kv) => return Err(unexpected(format!("the key {:?} for our own", kv.key))),
                None => return Ok(None),
            },
        };
        let create_revision = found.as_ref().map_or(revision, |kv| kv.create_revision);
        let last_two = reply.ranged(1).ok_or_else(|| unexpected("no answer for the queue"))?;
        let standing = match &last_two.kvs[..] {
            [last] if self.is_own(last, create_revision) => Some(Standing::First),
            [last, before] if self.is_own(last, create_revision) => Some(Standing::Behind(Predecessor {
                key: before.key.clone(),
                create_revision: before.create_revision,
                is_first: last_two.count == 2,
                seen_at: revision,
            })),
            _ if reply.succeeded => return Err(unexpected("our key is not the last of the queue")),
            _ => None,
        };
        Ok(Some(Put { create_revision, found, header: reply.header, standing }))
    }

    /// Gives a key that was found (of an earlier owner of the lease, say) our value, if nobody has written it since.
    async fn replace(&self, mod_revision: i64, value: Bytes) -> Result<()> {
        let txn = Txn::new()
            .compare(Compare::mod_revision(self.key.clone()).is(mod_revision))
            .success(Op::put_with_lease(self.key.clone(), value, self.session.lease()));
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Harmless).await;
        self.session.lease_handle().learn(answer).map(drop)
    }

    fn place(&self, create_revision: i64, header: pb::ResponseHeader, turn: Turn, ambiguous: bool) -> Place {
        let leave = Leave { list: self.clone(), turn, ambiguous };
        Place::new(Fence::new(&self.session, self.key.clone(), create_revision), header, leave)
    }

    /// Waits until the predecessor is gone; tells who stands before the place then.
    async fn wait_for(&self, place: &mut Place, predecessor: Predecessor) -> Result<Standing> {
        tokio::select! {
            biased;
            reason = self.session.lost() => Err(reason.into()),
            standing = self.watch(place, predecessor) => standing,
        }
    }

    async fn watch(&self, place: &mut Place, mut predecessor: Predecessor) -> Result<Standing> {
        let both = Watch::key(predecessor.key.clone()).and_key(self.key.clone()).no_put();
        let mut watcher = self.session.client().watch(both);
        let since = match watcher.created().await {
            Ok(since) => since,
            Err(error) => return self.look_after(place, error).await,
        };
        if since > predecessor.seen_at {
            match self.look(place).await? {
                Standing::Behind(seen) if seen.create_revision == predecessor.create_revision => {
                    predecessor = seen
                }
                other => return Ok(other),
            }
        }
        let mut again = Instant::now() + second_look();
        loop {
            let events = tokio::select! {
                biased;
                events = watcher.next() => events,
                () = tokio::time::sleep_until(again) => {
                    // Servers before 3.4.36 and 3.5.18 can lose a delete at the edge of a compaction.
                    again = Instant::now() + second_look();
                    match self.stands(&predecessor).await? {
                        true => continue,
                        false => return self.look(place).await,
                    }
                }
            };
            let events = match events {
                Ok(events) => events,
                Err(error) => return self.look_after(place, error).await,
            };
            if deletes(&events, &self.key, place.fence.token()) {
                return Err(place.fence.why().await.into());
            }
            if deletes(&events, &predecessor.key, predecessor.create_revision) {
                if !predecessor.is_first {
                    return self.look(place).await;
                }
                place.header.revision = place.header.revision.max(events.revision);
                return Ok(Standing::First);
            }
        }
    }

    /// After a watch that ended: compaction loses events, so the queue is read instead. Anything else ends the wait.
    async fn look_after(&self, place: &Place, error: Error) -> Result<Standing> {
        match error.kind() {
            ErrorKind::Compacted { .. } => self.look(place).await,
            _ => Err(error),
        }
    }

    /// Reads who stands before a place, and whether it still is one: one RPC.
    async fn look(&self, place: &Place) -> Result<Standing> {
        let own = place.fence.token();
        let txn = Txn::new().success(self.last_two(own - 1)).success(self.own());
        let answer = self.session.client().transport().txn(txn.into(), Repeat::Read).await?;
        let reply = TxnReply::try_from(answer.value)?;
        let stands = found(reply.kvs(1), "our key")?.first().is_some_and(|kv| self.is_own(kv, own));
        if !stands {
            return Err(place.fence.why().await.into());
        }
        Ok(match found(reply.kvs(0), "the queue")? {
            [] => Standing::First,
            [first, rest @ ..] if first.create_revision < own => Standing::Behind(Predecessor {
                key: first.key.clone(),
                create_revision: first.create_revision,
                is_first: rest.is_empty(),
                seen_at: reply.header.revision,
            }),
            [first, ..] => return Err(unexpected(format!("{:?} is not older than us", first.key))),
        })
    }

    /// True while the predecessor's key, of its create_revision, is there.
    async fn stands(&self, predecessor: &Predecessor) -> Result<bool> {
        let request =
            pb::RangeRequest { key: predecessor.key.clone(), keys_only: true, ..Default::default() };
        let range = self.session.client().transport().range(request).await?;
        Ok(range.kvs.first().is_some_and(|kv| kv.create_revision == predecessor.create_revision))
    }

    /// The youngest two of the queue, or of those up to a create_revision.
    fn last_two(&self, max_create_revision: i64) -> Op {
        pb::RangeRequest {
            key: self.prefix.clone(),
            range_end: prefix_end(&self.prefix),
            limit: 2,
            sort_order: pb::range_request::SortOrder::Descend.into(),
            sort_target: pb::range_request::SortTarget::Create.into(),
            keys_only: true,
            max_create_revision,
            ..Default::default()
        }
        .into()
    }

    fn own(&self) -> Op {
        pb::RangeRequest { key: self.key.clone(), keys_only: true, ..Default::default() }.into()
    }

    fn is_own(&self, kv: &KeyValue, create_revision: i64) -> bool {
        kv.key == self.key && kv.create_revision == create_revision
    }
}

/// What [`Waitlist::put`] brought back.
struct Put {
    create_revision: i64,
    /// Our key as it was found, where it was not created.
    found: Option<KeyValue>,
    header: pb::ResponseHeader,
    standing: Option<Standing>,
}

fn locked() -> Error {
    Error::new(ErrorKind::Locked, Outcome::NotApplied)
}

fn deletes(events: &Events, key: &Bytes, create_revision: i64) -> bool {
    // A watch that starts at "now" on a member that lags behind can tell of an earlier incarnation's end.
    events.events.iter().any(|event| {
        event.r#type() == EventType::Delete
            && event.kv.as_ref().is_some_and(|kv| kv.key == *key && kv.mod_revision > create_revision)
    })
}

fn found<'a>(kvs: Option<&'a [KeyValue]>, what: &str) -> Result<&'a [KeyValue]> {
    kvs.ok_or_else(|| unexpected(format!("no answer for {what}")))
}

fn unexpected(detail: impl Into<String>) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}

/// When a waiter looks for itself whether its predecessor is still there: seldom, and not all at once.
fn second_look() -> Duration {
    SECOND_LOOK.mul_f64(1.0 + fastrand::f64())
}

const SECOND_LOOK: Duration = Duration::from_secs(60);
