//! What the lease's end loses, or does not end, unless it is settled: told to the caller who closes the session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::{Error, ErrorKind, Outcome};

/// What keeps those from being saved that are not yet, of all sessions on one lease: any of them revokes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsaved {
    known: Arc<Mutex<Known>>,
    /// Of which handle of the lease this is told and asked.
    handle: u64,
}

#[derive(Debug, Default)]
struct Known {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    handle: u64,
    owed: Owed,
    why: ErrorKind,
    /// The barrier that is held by another hold than the one that was to be released.
    held: Option<Bytes>,
}

/// What is to be saved, or settled.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owed {
    /// An item of a queue, which goes with the lease.
    Item,
    /// A hold of a barrier, which stays without the lease.
    Hold,
    /// The release of a barrier, whose hold stays without the lease.
    Release,
}

impl Owed {
    fn is_open(self) -> &'static str {
        match self {
            Self::Item => "an item that no caller was given is not back in its queue yet",
            Self::Hold => "a hold that no caller was given is not taken back from its barrier yet",
            Self::Release => "a barrier whose release was begun, and told to no caller, is not released yet",
        }
    }
}

/// One thing that is to be saved. It counts as unsaved from its making until it is [`saved`](Self::saved), also where it
/// was given up.
#[derive(Debug)]
pub(crate) struct Debt {
    unsaved: Unsaved,
    id: u64,
    /// Who waits for this to end waits until it is dropped.
    _counted: Vec<TaskTrackerToken>,
}

impl Unsaved {
    /// The same, for one of the handles of the lease that a client has one after another.
    pub(super) fn of(&self, handle: u64) -> Self {
        Self { known: self.known.clone(), handle }
    }

    pub(crate) fn debt(&self, owed: Owed) -> Debt {
        let mut known = self.known();
        known.next += 1;
        let id = known.next;
        // As long as no attempt has failed, none has been answered.
        let why = ErrorKind::Timeout;
        known.open.insert(id, Open { handle: self.handle, owed, why, held: None });
        Debt { id, unsaved: self.clone(), _counted: Vec::new() }
    }

    /// The error that it is that something is unsaved.
    pub(crate) fn error(&self) -> Option<Error> {
        self.first(|_| true)
    }

    /// As [`error`](Self::error), but for what is owed by later handles, which go on with the lease.
    pub(crate) fn error_so_far(&self) -> Option<Error> {
        self.first(|open| open.handle <= self.handle)
    }

    fn first(&self, counts: impl Fn(&Open) -> bool) -> Option<Error> {
        let known = self.known();
        let open = known.open.values().find(|open| counts(open))?;
        Some(Error::new(open.why.clone(), Outcome::Unknown).because(open.owed.is_open()))
    }

    /// The releases of this barrier that ended before another hold of it.
    pub(crate) fn before_holds_of(&self, barrier: &Bytes) -> Vec<u64> {
        let of_it = |(id, open): (&u64, &Open)| (open.held.as_ref() == Some(barrier)).then_some(*id);
        self.known().open.iter().filter_map(of_it).collect()
    }

    /// Since they were looked for, the barrier was free, or a caller was told of the hold.
    pub(crate) fn are_settled(&self, releases: &[u64]) {
        self.known().open.retain(|id, _| !releases.contains(id));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debt {
    /// One that is waited for, until it is dropped.
    pub(crate) fn counted(self, by: impl IntoIterator<Item = TaskTrackerToken>) -> Self {
        Self { _counted: Vec::from_iter(by), ..self }
    }

    pub(crate) fn failed(&self, why: &ErrorKind) {
        if let Some(open) = self.unsaved.known().open.get_mut(&self.id) {
            open.why = why.clone();
        }
    }

    /// The barrier that was to be released has another hold, and whether that came before or after the release is not known. This is
    /// unsaved until a later release of the barrier settles it.
    pub(crate) fn is_held(&self, barrier: &Bytes) {
        if let Some(open) = self.unsaved.known().open.get_mut(&self.id) {
            (open.why, open.held) = (ErrorKind::Locked, Some(barrier.clone()));
        }
    }

    pub(crate) fn saved(&self) {
        self.unsaved.known().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unsaved_is_told_until_it_is_saved() {
        let unsaved = Unsaved::default();
        assert!(unsaved.error().is_none());
        let (one, other) = (unsaved.debt(Owed::Item), unsaved.debt(Owed::Hold));
        assert_eq!(*unsaved.error().expect("two are unsaved").kind(), ErrorKind::Timeout);
        one.failed(&ErrorKind::NoSpace);
        other.failed(&ErrorKind::PermissionDenied);
        assert_eq!(*unsaved.error().expect("two are unsaved").kind(), ErrorKind::NoSpace);
        one.saved();
        // Given up.
        drop(other);
        assert_eq!(*unsaved.error().expect("one is unsaved").kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_release_settles_what_ended_before_it_began() {
        let unsaved = Unsaved::default();
        let gate = Bytes::from_static(b"gate");
        let (one, later, under_way) =
            (unsaved.debt(Owed::Release), unsaved.debt(Owed::Release), unsaved.debt(Owed::Release));
        one.is_held(&gate);
        let before = unsaved.before_holds_of(&gate);
        assert!(unsaved.before_holds_of(&Bytes::from_static(b"other")).is_empty());
        later.is_held(&gate);
        unsaved.are_settled(&before);
        assert_eq!(unsaved.before_holds_of(&gate).len(), 1, "it ended after the other had begun");
        later.saved();
        assert_eq!(*unsaved.error().expect("one is under way").kind(), ErrorKind::Timeout);
        under_way.saved();
        assert!(unsaved.error().is_none());
    }

    #[test]
    fn a_handle_can_be_asked_without_the_later_ones() {
        let all = Unsaved::default();
        let [first, second, third] = [1, 2, 3].map(|handle| all.of(handle));
        let debt = second.debt(Owed::Item);
        assert!(first.error_so_far().is_none());
        for later in [&second, &third] {
            assert!(later.error_so_far().is_some());
        }
        assert!(first.error().is_some(), "a revoke ends the lease for all");
        debt.saved();
        assert!(third.error_so_far().is_none() && first.error().is_none());
    }
}
