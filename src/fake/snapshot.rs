//! The server's contents, for assertions and for reading.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::core::Core;
use super::keys::KeyRange;
use crate::pb::mvccpb::KeyValue;

/// What a server holds at one moment. Prints as a table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The store's revision.
    pub revision: i64,
    /// The oldest revision that can still be read; -1 when nothing was ever compacted.
    pub compacted: i64,
    /// All keys, in order.
    pub keys: Vec<KeyValue>,
    /// All leases, the first to end first.
    pub leases: Vec<LeaseSnapshot>,
}

/// A lease at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseSnapshot {
    /// Its id.
    pub id: i64,
    /// The TTL that was granted, in seconds.
    pub ttl: i64,
    /// How long it lives on if nobody renews it.
    pub remaining: Duration,
    /// The keys that are deleted with it, in order.
    pub keys: Vec<Bytes>,
}

impl Snapshot {
    /// A key, with its revisions and lease.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<&KeyValue> {
        let index = self.keys.binary_search_by(|kv| kv.key.as_ref().cmp(key.as_ref())).ok()?;
        self.keys.get(index)
    }

    /// A key's value.
    pub fn value(&self, key: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.get(key).map(|kv| kv.value.as_ref())
    }

    /// A lease.
    pub fn lease(&self, id: i64) -> Option<&LeaseSnapshot> {
        self.leases.iter().find(|lease| lease.id == id)
    }

    pub(crate) fn of(core: &Core, now: Duration) -> Self {
        let all = KeyRange::From(Bytes::from_static(b"\0"));
        let lease = |(id, lease): (i64, &super::lessor::Lease)| LeaseSnapshot {
            id,
            ttl: lease.ttl,
            remaining: lease.deadline.saturating_sub(now),
            keys: lease.keys.iter().cloned().collect(),
        };
        Self {
            revision: core.store.revision(),
            compacted: core.store.compacted(),
            // Now can always be read.
            keys: core.store.range(&all, 0).map(|keys| keys.cloned().collect()).unwrap_or_default(),
            leases: core.lessor.by_deadline().map(lease).collect(),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}", self.revision)?;
        if self.compacted >= 0 {
            write!(f, ", compacted at {}", self.compacted)?;
        }
        writeln!(f)?;
        for KeyValue { key, value, create_revision, mod_revision, version, lease } in &self.keys {
            let (key, value) = (key.escape_ascii(), value.escape_ascii());
            write!(
                f,
                "{key} = {value}  (created {create_revision}, modified {mod_revision}, version {version}"
            )?;
            match lease {
                0 => writeln!(f, ")")?,
                lease => writeln!(f, ", lease {lease:x})")?,
            }
        }
        for lease in &self.leases {
            let count = lease.keys.len();
            let keys = if count == 1 { "key" } else { "keys" };
            let (id, ttl, left) = (lease.id, lease.ttl, lease.remaining);
            writeln!(f, "lease {id:x}: {left:?} left of {ttl}s, {count} {keys}")?;
        }
        Ok(())
    }
}
