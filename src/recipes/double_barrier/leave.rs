//! Leaving: being gone, and waiting for the others.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::seat::Place;
use super::{DoubleBarrier, is_asked, is_inside};
use crate::error::Result;
use crate::owned::gone_unseen;
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn};
use crate::view::View;

impl DoubleBarrier {
    pub(super) async fn leave(&self, round: i64, place: &Place) -> Result<()> {
        let (own, token) = (place.fence().key(), place.fence().token());
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
            // No participant was there before us: we leave last.
            if there.count > 1 {
                self.alone(place).await?;
            }
            return self.close(round, place).await;
        }
        let was_gone = reply.succeeded || reply.deleted(0) == Some(0);
        if was_gone && !ambiguous {
            return Err(place.fence().why().await.into());
        }
        place.released();
        match there.kvs.first() {
            Some(oldest) if is_asked(&self.waiters, &oldest.key) => {
                self.left(round, oldest.key.clone()).await?;
            }
            Some(_) => {
                if let Some(oldest) = self.rest(round).await? {
                    self.left(round, oldest).await?;
                }
            }
            // The one who was to leave last was lost before.
            None => self.clear(round, Compare::none_with_prefix(self.waiters.clone())).await?,
        }
        if was_gone { Err(gone_unseen()) } else { Ok(()) }
    }

    /// Waits until no other participant is there.
    async fn alone(&self, place: &Place) -> Result<()> {
        let own = place.fence().key();
        let mut view = View::new(self.session.client(), &self.waiters).only(is_asked);
        let shown = view.until(&self.session, |view| match view.get(own) {
            None => Some(false),
            Some(_) => view.by_age().nth(1).is_none().then_some(true),
        });
        match shown.await? {
            true => Ok(()),
            false => Err(place.fence().why().await.into()),
        }
    }

    /// The last one leaves: the round is over.
    async fn close(&self, round: i64, place: &Place) -> Result<()> {
        let txn = Txn::new()
            .compare(Compare::create_revision(self.ready.clone()).is(round))
            .success(Op::delete(place.fence().key().clone()))
            .success(Op::delete(self.ready.clone()))
            .failure(Op::delete(place.fence().key().clone()));
        let Answer { value: reply, ambiguous, .. } = self.session.transact(txn, Repeat::Harmless).await?;
        match reply.deleted(0) == Some(0) {
            // An attempt of ours takes the ready key along: where that is there, it was another client.
            true if reply.succeeded || !ambiguous => Err(place.fence().why().await.into()),
            gone => {
                place.released();
                if gone { Err(gone_unseen()) } else { Ok(()) }
            }
        }
    }

    /// Takes the ready key of a round away, if that is over.
    async fn clear(&self, round: i64, is_over: Compare) -> Result<()> {
        let txn = Txn::new()
            .compare(Compare::create_revision(self.ready.clone()).is(round))
            .compare(is_over)
            .success(Op::delete(self.ready.clone()));
        self.session.transact(txn, Repeat::Harmless).await.map(drop)
    }

    /// Who of a round is there longest, of those that are there still. Where none is, its ready key is taken away. Most of what
    /// is read is one key.
    async fn rest(&self, round: i64) -> Result<Option<Bytes>> {
        let mut backoff = Backoff::default();
        let mut limit = 1;
        loop {
            let txn = Txn::new().success(self.oldest(limit)).success(Op::get(self.ready.clone()));
            let reply = match self.session.read(txn).await {
                Ok(reply) => reply,
                Err(error) => {
                    self.session.outlast(error, &mut backoff).await?;
                    continue;
                }
            };
            let Some(ready) = reply.first(1).filter(|ready| ready.create_revision == round) else {
                return Ok(None);
            };
            let oldest = reply.range(0)?;
            match self.participants(oldest).first() {
                Some(kv) if is_inside(kv, ready) => return Ok(Some(kv.key.clone())),
                None if oldest.more && limit > 0 => limit = 0,
                _ => {
                    let unchanged = Compare::mod_revision(ready.key.clone()).is(ready.mod_revision);
                    return self.clear(round, unchanged).await.map(|()| None);
                }
            }
        }
    }

    /// Waits until nobody of the round is inside any more; `oldest` is who was there longest.
    async fn left(&self, round: i64, mut oldest: Bytes) -> Result<()> {
        loop {
            let mut view = View::keys(self.session.client(), [&self.ready, &oldest]);
            let is_ready =
                |view: &View| view.get(&self.ready).is_some_and(|ready| ready.create_revision == round);
            let over = view.until(&self.session, |view| match (is_ready(view), view.get(&oldest)) {
                // The last of ours takes both keys away at once; Go's takes its own away last. Where a third party has deleted the
                // ready key, that participant is inside yet.
                (_, Some(_)) => None,
                (true, None) => Some(false),
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
            let Some(longest) = self.rest(round).await? else { return Ok(()) };
            oldest = longest;
        }
    }
}

/// How long the second half of what happened at once is waited for before it is read.
const REST: Duration = Duration::from_millis(100);
