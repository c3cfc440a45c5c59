//! Entering: coming, moving in, and waiting for the others.

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::seat::{Place, Seat};
use super::wait::{Wait, is_named};
use super::{DoubleBarrier, is_asked, is_inside};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::owned::Plan;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, TxnReply, by_age, unexpected};
use crate::view::View;

/// A caller that has moved in.
pub(super) struct Came {
    place: Place,
    how: How,
}

enum How {
    /// The round began, at this revision.
    Inside(i64),
    /// Last: with these the round is complete.
    Last(Vec<KeyValue>, Wait),
    /// Others are missing.
    Waits(Wait),
}

/// How a caller moves in.
enum Way<'a> {
    /// Into a round that has not begun.
    Beside,
    /// As the last one who was missing, with these, where none has moved in since this revision.
    With(&'a [KeyValue], i64),
    /// After a round that is over, whose ready key goes.
    After(&'a KeyValue),
}

/// Who was there at a revision, as far as it was read, and the ready key.
struct Seen {
    at: i64,
    there: pb::RangeResponse,
    ready: Option<KeyValue>,
}

impl DoubleBarrier {
    /// To be there, in a round that none has ended yet.
    pub(super) async fn come(&self) -> Result<Came> {
        self.departed().await?;
        let (seat, mut seen) = self.announce().await?;
        let mut backoff = Backoff::default();
        loop {
            let there = self.told(&seen.there);
            let moved = match &seen.ready {
                Some(ready) => {
                    self.after(ready, &seen.there).await?;
                    self.move_in(&seat, Way::After(ready)).await?
                }
                None => match there {
                    Some(there) if there.len() >= self.count as usize => return Err(self.too_many()),
                    Some(there) if self.compares() && there.len() + 1 == self.count as usize => {
                        self.move_in(&seat, Way::With(&there, seen.at)).await?
                    }
                    _ => self.move_in(&seat, Way::Beside).await?,
                },
            };
            match moved {
                Ok((token, how)) => return self.in_place(seat.moved_in(token), how),
                Err(now) => seen = now,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Waits until no earlier call of this client may be counted that was given up.
    async fn departed(&self) -> Result<()> {
        let ended = self.session.client().departures().ended(&self.waiters);
        let in_time = async { Ok(timeout(self.session.patience(), ended).await) };
        self.session.unless_lost(in_time).await?.map_err(|_| {
            let error = Error::new(ErrorKind::Timeout, Outcome::NotApplied);
            error.because("an earlier call of this client was given up, and its key may still be there")
        })
    }

    /// Says that we come; and reads who is there, and whether they are inside.
    async fn announce(&self) -> Result<(Seat, Seen)> {
        let plan = Plan::drawn(&self.session, &self.coming, Bytes::new());
        let planned = plan.read(self.oldest(self.shown())).read(Op::get(self.ready.clone())).put().await?;
        let (there, ready) = (planned.read(0)?.clone(), planned.read(1)?.kvs.first().cloned());
        let announced = planned.owned.ok_or_else(|| unexpected("a key was neither put nor found"))?;
        let seen = Seen { at: announced.header().revision, there, ready };
        let seat = Seat::new(&self.session, [&self.coming, &self.waiters, &self.ready], announced.fence());
        // From here on the seat takes it back.
        announced.released();
        Ok((seat, seen))
    }

    /// Moves in: the revision of that, and what comes of it; or what is in the way.
    async fn move_in(&self, seat: &Seat, way: Way<'_>) -> Result<Result<(i64, How), Seen>> {
        // Before the key is put, so that nothing is missed between the two.
        let wait = match way {
            Way::With(..) => None,
            Way::Beside | Way::After(_) => Some(self.session.unless_lost(self.watch_for(seat.key())).await?),
        };
        let ready = match way {
            Way::Beside | Way::With(..) => Compare::missing(self.ready.clone()),
            Way::After(ready) => Compare::mod_revision(self.ready.clone()).is(ready.mod_revision),
        };
        let mut txn = Txn::new().compare(seat.is_announced()).compare(ready);
        txn = seat.move_in().into_iter().fold(txn, Txn::success);
        txn = match way {
            Way::Beside => txn.success(self.oldest(self.shown())),
            Way::With(others, at) => others
                .iter()
                .map(stands)
                .fold(txn.compare(self.none_since(at)), Txn::compare)
                .success(Op::put(self.ready.clone(), names(others))),
            Way::After(_) => txn.success(self.oldest(self.shown())).success(Op::delete(self.ready.clone())),
        };
        let txn = txn
            .failure(self.oldest(self.shown()))
            .failure(Op::get(self.ready.clone()))
            .failure(Op::get(seat.key().clone()))
            .failure(seat.look());
        let reply = self.session.unless_lost(self.session.transact(txn, Repeat::Harmless)).await?.value;
        let revision = reply.header.revision;
        if reply.succeeded {
            let Some(wait) = wait else { return Ok(Ok((revision, How::Inside(revision)))) };
            let wait = Wait { seen: revision, ..wait };
            let there = self.session.unless_lost(self.those_told(reply.range(2)?, revision)).await?;
            return Ok(Ok((revision, self.counted(there, wait))));
        }
        if let Some(own) = reply.first(2) {
            return self.found(own, &reply, wait).await.map(Ok);
        }
        if !reply.first(3).is_some_and(|kv| seat.announces(kv)) {
            return Err(seat.why().await.into());
        }
        Ok(Err(Seen { at: revision, there: reply.range(0)?.clone(), ready: reply.first(1).cloned() }))
    }

    /// An earlier attempt has moved us in, and others came after it.
    async fn found(&self, own: &KeyValue, reply: &TxnReply, wait: Option<Wait>) -> Result<(i64, How)> {
        let token = own.create_revision;
        if let Some(ready) = reply.first(1).filter(|ready| ready.mod_revision >= token) {
            // Made ready by ourselves, or by another, who says who is let in. Go's and a large barrier's says nothing.
            let is_let_in = ready.mod_revision == token
                || match ready.value.is_empty() {
                    true => self.is_enough(token).await?,
                    false => is_named(&ready.value, token),
                };
            return if is_let_in {
                Ok((token, How::Inside(ready.create_revision)))
            } else {
                Err(self.too_many())
            };
        }
        let wait = match wait {
            Some(wait) => wait,
            None => self.session.unless_lost(self.watch_for(&own.key)).await?,
        };
        // What the watch has not seen of the time before it is read when the wait begins.
        let there = self.session.unless_lost(self.everyone(token)).await?;
        Ok((token, self.counted(there, Wait { seen: 0, ..wait })))
    }

    /// Whether no more were there than make up a round as one moved in at this revision.
    async fn is_enough(&self, moved_in: i64) -> Result<bool> {
        let there = self.session.unless_lost(self.everyone(moved_in)).await?;
        Ok(there.len() <= self.count as usize)
    }

    /// None has moved in since a revision.
    fn none_since(&self, revision: i64) -> Compare {
        let moved_in = Compare::create_revision(self.waiters.clone());
        moved_in.less_than(revision.saturating_add(1)).with_prefix()
    }

    fn counted(&self, there: Vec<KeyValue>, wait: Wait) -> How {
        if there.len() >= self.count as usize { How::Last(there, wait) } else { How::Waits(wait) }
    }

    /// Where more than enough were there before, we are too many.
    fn in_place(&self, place: Place, how: How) -> Result<Came> {
        match &how {
            How::Last(there, _) if there.len() > self.count as usize => Err(self.too_many()),
            _ => Ok(Came { place, how }),
        }
    }

    /// All others are compared when the barrier is opened; or none, where that would be too many.
    pub(super) fn compares(&self) -> bool {
        self.count <= MOST_COMPARED
    }

    /// So many of the oldest are read along: where they are compared, all, and one too many.
    fn shown(&self) -> i64 {
        if self.compares() { i64::from(self.count) + 1 } else { 1 }
    }

    /// Who takes part by the oldest keys, as far as it matters: all; or too many; or too few. None where they do not tell.
    fn told(&self, range: &pb::RangeResponse) -> Option<Vec<KeyValue>> {
        let shown = self.participants(range);
        let is_told = !range.more || range.count < i64::from(self.count) || shown.len() > self.count as usize;
        is_told.then_some(shown)
    }

    /// Who takes part, the oldest first, of those who came up to a revision; 0 for all.
    async fn everyone(&self, max_create_revision: i64) -> Result<Vec<KeyValue>> {
        let all = by_age(&self.waiters, 0);
        let request = pb::RangeRequest { keys_only: true, max_create_revision, ..all };
        let range = self.session.client().transport().range(request).await;
        let range = self.session.lease_handle().learn_of_past(range)?;
        Ok(self.participants(&range))
    }

    /// Who takes part by the oldest keys; where they do not tell, all are read.
    async fn those_told(&self, range: &pb::RangeResponse, max_create_revision: i64) -> Result<Vec<KeyValue>> {
        match self.told(range) {
            Some(there) => Ok(there),
            None => self.everyone(max_create_revision).await,
        }
    }

    /// What is ready is another round: waits for its end where a participant is inside.
    async fn after(&self, ready: &KeyValue, seen: &pb::RangeResponse) -> Result<()> {
        let there = match self.told(seen).filter(|there| !there.is_empty() || !seen.more) {
            Some(there) => there,
            None => self.session.unless_lost(self.everyone(0)).await?,
        };
        // Those who came after it was made ready are not inside: they, too, wait for all to be there.
        let inside = there.first().is_some_and(|oldest| is_inside(oldest, ready));
        if inside && there.len() >= self.count as usize {
            return Err(self.too_many());
        }
        if inside {
            let view = View::new(self.session.client(), &self.waiters).only(is_asked);
            let mut view = view.and_key(&self.ready);
            view.until(&self.session, |view| self.is_over(view, ready.create_revision).then_some(())).await?;
        }
        // Those who were inside are gone, and none of them comes back: all keys that are put from now on are younger. All of
        // them were lost, it may be, and left the ready key.
        Ok(())
    }

    /// Whether the round of which the ready key was made at this revision is over.
    fn is_over(&self, view: &View, round: i64) -> bool {
        let Some(ready) = view.get(&self.ready).filter(|ready| ready.create_revision == round) else {
            return true;
        };
        view.oldest().is_none_or(|oldest| !is_inside(oldest, ready))
    }

    /// Waits until all are in; the last, who knows who is there, lets them. Gives the revision that the round began at.
    pub(super) async fn let_in(&self, came: Came) -> Result<(Place, i64)> {
        let Came { place, how } = came;
        let round = match how {
            How::Inside(round) => round,
            How::Waits(wait) => self.opened(&place, wait).await?,
            How::Last(there, wait) => match self.open(&place, there).await? {
                Some(round) => round,
                None => self.opened(&place, wait).await?,
            },
        };
        Ok((place, round))
    }

    /// Lets all in, if those who were counted are still there. Gives the revision that the round began at; None where they
    /// are no longer enough.
    async fn open(&self, place: &Place, mut there: Vec<KeyValue>) -> Result<Option<i64>> {
        let own = place.fence().key();
        let mut backoff = Backoff::default();
        loop {
            let others = there.iter().filter(|kv| kv.key != *own && self.compares());
            let txn = others
                .map(stands)
                .fold(Txn::new().compare(place.fence().is_owner()), Txn::compare)
                .compare(Compare::missing(self.ready.clone()))
                .success(Op::put(
                    self.ready.clone(),
                    if self.compares() { names(&there) } else { Bytes::new() },
                ))
                .failure(Op::get(self.ready.clone()))
                .failure(Op::get(own.clone()))
                .failure(self.oldest(self.shown()));
            let reply = self.session.transact(txn, Repeat::Harmless).await?.value;
            if reply.succeeded {
                return Ok(Some(reply.header.revision));
            }
            let stands =
                reply.found(1)?.first().is_some_and(|kv| kv.create_revision == place.fence().token());
            match reply.found(0)?.first() {
                _ if !stands => return Err(place.fence().why().await.into()),
                Some(ready) => return Ok(Some(ready.create_revision)),
                None => {}
            }
            let mut now = self.those_told(reply.range(2)?, 0).await?;
            now.truncate(self.count as usize);
            let complete = now.len() == self.count as usize && now.iter().any(|kv| kv.key == *own);
            if now == there && complete {
                return Err(unexpected("a compare failed that holds for what was read"));
            }
            if !complete {
                return Ok(None);
            }
            there = now;
            sleep(backoff.next()).await;
        }
    }

    fn too_many(&self) -> Error {
        Error::new(ErrorKind::TooManyClients { count: self.count }, Outcome::NotApplied)
    }
}

fn stands(kv: &KeyValue) -> Compare {
    Compare::create_revision(kv.key.clone()).is(kv.create_revision)
}

/// What a ready key says of those who are let in: the create_revisions of their keys; but for one that moved
/// in as it was put. Go's says nothing.
fn names(there: &[KeyValue]) -> Bytes {
    let names: Vec<_> = there.iter().map(|kv| kv.create_revision.to_string()).collect();
    names.join(" ").into()
}

/// How many keys a transaction compares, beside the ready key.
const MOST_COMPARED: u32 = 120;
