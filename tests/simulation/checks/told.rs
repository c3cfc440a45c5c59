//! What the actors were told about their writes: to be held against what the server has.

use std::collections::{BTreeMap, BTreeSet};

use etcd_concurrency::{Error, Outcome, SessionState};
use tokio::sync::watch::Receiver;

use crate::world::World;

/// What one was told of a write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    /// It was applied; at this revision, where that was told.
    Done(Option<i64>),
    /// It was not applied, and never will be.
    Refused,
    /// Nobody knows, or nobody waited for it.
    Unknown,
}

impl Fate {
    pub(crate) fn of(error: &Error) -> Self {
        match error.outcome() {
            Outcome::NotApplied => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

#[derive(Default)]
pub(crate) struct Told {
    /// By the first word of the value: each is put by one actor, once.
    pub(crate) puts: BTreeMap<String, Fate>,
    /// What was added to the counter, each another number.
    pub(crate) added: BTreeMap<i64, Fate>,
    /// What runs that only read have seen, and at which revision.
    pub(crate) audits: Vec<(i64, String)>,
    /// What was put into a queue.
    pub(crate) sent: BTreeMap<String, Fate>,
    /// What was taken off one at once.
    pub(crate) taken_off: Vec<String>,
    /// The sessions of those who wanted to take something off, and may have: it may have gone with the session.
    pub(crate) not_taken_off: Vec<Receiver<SessionState>>,
    /// Who was let through the plain barrier: when the wait began, and when it ended, as revisions.
    pub(crate) passed: Vec<(i64, i64)>,
    /// Who got permits: when the asking began and when it ended, as revisions, and how many were out then.
    pub(crate) permits: Vec<(i64, i64, u32)>,
    /// How often a dead letter, by key and revision, was told of as moved or deleted.
    pub(crate) letters: BTreeMap<(Vec<u8>, i64), u32>,
    /// The values of letters that may have been deleted.
    pub(crate) perhaps_discarded: Vec<String>,
    /// Who enters the double barrier with which lease.
    pub(crate) callers: BTreeMap<i64, BTreeSet<u64>>,
    /// What became of the count-downs of each latch.
    pub(crate) counted: BTreeMap<String, Vec<Fate>>,
    /// How many of these sessions were lost while something went wrong: no item goes with one that is given back.
    pub(crate) gone_with_sessions: usize,
}

impl Told {
    /// Before the sessions that are left are closed, which takes no item along: that is settled before.
    pub(crate) fn count_sessions_that_were_lost(&mut self) {
        let lost = |state: &Receiver<SessionState>| matches!(*state.borrow(), SessionState::Lost(_));
        self.gone_with_sessions = self.not_taken_off.iter().filter(|state| lost(state)).count();
    }
}

impl World {
    /// A write that is going to be made: of unknown fate until more is told.
    pub(crate) fn puts(&self, id: &str) {
        self.told.borrow_mut().puts.insert(id.to_owned(), Fate::Unknown);
    }

    pub(crate) fn was_put(&self, id: &str, fate: Fate) {
        if matches!(fate, Fate::Done(_)) {
            self.count("writes told of");
        }
        self.told.borrow_mut().puts.insert(id.to_owned(), fate);
    }
}
