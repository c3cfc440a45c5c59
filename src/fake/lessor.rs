//! The lessor: leases, when they end, and which keys hang on them.
//!
//! Pure: time is an argument, counted from the fake's start. It deletes nothing itself; who ends a lease
//! deletes the keys that [`Lessor::remove`] hands back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;

use super::refusal::Refusal;

/// The longest TTL that is granted, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// etcd's default election timeout.
const ELECTION: Duration = Duration::from_secs(1);

/// All leases.
#[derive(Debug, Clone)]
pub(crate) struct Lessor {
    leases: BTreeMap<i64, Lease>,
    deadlines: BTreeSet<(Duration, i64)>,
    attached: HashMap<Bytes, i64>,
    min_ttl: i64,
    last_id: i64,
}

/// One lease: its granted TTL in seconds, when it ends, and its keys in order.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) ttl: i64,
    pub(crate) deadline: Duration,
    pub(crate) keys: BTreeSet<Bytes>,
}

impl Lessor {
    pub(crate) fn new(min_ttl: i64) -> Self {
        Self {
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            attached: HashMap::new(),
            min_ttl,
            last_id: FIRST_SERVER_MADE_ID,
        }
    }

    /// Grants a lease and returns its id and TTL. An id of 0 asks for one of the server's making; a TTL
    /// below the minimum is raised to it.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<(i64, i64), Refusal> {
        let id = if id == 0 { self.next_id() } else { id };
        if ttl > MAX_TTL {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        let ttl = ttl.max(self.min_ttl);
        let deadline = now + seconds(ttl);
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        Ok((id, ttl))
    }

    /// Starts a lease's TTL over and returns it.
    pub(crate) fn renew(&mut self, id: i64, now: Duration) -> Result<i64, Refusal> {
        let lease = self.leases.get_mut(&id).ok_or(Refusal::LeaseNotFound)?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now + seconds(lease.ttl);
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// A new leader starts every TTL over, and adds an election's time.
    pub(crate) fn promote(&mut self, now: Duration) {
        self.deadlines.clear();
        for (id, lease) in &mut self.leases {
            lease.deadline = now + seconds(lease.ttl) + ELECTION;
            self.deadlines.insert((lease.deadline, *id));
        }
    }

    /// Ends a lease. The keys that hung on it, in order, are now to be deleted.
    pub(crate) fn remove(&mut self, id: i64) -> Result<BTreeSet<Bytes>, Refusal> {
        let lease = self.leases.remove(&id).ok_or(Refusal::LeaseNotFound)?;
        self.deadlines.remove(&(lease.deadline, id));
        for key in &lease.keys {
            self.attached.remove(key);
        }
        Ok(lease.keys)
    }

    /// Hangs a key on a lease, taking it off the one it hung on; 0 hangs it on none.
    pub(crate) fn attach(&mut self, key: &Bytes, id: i64) {
        let old = self.attached.get(key).copied().unwrap_or(0);
        if old == id {
            return;
        }
        self.detach(key);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
            self.attached.insert(key.clone(), id);
        }
    }

    pub(crate) fn detach(&mut self, key: &[u8]) {
        let Some(id) = self.attached.remove(key) else { return };
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub(crate) fn get(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Every lease, the first to end first.
    pub(crate) fn by_deadline(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.deadlines.iter().filter_map(|(_, id)| Some((*id, self.leases.get(id)?)))
    }

    /// The first lease whose time is over.
    pub(crate) fn expired(&self, now: Duration) -> Option<i64> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// When the next lease ends, if nobody renews it.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn next_id(&mut self) -> i64 {
        loop {
            self.last_id += 1;
            if !self.leases.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

impl Lease {
    /// Whole seconds left. A real server never answers in no time, so a lease just granted for 10 s has 9.
    pub(crate) fn remaining(&self, now: Duration) -> i64 {
        let left = self.deadline.saturating_sub(now).saturating_sub(Duration::from_nanos(1));
        i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
    }
}

/// Server-made ids look like etcd's: large, and in sequence.
const FIRST_SERVER_MADE_ID: i64 = 0x694d_0000_0000_0000;

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::ZERO;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn grants_and_refuses() {
        let mut lessor = Lessor::new(2);
        assert_eq!(lessor.grant(7, 10, START), Ok((7, 10)));
        assert_eq!(lessor.grant(8, -5, START), Ok((8, 2)), "raised to the minimum");
        assert_eq!(lessor.grant(7, 10, START), Err(Refusal::LeaseExists));
        assert_eq!(lessor.grant(7, MAX_TTL + 1, START), Err(Refusal::LeaseTtlTooLarge), "checked first");
        assert_eq!(lessor.grant(9, MAX_TTL, START), Ok((9, MAX_TTL)));
        let made: Vec<_> = (0..2).filter_map(|_| lessor.grant(0, 5, START).ok()).collect();
        assert!(made[0].0 > 0 && made[1].0 > made[0].0);
    }

    #[test]
    fn expires_at_the_deadline_unless_renewed() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10, START).expect("granted");
        lessor.grant(2, 20, START).expect("granted");
        assert_eq!(lessor.next_deadline(), Some(at(10)));
        assert_eq!(lessor.renew(1, at(9)), Ok(10));
        assert_eq!(lessor.expired(at(18)), None);
        assert_eq!(lessor.expired(at(19)), Some(1));
        assert_eq!(lessor.remove(1), Ok(BTreeSet::new()));
        assert_eq!(lessor.expired(at(20)), Some(2));
        assert_eq!(lessor.renew(1, at(20)), Err(Refusal::LeaseNotFound));
    }

    #[test]
    fn a_key_hangs_on_one_lease() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10, START).expect("granted");
        lessor.grant(2, 10, START).expect("granted");
        for name in ["b", "a"] {
            lessor.attach(&key(name), 1);
        }
        lessor.attach(&key("c"), 1);
        lessor.attach(&key("a"), 2);
        lessor.detach(b"c");
        assert_eq!(lessor.remove(1), Ok(BTreeSet::from([key("b")])));
        lessor.attach(&key("a"), 0);
        assert_eq!(lessor.remove(2), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_new_leader_starts_every_ttl_over() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10, START).expect("granted");
        lessor.grant(2, 60, START).expect("granted");
        lessor.promote(at(100));
        assert_eq!(lessor.next_deadline(), Some(at(111)));
        assert_eq!(lessor.get(2).map(|lease| lease.deadline), Some(at(161)));
        assert_eq!(lessor.renew(1, at(101)), Ok(10));
        assert_eq!(lessor.next_deadline(), Some(at(111)));
    }

    #[test]
    fn remaining_counts_whole_seconds_down() {
        let mut lessor = Lessor::new(2);
        lessor.grant(1, 10, START).expect("granted");
        let left = |now| lessor.get(1).map(|lease| lease.remaining(now));
        assert_eq!(left(START), Some(9));
        assert_eq!(left(Duration::from_millis(9_500)), Some(0));
        assert_eq!(left(at(30)), Some(0));
    }

    #[test]
    fn lists_the_first_to_end_first() {
        let mut lessor = Lessor::new(2);
        for (id, ttl) in [(5, 30), (6, 10), (4, 30)] {
            lessor.grant(id, ttl, START).expect("granted");
        }
        let ids: Vec<_> = lessor.by_deadline().map(|(id, _)| id).collect();
        assert_eq!(ids, [6, 4, 5]);
    }
}
