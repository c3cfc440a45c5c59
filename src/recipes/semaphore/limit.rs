//! How many permits there are: a key, and what it says.

use bytes::Bytes;
use tokio::time::sleep;

use super::super::mismatch;
use super::older::contender;
use crate::error::{Outcome, Result};
use crate::key::Claim;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn, by_youth, unexpected};

/// The limit of a semaphore. Its value is the number that the semaphore was made with; where that was changed, behind
/// spaces the one that it has now, and the most that it ever had.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    key: Bytes,
    /// The number that we take it to be made with.
    made: u32,
}

/// What a limit says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Permits {
    /// How many there are.
    pub(super) now: u32,
    /// How many there ever were at most: so many keys may hold one without a mark.
    pub(super) most: u32,
    /// The revision that changed the number last.
    pub(super) since: i64,
}

impl Limit {
    pub(super) fn new(key: Bytes, made: u32) -> Self {
        Self { key, made }
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    pub(super) fn made(&self) -> u32 {
        self.made
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
    pub(super) fn read(&self, kv: Option<&KeyValue>) -> Result<Permits> {
        let made = self.made;
        let Some(kv) = kv else { return Ok(Permits { now: made, most: made, since: 0 }) };
        let text = String::from_utf8_lossy(&kv.value);
        let numbers: Vec<_> = text.split(' ').take(3).map(str::parse::<u32>).collect();
        let (now, most) = match numbers[..] {
            [Ok(it)] if it == made => (made, made),
            // Before the most was written along.
            [Ok(it), Ok(now)] if it == made => (now, u32::MAX),
            [Ok(it), Ok(now), Ok(most)] if it == made => (now, most.max(now)),
            _ => return Err(mismatch("number of permits", kv)),
        };
        Ok(Permits { now, most, since: kv.mod_revision })
    }

    /// How many permits are left by the keys of those who hold one or wait for it. One RPC; two where the youngest keys of
    /// the queue are of other shapes.
    pub(super) async fn left(&self, session: &Session, queue: &Bytes) -> Result<u32> {
        for limit in [SHOWN, 0] {
            // Of all keys, which may be many and long, keys alone are read: from 3.7 on they are told without their lease.
            let shown = pb::RangeRequest { keys_only: limit == 0, ..by_youth(queue, limit, 0) };
            let reply = session.read(Txn::new().success(self.get()).success(shown.into())).await?;
            let (permits, line) = (self.read(reply.first(0))?, reply.range(1)?);
            let asked = |kv: &&KeyValue| match contender(queue, &kv.key) {
                Claim::Of(_) if limit == 0 && kv.lease == 0 => true,
                claim => claim.holds(kv.lease),
            };
            let others = line.kvs.len() - line.kvs.iter().filter(asked).count();
            if others == 0 || !line.more {
                let asked = usize::try_from(line.count).unwrap_or(usize::MAX).saturating_sub(others);
                return Ok(permits.now.saturating_sub(u32::try_from(asked).unwrap_or(u32::MAX)));
            }
        }
        Err(unexpected("a read without a limit left keys out"))
    }

    /// Gives it another number.
    pub(super) async fn change(&self, session: &Session, permits: u32) -> Result<()> {
        let mut seen = self.read(None)?;
        let mut backoff = None::<Backoff>;
        loop {
            let value = format!("{} {permits} {}", self.made, seen.most.max(permits));
            let txn = Txn::new()
                .compare(Compare::mod_revision(self.key.clone()).is(seen.since))
                .success(Op::put(self.key.clone(), value))
                .failure(self.get());
            let reply = session.transact(txn, Repeat::Harmless).await?.value;
            if reply.succeeded {
                return Ok(());
            }
            let now = self.read(reply.first(0))?;
            if now.now == permits && now.since > 0 {
                return Ok(());
            }
            if now.since == seen.since {
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

/// So many keys of the queue are looked at, as long as they are all of its shape.
const SHOWN: i64 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_says_how_many_there_are_and_were() {
        let limit = Limit::new(Bytes::from_static(b"s/limit"), 3);
        let read = |value: &'static str| {
            let kv = KeyValue { value: value.into(), mod_revision: 7, ..Default::default() };
            limit.read(Some(&kv)).ok().map(|permits| (permits.now, permits.most, permits.since))
        };
        assert_eq!(limit.read(None).ok(), Some(Permits { now: 3, most: 3, since: 0 }));
        assert_eq!(read("3"), Some((3, 3, 7)));
        assert_eq!(read("3 1"), Some((1, u32::MAX, 7)));
        assert_eq!(read("3 1 5"), Some((1, 5, 7)));
        assert_eq!(read("3 9 5 future"), Some((9, 9, 7)));
        for other in ["", "2", "2 3", "3 x", "3 1 x", "3  1", "-3"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
