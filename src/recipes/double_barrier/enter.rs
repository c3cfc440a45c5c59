//! Entering: being there, and waiting for the others.

use bytes::Bytes;

use super::DoubleBarrier;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::owned::{Owned, Plan, Planned};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::transport::retry::Repeat;
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
        Plan::drawn(&self.session, &self.waiters, Bytes::new()).read(self.oldest(self.compared())).read(ready)
    }

    /// So many are compared when the barrier is opened: all, or none but us.
    fn compared(&self) -> i64 {
        if self.count <= MOST_COMPARED { i64::from(self.count) } else { 1 }
    }

    /// There: where we are the last of the round, tells who is there.
    async fn in_place(&self, owned: Owned, planned: &Planned) -> Result<(Owned, Option<Vec<KeyValue>>)> {
        let (place, there) = match planned.found.is_none() {
            true => (planned.read(0)?.count, planned.read(0)?.kvs.clone()),
            // An earlier attempt put it, and others came after it.
            false => self.session.unless_lost(self.place(&owned)).await?,
        };
        if place > i64::from(self.count) {
            // Whether or not that succeeds now, it goes on.
            if let Err(error) = owned.release().await {
                tracing::debug!(%error, "leaving a full barrier goes on in the background");
            }
            return Err(self.too_many());
        }
        Ok((owned, (place == i64::from(self.count)).then_some(there)))
    }

    /// How many were there when we came, with us, and who, as far as they are still there.
    async fn place(&self, owned: &Owned) -> Result<(i64, Vec<KeyValue>)> {
        let max_create_revision = owned.fence().token();
        let all = by_age(&self.waiters, 0);
        let request = pb::RangeRequest { keys_only: true, max_create_revision, ..all };
        let range = self.session.client().transport().range(request).await?;
        Ok((i64::try_from(range.kvs.len()).unwrap_or(i64::MAX), range.kvs))
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
        let oldest = view.by_age().find(|kv| kv.key != self.ready);
        oldest.is_none_or(|oldest| oldest.create_revision > ready.mod_revision)
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
        let (own, compared) = (owned.fence().key(), self.compared());
        loop {
            let others = there.iter().filter(|kv| kv.key != *own && compared > 1);
            let stands = |kv: &KeyValue| Compare::create_revision(kv.key.clone()).is(kv.create_revision);
            let txn = others
                .map(stands)
                .fold(Txn::new().compare(owned.fence().is_owner()), Txn::compare)
                .compare(Compare::missing(self.ready.clone()))
                .success(Op::put(self.ready.clone(), if compared > 1 { names(&there) } else { Bytes::new() }))
                .failure(Op::get(self.ready.clone()))
                .failure(Op::get(own.clone()))
                .failure(self.oldest(compared));
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
            let now = reply.range(2)?;
            let complete = now.count >= i64::from(self.count) && now.kvs.iter().any(|kv| kv.key == *own);
            if now.kvs == there && complete {
                return Err(unexpected("a compare failed that holds for what was read"));
            }
            if !complete {
                return Ok(None);
            }
            there = now.kvs.clone();
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
        if self.compared() < i64::from(self.count) || is_named(&ready.value, token) {
            return Ok(ready.create_revision);
        }
        let read = || Op::get(own.clone());
        let txn = Txn::new().compare(owned.fence().is_owner()).success(read()).failure(read());
        match self.session.read(txn).await?.succeeded {
            true => Ok(ready.create_revision),
            false => Err(owned.fence().why().await.into()),
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
