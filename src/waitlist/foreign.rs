//! Keys below a name that are no contenders': users put them there, or hold locks on names below this one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Tells of such a key, once for each name: Go's clients and `etcdctl` wait for it, or count it.
pub(crate) fn passed_over(prefix: &Bytes, key: &Bytes) {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.len() >= MOST_NAMES || told.contains(prefix) {
        return;
    }
    // A prefix may share the memory of much else.
    told.insert(Bytes::copy_from_slice(prefix));
    drop(told);
    tracing::warn!(
        below = ?prefix,
        ?key,
        "a key below a name is no contender's and is passed over here; Go's clients and etcdctl take it for one"
    );
}

/// The names that were told of.
static TOLD: Mutex<BTreeSet<Bytes>> = Mutex::new(BTreeSet::new());
/// After so many names no other is told of.
const MOST_NAMES: usize = 1024;
