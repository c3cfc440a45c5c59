//! Counting down: what the one who is next for permits concludes from what a watch tells.
//!
//! **One cursor.** Who holds and how many may is told by one watch, in the order of the revisions: so a count that is low enough
//! was so at one revision, under the limit of that revision, with our own keys there. A limit that changes, and a key that goes
//! while others are older than those that were read, are reasons to read again.

use std::collections::HashSet;

use bytes::Bytes;

use super::older::Older;
use crate::pb::mvccpb::{Event, event::EventType};

/// The older keys that were there when they were read, less those that have gone since.
pub(super) struct Count {
    pub(super) left: HashSet<Bytes>,
    /// There were no others.
    pub(super) all: bool,
    pub(super) limit: u32,
    pub(super) read_at: i64,
    pub(super) permits: u32,
}

/// What events say.
#[derive(Debug, PartialEq)]
pub(super) enum Word {
    Nothing,
    /// A key of ours is gone.
    Lost,
    /// The permits are ours.
    Enough,
    /// The older keys are to be read again.
    Look,
}

impl Count {
    pub(super) fn of(older: Older, permits: u32) -> Self {
        let (all, limit, read_at) = (older.is_all(), older.limit(), older.revision());
        Self { left: older.into_keys().collect(), all, limit, read_at, permits }
    }

    /// What events say, which are all of some revisions. `torn`: the watch was made again since the older keys were read.
    pub(super) fn told(&mut self, events: &[Event], limit: &Bytes, own: &[Bytes], torn: bool) -> Word {
        let (mut resized, mut fewer) = (false, false);
        for event in events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.mod_revision > self.read_at) else { continue };
            resized |= kv.key == *limit;
            if event.r#type() != EventType::Delete {
                continue;
            }
            if own.contains(&kv.key) {
                return Word::Lost;
            }
            fewer |= self.left.remove(&kv.key);
        }
        if resized || fewer && !self.all {
            return Word::Look;
        }
        let enough = self.all && self.left.len() + self.permits as usize <= self.limit as usize;
        match enough {
            // The deletion of our own keys may have been lost.
            true if torn => Word::Look,
            true => Word::Enough,
            false => Word::Nothing,
        }
    }
}
