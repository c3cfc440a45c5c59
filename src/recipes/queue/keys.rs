//! Where a queue's keys are, and what their events say of it.
//!
//! | key | lease | what it is |
//! |---|---|---|
//! | `{name}/items/{place}` | none | an item; its create_revision is its place in the order |
//! | `{name}/claims/{place}` | the worker's | the item is in hand |
//! | `{name}/returns/{place}` | the item's | how many of the item's writes were no deliveries, and its create_revision |
//! | `{name}/senders/{lease}-{random}` | the sender's | what was sent last with this slip |
//! | `{name}/undelivered/{place}` | none | a dead letter |
//! | `{name}/waiting/{lease}` | the consumer's | who waits for an item |
//!
//! A place is `{lease}-{random}` of the sender, behind the priority where there is one. Between the first two kinds no
//! other key sorts, so that one watch sees both, and what one transaction did to them at once.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::key::prefix_end;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::txn::Op;
use crate::watch::Watch;

#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) items: Bytes,
    pub(super) claims: Bytes,
    pub(super) returns: Bytes,
    pub(super) senders: Bytes,
    pub(super) undelivered: Bytes,
    /// A name of its own, without a slash.
    pub(super) waiting: Bytes,
}

/// An item of which only the key is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    pub(super) place: Bytes,
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
}

/// What events made free to be taken.
#[derive(Debug, PartialEq)]
pub(super) enum Freed {
    /// New items alone, of which this is the first.
    New(Head),
    /// An item that was in hand, too.
    Again,
}

impl Keys {
    pub(super) fn new(name: &[u8]) -> Self {
        let below = |kind: &str| join(name, kind.as_bytes());
        Self {
            items: below("/items/"),
            claims: below("/claims/"),
            returns: below("/returns/"),
            senders: below("/senders/"),
            undelivered: below("/undelivered/"),
            waiting: below("/waiting"),
        }
    }

    pub(super) fn item(&self, place: &[u8]) -> Bytes {
        join(&self.items, place)
    }

    pub(super) fn claim(&self, place: &[u8]) -> Bytes {
        join(&self.claims, place)
    }

    pub(super) fn returns(&self, place: &[u8]) -> Bytes {
        join(&self.returns, place)
    }

    /// Says how many writes of an item were no deliveries. With its create_revision: a key that has outlived its item says
    /// nothing of another.
    pub(super) fn count_returns(&self, place: &[u8], created: i64, returns: i64) -> Op {
        Op::put(self.returns(place), format!("{returns} {created}"))
    }

    pub(super) fn undelivered(&self, place: &[u8]) -> Bytes {
        join(&self.undelivered, place)
    }

    /// Claims and items, and nothing else.
    pub(super) fn watch(&self) -> Watch {
        Watch::range(&self.claims, prefix_end(&self.items)).progress()
    }

    pub(super) fn head(&self, kv: &KeyValue) -> Option<Head> {
        Some(Head {
            place: kv.key.strip_prefix(&self.items[..]).map(|place| kv.key.slice_ref(place))?,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        })
    }

    /// What the events after a revision have left free.
    ///
    /// An acknowledgement deletes item and claim at once, and a take puts both: only the two together tell.
    pub(super) fn freed(&self, events: &[Event], after: i64) -> Option<Freed> {
        #[derive(Default)]
        struct Seen {
            new: Option<Head>,
            gone: bool,
            claimed: Option<bool>,
        }
        let mut seen: BTreeMap<&[u8], Seen> = BTreeMap::new();
        for event in events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.mod_revision > after) else { continue };
            let deleted = event.r#type() == EventType::Delete;
            if let Some(place) = kv.key.strip_prefix(&self.items[..]) {
                let seen = seen.entry(place).or_default();
                seen.gone = deleted;
                if !deleted && kv.version == 1 {
                    seen.new = self.head(kv);
                }
            } else if let Some(place) = kv.key.strip_prefix(&self.claims[..]) {
                seen.entry(place).or_default().claimed = Some(!deleted);
            }
        }
        let mut first: Option<Head> = None;
        for seen in seen.into_values().filter(|seen| !seen.gone) {
            match (seen.claimed, seen.new) {
                (Some(false), _) => return Some(Freed::Again),
                (None, Some(new)) => first = Some(first.map_or(new.clone(), |first| earlier(first, new))),
                (Some(true), _) | (None, None) => {}
            }
        }
        first.map(Freed::New)
    }
}

impl Head {
    /// The part of its place that says how urgent it is: all up to the last slash. Empty where all are equal.
    pub(super) fn level(&self) -> Bytes {
        level(&self.place)
    }
}

/// The level of a place.
pub(super) fn level(place: &Bytes) -> Bytes {
    let end = place.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    place.slice(..end)
}

fn earlier(one: Head, other: Head) -> Head {
    let order = |head: &Head| (head.level(), head.create_revision);
    if order(&other) < order(&one) { other } else { one }
}

fn join(prefix: &[u8], rest: &[u8]) -> Bytes {
    [prefix, rest].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventType, key: &str, revision: i64, version: i64) -> Event {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            create_revision: revision - version + 1,
            mod_revision: revision,
            version,
            ..Default::default()
        };
        Event { r#type: kind.into(), kv: Some(kv), prev_kv: None }
    }

    fn put(key: &str, revision: i64, version: i64) -> Event {
        event(EventType::Put, key, revision, version)
    }

    fn delete(key: &str, revision: i64) -> Event {
        event(EventType::Delete, key, revision, 0)
    }

    fn place(freed: Option<Freed>) -> Option<String> {
        match freed? {
            Freed::New(head) => Some(String::from_utf8(head.place.to_vec()).unwrap()),
            Freed::Again => Some("again".into()),
        }
    }

    #[test]
    fn one_watch_sees_items_and_claims_and_nothing_else() {
        let keys = Keys::new(b"q");
        let (start, end) = (keys.claims.clone(), prefix_end(&keys.items));
        for other in [&keys.returns, &keys.senders, &keys.undelivered, &keys.waiting] {
            assert!(*other < start || *other >= end, "{other:?}");
        }
        assert!(keys.item(b"1") > start && keys.item(b"\xff") < end && keys.claim(b"1") > start);
    }

    #[test]
    fn a_new_item_is_free_until_it_is_taken() {
        let keys = Keys::new(b"q");
        let enqueued = [put("q/items/a", 5, 1), put("q/items/b", 6, 1)];
        assert_eq!(place(keys.freed(&enqueued, 4)).as_deref(), Some("a"));
        assert_eq!(place(keys.freed(&enqueued, 5)).as_deref(), Some("b"));
        assert_eq!(keys.freed(&enqueued, 6), None);
        let taken = [enqueued[0].clone(), put("q/claims/a", 7, 1), put("q/items/a", 7, 2)];
        assert_eq!(keys.freed(&taken, 4), None);
    }

    #[test]
    fn what_is_more_urgent_comes_first() {
        let keys = Keys::new(b"q");
        let enqueued = [put("q/items/7/a", 5, 1), put("q/items/3/b", 6, 1), put("q/items/3/a", 7, 1)];
        assert_eq!(place(keys.freed(&enqueued, 0)).as_deref(), Some("3/b"));
    }

    #[test]
    fn a_claim_that_goes_frees_its_item_unless_that_goes_too() {
        let keys = Keys::new(b"q");
        let acknowledged = [delete("q/items/a", 9), delete("q/claims/a", 9)];
        assert_eq!(keys.freed(&acknowledged, 0), None);
        let acknowledged = [delete("q/claims/a", 9), delete("q/items/a", 9)];
        assert_eq!(keys.freed(&acknowledged, 0), None);
        assert_eq!(keys.freed(&[delete("q/claims/a", 9)], 0), Some(Freed::Again));
        assert_eq!(keys.freed(&[delete("q/claims/a", 9), put("q/items/a", 9, 3)], 0), Some(Freed::Again));
        assert_eq!(keys.freed(&[delete("q/claims/a", 9)], 9), None);
    }
}
