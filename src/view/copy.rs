//! Keys as they are known to be, and what changes them.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::key::unshared;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};

/// What became of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// It is there, and was not.
    Came(KeyValue),
    /// It is the same key, written again.
    Written(KeyValue),
    /// It was this, and is gone.
    Went(KeyValue),
}

/// Keys by the revision that created them: the oldest is the first.
#[derive(Debug, Default)]
pub(super) struct Copy {
    pub(super) by_age: BTreeMap<(i64, Bytes), KeyValue>,
    /// Each key's create_revision.
    pub(super) ages: HashMap<Bytes, i64>,
}

impl Change {
    pub(super) fn kv(&self) -> &KeyValue {
        let (Self::Came(kv) | Self::Written(kv) | Self::Went(kv)) = self;
        kv
    }
}

impl Copy {
    /// Whether an event puts a key again of which the copy still has an incarnation before: the server lost its deletion.
    pub(super) fn has_another(&self, event: &Event) -> bool {
        let Some(kv) = event.kv.as_ref().filter(|_| event.r#type() == EventType::Put) else { return false };
        self.ages.get(&kv.key).is_some_and(|age| *age != kv.create_revision)
    }

    /// What has changed by an event, that puts no key of which the copy [has another](Self::has_another) incarnation.
    pub(super) fn apply(&mut self, event: Event) -> Option<Change> {
        let kind = event.r#type();
        let kv = event.kv?;
        match kind {
            EventType::Put => Some(match self.put(kv.clone()) {
                Some(_) => Change::Written(kv),
                None => Change::Came(kv),
            }),
            EventType::Delete => self.remove(&kv.key).map(Change::Went),
        }
    }

    /// Gives the same key's last version, if it was there.
    pub(super) fn put(&mut self, mut kv: KeyValue) -> Option<KeyValue> {
        (kv.key, kv.value) = (unshared(&kv.key), unshared(&kv.value));
        let before = self.remove(&kv.key);
        self.ages.insert(kv.key.clone(), kv.create_revision);
        self.by_age.insert((kv.create_revision, kv.key.clone()), kv);
        before
    }

    fn remove(&mut self, key: &Bytes) -> Option<KeyValue> {
        let age = self.ages.remove(key)?;
        self.by_age.remove(&(age, key.clone()))
    }

    /// What changed since an earlier copy: those who went, then the others, the oldest first.
    pub(super) fn since(&self, old: Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut stayed = HashMap::new();
        for (age, kv) in old.by_age {
            match self.by_age.contains_key(&age) {
                true => drop(stayed.insert(age, kv.mod_revision)),
                false => changes.push(Change::Went(kv)),
            }
        }
        for (age, kv) in &self.by_age {
            match stayed.get(age) {
                None => changes.push(Change::Came(kv.clone())),
                Some(written) if *written != kv.mod_revision => changes.push(Change::Written(kv.clone())),
                Some(_) => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, create_revision: i64, mod_revision: i64) -> KeyValue {
        KeyValue { key: key.into(), create_revision, mod_revision, ..Default::default() }
    }

    fn copy<const N: usize>(kvs: [KeyValue; N]) -> Copy {
        let mut copy = Copy::default();
        kvs.into_iter().for_each(|kv| drop(copy.put(kv)));
        copy
    }

    #[test]
    fn the_oldest_is_by_creation_and_a_key_that_came_back_is_young() {
        let mut copy = Copy::default();
        let oldest = |copy: &Copy| copy.by_age.values().next().map(|kv| kv.key.clone());
        copy.put(kv("b", 5, 5));
        copy.put(kv("a", 7, 7));
        copy.put(kv("b", 5, 9));
        assert_eq!(oldest(&copy), Some("b".into()));
        let delete = Event { r#type: EventType::Delete.into(), kv: Some(kv("b", 0, 10)), prev_kv: None };
        copy.apply(delete);
        assert_eq!(oldest(&copy), Some("a".into()));
        copy.put(kv("b", 11, 11));
        assert_eq!(oldest(&copy), Some("a".into()));
        assert_eq!((copy.by_age.len(), copy.ages.len()), (2, 2));
    }

    #[test]
    fn events_tell_who_came_and_who_was_written_and_who_went() {
        let mut copy = copy([kv("a", 5, 5)]);
        let event = |kind: EventType, kv| Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
        assert_eq!(copy.apply(event(EventType::Put, kv("a", 5, 6))), Some(Change::Written(kv("a", 5, 6))));
        assert_eq!(copy.apply(event(EventType::Put, kv("b", 7, 7))), Some(Change::Came(kv("b", 7, 7))));
        assert_eq!(copy.apply(event(EventType::Delete, kv("a", 0, 8))), Some(Change::Went(kv("a", 5, 6))));
        assert_eq!(copy.apply(event(EventType::Delete, kv("c", 0, 9))), None);
        assert_eq!((copy.by_age.len(), copy.ages.len()), (1, 1));
    }

    #[test]
    fn a_key_that_comes_again_and_had_not_gone_is_another() {
        let copy = copy([kv("a", 5, 6)]);
        let event = |kind: EventType, kv| Event { r#type: kind.into(), kv: Some(kv), prev_kv: None };
        let cases = [
            (EventType::Put, kv("a", 5, 7), false),
            (EventType::Put, kv("a", 9, 9), true),
            (EventType::Put, kv("b", 9, 9), false),
            (EventType::Delete, kv("a", 0, 9), false),
        ];
        for (kind, kv, expected) in cases {
            assert_eq!(copy.has_another(&event(kind, kv.clone())), expected, "{kind:?} {kv:?}");
        }
    }

    #[test]
    fn a_copy_keeps_no_reply_in_memory() {
        let reply = Bytes::from(b"key and value".to_vec());
        let mut copy = Copy::default();
        copy.put(KeyValue { key: reply.slice(..3), value: reply.slice(8..), ..Default::default() });
        assert!(reply.is_unique(), "{copy:?}");
    }

    #[test]
    fn two_copies_differ_by_what_happened_between_them() {
        let old = copy([kv("gone", 1, 1), kv("same", 2, 2), kv("written", 3, 4), kv("again", 5, 5)]);
        let new = copy([kv("same", 2, 2), kv("written", 3, 7), kv("again", 8, 8), kv("new", 9, 9)]);
        let expected = [
            Change::Went(kv("gone", 1, 1)),
            Change::Went(kv("again", 5, 5)),
            Change::Written(kv("written", 3, 7)),
            Change::Came(kv("again", 8, 8)),
            Change::Came(kv("new", 9, 9)),
        ];
        assert_eq!(new.since(old), expected);
    }
}
