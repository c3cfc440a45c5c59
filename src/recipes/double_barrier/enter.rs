//! Entering: being there, and waiting for the others.

use bytes::Bytes;

use super::{DoubleBarrier, is_asked};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::owned::{Owned, Plan, Planned};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, by_age, unexpected};
use crate::view::View;

impl DoubleBarrier {
    /// To be there, in a round that none has ended yet. Where we are the last of it, tells who is there.
    pub(super) async fn come(&self) -> Result<(Owned, Option<Vec<KeyValue>>)> {
        let mut planned = self.plan().only_if(Compare::missing(self.ready.clone())).put().await?;
        loop {
            let ready = planned.read(1)?.kvs.first().cloned();
            match (planned.owned.take(), ready) {
                (Some(owned), _) => return self.in_place(owned, &planned).await,
                (None, Some(ready)) => planned = self.after(&ready, &planned).await?,
                (None, None) => return Err(unexpected("a key was not put though nothing was in the way")),
            }
        }
    }

    /// To be there; and to read who is there, the oldest first, and whether they are inside.
    fn plan(&self) -> Plan {
        let ready = Op::get(self.ready.clone());
        Plan::drawn(&self.session, &self.waiters, Bytes::new()).read(self.oldest(self.shown())).read(ready)
    }

    /// All others are compared when the barrier is opened; or none, where that would be too many.
    fn compares(&self) -> bool {
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

    /// There: where we are the last of the round, tells who is there.
    async fn in_place(&self, owned: Owned, planned: &Planned) -> Result<(Owned, Option<Vec<KeyValue>>)> {
        let there = match self.told(planned.read(0)?).filter(|_| planned.found.is_none()) {
            Some(there) => there,
            // An earlier attempt put it, and others came after it; or there are keys of other shapes.
            None => self.session.unless_lost(self.everyone(owned.fence().token())).await?,
        };
        if there.len() > self.count as usize {
            // Whether or not that succeeds now, it goes on.
            if let Err(error) = owned.release().await {
                tracing::debug!(%error, "leaving a full barrier goes on in the background");
            }
            return Err(self.too_many());
        }
        Ok((owned, (there.len() == self.count as usize).then_some(there)))
    }

    /// Who takes part, the oldest first, of those who came up to a revision; 0 for all.
    async fn everyone(&self, max_create_revision: i64) -> Result<Vec<KeyValue>> {
        let all = by_age(&self.waiters, 0);
        let request = pb::RangeRequest { keys_only: true, max_create_revision, ..all };
        let range = self.session.client().transport().range(request).await?;
        Ok(self.participants(&range))
    }

    /// What is ready is another round: waits for its end where somebody is inside, and takes its place.
    async fn after(&self, ready: &KeyValue, seen: &Planned) -> Result<Planned> {
        let seen = seen.read(0)?;
        let there = match self.told(seen).filter(|there| !there.is_empty() || !seen.more) {
            Some(there) => there,
            None => self.session.unless_lost(self.everyone(0)).await?,
        };
        // Whoever came after it was made ready is not inside: they, too, wait for all to be there.
        let inside = there.first().is_some_and(|oldest| oldest.create_revision < ready.mod_revision);
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
        let over = self
            .plan()
            .only_if(Compare::mod_revision(self.ready.clone()).is(ready.mod_revision))
            .also(Op::delete(self.ready.clone()))
            .put()
            .await?;
        match over.owned.is_none() && over.read(1)?.kvs.is_empty() {
            true => self.plan().only_if(Compare::missing(self.ready.clone())).put().await,
            false => Ok(over),
        }
    }

    /// Whether the round of which the ready key was made at this revision is over.
    fn is_over(&self, view: &View, round: i64) -> bool {
        let Some(ready) = view.get(&self.ready).filter(|ready| ready.create_revision == round) else {
            return true;
        };
        view.oldest().is_none_or(|oldest| oldest.create_revision > ready.mod_revision)
    }

    /// Waits until all are in; the last, who knows who is there, lets them. Gives the revision that the round began at.
    pub(super) async fn let_in(&self, owned: &Owned, last: Option<Vec<KeyValue>>) -> Result<i64> {
        if let Some(there) = last
            && let Some(round) = self.open(owned, there).await?
        {
            return Ok(round);
        }
        self.opened(owned).await
    }

    /// Lets all in, if those who were counted are still there. Gives the revision that the round began at; None where they
    /// are no longer enough.
    async fn open(&self, owned: &Owned, mut there: Vec<KeyValue>) -> Result<Option<i64>> {
        let own = owned.fence().key();
        loop {
            let others = there.iter().filter(|kv| kv.key != *own && self.compares());
            let stands = |kv: &KeyValue| Compare::create_revision(kv.key.clone()).is(kv.create_revision);
            let txn = others
                .map(stands)
                .fold(Txn::new().compare(owned.fence().is_owner()), Txn::compare)
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
                reply.found(1)?.first().is_some_and(|kv| kv.create_revision == owned.fence().token());
            match reply.found(0)?.first() {
                _ if !stands => return Err(owned.fence().why().await.into()),
                Some(ready) => return Ok(Some(ready.create_revision)),
                None => {}
            }
            let mut now = match self.told(reply.range(2)?) {
                Some(now) => now,
                None => self.everyone(0).await?,
            };
            now.truncate(self.count as usize);
            let complete = now.len() == self.count as usize && now.iter().any(|kv| kv.key == *own);
            if now == there && complete {
                return Err(unexpected("a compare failed that holds for what was read"));
            }
            if !complete {
                return Ok(None);
            }
            there = now;
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
                Some(_) => ready.map(|ready| Some(ready.clone())),
            }
        });
        let Some(ready) = shown.await? else { return Err(owned.fence().why().await.into()) };
        // The two keys are told of by two watches, of which neither says how far the other is. That we were there when all
        // were let in is told by the ready key itself, or by our key, which is never put again.
        if !self.compares() || is_named(&ready.value, token) {
            return Ok(ready.create_revision);
        }
        let read = || Op::get(own.clone());
        let mut backoff = Backoff::default();
        loop {
            let txn = Txn::new().compare(owned.fence().is_owner()).success(read()).failure(read());
            match self.session.read(txn).await {
                Ok(reply) if reply.succeeded => return Ok(ready.create_revision),
                Ok(_) => return Err(owned.fence().why().await.into()),
                Err(error) => self.session.outlast(error, &mut backoff).await?,
            }
        }
    }

    fn too_many(&self) -> Error {
        Error::new(ErrorKind::TooManyClients { count: self.count }, Outcome::NotApplied)
    }
}

/// What a ready key says of those who are let in: the create_revisions of their keys. Go's says nothing.
fn names(there: &[KeyValue]) -> Bytes {
    let names: Vec<_> = there.iter().map(|kv| kv.create_revision.to_string()).collect();
    names.join(" ").into()
}

fn is_named(ready: &[u8], token: i64) -> bool {
    ready.split(|&byte| byte == b' ').any(|name| name == token.to_string().as_bytes())
}

/// How many keys a transaction compares, beside the ready key.
const MOST_COMPARED: u32 = 120;
