//! From which revision on a watch goes on: so that each event is delivered once, in order, over any number of
//! broken streams.

use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue};

/// How far one watch has come.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Everything below has been delivered or is not wanted; 0 for a start that the server has yet to tell.
    resume: i64,
    /// Fragments that may lack the rest of their last revision.
    held: Option<Box<Held>>,
}

/// Events to deliver: whole revisions, in order. None of them for a report of progress.
#[derive(Debug, PartialEq)]
pub(crate) struct Batch {
    pub(super) revision: i64,
    pub(crate) events: Vec<Event>,
}

/// What no etcd answers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("a watch answer without a header")]
    NoHeader,
    #[error("a watch answer of revision {0}")]
    NoRevision(i64),
    #[error("an event without a key")]
    NoKey,
    #[error("an event of revision {1} after one of revision {0}")]
    Backwards(i64, i64),
    #[error("revision {0} alone has more than {MOST_BYTES} bytes of events")]
    TooLarge(i64),
}

#[derive(Debug, Default)]
struct Held {
    events: Vec<Event>,
    bytes: usize,
}

impl Cursor {
    /// Starts at `revision`, or now for 0.
    pub(crate) fn new(revision: i64) -> Self {
        Self { resume: revision, held: None }
    }

    /// The start revision to create the watch with, the first time and again.
    pub(crate) fn start(&self) -> i64 {
        self.resume
    }

    /// The watch is gone from the server: fragments will come again from their beginning.
    pub(super) fn broken(&mut self) {
        self.held = None;
    }

    /// What was given from this revision on was not delivered after all: it is to come again.
    pub(super) fn rewind(&mut self, revision: i64) {
        self.resume = revision;
    }

    /// The watch was acknowledged. Gives the revision that the answer carries.
    ///
    /// A watch from now on starts after that revision. The server may have registered it a little earlier, but what
    /// happened until then is what its owner reads for itself.
    pub(crate) fn created(&mut self, header: Option<&pb::ResponseHeader>) -> Result<i64, Fault> {
        let revision = revision_of(header)?;
        if self.resume == 0 {
            self.resume = revision.saturating_add(1);
        }
        Ok(revision)
    }

    /// Takes an answer to this watch and gives what is to be delivered now.
    pub(crate) fn take(&mut self, response: pb::WatchResponse) -> Result<Option<Batch>, Fault> {
        let revision = revision_of(response.header.as_ref())?;
        if response.events.is_empty() {
            return Ok(self.progress(revision, response.fragment));
        }
        let mut held = self.held.take().unwrap_or_default();
        held.add(response.events, self.resume)?;
        if response.fragment {
            let complete = held.split()?;
            if !held.events.is_empty() {
                self.held = Some(held);
            }
            return Ok(self.deliver(revision, complete));
        }
        Ok(self.deliver(revision, held.events))
    }

    /// A report says that everything up to its revision has been sent; but not so between fragments, and a
    /// watch that starts in the future stays there.
    fn progress(&mut self, revision: i64, fragment: bool) -> Option<Batch> {
        if fragment || self.held.is_some() {
            return None;
        }
        self.resume = self.resume.max(revision.saturating_add(1));
        Some(Batch { revision, events: Vec::new() })
    }

    fn deliver(&mut self, revision: i64, events: Vec<Event>) -> Option<Batch> {
        let last = mod_revision(events.last()?);
        self.resume = last.saturating_add(1);
        Some(Batch { revision: revision.max(last), events })
    }
}

impl Held {
    /// Adds the events that are not below `resume`. Others were delivered before, or come from a server that
    /// answers a watch of the future with the past.
    fn add(&mut self, events: Vec<Event>, resume: i64) -> Result<(), Fault> {
        let mut last = self.events.last().map_or(resume, mod_revision);
        if self.events.is_empty() {
            self.events.reserve_exact(events.len());
        }
        for event in events {
            let revision = event.kv.as_ref().map(|kv| kv.mod_revision).ok_or(Fault::NoKey)?;
            if revision <= 0 {
                return Err(Fault::NoRevision(revision));
            }
            if revision < resume {
                continue;
            }
            if revision < last {
                return Err(Fault::Backwards(last, revision));
            }
            last = revision;
            self.bytes += size(&event);
            self.events.push(event);
        }
        Ok(())
    }

    /// When much is held, gives the revisions that are complete: all but the last, of which more may follow.
    fn split(&mut self) -> Result<Vec<Event>, Fault> {
        let Some(last) = self.events.last().map(mod_revision).filter(|_| self.bytes > ENOUGH_BYTES) else {
            return Ok(Vec::new());
        };
        let complete = self.events.partition_point(|event| mod_revision(event) < last);
        if complete == 0 && self.bytes > MOST_BYTES {
            return Err(Fault::TooLarge(last));
        }
        if complete == 0 {
            return Ok(Vec::new());
        }
        let rest = self.events.split_off(complete);
        self.bytes = rest.iter().map(size).sum();
        Ok(std::mem::replace(&mut self.events, rest))
    }
}

fn revision_of(header: Option<&pb::ResponseHeader>) -> Result<i64, Fault> {
    let revision = header.ok_or(Fault::NoHeader)?.revision;
    if revision <= 0 { Err(Fault::NoRevision(revision)) } else { Ok(revision) }
}

/// Of an event that has been found to have a key.
fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// About what an event takes in memory.
pub(super) fn size(event: &Event) -> usize {
    let kv = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    size_of::<Event>() + kv(&event.kv) + kv(&event.prev_kv)
}

/// From here on, fragments are not merged any further than a revision needs.
const ENOUGH_BYTES: usize = 4 << 20;
/// What a transaction puts is less, by two orders of magnitude; only what the deletion of a range of about a million keys tells
/// is as much.
const MOST_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests;
