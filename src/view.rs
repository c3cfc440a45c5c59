//! A live copy of a few keys or of a prefix: read once, then followed by its watch, one revision at a time.
//!
//! The watch starts at "now" and is acknowledged before the read, so nothing falls between the two; what the watch
//! tells of revisions that the read has seen is passed over. Where events are lost, by compaction, or as a count or a
//! key that comes again shows, it is read anew, and the difference from the old copy is what has changed; that is a gap,
//! since what came and went meanwhile is not seen.
//!
//! **Several parts** are several watches, which have no order between them after a broken connection, or when the server
//! falls behind with one of them. What is decided by two of them must be something that no later event unmakes: a key
//! that is gone, of its create_revision; never that a key is there still, unless its fence goes on watching it.

mod copy;
mod read;

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::client::Client;
use crate::error::{ErrorKind, Result};
use crate::key::prefix_end;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::session::Session;
use crate::transport::retry::{Backoff, Rounds, second_look};
use crate::watch::{Events, Failed, Watch, Watcher};
pub(crate) use copy::Change;
use copy::Copy;
use read::{count, read};

/// A live copy of keys.
pub(crate) struct View {
    client: Client,
    /// Each a key and a range's end, which is empty for one key.
    parts: Vec<(Bytes, Bytes)>,
    watcher: Option<Watcher>,
    /// The revision that was read; none before.
    read_at: Option<i64>,
    /// Events that were delivered and are yet to be applied.
    pending: VecDeque<Event>,
    /// When to look whether a deletion was lost.
    look: Option<Instant>,
    /// A count that is yet to be compared: what it differs by is late, or lost.
    doubt: Option<Doubt>,
    copy: Copy,
    /// Which keys under the first part count: by its start, and the key.
    only: fn(&[u8], &[u8]) -> bool,
    /// It lasts: what keeps the first read from being answered is waited out too.
    lasts: bool,
    /// It was read before.
    was_read: bool,
    /// How often events were lost.
    gaps: u64,
    /// Pauses between reads that fail.
    backoff: Backoff,
    again: Option<Instant>,
    rounds: Rounds,
}

/// So many keys were there at a revision. By what is told of that revision and those before it, so many should have been.
#[derive(Debug)]
struct Doubt {
    revision: i64,
    keys: usize,
    told: usize,
}

impl Doubt {
    fn is_short(&self) -> bool {
        self.keys != self.told
    }
}

impl View {
    /// Of all keys that start with a prefix. Nothing is sent yet.
    pub(crate) fn new(client: &Client, prefix: &Bytes) -> Self {
        Self::of(client, vec![(prefix.clone(), prefix_end(prefix))])
    }

    /// Of all keys from `start` up to, without, `end`: one part, so that what there is of them is there at one revision.
    pub(crate) fn range(client: &Client, start: &Bytes, end: Bytes) -> Self {
        Self::of(client, vec![(start.clone(), end)])
    }

    /// Of these keys. Of what happens in one revision to several of them, each is told for itself.
    pub(crate) fn keys<const N: usize>(client: &Client, keys: [&Bytes; N]) -> Self {
        Self::of(client, keys.into_iter().map(|key| (key.clone(), Bytes::new())).collect())
    }

    /// This key too, which is not under the prefix.
    pub(crate) fn and_key(mut self, key: &Bytes) -> Self {
        self.parts.push((key.clone(), Bytes::new()));
        self
    }

    /// Of those keys alone of which this says that they count.
    pub(crate) fn only(self, only: fn(&[u8], &[u8]) -> bool) -> Self {
        Self { only, ..self }
    }

    /// It waits for whatever time mends, with the first read too.
    pub(crate) fn lasting(self) -> Self {
        Self { lasts: true, ..self }
    }

    /// How often events were lost, as it was read anew, or a key came again that had not gone: what came and went meanwhile
    /// was not seen.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Waits for the next revision that may have changed something, and applies it; the first call reads what is there.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        self.changes().await.map(drop)
    }

    /// As [`changed`](Self::changed), and tells what has changed: the first call, all that is there.
    pub(crate) async fn changes(&mut self) -> Result<Vec<Change>> {
        loop {
            if let Some(again) = self.again {
                sleep_until(again).await;
                self.again = None;
            }
            match self.step().await {
                Ok(mut changes) => {
                    changes.retain(|change| self.counts(change.kv()));
                    return Ok(changes);
                }
                Err(Failed::Watch(error)) if matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    // When to read without a watch is reckoned anew, from the next one.
                    (self.watcher, self.read_at, self.look) = (None, None, None);
                    self.pending.clear();
                    self.rounds.again().await;
                }
                Err(Failed::Read(error))
                    if (self.lasts || self.was_read) && !is_final(&self.client, error.kind()) =>
                {
                    tracing::debug!(%error, "a read failed; trying again");
                    self.again = Some(Instant::now() + self.backoff.next());
                }
                Err(Failed::Watch(error) | Failed::Read(error)) => return Err(error),
            }
        }
    }

    /// Waits until the copy shows something, or the session is lost.
    pub(crate) async fn until<T>(
        &mut self,
        session: &Session,
        mut shows: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        loop {
            session.lease_handle().learn_of_past(session.unless_lost(self.changed()).await)?;
            if let Some(shown) = shows(self) {
                // What shows it may have been on its way for longer than the session lasts.
                session.check()?;
                return Ok(shown);
            }
        }
    }

    /// The key that was created first.
    pub(crate) fn oldest(&self) -> Option<&KeyValue> {
        self.by_age().next()
    }

    /// All keys, those that were created first first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = &KeyValue> {
        self.copy.by_age.values().filter(|kv| self.counts(kv))
    }

    pub(crate) fn get(&self, key: &Bytes) -> Option<&KeyValue> {
        let age = self.copy.ages.get(key)?;
        self.copy.by_age.get(&(*age, key.clone()))
    }

    pub(crate) fn len(&self) -> usize {
        self.copy.ages.len()
    }

    fn of(client: &Client, parts: Vec<(Bytes, Bytes)>) -> Self {
        Self {
            client: client.clone(),
            parts,
            watcher: None,
            read_at: None,
            pending: VecDeque::new(),
            look: None,
            doubt: None,
            copy: Copy::default(),
            only: |_, _| true,
            lasts: false,
            was_read: false,
            gaps: 0,
            backoff: Backoff::default(),
            again: None,
            rounds: Rounds::new(),
        }
    }

    fn counts(&self, kv: &KeyValue) -> bool {
        (self.only)(&self.parts[0].0, &kv.key)
    }

    async fn step(&mut self) -> Result<Vec<Change>, Failed> {
        let (client, parts) = (&self.client, &self.parts);
        let watcher = self.watcher.get_or_insert_with(|| client.watch(watch(parts)));
        let Some(read_at) = self.read_at else {
            let look = *self.look.get_or_insert_with(|| Instant::now() + second_look());
            let begun = match timeout_at(look, watcher.created()).await {
                Ok(begun) => begun.map(|_| true).map_err(Failed::Watch)?,
                Err(_) => false,
            };
            self.look = None;
            let changes = self.read().await.map_err(Failed::Read)?;
            if !begun {
                // A watch that does not begin tells nothing: it is read now and then, and once more when it has begun.
                self.read_at = None;
            }
            return Ok(changes);
        };
        while self.pending.is_empty() {
            let look = async {
                match self.look {
                    Some(look) => sleep_until(look).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                events = watcher.next() => {
                    let events = events.map_err(Failed::Watch)?;
                    // A report says that all up to its revision was told.
                    let passed = events.events.is_empty().then_some(events.revision.saturating_add(1));
                    self.pending.extend(news(events, read_at));
                    if is_short(&mut self.doubt, &mut self.look, parts, passed) {
                        return self.read_anew().await;
                    }
                }
                () = look => {
                    // Servers before 3.4.36 and 3.5.18 can lose a deletion at the edge of a compaction. One that
                    // is only late gets some time to come: a read would pass over what happened in between.
                    match self.doubt.take() {
                        // Nor is a stream waited for that broke and that the server, which answers, does not open again.
                        Some(doubt) if doubt.is_short() || !watcher.is_live() => return self.read_anew().await,
                        Some(_) => self.look = Some(Instant::now() + second_look()),
                        None => {
                            // A count that fails is made another time.
                            self.look = Some(Instant::now() + second_look());
                            match count(client, parts).await {
                                Ok((revision, keys)) => {
                                    self.look = Some(Instant::now() + LATE);
                                    self.doubt = Some(Doubt { revision, keys, told: self.copy.ages.len() });
                                }
                                Err(error) if is_final(client, error.kind()) => return Err(Failed::Read(error)),
                                Err(_) => {}
                            }
                        }
                    }
                }
            }
        }
        let next = self.pending.front().map(revision);
        if is_short(&mut self.doubt, &mut self.look, &self.parts, next) {
            return self.read_anew().await;
        }
        let one = self.pending.iter().take_while(|event| Some(revision(event)) == next).count();
        // A key that comes and had not gone: its deletion was lost, and others may have gone with it that the copy still has.
        if self.pending.iter().take(one).any(|event| self.copy.has_another(event)) {
            // It is looked at once, also where a cluster that was restored from a backup answers by an older revision.
            self.pending.drain(..one);
            return self.read_anew().await;
        }
        let mut changes = Vec::new();
        for event in self.pending.drain(..one) {
            let before = self.copy.ages.len();
            changes.extend(self.copy.apply(event));
            if let Some(doubt) = self.doubt.as_mut().filter(|doubt| next <= Some(doubt.revision)) {
                doubt.told = (doubt.told + self.copy.ages.len()).saturating_sub(before);
            }
        }
        Ok(changes)
    }

    async fn read_anew(&mut self) -> Result<Vec<Change>, Failed> {
        self.read_at = None;
        self.read().await.map_err(Failed::Read)
    }

    async fn read(&mut self) -> Result<Vec<Change>> {
        let (revision, kvs) = read(&self.client, &self.parts).await?;
        (self.read_at, self.look) = (Some(revision), Some(Instant::now() + second_look()));
        self.gaps += u64::from(std::mem::replace(&mut self.was_read, true));
        self.doubt = None;
        self.backoff.reset();
        self.pending.retain(|event| self::revision(event) > revision);
        let mut fresh = Copy::default();
        kvs.into_iter().for_each(|kv| drop(fresh.put(kv)));
        let old = std::mem::replace(&mut self.copy, fresh);
        Ok(self.copy.since(old))
    }
}

/// Whether a count is passed, as what comes next is of this revision, and what was told up to it does not come to it. Each
/// of several parts passes it by itself: there only time tells.
fn is_short(
    doubt: &mut Option<Doubt>,
    look: &mut Option<Instant>,
    parts: &[(Bytes, Bytes)],
    next: Option<i64>,
) -> bool {
    let passed = doubt.take_if(|doubt| parts.len() == 1 && next > Some(doubt.revision));
    let Some(passed) = passed else { return false };
    // It was to be looked at soon; the next count has time.
    *look = Some(Instant::now() + second_look());
    passed.is_short()
}

/// What no time mends. A cluster that has lost revisions answers no read of those who saw them, until it has as many again.
fn is_final(client: &Client, kind: &ErrorKind) -> bool {
    client.transport().is_final(kind) || matches!(kind, ErrorKind::RevisionsLost { .. })
}

fn watch(parts: &[(Bytes, Bytes)]) -> Watch {
    let watch = |(key, end): &(Bytes, Bytes)| match end.is_empty() {
        true => Watch::key(key).progress(),
        false => Watch::range(key, end).progress(),
    };
    parts.iter().map(watch).reduce(Watch::and).unwrap_or_else(|| Watch::key(""))
}

fn news(events: Events, read_at: i64) -> impl Iterator<Item = Event> {
    events.events.into_iter().filter(move |event| revision(event) > read_at)
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// How long an event may be on its way before it is taken for lost.
const LATE: Duration = Duration::from_secs(5);
