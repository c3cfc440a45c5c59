//! What is known of a marker, and what follows from that.
//!
//! # Why an attempt is never applied after its run is over
//! A request may be applied after any time, so each attempt must be one that the server goes on refusing. An attempt that
//! expects a revision is refused once the marker has another revision, or is gone: a key never has a revision
//! twice. An attempt that expects the marker to be missing is refused while there is one. So a marker stays once such
//! an attempt may be under way ([`Known::sends`]): it is not deleted, but goes with its lease; and without the lease the
//! server refuses the attempt, which puts the marker with it. That holds whichever client ends the lease, and also while a lease that
//! was let go lives on elsewhere.
//!
//! A marker that another client deletes is the one thing that this does not cover: an attempt that expected it to be
//! missing may then be applied a second time.
//!
//! All but what leases do is checked over all that a server and third parties may do, in every order, in `model.rs`.

use crate::pb::mvccpb::KeyValue;

/// What is known of a marker, and of the attempts of the run that uses it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Known {
    /// Its mod_revision; 0 for a missing key.
    revision: i64,
    /// A transaction that expects the key to be missing may yet arrive: the key must stay.
    straggler: bool,
    /// An attempt of this run may have been applied, or may yet be.
    in_doubt: bool,
}

/// What a marker says that was read.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// It is as it was last known: no attempt that expects it so has been applied yet.
    Unchanged,
    /// This attempt was committed, at this revision.
    Committed { attempt: u32, revision: i64 },
    /// Another put it: no attempt that expects it as it was has been applied, or ever will be.
    Other,
    /// A third party deleted it, and with it what it said.
    Gone,
}

impl Known {
    /// A run begins to use it.
    pub(super) fn begins(&mut self) {
        self.in_doubt = false;
    }

    pub(super) fn revision(self) -> i64 {
        self.revision
    }

    pub(super) fn is_in_doubt(self) -> bool {
        self.in_doubt
    }

    /// The key may be there, and may be deleted.
    pub(super) fn is_spent(self) -> bool {
        self.revision != 0 && !self.straggler
    }

    /// A transaction is sent that expects the marker as it is known. Gives what [`answered`](Self::answered) wants.
    pub(super) fn sends(&mut self) -> bool {
        let before = self.straggler;
        // So it stays where the run is dropped, and waits for no answer any more.
        self.straggler |= self.revision == 0;
        before
    }

    /// It was answered: for certain where it was sent once, or was not applied.
    pub(super) fn answered(&mut self, before: bool, for_certain: bool) {
        if for_certain {
            self.straggler = before;
        } else {
            self.in_doubt = true;
        }
    }

    /// A transaction that puts the marker was committed.
    pub(super) fn committed(&mut self, revision: i64) {
        self.revision = revision;
        self.in_doubt = false;
    }

    /// What a marker says that was read by a run whose values begin so.
    pub(super) fn look(&mut self, found: &[KeyValue], run: &str) -> Found {
        let (value, revision) = found.first().map_or((&b""[..], 0), |kv| (&kv.value[..], kv.mod_revision));
        if revision == self.revision {
            return Found::Unchanged;
        }
        self.revision = revision;
        if revision == 0 {
            return Found::Gone;
        }
        self.in_doubt = false;
        let attempt =
            value.strip_prefix(run.as_bytes()).and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
        attempt.map_or(Found::Other, |attempt| Found::Committed { attempt, revision })
    }
}
