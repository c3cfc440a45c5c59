//! What else people coordinate with, one file each. None has an idea of its own of waiting, cleaning up or repeating.

mod barrier;
mod counter;
mod double_barrier;
mod latch;
mod membership;
mod multilock;
mod queue;
mod rwlock;
mod semaphore;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Outcome, Result, quote};
use crate::key::{Claim, drawn_by, name_prefix};
use crate::pb::mvccpb::KeyValue;
use crate::waitlist::checked;
pub use barrier::Barrier;
pub use counter::Counter;
pub use double_barrier::{DoubleBarrier, Inside};
pub use latch::CountDownLatch;
pub use membership::{Member, MemberChange, MemberChanges, Membership, Peer, Resident};
pub use multilock::{MultiLock, MultiLockGuard};
pub use queue::{DeadLetter, Job, PriorityQueue, Queue};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Semaphore, SemaphorePermit};

/// Keys, and prefixes of keys, below a name.
fn below<const N: usize>(name: &[u8], parts: [&str; N]) -> Result<[Bytes; N]> {
    let prefix = name_prefix(checked(name)?);
    Ok(parts.map(|part| Bytes::from([&prefix[..], part.as_bytes()].concat())))
}

fn not_zero(what: &'static str, number: u32) -> Result<()> {
    if number == 0 { Err(Error::invalid(what, "it is zero")) } else { Ok(()) }
}

/// Whose a key behind this prefix is, that a recipe puts once, by its shape: ours are drawn, Go's are numbers.
fn asked(prefix: &[u8], key: &[u8]) -> Claim {
    let Some(own) = key.strip_prefix(prefix) else { return Claim::None };
    match drawn_by(own) {
        Some(lease) => Claim::Of(lease),
        None if matches!(own.len(), 1..=20) && own.iter().all(u8::is_ascii_digit) => Claim::Any,
        None => Claim::None,
    }
}

/// Whether a key behind this prefix has the shape of one that a recipe puts once.
fn is_asked(prefix: &[u8], key: &[u8]) -> bool {
    asked(prefix, key) != Claim::None
}

/// The error for a key that says something else than it should.
fn mismatch(what: &'static str, found: &KeyValue) -> Error {
    let found = quote::text(&found.value);
    Error::new(ErrorKind::Mismatch { what, found }, Outcome::NotApplied)
}
