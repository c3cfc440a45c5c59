//! Leaving: being gone, and waiting for the others.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::DoubleBarrier;
use crate::error::Result;
use crate::owned::Owned;
use crate::transport::Answer;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn};
use crate::view::View;

impl DoubleBarrier {
    pub(super) async fn leave(&self, round: i64, owned: &Owned) -> Result<()> {
        let (own, token) = (owned.fence().key(), owned.fence().token());
        let not_older = Compare::create_revision(self.waiters.clone()).greater_than(token - 1);
        let txn = Txn::new()
            .compare(not_older.with_prefix())
            .success(Op::get(own.clone()))
            .success(self.oldest(2))
            .failure(Op::delete(own.clone()))
            .failure(self.oldest(1));
        let Answer { value: reply, ambiguous, .. } = self.session.transact(txn, Repeat::Harmless).await?;
        let there = reply.range(1)?;
        let stands = reply.succeeded && reply.first(0).is_some();
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
        let Answer { value: reply, ambiguous, .. } = self.session.transact(txn, Repeat::Harmless).await?;
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
        self.session.transact(txn, Repeat::Harmless).await.map(drop)
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
            let reply = self.session.read(txn).await?;
            oldest = match (reply.first(0), reply.first(1)) {
                (Some(kv), Some(ready))
                    if ready.create_revision == round && kv.create_revision < ready.mod_revision =>
                {
                    kv.key.clone()
                }
                _ => return Ok(()),
            };
        }
    }
}

/// Go's keys are numbers.
fn is_ours(key: &[u8]) -> bool {
    key.rsplit(|byte| *byte == b'/').next().is_some_and(|own| own.contains(&b'-'))
}

/// How long the second half of what happened at once is waited for before it is read.
const REST: Duration = Duration::from_millis(100);
