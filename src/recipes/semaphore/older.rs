//! Those who asked for permits before us, and where one stands behind them.

use bytes::Bytes;

use super::asking::{HELD, Rank};
use super::limit::Permits;
use crate::key::{Claim, drawn_by};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::waitlist::Predecessor;

/// The keys that are older than ours, as they were at one revision.
pub(super) struct Older {
    /// The youngest of them first.
    kvs: Vec<KeyValue>,
    /// There are no others.
    all: bool,
    limit: Permits,
    revision: i64,
}

impl Older {
    /// By the youngest keys of a queue, some of which may be ours, or younger.
    pub(super) fn of(
        queue: &Bytes,
        line: &pb::RangeResponse,
        token: i64,
        limit: Permits,
        revision: i64,
    ) -> Self {
        let is_older =
            |kv: &&KeyValue| kv.create_revision < token && contender(queue, &kv.key).holds(kv.lease);
        Self { kvs: line.kvs.iter().filter(is_older).cloned().collect(), all: !line.more, limit, revision }
    }

    /// Where one stands behind them. None where that takes more of them.
    ///
    /// A key without a mark waits, if it never was among the first that there were permits for. It was not where the number
    /// of permits was the same all the time that it is there; and where that was changed, if there never were as many as are
    /// older now.
    pub(super) fn rank(&self, permits: u32) -> Option<Rank> {
        let older = u32::try_from(self.kvs.len()).unwrap_or(u32::MAX);
        if self.all && older.saturating_add(permits) <= self.limit.now {
            return Some(Rank::In);
        }
        match self.kvs.first().filter(|_| older > self.limit.now) {
            Some(youngest)
                if youngest.value != HELD
                    && (youngest.create_revision > self.limit.since || older > self.limit.most) =>
            {
                Some(Rank::Behind(Predecessor::one_of_many(youngest, self.revision)))
            }
            // With more than can ever have held, it is not worth knowing all.
            Some(_) => (self.all || older > self.limit.most).then_some(Rank::First),
            None => self.all.then_some(Rank::First),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit.now
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn into_keys(self) -> impl Iterator<Item = Bytes> {
        self.kvs.into_iter().map(|kv| kv.key)
    }
}

/// Whose a key in a queue is, by its shape: drawn, and of several permits numbered.
pub(super) fn contender(queue: &[u8], key: &[u8]) -> Claim {
    let Some(own) = key.strip_prefix(queue) else { return Claim::None };
    let (drawn, number) = match own.iter().position(|&byte| byte == b'.') {
        None => (own, &b"0"[..]),
        Some(dot) => (&own[..dot], &own[dot + 1..]),
    };
    let is_number = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    drawn_by(drawn).filter(|_| is_number).map_or(Claim::None, Claim::Of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Bytes = Bytes::from_static(b"s/queue/");

    fn older(all: usize, shown: usize, value: &'static str, limit: Permits) -> Older {
        let key = |n: usize| Bytes::from(format!("s/queue/5-{n:016x}"));
        let kv = |n: usize| KeyValue {
            key: key(n),
            value: value.into(),
            lease: 5,
            create_revision: 10 + i64::try_from(n).unwrap(),
            ..Default::default()
        };
        let kvs = (0..all).rev().take(shown).map(kv).collect();
        let line = pb::RangeResponse { kvs, more: shown < all, count: 0, header: None };
        Older::of(&QUEUE, &line, 1000, limit, 1000)
    }

    fn told(older: &Older) -> &'static str {
        match older.rank(1) {
            None => "more",
            Some(Rank::In) => "in",
            Some(Rank::First) => "first",
            Some(Rank::Behind(_)) => "behind",
        }
    }

    #[test]
    fn where_one_stands_is_told_or_takes_more() {
        let three = Permits { now: 3, most: 3, since: 2 };
        let told = |all, shown| told(&older(all, shown, "", three));
        assert_eq!([told(2, 4), told(3, 4), told(4, 4), told(9, 4)], ["in", "first", "behind", "behind"]);
        assert_eq!(told(9, 3), "more");
    }

    /// After there are fewer permits, the predecessor that holds one too many was taken for one that waits: who stood behind
    /// it slept until it looked for itself, beside permits that were free.
    #[test]
    fn one_that_may_hold_a_permit_too_many_is_not_taken_for_one_that_waits() {
        let fewer = Permits { now: 2, most: 5, since: 100 };
        let told = |all, shown, limit| told(&older(all, shown, "", limit));
        assert_eq!([told(5, 9, fewer), told(1, 9, fewer), told(6, 9, fewer)], ["first", "in", "behind"]);
        assert_eq!([told(9, 3, fewer), told(9, 6, fewer)], ["more", "behind"]);
        // It came after the change.
        assert_eq!(told(5, 9, Permits { since: 12, ..fewer }), "behind");
    }

    #[test]
    fn other_keys_hold_no_permit() {
        let contenders = ["5-0123456789abcdef", "5-0123456789abcdef.0", "7587-0123456789abcdef.119"];
        for own in contenders {
            assert_ne!(contender(&QUEUE, format!("s/queue/{own}").as_bytes()), Claim::None, "{own}");
        }
        for own in ["", "5", "owner", "5-0123456789abcdef.", "5-0123456789abcdef.x", "a/5-0123456789abcdef"] {
            assert_eq!(contender(&QUEUE, format!("s/queue/{own}").as_bytes()), Claim::None, "{own}");
        }
    }
}
