//! What an attempt has read and written: from reads and writes to compares and operations, and from the answer of a
//! commit that failed to what the next attempt knows.
//!
//! What is known once stays as it is: whatever the isolation, one key has one value within an attempt.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::Isolation;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::txn::{Compare, Op};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};

/// A key or a range, as the wire has it: no end for a single key, an end of `\0` for all keys from the start on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) start: Bytes,
    pub(super) end: Bytes,
}

impl Span {
    pub(super) fn key(key: Bytes) -> Self {
        Self { start: key, end: Bytes::new() }
    }

    pub(super) fn range(start: Bytes, end: Bytes) -> Self {
        Self { start, end }
    }

    pub(super) fn request(&self) -> pb::RangeRequest {
        pb::RangeRequest { key: self.start.clone(), range_end: self.end.clone(), ..Default::default() }
    }

    fn is_key(&self) -> bool {
        self.end.is_empty()
    }

    fn is_endless(&self) -> bool {
        self.end == b"\0"[..]
    }

    fn holds(&self, key: &[u8]) -> bool {
        match self.is_key() {
            true => &self.start[..] == key,
            false => &self.start[..] <= key && (self.is_endless() || key < &self.end[..]),
        }
    }

    /// Whoever has read this has read the other.
    fn covers(&self, other: &Span) -> bool {
        match (self.is_key(), other.is_key()) {
            (_, true) => self.holds(&other.start),
            (true, false) => false,
            (false, false) => {
                let ends_in = self.is_endless() || !other.is_endless() && other.end <= self.end;
                self.start <= other.start && ends_in
            }
        }
    }

    /// Of a range.
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = if self.is_endless() { Bound::Unbounded } else { Bound::Excluded(&self.end[..]) };
        (Bound::Included(&self.start[..]), end)
    }
}

/// A key as it was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    /// None for a missing key.
    pub(super) value: Option<Bytes>,
    /// 0 for a missing key.
    pub(super) mod_revision: i64,
    /// The closure asked for this key; otherwise it is known without having been asked for, or as part of a range.
    asked: bool,
}

/// What is to be written to a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    Put { value: Bytes, lease: i64 },
    PutKeepLease { value: Bytes },
    Delete,
}

impl Write {
    fn value(&self) -> Option<&Bytes> {
        match self {
            Write::Put { value, .. } | Write::PutKeepLease { value } => Some(value),
            Write::Delete => None,
        }
    }

    fn op(&self, key: Bytes) -> Op {
        match self.clone() {
            Write::Put { value, lease } => Op::put_with_lease(key, value, lease),
            Write::PutKeepLease { value } => {
                pb::PutRequest { key, value, ignore_lease: true, ..Default::default() }.into()
            }
            Write::Delete => Op::delete(key),
        }
    }
}

/// The read set and the write set of one attempt.
#[derive(Debug, Clone)]
pub(super) struct Sets {
    isolation: Isolation,
    /// Of the snapshot where there is one, else the newest that was read at; 0 before the first read.
    revision: i64,
    keys: BTreeMap<Bytes, Seen>,
    /// The ranges of which all keys are known, and whether the closure asked for them.
    ranges: BTreeMap<Span, bool>,
    writes: BTreeMap<Bytes, Write>,
}

impl Sets {
    pub(super) fn new(isolation: Isolation) -> Self {
        let (keys, ranges, writes) = Default::default();
        Self { isolation, revision: 0, keys, ranges, writes }
    }

    /// The revision that the next read is to be at; 0 for whichever there is.
    pub(super) fn pin(&self) -> i64 {
        if self.isolation.has_snapshot() { self.revision } else { 0 }
    }

    /// Where the attempt read; 0 if it did not.
    pub(super) fn revision(&self) -> i64 {
        if self.has_read() { self.revision } else { 0 }
    }

    pub(super) fn has_read(&self) -> bool {
        self.ranges.values().any(|asked| *asked) || self.keys.values().any(|seen| seen.asked)
    }

    pub(super) fn has_written(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Of these, what has not been read yet, each once.
    pub(super) fn unknown(&self, mut spans: Vec<Span>) -> Vec<Span> {
        spans.sort();
        spans.dedup();
        spans.retain(|span| !self.knows(span));
        spans
    }

    /// Takes in what was read, of one revision. It has not been asked for yet.
    pub(super) fn learn(&mut self, read: impl IntoIterator<Item = (Span, Vec<KeyValue>)>, revision: i64) {
        if self.pin() == 0 {
            self.revision = self.revision.max(revision);
        }
        for (span, found) in read {
            for kv in found {
                if span.holds(&kv.key) && !self.knows(&Span::key(kv.key.clone())) {
                    let seen = Seen { value: Some(kv.value), mod_revision: kv.mod_revision, asked: false };
                    self.keys.insert(kv.key, seen);
                }
            }
            match span.is_key() {
                true => drop(self.keys.entry(span.start).or_default()),
                false => drop(self.ranges.entry(span).or_default()),
            }
        }
    }

    /// What this attempt itself wrote to a key, if it did: None within for a delete.
    pub(super) fn written(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.writes.get(key).map(|write| write.value().cloned())
    }

    /// A key as it was read, which counts as asked for from here on. None if it is not known yet.
    pub(super) fn ask_key(&mut self, key: &Bytes) -> Option<Seen> {
        if !self.knows(&Span::key(key.clone())) {
            return None;
        }
        // Missing, where it is known from a range.
        let seen = self.keys.entry(key.clone()).or_default();
        seen.asked = true;
        Some(seen.clone())
    }

    /// The same of a range, with the attempt's own writes laid over it.
    pub(super) fn ask_range(&mut self, range: &Span) -> Option<Vec<(Bytes, Bytes)>> {
        if !self.knows(range) {
            return None;
        }
        self.ranges.insert(range.clone(), true);
        let seen = self.keys.range::<[u8], _>(range.bounds());
        let mut found: BTreeMap<_, _> = seen.map(|(key, seen)| (key, seen.value.as_ref())).collect();
        let written = self.writes.range::<[u8], _>(range.bounds());
        found.extend(written.map(|(key, write)| (key, write.value())));
        let present = |(key, value): (&Bytes, Option<&Bytes>)| Some((key.clone(), value?.clone()));
        Some(found.into_iter().filter_map(present).collect())
    }

    /// Takes in a write, which is on top of this attempt's earlier one of the same key: the two are to do what they
    /// would in two transactions in a row. Only one of them can be sent, since the server refuses two writes of a key.
    pub(super) fn write(&mut self, key: Bytes, write: Write) -> Result<()> {
        let write = match (write, self.writes.get(&key)) {
            // The lease that it keeps is the one that this attempt has given it.
            (Write::PutKeepLease { value }, Some(&Write::Put { lease, .. })) => Write::Put { value, lease },
            (Write::PutKeepLease { .. }, Some(Write::Delete)) => {
                let message = "the attempt has deleted the key whose lease is to be kept".into();
                return Err(Error::new(ErrorKind::Refused { message }, Outcome::NotApplied));
            }
            (write, _) => write,
        };
        self.writes.insert(key, write);
        Ok(())
    }

    /// What must hold for the commit.
    pub(super) fn compares(&self) -> Vec<Compare> {
        if self.isolation == Isolation::ReadCommitted {
            return Vec::new();
        }
        let ranges = self.asked_ranges();
        let in_ranges = |key: &[u8]| ranges.iter().any(|range| range.holds(key));
        let mut compares = Vec::new();
        for (key, seen) in &self.keys {
            // A key that was found in a range, too: the range's own compare does not see deletes.
            if seen.asked || seen.value.is_some() && in_ranges(key) {
                compares.push(Compare::mod_revision(key.clone()).is(seen.mod_revision));
            }
        }
        if self.isolation.has_snapshot() {
            compares.extend(ranges.iter().map(|range| self.unchanged(range)));
        }
        if self.isolation == Isolation::SerializableSnapshot && self.has_read() {
            let asked = |key: &Bytes| self.keys.get(key).is_some_and(|seen| seen.asked);
            let blind = self.writes.keys().filter(|key| !asked(key) && !in_ranges(key));
            compares.extend(blind.map(|key| self.unchanged(&Span::key(key.clone()))));
        }
        compares
    }

    /// What the commit does.
    pub(super) fn ops(&self) -> Vec<Op> {
        self.writes.iter().map(|(key, write)| write.op(key.clone())).collect()
    }

    /// What the next attempt is likely to ask for: what this one did, and of what is to be fetched ahead anyway as much as
    /// makes the transaction not larger than it is, or than servers take, with so many other reads beside. Nothing where that
    /// is likely to be more than `most` bytes: each of the attempt's own answers was not too large, but all of them in one may
    /// be, and an answer that does not arrive does not tell a conflict from a commit.
    pub(super) fn again(&self, prefetch: &[Bytes], beside: usize, most: usize) -> Vec<Span> {
        if self.read_bytes() > most {
            return Vec::new();
        }
        let mut spans = self.asked_ranges();
        let asked = self.keys.iter().filter(|(_, seen)| seen.asked).map(|(key, _)| key);
        let mut keys: Vec<&Bytes> = asked.chain(prefetch).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|key| !spans.iter().any(|range| range.holds(key)));
        // What was asked for is compared, too, and so does not count.
        let asked = |key: &Bytes| self.keys.get(key).is_some_and(|seen| seen.asked);
        let asked_for = spans.len() + keys.iter().filter(|key| asked(key)).count();
        let mut room = MOST_AHEAD.saturating_sub(asked_for + beside);
        keys.retain(|key| {
            let fits = asked(key) || room > 0;
            room = room.saturating_sub(usize::from(fits && !asked(key)));
            fits
        });
        spans.extend(keys.into_iter().map(|key| Span::key(key.clone())));
        spans
    }

    /// How much was read.
    fn read_bytes(&self) -> usize {
        let bytes = |(key, seen): (&Bytes, &Seen)| key.len() + seen.value.as_ref().map_or(0, Bytes::len);
        self.keys.iter().map(bytes).sum()
    }

    /// All that is known.
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.ranges.keys().cloned().collect();
        let keys = self.keys.keys().filter(|key| !spans.iter().any(|range| range.holds(key)));
        let keys: Vec<Span> = keys.map(|key| Span::key(key.clone())).collect();
        spans.extend(keys);
        spans
    }

    /// For people to read.
    pub(super) fn sizes(&self) -> String {
        let keys = self.keys.values().filter(|seen| seen.asked).count();
        let (ranges, writes) = (self.asked_ranges(), self.writes.len());
        let found = |(key, seen): &(&Bytes, &Seen)| {
            !seen.asked && seen.value.is_some() && ranges.iter().any(|range| range.holds(key))
        };
        let found = self.keys.iter().filter(found).count();
        let ranges = ranges.len();
        format!("keys read: {keys}; ranges read: {ranges}, with {found} keys more; keys written: {writes}")
    }

    fn knows(&self, span: &Span) -> bool {
        span.is_key() && self.keys.contains_key(&span.start)
            || self.ranges.keys().any(|range| range.covers(span))
    }

    /// The ranges that were asked for, without those that lie within others.
    fn asked_ranges(&self) -> Vec<Span> {
        let asked = || self.ranges.iter().filter(|(_, asked)| **asked).map(|(range, _)| range);
        let within = |range: &Span| asked().any(|other| other != range && other.covers(range));
        asked().filter(|range| !within(range)).cloned().collect()
    }

    /// Nothing in it was written since the snapshot, but for deletes. An empty range is compared as a key with a
    /// mod_revision of 0, so it holds there.
    fn unchanged(&self, span: &Span) -> Compare {
        pb::Compare {
            result: CompareResult::Less.into(),
            target: CompareTarget::Mod.into(),
            key: span.start.clone(),
            range_end: span.end.clone(),
            target_union: Some(TargetUnion::ModRevision(self.revision + 1)),
        }
        .into()
    }
}

/// A server takes 128 operations by default, of which a marker takes one.
const MOST_AHEAD: usize = 100;

#[cfg(test)]
mod tests;
