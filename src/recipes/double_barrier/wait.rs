//! Waiting for the others: until a round begins, or our key is gone.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::DoubleBarrier;
use super::seat::Place;
use crate::error::{ErrorKind, Result};
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::transport::retry::{Backoff, Rounds, second_look};
use crate::txn::{Op, Txn};
use crate::watch::{Events, Watch, Watcher};

/// What tells of the round's begin, and of the key's end.
pub(super) struct Wait {
    pub(super) watcher: Watcher,
    /// The watch has begun: before that it tells nothing.
    pub(super) begun: bool,
    /// What happened up to this revision was seen otherwise.
    pub(super) seen: i64,
}

impl DoubleBarrier {
    /// Watches from now on what the wait is for. A watch that does not begin for a while tells of what happens from some later
    /// time on: the looks of the wait find the rest.
    pub(super) async fn watch_for(&self, own: &Bytes) -> Result<Wait> {
        let mut rounds = Rounds::new();
        loop {
            rounds.again().await;
            let both = Watch::key(&self.ready).no_delete().and(Watch::key(own).no_put());
            let mut watcher = self.session.client().watch(both);
            match timeout(BEGINS, watcher.created()).await {
                Ok(Ok(seen)) => return Ok(Wait { watcher, begun: true, seen }),
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(Wait { watcher, begun: false, seen: 0 }),
            }
        }
    }

    /// Waits until all are let in. Gives the revision that the round began at.
    pub(super) async fn opened(&self, place: &Place, mut wait: Wait) -> Result<i64> {
        let mut backoff = Backoff::default();
        let looks_now = !wait.begun || wait.seen == 0;
        let mut again = Instant::now() + if looks_now { Duration::ZERO } else { second_look() };
        loop {
            let told = async {
                match wait.begun {
                    true => wait.watcher.next().await.map(Some),
                    false => wait.watcher.created().await.map(|_| None),
                }
            };
            let told = tokio::select! {
                biased;
                told = told => told,
                // Servers before 3.4.36 and 3.5.18 can lose a delete at the edge of a compaction.
                () = sleep_until(again) => {
                    again = Instant::now() + second_look();
                    match self.look(place).await {
                        Ok(Some(round)) => return Ok(round),
                        Ok(None) => {}
                        Err(error) => {
                            self.session.outlast(error, &mut backoff).await?;
                            again = Instant::now();
                        }
                    }
                    continue;
                }
            };
            match told {
                // What happened before it began is yet to be seen.
                Ok(None) => (wait.begun, again) = (true, Instant::now()),
                Ok(Some(events)) => {
                    if let Some(ready) = self.told_ready(place, &events, wait.seen).await? {
                        return self.let_in_by(place, ready).await;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    wait = self.watch_for(place.fence().key()).await?;
                    again = Instant::now();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The ready key, if these events tell of it. An error where they tell of the end of our key.
    async fn told_ready(&self, place: &Place, events: &Events, seen: i64) -> Result<Option<KeyValue>> {
        let (own, token) = (place.fence().key(), place.fence().token());
        let mut ready = None;
        for event in &events.events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.mod_revision > seen.max(token)) else { continue };
            match event.r#type() {
                EventType::Delete if kv.key == *own => return Err(place.fence().why().await.into()),
                EventType::Put if kv.key == self.ready => ready = Some(kv.clone()),
                _ => {}
            }
        }
        Ok(ready)
    }

    /// Whether the round has begun, as the two keys are at one revision. An error where ours is gone.
    async fn look(&self, place: &Place) -> Result<Option<i64>> {
        let token = place.fence().token();
        let txn =
            Txn::new().success(Op::get(self.ready.clone())).success(Op::get(place.fence().key().clone()));
        let reply = self.session.read(txn).await?;
        if reply.found(1)?.first().is_none_or(|kv| kv.create_revision != token) {
            return Err(place.fence().why().await.into());
        }
        let ready = reply.found(0)?.first().filter(|ready| ready.mod_revision > token);
        Ok(ready.map(|ready| ready.create_revision))
    }

    /// The two keys are told of by two watches, of which neither says how far the other is. That we were there when all were
    /// let in is told by the ready key itself, or by our key, which is never put again.
    async fn let_in_by(&self, place: &Place, ready: KeyValue) -> Result<i64> {
        if !self.compares() || is_named(&ready.value, place.fence().token()) {
            return Ok(ready.create_revision);
        }
        let read = || Op::get(place.fence().key().clone());
        let mut backoff = Backoff::default();
        loop {
            let txn = Txn::new().compare(place.fence().is_owner()).success(read()).failure(read());
            match self.session.read(txn).await {
                Ok(reply) if reply.succeeded => return Ok(ready.create_revision),
                Ok(_) => return Err(place.fence().why().await.into()),
                Err(error) => self.session.outlast(error, &mut backoff).await?,
            }
        }
    }
}

/// Whether a ready key names the caller that moved in at this revision.
pub(super) fn is_named(ready: &[u8], token: i64) -> bool {
    ready.split(|&byte| byte == b' ').any(|name| name == token.to_string().as_bytes())
}

/// How long a caller that is to move in waits for its watch to begin.
const BEGINS: Duration = Duration::from_secs(5);
