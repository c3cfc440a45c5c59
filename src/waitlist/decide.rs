//! What a wait decides by what it is told.
//!
//! **One cursor.** The server tells each watch by itself: after a broken stream each catches up in its own time, and one
//! that was too slow for a while is served later, without a word. So of two watches neither says how far the other is. A
//! turn is taken on the word of a watch alone where that one watch tells of the predecessor's key and of our own: a watch
//! on the range from the one to the other, whose events come in the order of their revisions, and those of one revision
//! together. That is for the direct successor of the first in the line, whose turn needs no other proof. A waiter
//! behind several has a watch on each of the two keys, and reads the line, with its own key, when one of them tells
//! something: it needs no order, and does not hear of what happens to the keys in between.
//!
//! Old servers can lose a deletion where a watch is made again (see [`Watcher::resumed`](crate::watch::Watcher::resumed)), that of our own key, too. So after
//! a broken stream the line is read in any case.
//!
//! All of it is checked over all that a server may do, in every order, in `model.rs`.

use super::line::{Line, Predecessor, Standing};
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};

/// A wait behind a predecessor.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) predecessor: Predecessor,
    /// One watch tells of the predecessor's key and of our own.
    pub(crate) on_one_cursor: bool,
    /// What happened before the watch began is yet to be seen.
    pub(crate) unseen: bool,
}

/// What events say to one who waits.
#[derive(Debug, PartialEq)]
pub(crate) enum Word {
    Nothing,
    /// Our own key is gone.
    Lost,
    /// It is our turn, and our key stood when the last of the events happened.
    Turn,
    /// The line is to be read.
    Look,
}

impl Wait {
    pub(crate) fn behind(predecessor: Predecessor) -> Self {
        let on_one_cursor = predecessor.is_first && !predecessor.is_noisy;
        Self { predecessor, on_one_cursor, unseen: false }
    }

    /// The watch tells what happens after this revision.
    pub(crate) fn begins(&mut self, since: i64) {
        self.unseen = since > self.predecessor.seen_at;
    }

    /// What events say to the owner of a key of this create_revision. They are all that a watch, which was made again so often,
    /// has told of some revisions: what is decided is decided by all of them.
    pub(crate) fn told(&self, line: &Line, events: &[Event], own: i64, resumed: u32) -> Word {
        let predecessor = &self.predecessor;
        if events.iter().any(|event| deletes(event, line.key(), own)) {
            return Word::Lost;
        }
        let ends = |event: &Event| deletes(event, &predecessor.key, predecessor.create_revision);
        if !events.iter().any(|event| ends(event) || opens(line, event, predecessor)) {
            return Word::Nothing;
        }
        // Only the watch on both keys knows that our own stood then, and only if it was never made again.
        let whole = resumed == 0;
        let proven = self.on_one_cursor && whole && !self.unseen && events.iter().any(ends);
        if proven { Word::Turn } else { Word::Look }
    }

    /// The predecessor was seen to stand, so: None where one goes on with the watch on it.
    pub(crate) fn moves_up(&self, seen: Predecessor) -> Option<Standing> {
        // Its end will be the proof, where one watch tells of it.
        let by_one_watch = self.unseen && seen.is_first && !self.predecessor.is_first;
        by_one_watch.then_some(Standing::Behind(seen))
    }
}

fn deletes(event: &Event, key: &[u8], create_revision: i64) -> bool {
    // A watch that starts at "now" on a member that lags behind can tell of an earlier incarnation's end.
    let ends = |kv: &KeyValue| kv.key == key && kv.mod_revision > create_revision;
    event.r#type() == EventType::Delete && event.kv.as_ref().is_some_and(ends)
}

/// True where the predecessor now lets us pass.
fn opens(line: &Line, event: &Event, predecessor: &Predecessor) -> bool {
    event.r#type() == EventType::Put
        && event.kv.as_ref().is_some_and(|kv| {
            kv.key == predecessor.key
                && kv.create_revision == predecessor.create_revision
                && line.lets_pass(kv)
        })
}
