//! How many permits there are: a key, and what it says.

use bytes::Bytes;
use tokio::time::sleep;

use super::super::mismatch;
use crate::error::{Outcome, Result};
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, count, unexpected};

/// The limit of a semaphore. Its value is the number that the semaphore was made with, and behind a space the one that
/// it has now, if that is another.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    key: Bytes,
    /// The number that we take it to be made with.
    made: u32,
}

impl Limit {
    pub(super) fn new(key: Bytes, made: u32) -> Self {
        Self { key, made }
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    pub(super) fn get(&self) -> Op {
        Op::get(self.key.clone())
    }

    /// Makes the limit, where nobody has, or reads it.
    pub(super) fn make(&self) -> Op {
        let missing = Compare::missing(self.key.clone());
        let put = Op::put(self.key.clone(), self.made.to_string());
        Op::txn(Txn::new().compare(missing).success(put).failure(self.get()))
    }

    /// How many permits there are by what the key says; where it is missing, as many as it will be made with.
    pub(super) fn read(&self, kv: Option<&KeyValue>) -> Result<u32> {
        let Some(kv) = kv else { return Ok(self.made) };
        let text = String::from_utf8_lossy(&kv.value);
        let mut numbers = text.split(' ').map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(made)), None) if made == self.made => Ok(made),
            (Some(Ok(made)), Some(Ok(now))) if made == self.made => Ok(now),
            _ => Err(mismatch("number of permits", kv)),
        }
    }

    /// How many permits are left by the keys of those who hold one or wait for it. One RPC.
    pub(super) async fn left(&self, session: &Session, queue: &Bytes) -> Result<u32> {
        let reply = session.read(Txn::new().success(self.get()).success(count(queue).into())).await?;
        let limit = self.read(reply.first(0))?;
        Ok(limit.saturating_sub(u32::try_from(reply.range(1)?.count).unwrap_or(u32::MAX)))
    }

    /// Gives it another number.
    pub(super) async fn change(&self, session: &Session, permits: u32) -> Result<()> {
        let value = Bytes::from(format!("{} {permits}", self.made));
        let (mut seen, mut backoff) = (0, None::<Backoff>);
        loop {
            let txn = Txn::new()
                .compare(Compare::mod_revision(self.key.clone()).is(seen))
                .success(Op::put(self.key.clone(), value.clone()))
                .failure(self.get());
            let reply = session.transact(txn, Repeat::Harmless).await?.value;
            let found = reply.first(0);
            self.read(found)?;
            if reply.succeeded || found.is_some_and(|kv| kv.value == value) {
                return Ok(());
            }
            let now = found.map_or(0, |kv| kv.mod_revision);
            if now == seen {
                return Err(unexpected("a compare failed that holds").with_outcome(Outcome::NotApplied));
            }
            seen = now;
            // The first time what there is was not known; after that others were quicker.
            match &mut backoff {
                Some(backoff) => sleep(backoff.next()).await,
                None => backoff = Some(Backoff::default()),
            }
        }
    }
}
