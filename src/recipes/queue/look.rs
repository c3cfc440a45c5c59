//! Looking for the first item that nobody has in hand, with as little reading as that takes.

use std::collections::HashSet;

use bytes::Bytes;

use super::keys::{Head, Keys};
use crate::key::{name_prefix, prefix_end};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::txn::{Op, TxnReply, by_age, count};

/// What is read in a look: claims, the count of those who wait, and the first items.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    /// How many items are read: one more than are in hand will do.
    limit: i64,
    /// Where places begin with a priority, the one whose items are read by age; empty for none yet.
    level: Option<Bytes>,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Looked {
    /// The first item that nobody has in hand.
    pub(super) head: Option<Head>,
    /// The look did not reach far enough to tell: this one does.
    pub(super) more: Option<Look>,
    pub(super) claims: usize,
    pub(super) waiting: i64,
    pub(super) revision: i64,
}

impl Looked {
    /// An item that an event told of.
    pub(super) fn at(head: Head) -> Self {
        let revision = head.mod_revision;
        Self { head: Some(head), more: None, claims: 0, waiting: 0, revision }
    }
}

impl Look {
    pub(super) fn new(level: Option<Bytes>, claims: usize) -> Self {
        // The item behind the first free one shows whether that is the only one of its level.
        let next = i64::from(level.is_some());
        Self { limit: limit(claims) + next, level }
    }

    /// The same, over twice as many items.
    pub(super) fn further(self) -> Self {
        Self { limit: self.limit.saturating_mul(2).min(i64::from(i32::MAX)), ..self }
    }

    pub(super) fn ops(&self, keys: &Keys) -> Vec<Op> {
        let all = |prefix: &Bytes| pb::RangeRequest {
            key: prefix.clone(),
            range_end: prefix_end(prefix),
            keys_only: true,
            ..Default::default()
        };
        let by_age = |prefix| pb::RangeRequest { keys_only: true, ..by_age(prefix, self.limit) };
        let mut ranges = vec![all(&keys.claims), count(&name_prefix(&keys.waiting))];
        match &self.level {
            None => ranges.push(by_age(&keys.items)),
            Some(level) => {
                // In the order of the keys: the server reads no more of them than it gives.
                ranges.push(pb::RangeRequest { limit: self.limit, ..all(&keys.items) });
                if !level.is_empty() {
                    ranges.push(by_age(&keys.item(level)));
                }
            }
        }
        ranges.into_iter().map(Op::from).collect()
    }

    /// Reads the answers of a transaction from the one at `from` on. None where they are not there.
    pub(super) fn read(&self, keys: &Keys, reply: &TxnReply, from: usize) -> Option<Looked> {
        let claimed: HashSet<&[u8]> =
            reply.kvs(from)?.iter().filter_map(|kv| kv.key.strip_prefix(&keys.claims[..])).collect();
        let is_free = |head: &Head| !claimed.contains(&head.place[..]);
        let free = |kvs: &[KeyValue]| kvs.iter().filter_map(|kv| keys.head(kv)).find(is_free);
        let claims = claimed.len();
        let further = |level| Some(Look { limit: limit(claims).max(self.limit), level });
        let first = reply.ranged(from + 2)?;
        let (mut head, mut more) = (free(&first.kvs), None);
        match (&head, &self.level) {
            // All that were read are in hand, and there are others.
            (None, level) if first.more => more = further(level.clone()),
            (Some(urgent), Some(level)) => {
                let urgent = urgent.level();
                head = match *level == urgent {
                    // An item without a priority, which a third party has put, has no level that it could be the oldest of.
                    _ if urgent.is_empty() => head,
                    true => free(&reply.ranged(from + 3)?.kvs),
                    // Another level than the one that was read by age, as at each look beside a quicker consumer. Its oldest is
                    // known all the same where the first items are all of it.
                    false => whole(keys, first, &urgent).and_then(|heads| {
                        heads.into_iter().filter(is_free).min_by_key(|head| head.create_revision)
                    }),
                };
                if head.is_none() {
                    more = further(Some(urgent));
                }
            }
            _ => {}
        }
        let waiting = reply.ranged(from + 1)?.count;
        Some(Looked { head, more, claims, waiting, revision: reply.header.revision })
    }
}

/// The items of a level, if all of them are among the first that were read: the last of those is of another, or there are no more.
fn whole(keys: &Keys, first: &pb::RangeResponse, level: &Bytes) -> Option<Vec<Head>> {
    let heads = Vec::from_iter(first.kvs.iter().filter_map(|kv| keys.head(kv)));
    let is_of_it = |head: &Head| head.place.starts_with(level);
    let ends = !first.more || heads.last().is_some_and(|last| !is_of_it(last));
    ends.then(|| heads.into_iter().filter(is_of_it).collect())
}

fn limit(claims: usize) -> i64 {
    i64::try_from(claims).unwrap_or(i64::MAX - 1) + 1
}
