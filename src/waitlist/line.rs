//! A line: whom a key of ours stands behind.

use std::future::Future;

use bytes::Bytes;

use super::foreign;
use crate::error::Result;
use crate::key::{Claim, contender, unshared};
use crate::owned::{Last, Owned};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{Compare, Op, Txn, TxnReply, by_youth, unexpected};

/// From so many keys in a line on it is read no more often than needed.
const MANY: i64 = 64;
/// The youngest two: the one before us, and whether it is the only one.
const TWO: i64 = 2;
/// More are read where the youngest are no contenders', and all in the end.
const LIMITS: [i64; 3] = [TWO, 1000, 0];

/// A line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The contenders' keys under this prefix that are older than ours come before us.
    pub(super) ahead: Bytes,
    key: Bytes,
    /// A key with this value lets us pass.
    open: Option<&'static [u8]>,
    /// Whose a key under a prefix is, by its shape.
    pub(super) claim: fn(&[u8], &[u8]) -> Claim,
    /// So many slashes before the end of our key ends the lock's name.
    slashes: u8,
}

/// Reads who stands before a place.
pub(crate) trait Look {
    /// One RPC, or a few where the youngest keys are no contenders'. An error where the place no longer is one.
    fn look(&self, place: &mut Owned) -> impl Future<Output = Result<Standing>> + Send;

    /// One's turn may come while the predecessor stays: whoever looks for itself then must look at more than that.
    const PAST_PREDECESSOR: bool = false;
}

/// Who stands before a place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Standing {
    /// Nobody.
    First,
    /// Somebody: at least this one.
    Behind(Predecessor),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Predecessor {
    pub(crate) key: Bytes,
    pub(crate) create_revision: i64,
    /// Nobody was before it.
    pub(super) is_first: bool,
    /// Between its key and ours so much happens that both are not watched as one range.
    pub(super) is_noisy: bool,
    /// So many are in the line that it is not to be read again without need: the server reads all of it each time.
    pub(super) among_many: bool,
    /// The revision at which this was read.
    pub(crate) seen_at: i64,
}

impl Predecessor {
    /// One that has others before it.
    pub(crate) fn one_of_many(kv: &KeyValue, seen_at: i64) -> Self {
        Self {
            key: unshared(&kv.key),
            create_revision: kv.create_revision,
            is_first: false,
            is_noisy: false,
            among_many: false,
            seen_at,
        }
    }
}

impl Line {
    /// Behind all older contenders' keys of a prefix, which may be our key's own.
    pub(crate) fn behind(ahead: &Bytes, key: &Bytes) -> Self {
        Self { ahead: ahead.clone(), key: key.clone(), open: None, claim: contender, slashes: 1 }
    }

    /// Past those whose value is this one; only the oldest of all keys may ever get it.
    pub(crate) fn past(self, open: &'static [u8]) -> Self {
        Self { open: Some(open), ..self }
    }

    /// Where contenders' keys have another shape than a mutex's, and the name ends so many slashes before the end of ours.
    pub(crate) fn of(self, claim: fn(&[u8], &[u8]) -> Claim, slashes: u8) -> Self {
        Self { claim, slashes, ..self }
    }

    /// Nothing else is to be put below the name of the lock of which a place in this line is.
    pub(super) fn keep_clear(&self, place: &Owned) {
        place.fences().iter().for_each(|fence| fence.is_below_name(self.slashes));
    }

    pub(super) fn key(&self) -> &Bytes {
        &self.key
    }

    pub(super) fn opens(&self) -> bool {
        self.open.is_some()
    }

    /// No contender is in the line, where up to this revision none was.
    pub(super) fn is_vacant(&self, since: Option<i64>) -> Compare {
        match since {
            None => Compare::none_with_prefix(self.ahead.clone()),
            Some(revision) => Compare::create_revision(self.ahead.clone())
                .less_than(revision.saturating_add(1))
                .with_prefix(),
        }
    }

    /// The revision at which no contender was in the line, if none was, by a transaction that read the youngest two.
    pub(super) async fn vacant(
        &self,
        session: &Session,
        reply: &TxnReply,
        last_two: usize,
    ) -> Result<Option<i64>> {
        if let Some(vacant) = self.no_contender(reply.range(last_two)?) {
            return Ok(vacant.then_some(reply.header.revision));
        }
        for &limit in &LIMITS[1..] {
            let reply = session.read(Txn::new().success(self.youngest(limit, 0))).await?;
            let mut line = reply.range(0)?.clone();
            if self.keys_alone(limit) && line.kvs.iter().all(|kv| kv.lease == 0) {
                // What was no contender's then is none's; what has gone since is in no one's way.
                self.sift(session, &mut line, None).await?;
            }
            if let Some(vacant) = self.no_contender(&line) {
                return Ok(vacant.then_some(reply.header.revision));
            }
        }
        Err(endless())
    }

    /// The youngest two of the line.
    pub(super) fn last_two(&self) -> Op {
        self.youngest(TWO, 0)
    }

    /// Who stands before us, by the youngest two as they were when our key was put. None where that does not tell.
    pub(super) fn standing(&self, put: &TxnReply, last_two: usize) -> Result<Option<Standing>> {
        let (line, revision) = (put.range(last_two)?, put.header.revision);
        // Those of this revision are ours: in a name's line may be our keys of the names below it, too.
        let ours = line.kvs.iter().take_while(|kv| kv.create_revision == revision).count();
        if ours == 0 && self.key.starts_with(&self.ahead) {
            return Err(unexpected("our key is not the last of the queue"));
        }
        Ok(self.behind_first(&line.kvs[ours..], line, revision))
    }

    /// Who stands before our key of this create_revision, the header of the answer that tells, and how our key was last
    /// written. None where it does not stand.
    pub(super) async fn before(
        &self,
        session: &Session,
        own: i64,
    ) -> Result<Option<(Standing, pb::ResponseHeader, Last)>> {
        self.before_by(&LIMITS, session, own).await
    }

    /// Looks again, where the youngest two do not tell.
    pub(super) async fn look_further(&self, place: &mut Owned) -> Result<Standing> {
        let before = self.before_by(&LIMITS[1..], place.session(), place.fence().token()).await?;
        seen(place, before).await
    }

    async fn before_by(
        &self,
        limits: &[i64],
        session: &Session,
        own: i64,
    ) -> Result<Option<(Standing, pb::ResponseHeader, Last)>> {
        for &limit in limits {
            let txn =
                Txn::new().success(self.youngest(limit, own.saturating_sub(1))).success(look_at(&self.key));
            let reply = session.read(txn).await?;
            let is_own = |kv: &&KeyValue| kv.key == self.key && kv.create_revision == own;
            let Some(ours) = reply.found(1)?.first().filter(is_own) else { return Ok(None) };
            let line = reply.range(0)?;
            if let Some(young) = line.kvs.iter().find(|kv| kv.create_revision >= own) {
                return Err(unexpected(format!("{:?} is not older than us", young.key)));
            }
            if self.keys_alone(limit) && ours.lease == 0 {
                let mut line = line.clone();
                let sifting = Box::pin(self.sift(session, &mut line, Some(own)));
                let Some(header) = sifting.await? else { return Ok(None) };
                // Not all of them are looked at again: they were seen when they were read.
                let seen_at = reply.header.revision;
                let header = header.unwrap_or(reply.header);
                if let Some(standing) = self.behind_first(&line.kvs, &line, seen_at) {
                    return Ok(Some((standing, header, Last::from(ours))));
                }
            } else if let Some(standing) = self.behind_first(&line.kvs, line, reply.header.revision) {
                return Ok(Some((standing, reply.header, Last::from(ours))));
            }
        }
        Err(endless())
    }

    pub(super) fn lets_pass(&self, kv: &KeyValue) -> bool {
        self.open.is_some_and(|open| kv.value == open)
    }

    /// The standing behind the first contender of these, who are the youngest of a line. None where there is none among
    /// them and there are older ones.
    pub(super) fn behind_first(
        &self,
        before: &[KeyValue],
        line: &pb::RangeResponse,
        seen_at: i64,
    ) -> Option<Standing> {
        let mut contenders = before.iter().filter(|kv| self.counts(kv));
        let Some(first) = contenders.next() else { return (!line.more).then_some(Standing::First) };
        if self.lets_pass(first) {
            return Some(Standing::First);
        }
        Some(Standing::Behind(Predecessor {
            key: unshared(&first.key),
            create_revision: first.create_revision,
            is_first: !line.more && contenders.next().is_none(),
            is_noisy: false,
            // Where a predecessor may let us pass, it is not enough that it stands.
            among_many: self.open.is_none() && line.count > MANY,
            seen_at,
        }))
    }

    /// Whether there is none in the line of which these are the youngest. None where that does not tell.
    fn no_contender(&self, line: &pb::RangeResponse) -> Option<bool> {
        match line.kvs.iter().any(|kv| self.counts(kv)) {
            true => Some(false),
            false => (!line.more).then_some(true),
        }
    }

    fn counts(&self, kv: &KeyValue) -> bool {
        let counts = (self.claim)(&self.ahead, &kv.key).holds(kv.lease);
        if !counts {
            foreign::passed_over(&self.ahead, &kv.key);
        }
        counts
    }

    /// Whether the values are left out of a read of so many keys, and from etcd 3.7 on their leases. Of the youngest two both
    /// are read: they tell mostly who is before us.
    fn keys_alone(&self, limit: i64) -> bool {
        self.open.is_none() && limit != TWO
    }

    /// The youngest keys of the line, or of those up to a create_revision.
    fn youngest(&self, limit: i64, max_create_revision: i64) -> Op {
        pb::RangeRequest {
            keys_only: self.keys_alone(limit),
            ..by_youth(&self.ahead, limit, max_create_revision)
        }
        .into()
    }
}

impl Look for Line {
    async fn look(&self, place: &mut Owned) -> Result<Standing> {
        let before = self.before(place.session(), place.fence().token()).await?;
        seen(place, before).await
    }
}

/// An error where the place no longer is one.
async fn seen(place: &mut Owned, before: Option<(Standing, pb::ResponseHeader, Last)>) -> Result<Standing> {
    match before {
        Some((standing, header, _)) => {
            place.proven_at(header.revision);
            Ok(standing)
        }
        None => Err(place.fence().why().await.into()),
    }
}

/// Reads of one key whether it is there, and since when.
pub(super) fn look_at(key: &Bytes) -> Op {
    pb::RangeRequest { key: key.clone(), keys_only: true, ..Default::default() }.into()
}

fn endless() -> crate::error::Error {
    unexpected("a read without a limit left keys out")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line::behind(&Bytes::from_static(b"lock/"), &Bytes::from_static(b"lock/b"))
    }

    fn kv(key: &'static str, create_revision: i64) -> KeyValue {
        let lease = key.rsplit('/').next().and_then(|own| i64::from_str_radix(own, 16).ok());
        KeyValue { key: key.into(), create_revision, lease: lease.unwrap_or_default(), ..Default::default() }
    }

    fn range(kvs: &[KeyValue], count: i64) -> pb::RangeResponse {
        let more = kvs.len() < usize::try_from(count).unwrap();
        pb::RangeResponse { kvs: kvs.to_vec(), count, more, header: None }
    }

    fn before(line: &Line, kvs: &[KeyValue], count: i64) -> Option<Standing> {
        line.behind_first(kvs, &range(kvs, count), 9)
    }

    /// A predecessor that let readers pass before their watch had begun was found to stand, and they waited for its end.
    #[test]
    fn a_line_that_lets_pass_is_read_again_however_long_it_is() {
        let among_many = |line: &Line, keys| match before(line, &[kv("lock/a", 2)], keys) {
            Some(Standing::Behind(predecessor)) => predecessor.among_many,
            other => panic!("somebody is ahead: {other:?}"),
        };
        assert!(among_many(&line(), MANY + 1) && !among_many(&line(), MANY));
        assert!(!among_many(&line().past(b"open"), MANY + 1));
    }

    /// 8 of a waiter's 13.8 KB were the buffer of the reply that its predecessor's key is from.
    #[test]
    fn a_predecessor_keeps_no_reply_in_memory() {
        let reply = Bytes::from(b"lock/a".to_vec());
        let ahead = [KeyValue { key: reply.slice(..), create_revision: 2, lease: 10, ..Default::default() }];
        let (waits, asks) = (before(&line(), &ahead, 1), Predecessor::one_of_many(&ahead[0], 3));
        drop(ahead);
        assert!(reply.is_unique(), "{waits:?}, {asks:?}");
    }

    #[test]
    fn keys_that_are_no_contenders_are_passed_over() {
        let (owner, below) = (kv("lock/owner", 7), kv("lock/x/5", 6));
        let behind = |standing: Option<Standing>| match standing {
            Some(Standing::Behind(predecessor)) => (predecessor.key, predecessor.is_first),
            other => panic!("behind nobody: {other:?}"),
        };
        let both = [owner.clone(), below];
        assert_eq!(before(&line(), &both, 2), Some(Standing::First));
        assert_eq!(before(&line(), &both, 3), None, "an older one may be a contender's");
        let contender = [owner, kv("lock/5", 5)];
        assert_eq!(behind(before(&line(), &contender, 2)), ("lock/5".into(), true));
        assert_eq!(behind(before(&line(), &contender, 3)), ("lock/5".into(), false));
        assert_eq!(line().no_contender(&range(&both, 2)), Some(true));
        assert_eq!(line().no_contender(&range(&both, 3)), None);
        assert_eq!(line().no_contender(&range(&contender, 3)), Some(false));
        // A user's, though it looks like one.
        let order = [KeyValue { lease: 0, ..kv("lock/1001", 8) }, KeyValue { lease: 7, ..kv("lock/5", 5) }];
        assert_eq!(before(&line(), &order, 2), Some(Standing::First));
        assert_eq!(line().no_contender(&range(&order, 2)), Some(true));
    }
}
