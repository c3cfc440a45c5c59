//! Keys of a lease that a delete of unknown fate may yet hit.
//!
//! A delete is of one incarnation of its key, and so it hits no later one, however late it is applied. But a task whose
//! turn it is takes up a key of the lease that it finds, of the incarnation that was to be deleted. So it is to know of
//! such a delete, and to have it answered first.
//!
//! The same holds for a delete that was given up because it was refused: transactions of the last holder may be on their
//! way yet, and would pass the fence of the next one, if that had the key of the same incarnation.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;

use super::lock;

/// For each key the incarnation that a delete without an answer, or one that was given up, is meant for.
#[derive(Debug, Default)]
pub(crate) struct Doomed {
    incarnations: Mutex<BTreeMap<Bytes, i64>>,
}

impl Doomed {
    /// Deletes of these incarnations are sent now. Where what this gives is dropped before they are answered, nothing is
    /// known of them.
    pub(crate) fn deleting<'a>(&'a self, keys: &'a [(Bytes, i64)]) -> Deleting<'a> {
        Deleting { doomed: self, keys, in_doubt: true }
    }

    /// Deletes of these incarnations were given up. No task is to take up such a key before it is deleted.
    pub(crate) fn given_up(&self, keys: impl IntoIterator<Item = (Bytes, i64)>) {
        lock(&self.incarnations).extend(keys);
    }

    /// The incarnation that may yet be deleted, or is to be.
    pub(crate) fn incarnation(&self, key: &Bytes) -> Option<i64> {
        lock(&self.incarnations).get(key).copied()
    }
}

/// Deletes under way.
pub(crate) struct Deleting<'a> {
    doomed: &'a Doomed,
    keys: &'a [(Bytes, i64)],
    in_doubt: bool,
}

impl Deleting<'_> {
    /// They were answered: these incarnations are gone, whatever is applied yet.
    pub(crate) fn are_gone(mut self) {
        self.in_doubt = false;
        let mut incarnations = lock(&self.doomed.incarnations);
        for (key, created) in self.keys {
            if incarnations.get(key) == Some(created) {
                incarnations.remove(key);
            }
        }
    }

    /// They were refused, and are not applied later. Others before them may be.
    pub(crate) fn are_refused(mut self) {
        self.in_doubt = false;
    }
}

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        if self.in_doubt {
            self.doomed.given_up(self.keys.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delete_is_in_doubt_until_one_is_answered() {
        let (doomed, key) = (Doomed::default(), Bytes::from_static(b"m/7"));
        let (old, new) = ([(key.clone(), 5)], [(key.clone(), 8)]);
        doomed.deleting(&old).are_refused();
        assert_eq!(doomed.incarnation(&key), None);
        drop(doomed.deleting(&old));
        doomed.deleting(&old).are_refused();
        doomed.deleting(&new).are_gone();
        assert_eq!(doomed.incarnation(&key), Some(5));
        doomed.deleting(&old).are_gone();
        assert_eq!(doomed.incarnation(&key), None);
    }
}
