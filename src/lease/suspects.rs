//! Keys of a lease that requests which were given up may yet put.
//!
//! No time settles such a request: a server that stood still applies it when it goes on, while the lease lives. So what it
//! may put is remembered until then. Here is what is known; who follows it is elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::lock;
use crate::pb::mvccpb::KeyValue;

/// What may yet be put, in groups that one watch each follows.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    groups: Mutex<BTreeMap<Bytes, Arc<Group>>>,
    /// Which incarnation of a key a session has that adopted the lease, and on which of its handles: it may be a key of a session
    /// before, which does not know of that. Until the key is deleted.
    taken_up: Mutex<BTreeMap<Bytes, (i64, u64)>>,
}

/// A key that may yet be put.
#[derive(Debug, Clone)]
pub(crate) struct Suspect {
    pub(crate) key: Bytes,
    /// Which turn among the tasks of this process is needed to put it; none for a key that is put once.
    pub(crate) turn: Option<Bytes>,
    /// The value of what may be put, where others put the key as well.
    pub(crate) mark: Option<Bytes>,
    /// The newest incarnation that has, or had, an owner in this process.
    pub(crate) owned: i64,
    /// How many requests may put it.
    pub(crate) requests: u32,
}

/// Nobody knows how many requests.
pub(crate) const ANY: u32 = u32::MAX;

/// Suspects that one watch follows: those that are put once by their common beginning, which is this lease's alone;
/// others each for itself.
#[derive(Debug)]
pub(crate) struct Group {
    /// What all begin with, or the key where `exact`.
    pub(crate) range: Bytes,
    pub(crate) exact: bool,
    state: Mutex<State>,
    added: Notify,
}

#[derive(Debug, Default)]
struct State {
    suspects: BTreeMap<(Bytes, Option<Bytes>), (Suspect, bool)>,
    /// What was put up to this revision has been looked at; 0 before anything was.
    seen: i64,
}

impl Suspects {
    /// Remembers a key that was not there, or had an owner, at the revision `since`; 0 if nobody looked. The group is
    /// given where nobody follows it yet.
    pub(crate) fn add(&self, suspect: Suspect, since: i64) -> Option<Arc<Group>> {
        let exact = suspect.turn.is_some() || suspect.mark.is_some();
        let dash = suspect.key.iter().rposition(|byte| *byte == b'-').filter(|_| !exact);
        let range = dash.map_or(suspect.key.clone(), |dash| suspect.key.slice(..=dash));
        let exact = dash.is_none();
        let mut groups = lock(&self.groups);
        let known = groups.get(&range).cloned();
        let group = known.clone().unwrap_or_else(|| {
            let state = Mutex::new(State { suspects: BTreeMap::new(), seen: since });
            let group = Arc::new(Group { range: range.clone(), exact, state, added: Notify::new() });
            groups.insert(range, group.clone());
            group
        });
        group.add(suspect, since);
        known.is_none().then_some(group)
    }

    /// An incarnation of a key has an owner in this process.
    pub(crate) fn owned(&self, key: &Bytes, create_revision: i64) {
        let groups = lock(&self.groups);
        let Some(group) = groups.get(key) else { return };
        if let Some((suspect, _)) = lock(&group.state).suspects.get_mut(&(key.clone(), None)) {
            suspect.owned = suspect.owned.max(create_revision);
        }
    }

    /// An incarnation of a key has no owner any more, though it was not deleted. A later one may have.
    pub(crate) fn disown(&self, key: &Bytes, create_revision: i64) {
        let groups = lock(&self.groups);
        for group in groups.values().filter(|group| key.starts_with(&group.range)) {
            if let Some((suspect, _)) = lock(&group.state).suspects.get_mut(&(key.clone(), None))
                && suspect.owned == create_revision
            {
                suspect.owned -= 1;
            }
        }
    }

    /// An incarnation of a key is had by a session on this handle of the lease.
    pub(crate) fn taken_up(&self, key: &Bytes, create_revision: i64, handle: u64) {
        lock(&self.taken_up).insert(key.clone(), (create_revision, handle));
    }

    /// Whether a session on a later handle than this has an incarnation of a key, or had it and left it to the next; or has
    /// a later incarnation, so that this one is gone.
    pub(crate) fn is_taken_up(&self, key: &Bytes, create_revision: i64, handle: u64) -> bool {
        let is_later = |(created, by): &(i64, u64)| *created >= create_revision && *by > handle;
        lock(&self.taken_up).get(key).is_some_and(is_later)
    }

    /// These incarnations are deleted.
    pub(crate) fn are_gone(&self, keys: &[(Bytes, i64)]) {
        let mut taken_up = lock(&self.taken_up);
        for (key, created) in keys {
            if taken_up.get(key).is_some_and(|(up_to, _)| up_to <= created) {
                taken_up.remove(key);
            }
        }
    }

    /// Whether a key may yet be put.
    pub(crate) fn knows(&self, key: &Bytes) -> bool {
        lock(&self.groups).contains_key(key)
    }

    /// Forgets a group that has become empty. False if it has not.
    pub(crate) fn retire(&self, group: &Group) -> bool {
        let mut groups = lock(&self.groups);
        let empty = lock(&group.state).suspects.is_empty();
        if empty {
            groups.remove(&group.range);
        }
        empty
    }

    /// Forgets a group: nothing of it can come any more.
    pub(crate) fn forget(&self, group: &Group) {
        lock(&self.groups).remove(&group.range);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.groups).len()
    }
}

impl Group {
    fn add(&self, suspect: Suspect, since: i64) {
        let mut state = lock(&self.state);
        // What was put between may have come by before anybody knew what to look for.
        let unread = since == 0 || since < state.seen;
        let suspects = &mut state.suspects;
        let entry = suspects.entry((suspect.key.clone(), suspect.mark.clone()));
        let (known, is_unread) = entry.or_insert_with(|| (Suspect { requests: 0, ..suspect.clone() }, false));
        known.requests = known.requests.saturating_add(suspect.requests);
        known.owned = known.owned.max(suspect.owned);
        *is_unread |= unread;
        drop(state);
        if unread {
            self.added.notify_one();
        }
    }

    /// The first revision that was not looked at; 0 for none.
    pub(crate) fn unseen(&self) -> i64 {
        let seen = lock(&self.state).seen;
        if seen == 0 { 0 } else { seen + 1 }
    }

    /// From here on all that is put is told, but what was put before must be read.
    pub(crate) fn starts_at(&self, revision: i64) {
        let mut state = lock(&self.state);
        state.seen = revision;
        state.suspects.values_mut().for_each(|(_, unread)| *unread = true);
    }

    /// What was put up to a revision is to be looked at now: those of it that have no owner.
    pub(crate) fn told<'a>(
        &self,
        revision: i64,
        put: impl Iterator<Item = &'a KeyValue>,
        lease: i64,
    ) -> Vec<(Suspect, i64)> {
        let mut state = lock(&self.state);
        state.seen = state.seen.max(revision);
        put.filter_map(|kv| state.suspect(kv, lease, true)).collect()
    }

    /// All must be read: what is put may not have been told, or could not be deleted.
    pub(crate) fn look_again(&self) {
        lock(&self.state).suspects.values_mut().for_each(|(_, unread)| *unread = true);
    }

    /// Those that must be read.
    pub(crate) fn unread(&self) -> Vec<Suspect> {
        let state = lock(&self.state);
        state.suspects.values().filter(|(_, unread)| *unread).map(|(suspect, _)| suspect.clone()).collect()
    }

    /// What was read of these: those of it that have no owner.
    pub(crate) fn read<'a>(
        &self,
        asked: &[Suspect],
        found: impl Iterator<Item = &'a KeyValue>,
        lease: i64,
    ) -> Vec<(Suspect, i64)> {
        let mut state = lock(&self.state);
        for suspect in asked {
            if let Some((_, unread)) = state.suspects.get_mut(&(suspect.key.clone(), suspect.mark.clone())) {
                *unread = false;
            }
        }
        found.filter_map(|kv| state.suspect(kv, lease, self.exact)).collect()
    }

    /// Waits until there is something to be read.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// This incarnation has no owner in this process.
    pub(crate) fn is_stray(&self, suspect: &Suspect, create_revision: i64) -> bool {
        let state = lock(&self.state);
        let known = state.suspects.get(&(suspect.key.clone(), suspect.mark.clone()));
        known.is_some_and(|(known, _)| known.owned < create_revision)
    }

    /// A request has put its key, which is gone again: that one will not put it any more.
    pub(crate) fn removed(&self, suspect: &Suspect, create_revision: i64) {
        let key = (suspect.key.clone(), suspect.mark.clone());
        let mut state = lock(&self.state);
        let Some((known, _)) = state.suspects.get_mut(&key) else { return };
        // It may be told and read.
        if known.owned >= create_revision {
            return;
        }
        known.owned = create_revision;
        if known.requests != ANY {
            known.requests -= 1;
        }
        if known.requests == 0 {
            state.suspects.remove(&key);
        }
    }

    /// The newest incarnation that has, or had, an owner, and how many requests may yet put the key.
    #[cfg(test)]
    pub(crate) fn known(&self, suspect: &Suspect) -> Option<(i64, u32)> {
        let state = lock(&self.state);
        let known = state.suspects.get(&(suspect.key.clone(), suspect.mark.clone()));
        known.map(|(known, _)| (known.owned, known.requests))
    }

    /// This incarnation has an owner elsewhere.
    pub(crate) fn owned(&self, suspect: &Suspect, create_revision: i64) {
        let key = (suspect.key.clone(), suspect.mark.clone());
        if let Some((known, _)) = lock(&self.state).suspects.get_mut(&key) {
            known.owned = known.owned.max(create_revision);
        }
    }
}

impl State {
    fn suspect(&self, kv: &KeyValue, lease: i64, has_lease: bool) -> Option<(Suspect, i64)> {
        let by_mark = self.suspects.get(&(kv.key.clone(), Some(kv.value.clone())));
        let (suspect, _) = by_mark.or_else(|| self.suspects.get(&(kv.key.clone(), None)))?;
        // Keys alone are read without their lease from 3.7 on; those are names that were drawn.
        let ours = !has_lease || kv.lease == lease;
        (ours && suspect.owned < kv.create_revision).then(|| (suspect.clone(), kv.create_revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(key: &'static str, owned: i64, requests: u32) -> Suspect {
        Suspect { key: key.into(), turn: None, mark: None, owned, requests }
    }

    fn put(key: &'static str, create_revision: i64) -> KeyValue {
        KeyValue { key: key.into(), create_revision, lease: 7, ..Default::default() }
    }

    #[test]
    fn keys_that_were_drawn_share_a_watch_and_go_one_by_one() {
        let suspects = Suspects::default();
        let group = suspects.add(suspect("q/7-a", 5, 1), 5).expect("the first");
        assert!(suspects.add(suspect("q/7-b", 0, 2), 6).is_none());
        assert_eq!((&group.range[..], group.exact, group.unseen()), (&b"q/7-"[..], false, 6));
        let told = group.told(9, [put("q/7-a", 5), put("q/7-a", 8), put("q/7-c", 9)].iter(), 7);
        assert_eq!(told.iter().map(|(_, created)| *created).collect::<Vec<_>>(), [8]);
        group.removed(&told[0].0, told[0].1);
        group.removed(&told[0].0, told[0].1);
        assert!(!suspects.retire(&group), "another may come");
        let told = group.told(11, [put("q/7-b", 10), put("q/7-b", 11)].iter(), 7);
        told.iter().for_each(|(suspect, created)| group.removed(suspect, *created));
        assert!(suspects.retire(&group) && suspects.len() == 0);
    }

    #[test]
    fn what_came_by_before_it_was_suspected_is_read() {
        let suspects = Suspects::default();
        let group = suspects.add(suspect("q/7-a", 0, 1), 5).expect("the first");
        assert!(group.unread().is_empty());
        assert!(group.told(9, [put("q/7-b", 8)].iter(), 7).is_empty());
        suspects.add(suspect("q/7-b", 0, 1), 7);
        suspects.add(suspect("q/7-c", 0, 1), 9);
        let unread = group.unread();
        assert_eq!(unread.iter().map(|suspect| &suspect.key[..]).collect::<Vec<_>>(), [b"q/7-b"]);
        assert_eq!(group.read(&unread, [put("q/7-b", 8)].iter(), 7).len(), 1);
        assert!(group.unread().is_empty());
    }

    #[test]
    fn what_has_an_owner_is_left_alone() {
        let suspects = Suspects::default();
        let shared = Suspect { turn: Some("m/".into()), ..suspect("m/7", 0, 1) };
        let group = suspects.add(shared, 5).expect("the first");
        suspects.owned(&"m/7".into(), 8);
        assert!(group.told(9, [put("m/7", 8)].iter(), 7).is_empty());
        assert_eq!(group.told(10, [put("m/7", 10)].iter(), 7).len(), 1);
        assert!(group.told(10, [put("m/7", 10)].iter(), 9).is_empty(), "another lease's");
    }
}
