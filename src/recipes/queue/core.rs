//! What all queues share, and what all that is done with one rests on.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::keys::Keys;
use super::slip::Slips;
use crate::error::{Error, Outcome, Result};
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::waitlist::{Waitlist, checked};

/// A queue, seen through a session.
#[derive(Debug, Clone)]
pub(super) struct Core {
    pub(super) session: Session,
    pub(super) keys: Arc<Keys>,
    /// After so many deliveries an item is given up.
    pub(super) max_deliveries: Option<NonZeroU32>,
    /// Whether places begin with a priority.
    pub(super) levels: bool,
    pub(super) list: Waitlist,
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) slips: Slips,
    /// How many items were in hand when that was seen last: so many does a look read over.
    pub(super) claims: AtomicUsize,
    /// The level of the first item when that was seen last: where a look looks first.
    pub(super) level: Mutex<Bytes>,
}

impl Core {
    pub(super) fn new(session: &Session, name: &[u8], levels: bool) -> Result<Self> {
        checked(name)?;
        let keys = Arc::new(Keys::new(name));
        let list = Waitlist::new(session, &keys.waiting)?;
        let slips = Slips::new(session, &keys.senders);
        let shared = Shared { slips, claims: AtomicUsize::new(0), level: Mutex::default() };
        Ok(Self {
            session: session.clone(),
            keys,
            max_deliveries: None,
            levels,
            list,
            shared: Arc::new(shared),
        })
    }

    /// Ends with the session, at once. What is under way then goes on in the background.
    pub(super) async fn unless_lost<T>(
        &self,
        work: impl Future<Output = Result<T>>,
        under_way: &AtomicBool,
    ) -> Result<T> {
        tokio::select! {
            biased;
            reason = self.session.lost() => {
                let outcome = match under_way.load(Ordering::Relaxed) {
                    true => Outcome::Unknown,
                    false => Outcome::NotApplied,
                };
                Err(Error::from(reason).with_outcome(outcome))
            }
            done = work => done,
        }
    }
}

/// An item in hand.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) place: Bytes,
    /// As the take left it.
    pub(super) kv: KeyValue,
    /// How many of its writes were no deliveries.
    pub(super) returns: i64,
    /// A revision at which it is known to have stood like that. What became of it is later, and the server may have compacted
    /// what was before.
    pub(super) stood_at: i64,
}

impl Item {
    /// How often it was given to somebody, with this time.
    pub(super) fn deliveries(&self) -> u32 {
        deliveries(self.kv.version, self.returns)
    }
}

/// A key's version counts its writes, and the first of them was no delivery.
pub(super) fn deliveries(version: i64, returns: i64) -> u32 {
    u32::try_from(version - 1 - returns).unwrap_or(0)
}

/// What a key of returns counts, where it is that of the item with this create_revision.
pub(super) fn read_returns(kv: Option<&KeyValue>, created: i64) -> i64 {
    let read = |kv: &KeyValue| {
        let (returns, of) = std::str::from_utf8(&kv.value).ok()?.split_once(' ')?;
        // Another client may have written it: no number that others cannot be added to.
        (of.parse() == Ok(created)).then(|| returns.parse::<u32>().ok())?
    };
    kv.and_then(read).map_or(0, i64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever may write the queue's keys wrote one that overflowed the count, and a consumer panicked.
    #[test]
    fn no_count_of_returns_is_too_odd() {
        for (text, version, delivered) in [
            ("2 7", 5, 2),
            // Another item's.
            ("2 6", 5, 4),
            ("2", 5, 4),
            ("", 2, 1),
            ("9 7", 2, 0),
            ("-9223372036854775808 7", 3, 2),
            ("9223372036854775807 7", 2, 1),
        ] {
            let kv = KeyValue { value: text.into(), ..Default::default() };
            let returns = read_returns(Some(&kv), 7);
            assert!(returns.checked_add(2).is_some(), "{text}");
            assert_eq!(deliveries(version, returns), delivered, "{text}");
        }
        assert_eq!(read_returns(None, 7), 0);
    }
}
