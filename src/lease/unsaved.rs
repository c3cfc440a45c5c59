//! What the lease's end loses unless it is saved: told to who closes the session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Outcome};

/// What keeps those from being saved that are not yet, of all sessions on one lease: any of them revokes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsaved(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    next: u64,
    why: BTreeMap<u64, ErrorKind>,
}

/// One thing that is to be saved. It counts as unsaved from its making until it is [`saved`](Self::saved), also where it
/// was given up.
#[derive(Debug)]
pub(crate) struct Debt {
    unsaved: Unsaved,
    id: u64,
}

impl Unsaved {
    pub(crate) fn debt(&self) -> Debt {
        let mut known = self.known();
        known.next += 1;
        let id = known.next;
        // As long as no attempt has failed, none has been answered.
        known.why.insert(id, ErrorKind::Timeout);
        Debt { id, unsaved: self.clone() }
    }

    /// The error that it is that something is unsaved.
    pub(crate) fn error(&self) -> Option<Error> {
        let why = self.known().why.values().next().cloned()?;
        let error = Error::new(why, Outcome::Unknown);
        Some(error.because("an item that no caller was given is not back in its queue yet"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debt {
    pub(crate) fn failed(&self, why: &ErrorKind) {
        self.unsaved.known().why.insert(self.id, why.clone());
    }

    pub(crate) fn saved(&self) {
        self.unsaved.known().why.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unsaved_is_told_until_it_is_saved() {
        let unsaved = Unsaved::default();
        assert!(unsaved.error().is_none());
        let (one, other) = (unsaved.debt(), unsaved.debt());
        assert_eq!(*unsaved.error().expect("two are unsaved").kind(), ErrorKind::Timeout);
        one.failed(&ErrorKind::NoSpace);
        other.failed(&ErrorKind::PermissionDenied);
        assert_eq!(*unsaved.error().expect("two are unsaved").kind(), ErrorKind::NoSpace);
        one.saved();
        // Given up.
        drop(other);
        assert_eq!(*unsaved.error().expect("one is unsaved").kind(), ErrorKind::PermissionDenied);
    }
}
