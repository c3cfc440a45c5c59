//! Operations drawn from a seed: few keys, few leases, revisions near those that matter.

mod txns;

use std::collections::BTreeSet;

use bytes::Bytes;
use etcd_concurrency::pb::etcdserverpb::range_request::SortTarget;
use etcd_concurrency::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, WatchCreateRequest,
};
use fastrand::Rng;

use super::op::{CLIENTS, Op, STREAMS};
use super::ties::STABLE;
use super::users::{self, AuthOp};
use crate::support::etcd::Version;

/// How the servers of a sequence are set up, and what is not asked of old ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub(super) version: Version,
    pub(super) max_request_bytes: usize,
    pub(super) max_txn_ops: usize,
    /// Values of kilobytes, so that streams and watch responses come in pieces.
    pub(super) fat: bool,
    /// Leases that end by themselves: each takes three seconds.
    pub(super) expiring: bool,
    /// Users, and who may do what.
    pub(super) users: bool,
}

impl Profile {
    pub(super) fn of(seed: u64, version: Version) -> Profile {
        let fat = seed.is_multiple_of(4);
        let max_request_bytes = if fat { 16 << 10 } else { 3 << 19 };
        Profile {
            version,
            max_request_bytes,
            max_txn_ops: if seed.is_multiple_of(3) { 128 } else { 6 },
            fat,
            expiring: seed.is_multiple_of(5),
            // 3.4 asks nobody who they are before it grants or tells of leases.
            users: seed % 5 == 1 && version >= Version::V3_5,
        }
    }
}

/// What is known of the store when an operation is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) revision: i64,
    pub(super) compacted: i64,
}

pub(super) struct Generator {
    rng: Rng,
    profile: Profile,
    view: View,
    /// Whether the transaction that is drawn may keep values and leases, instead of deleting up to the end.
    ///
    /// Not both: deletes up to the end are not held against the puts of a transaction, and etcd (3.7.3 too)
    /// dies of a put that is to keep the value or lease of a key that its own transaction has deleted.
    keeps: bool,
    /// Whether the operations that are drawn are done in any order.
    racing: bool,
    /// Revisions that may have deleted a key and put it again. After a compaction up to one of them etcd (3.7.3
    /// too) dies of the next read of such a key.
    fragile: BTreeSet<i64>,
}

impl Generator {
    pub(super) fn new(seed: u64, profile: Profile) -> Generator {
        Generator {
            rng: Rng::with_seed(seed),
            profile,
            view: View { revision: 1, compacted: -1 },
            keeps: false,
            racing: false,
            fragile: BTreeSet::new(),
        }
    }

    pub(super) fn next(&mut self, view: View) -> Op {
        self.view = view;
        if self.profile.expiring && self.one_in(150) {
            return self.expiry();
        }
        if self.one_in(40) {
            return self.race();
        }
        if !self.profile.users {
            return self.plain();
        }
        let (key, end) = (self.key(), self.one_in(2));
        let range_end = if end { self.range_end(&key) } else { Bytes::new() };
        let op = if self.one_in(5) {
            Op::Auth(users::draw(&mut self.rng, self.profile.version, key, range_end))
        } else {
            self.plain()
        };
        match op {
            Op::Watch(..) | Op::Cancel(..) | Op::Progress(_) | Op::Reopen(_) => op,
            // The runner stays who it is.
            op @ Op::Auth(AuthOp::LogIn(_)) => Op::As(self.rng.usize(1..CLIENTS), Box::new(op)),
            op => Op::As(self.rng.usize(0..CLIENTS), Box::new(op)),
        }
    }

    fn plain(&mut self) -> Op {
        match self.rng.u32(0..200) {
            0..43 => Op::Put(self.put()),
            43 => Op::Put(self.large_put()),
            44..84 => Op::Range(self.range()),
            84..94 if self.profile.version == Version::V3_7 => Op::RangeStream(self.range_stream()),
            84..110 => Op::Delete(self.delete()),
            110..148 => Op::Txn(self.txn(0)),
            148..152 => Op::Compact(self.compaction()),
            152..158 => Op::Grant(self.grant()),
            158..160 => Op::GrantAndRevoke(self.grant_and_revoke()),
            160..163 => Op::Revoke(self.lease()),
            163..168 => Op::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: self.one_in(2) }),
            168..170 => Op::Leases,
            170..173 => Op::KeepAlive((0..self.rng.usize(1..4)).map(|_| self.lease()).collect()),
            // Its hash is of another make before 3.6.
            173..177 if self.profile.version >= Version::V3_6 => Op::HashKv(self.revision()),
            173..188 => Op::Watch(self.stream(), self.watch()),
            188..192 => Op::Cancel(self.stream(), self.watch_id()),
            // 3.4 tells of progress where later versions hold it back.
            192..199 if self.profile.version >= Version::V3_5 => Op::Progress(self.stream()),
            _ => Op::Reopen(self.stream()),
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn stream(&mut self) -> usize {
        self.rng.usize(0..STREAMS)
    }

    /// Mostly one of few; more than the ten that fit into the first piece of a streamed range.
    fn key(&mut self) -> Bytes {
        match self.rng.u32(0..100) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            2 => Bytes::from_static(b"\xff\xff"),
            3..60 => Bytes::copy_from_slice(&[b'a' + self.rng.u8(0..6)]),
            60..75 => Bytes::copy_from_slice(&[b'b', b'a' + self.rng.u8(0..4)]),
            _ => Bytes::copy_from_slice(&[b'k', b'/', b'a' + self.rng.u8(0..20)]),
        }
    }

    /// Of `key`: alone, its prefix, all above it, up to another (which may lie below it).
    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.u32(0..10) {
            0..3 => Bytes::new(),
            3..5 => Bytes::from_static(b"\0"),
            5..7 => {
                let mut end = key.to_vec();
                match end.last_mut() {
                    Some(last) => *last = last.wrapping_add(1),
                    None => end.push(0),
                }
                end.into()
            }
            7 => Bytes::from_static(b"z"),
            // Whether permissions hold for a range that ends before it starts, and what such permissions are good
            // for, hangs on the shape of a tree.
            _ => Some(self.key()).filter(|end| !self.profile.users || end > key).unwrap_or_default(),
        }
    }

    fn value(&mut self) -> Bytes {
        let length = match self.rng.u32(0..200) {
            // Too large with all that is around it. How large a request may be to the byte hangs on the
            // server's member id, which is in every proposal as a number of 9 or 10 bytes.
            0 => self.profile.max_request_bytes - self.rng.usize(0..16),
            1..100 if self.profile.fat => self.rng.usize(500..5000),
            _ => self.rng.usize(0..3),
        };
        vec![b'0' + self.rng.u8(0..4); length].into()
    }

    fn lease(&mut self) -> i64 {
        *self.rng.choice(&[1, 2, 3, 4, 5, -3, i64::MAX]).unwrap_or(&1)
    }

    /// Now, in the past, compacted, yet to come, or no revision at all.
    fn revision(&mut self) -> i64 {
        let View { revision, compacted } = self.view;
        match self.rng.u32(0..100) {
            0..40 => 0,
            40..80 => self.rng.i64(compacted.max(1)..=revision),
            80..86 => compacted + self.rng.i64(-1..=1),
            86..90 => revision + self.rng.i64(-1..=2),
            90..92 => 1,
            92..94 => -self.rng.i64(1..4),
            94..95 => i64::MAX,
            _ => revision,
        }
    }

    fn put(&mut self) -> PutRequest {
        let lease = if self.one_in(4) && !self.racing { self.lease() } else { 0 };
        PutRequest {
            key: self.key(),
            value: if self.one_in(8) { Bytes::new() } else { self.value() },
            lease,
            prev_kv: self.one_in(3),
            // Before 3.7 a missing key is told before a missing lease.
            ignore_value: self.one_in(12)
                && !self.racing
                && (lease == 0 || self.profile.version >= Version::V3_7),
            ignore_lease: self.one_in(12) && !self.racing,
        }
    }

    /// It just fits.
    fn large_put(&mut self) -> PutRequest {
        let length =
            if self.one_in(4) || self.profile.fat { self.profile.max_request_bytes - 90 } else { 100 };
        PutRequest { value: vec![b'+'; length].into(), ..self.put() }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        // Seldom many at once: an empty store has nothing to tell.
        let range_end = if self.one_in(4) { self.range_end(&key) } else { Bytes::new() };
        DeleteRangeRequest { key, range_end, prev_kv: self.one_in(2) }
    }

    fn range(&mut self) -> RangeRequest {
        let plain = self.one_in(4);
        let key = self.key();
        let range_end = self.range_end(&key);
        let mut filter = |one_in| if !plain && self.one_in(one_in) { self.revision() } else { 0 };
        let (min_mod_revision, max_mod_revision) = (filter(6), filter(6));
        let (min_create_revision, max_create_revision) = (filter(6), filter(6));
        RangeRequest {
            key,
            range_end,
            limit: if self.one_in(3) { self.rng.i64(-1..14) } else { 0 },
            revision: if self.racing { 0 } else { self.revision() },
            sort_order: if plain { 0 } else { self.sort(3) },
            sort_target: if plain { 0 } else { self.sort(5) },
            serializable: self.one_in(3) && !self.racing,
            // It comes with leases before 3.7.
            keys_only: self.one_in(6) && self.profile.version >= Version::V3_7,
            count_only: self.one_in(8),
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }

    /// One of so many, or none of them: that is refused, but before 3.6 it could end a server.
    fn sort(&mut self, choices: i32) -> i32 {
        let wrong = self.profile.version >= Version::V3_6 && self.one_in(60);
        if wrong { choices + self.rng.i32(0..2) } else { self.rng.i32(0..choices) }
    }

    fn range_stream(&mut self) -> RangeRequest {
        let mut range = self.range();
        if self.one_in(4) {
            if range.sort_target() != SortTarget::Key && range.limit == 0 {
                range.limit = STABLE;
            }
            return range;
        }
        let ascending = self.rng.i32(0..2);
        let RangeRequest { key, limit, revision, serializable, keys_only, count_only, .. } = range;
        let (key, range_end) = if self.one_in(2) {
            (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
        } else {
            (key, range.range_end)
        };
        RangeRequest {
            key,
            range_end,
            limit,
            revision,
            serializable,
            keys_only,
            count_only,
            sort_order: ascending,
            ..Default::default()
        }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let View { revision, compacted } = self.view;
        let mut revision = match self.rng.u32(0..20) {
            0..12 => self.rng.i64(compacted..=(compacted.max(0) + revision) / 2),
            12..15 => compacted - self.rng.i64(0..2),
            15..17 => revision,
            17 => revision + 1,
            _ => self.revision(),
        };
        while self.fragile.contains(&revision) {
            revision -= 1;
        }
        CompactionRequest { revision, physical: self.one_in(2) }
    }

    /// Long enough never to end meanwhile, and far enough apart to end in a known order.
    fn grant(&mut self) -> LeaseGrantRequest {
        let ttl = match self.rng.u32(0..12) {
            0 => 9_000_000_001,
            1 => i64::MAX,
            2 => 9_000_000_000,
            _ => 10_000 * self.rng.i64(1..1000),
        };
        LeaseGrantRequest { id: self.lease(), ttl }
    }

    fn grant_and_revoke(&mut self) -> LeaseGrantRequest {
        let id = if self.one_in(2) { 0 } else { 77 };
        LeaseGrantRequest { id, ttl: *self.rng.choice(&[-5, 0, 1, 2, 3, 10_000]).unwrap_or(&2) }
    }

    /// Put on it and taken off it again are keys, while it lives.
    fn expiry(&mut self) -> Op {
        let grant = LeaseGrantRequest { id: 99, ttl: self.rng.i64(-1..=2) };
        let ops = (0..self.rng.usize(1..6)).map(|_| match self.rng.u32(0..6) {
            0 => Op::KeepAlive(vec![grant.id]),
            1 => Op::Delete(self.delete()),
            n => {
                let lease = if n == 2 { self.lease() } else { grant.id };
                Op::Put(PutRequest { lease, ignore_lease: false, ..self.put() })
            }
        });
        let ops = ops.collect();
        Op::Expire(grant, ops)
    }

    /// Each succeeds or fails whatever comes before it.
    fn race(&mut self) -> Op {
        self.racing = true;
        let ops = (0..self.rng.usize(2..9)).map(|_| match self.rng.u32(0..4) {
            0 => Op::Put(self.put()),
            1 => Op::Delete(self.delete()),
            2 => Op::Range(self.range()),
            _ => Op::Txn(self.txn(0)),
        });
        let ops = ops.collect();
        self.racing = false;
        Op::Race(ops)
    }

    fn watch_id(&mut self) -> i64 {
        *self.rng.choice(&[0, 0, 1, 2, 3, 7, -5]).unwrap_or(&0)
    }

    fn watch(&mut self) -> WatchCreateRequest {
        let key = self.key();
        let start_revision = if self.one_in(4) { 1 } else { self.revision() };
        // 3.4 takes a negative one for the past.
        let start_revision =
            if self.profile.version == Version::V3_4 { start_revision.max(0) } else { start_revision };
        // And it forgets the deletions of a compaction's own revision.
        let from_compaction = start_revision > 0 && start_revision == self.view.compacted;
        let start_revision = if self.profile.version == Version::V3_4 && from_compaction {
            start_revision + 1
        } else {
            start_revision
        };
        let filters = match self.rng.u32(0..8) {
            0 => vec![0],
            1 => vec![1],
            // Such a watcher never hears anything, and nobody can tell when it has caught up.
            2 if start_revision <= 0 => vec![0, 1],
            3 => vec![1, 1],
            _ => vec![],
        };
        WatchCreateRequest {
            range_end: self.range_end(&key),
            key,
            start_revision,
            progress_notify: self.one_in(4),
            filters,
            prev_kv: self.one_in(2),
            watch_id: if self.one_in(2) { 0 } else { self.watch_id() },
            fragment: self.one_in(2),
        }
    }
}
