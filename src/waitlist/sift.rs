//! Telling contenders' keys from users' keys that are called like them, where a read has left the leases out.

use bytes::Bytes;

use super::line::{Line, look_at};
use crate::error::Result;
use crate::key::{Claim, others, prefix_end};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{Compare, Op, Txn};

impl Line {
    /// Fills in the leases of the youngest keys of a line, down to the first contender's; those behind it are taken for
    /// contenders'. A key that has gone since gets none.
    ///
    /// Gives the header of the answer that tells, if one was needed: at its revision our key, of this create_revision, stood.
    /// None where it did not.
    pub(super) async fn sift(
        &self,
        session: &Session,
        line: &mut pb::RangeResponse,
        own: Option<i64>,
    ) -> Result<Option<Option<pb::ResponseHeader>>> {
        let mut header = None;
        let mut from = 0;
        loop {
            let unknown = self.unknown(&line.kvs, from);
            if unknown.is_empty() {
                self.assume(&mut line.kvs, from);
                return Ok(Some(header));
            }
            let is_one = |&(index, lease): &(usize, i64)| {
                let KeyValue { key, create_revision, .. } = &line.kvs[index];
                let same = Compare::create_revision(key.clone()).is(*create_revision);
                Op::txn(Txn::new().compare(same).compare(Compare::lease(key.clone()).is(lease)))
            };
            let look = || look_at(self.key());
            let txn = self.without_lease().into_iter().fold(Txn::new(), Txn::compare);
            let txn = unknown.iter().map(is_one).fold(txn.success(look()).failure(look()), Txn::failure);
            let reply = session.read(txn).await?;
            let found = reply.found(0)?.first().map(|kv| kv.create_revision);
            if own.is_some() && found != own {
                return Ok(None);
            }
            header = Some(reply.header);
            if reply.succeeded {
                return Ok(Some(header));
            }
            let mut any = false;
            for (at, (index, lease)) in unknown.iter().enumerate() {
                if reply.inner_succeeded(at + 1) == Some(true) {
                    line.kvs[*index].lease = *lease;
                    any = true;
                }
            }
            from = unknown.last().map_or(from, |(last, _)| last + 1);
            if any {
                self.assume(&mut line.kvs, from);
                return Ok(Some(header));
            }
        }
    }

    /// Takes all from there on for contenders'.
    fn assume(&self, kvs: &mut [KeyValue], from: usize) {
        for kv in &mut kvs[from..] {
            if let Claim::Of(lease) = (self.claim)(&self.ahead, &kv.key) {
                kv.lease = lease;
            }
        }
    }

    /// Those that are contenders' if they have the lease that they name, down to one that is in any case.
    fn unknown(&self, kvs: &[KeyValue], from: usize) -> Vec<(usize, i64)> {
        let claims =
            kvs.iter().enumerate().skip(from).map(|(index, kv)| (index, (self.claim)(&self.ahead, &kv.key)));
        let named = |(index, claim)| match claim {
            Claim::Of(lease) => Some((index, lease)),
            Claim::None | Claim::Any => None,
        };
        claims.take_while(|(_, claim)| *claim != Claim::Any).filter_map(named).take(AT_ONCE).collect()
    }

    /// No key of the line but our own has a lease: users' keys mostly have none.
    fn without_lease(&self) -> Vec<Compare> {
        let (start, own) = (&self.ahead, self.key());
        let none = |(from, to): (Bytes, Bytes)| Compare::lease(from).is(0).up_to(to);
        match own.starts_with(start) {
            true => others(start, own).map(none).into(),
            false => vec![none((start.clone(), prefix_end(start)))],
        }
    }
}

/// A server takes 128 operations in one transaction by default.
const AT_ONCE: usize = 100;
