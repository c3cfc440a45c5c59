//! Replays the record, revision by revision: each write is held against the state that it met.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use etcd_concurrency::pb::mvccpb::{Event, KeyValue, event::EventType};

use super::record::revision;
use super::spans;
use super::told::{Fate, Told};

pub(crate) type State = BTreeMap<Bytes, KeyValue>;

/// Keys of guarded writes. Their value: what no other run writes, the token, the key that must stand, and with how many.
pub(crate) const GUARDED: &str = "guarded/";
/// Keys of the records of STM runs: what no other run writes, and in the lines after it, what was read.
pub(crate) const RUNS: &str = "stm/run/";
/// What candidates and members say first, and later, begins with this, and ends with a number that grows.
pub(crate) const CAMPAIGN: &str = "campaign ";
pub(crate) const PROCLAIM: &str = "proclaim ";
pub(crate) const COUNTER: &str = "counter";
pub(crate) const MEMBERS: &str = "members/";
/// The double barrier: so many enter together.
pub(crate) const TOGETHER: u32 = 2;
pub(crate) const WAITERS: &str = "double/waiters/";
pub(crate) const READY: &str = "double/ready";
/// Latches, each with a number, and the number of count-downs that opens one.
pub(crate) const LATCHES: &str = "latch/";
pub(crate) const LATCH_COUNT: u32 = 4;
/// The plain barrier.
pub(crate) const BARRIER: &str = "barrier";
/// What says how many permits there are: those that the semaphore was made with, and behind a space, those of now.
pub(crate) const LIMIT: &str = "semaphore/limit";

/// What is wrong with the record, if anything is.
pub(crate) fn judge(events: &[Event], told: &Told) -> Result<(), String> {
    let mut state = State::new();
    let mut puts: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut added: BTreeMap<i64, u32> = BTreeMap::new();
    let mut audits: Vec<_> = told.audits.iter().collect();
    audits.sort_by_key(|(at, _)| *at);
    let mut audits = audits.into_iter().peekable();
    let mut rounds = Rounds::default();
    spans::judge(events, told)?;
    for together in events.chunk_by(|one, other| revision(one) == revision(other)) {
        while let Some((at, read)) =
            audits.next_if(|(at, _)| together.first().is_some_and(|event| *at < revision(event)))
        {
            consistent(&state, read).map_err(|why| format!("a run that only read, at {at}: {why}"))?;
        }
        for kv in together
            .iter()
            .filter(|event| event.r#type() == EventType::Put)
            .filter_map(|event| event.kv.as_ref())
        {
            let (key, value) = (text(&kv.key), text(&kv.value));
            let (id, rest) = value.split_once([' ', '\n']).unwrap_or((&value, ""));
            if key.starts_with(GUARDED) {
                guarded(&state, rest)
                    .map_err(|why| format!("{id}, written at {}, {why}", kv.mod_revision))?;
            } else if key.starts_with(RUNS) {
                consistent(&state, rest)
                    .map_err(|why| format!("{id}, committed at {}, {why}", kv.mod_revision))?;
            } else if key == COUNTER {
                let now = number(&kv.value) - state.get(&kv.key).map_or(0, |kv| number(&kv.value));
                *added.entry(now).or_default() += 1;
                continue;
            } else if key.starts_with("election/") || key.starts_with(MEMBERS) {
                said(&state, kv)?;
                continue;
            } else {
                continue;
            }
            puts.entry(id.to_owned()).or_default().push(kv.mod_revision);
        }
        for event in together {
            let Some(kv) = event.kv.clone() else { continue };
            match event.r#type() {
                EventType::Put => drop(state.insert(kv.key.clone(), kv)),
                EventType::Delete => drop(state.remove(&kv.key)),
            }
        }
        rounds.go_on(&state, told)?;
    }
    for (at, read) in audits {
        consistent(&state, read).map_err(|why| format!("a run that only read, at {at}: {why}"))?;
    }
    sent(&puts, told)?;
    counted(&state, told)?;
    for (id, fate) in &told.puts {
        let at = puts.remove(id).unwrap_or_default();
        let right = match fate {
            Fate::Done(None) => at.len() == 1,
            Fate::Done(Some(revision)) => at == [*revision],
            Fate::Refused => at.is_empty(),
            Fate::Unknown => at.len() <= 1,
        };
        if !right {
            return Err(format!("{id} was told of as {fate:?}, and was put at {at:?}"));
        }
    }
    if let Some((id, at)) = puts.pop_first() {
        return Err(format!("{id} was put at {at:?} by nobody"));
    }
    // It begins as a zero.
    added.remove(&0);
    for (delta, fate) in &told.added {
        let times = added.remove(delta).unwrap_or_default();
        let right = match fate {
            Fate::Done(_) => times == 1,
            Fate::Refused => times == 0,
            Fate::Unknown => times <= 1,
        };
        if !right {
            return Err(format!("{delta} was told of as {fate:?}, and was added {times} times"));
        }
    }
    match added.pop_first() {
        Some((delta, _)) => Err(format!("{delta} was added by nobody")),
        None => Ok(()),
    }
}

/// Each job that was sent was done once, or taken off once; or has gone with a session in the middle of that.
fn sent(puts: &BTreeMap<String, Vec<i64>>, told: &Told) -> Result<(), String> {
    let mut may_be_gone = told.gone_with_sessions;
    for (value, fate) in &told.sent {
        let mine = format!("{value}/");
        let done: Vec<_> = puts.range(mine.clone()..).take_while(|(id, _)| id.starts_with(&mine)).collect();
        let taken_off = told.taken_off.iter().filter(|taken| *taken == value).count();
        let times = done.len() + taken_off;
        let right = match fate {
            Fate::Done(_) if times == 0 && told.perhaps_discarded.contains(value) => true,
            Fate::Done(_) if times == 0 && may_be_gone > 0 => {
                may_be_gone -= 1;
                true
            }
            Fate::Done(_) => times == 1,
            Fate::Refused => times == 0,
            Fate::Unknown => times <= 1,
        };
        if !right {
            return Err(format!(
                "{value} was sent as {fate:?}, was taken off {taken_off} times, and was done as {done:?}"
            ));
        }
    }
    let unsent = told.taken_off.iter().find(|value| !told.sent.contains_key(*value));
    unsent.map_or(Ok(()), |value| Err(format!("{value} was taken off, and sent by nobody")))
}

/// A count-down that was told of was counted, and none twice; but for those of a latch that was open.
fn counted(state: &State, told: &Told) -> Result<(), String> {
    for (name, fates) in &told.counted {
        let count = |what: fn(&Fate) -> bool| fates.iter().filter(|fate| what(fate)).count();
        let (done, unknown) =
            (count(|fate| matches!(fate, Fate::Done(_))), count(|fate| *fate == Fate::Unknown));
        let prefix = format!("{name}/down/");
        let there = state.keys().filter(|key| key.starts_with(prefix.as_bytes())).count();
        if there < done.min(LATCH_COUNT as usize) || there > done + unknown {
            return Err(format!(
                "{name} was counted down {done} to {} times, and says {there}",
                done + unknown
            ));
        }
    }
    Ok(())
}

/// The double barrier's rounds, one after the other.
#[derive(Default)]
struct Rounds {
    /// The revision of the last round's ready key.
    ready: i64,
}

impl Rounds {
    /// A round begins with keys that are there and are let in: as many as make one up, each of another caller. Who has gone
    /// since is one who is lost inside.
    fn go_on(&mut self, state: &State, told: &Told) -> Result<(), String> {
        match state.get(READY.as_bytes()) {
            None => {}
            Some(ready) if ready.create_revision == self.ready => {}
            Some(ready) => {
                *self = Self { ready: ready.create_revision };
                let waiters = state.values().filter(|kv| kv.key.starts_with(WAITERS.as_bytes()));
                let inside: Vec<_> = waiters.filter(|kv| is_let_in(kv.create_revision, ready)).collect();
                let callers = inside.iter().flat_map(|kv| told.callers.get(&kv.lease).into_iter().flatten());
                let (there, callers) = (inside.len(), callers.collect::<BTreeSet<_>>().len());
                let named = text(&ready.value).split_whitespace().count();
                if there != TOGETHER as usize || callers < there || named > there {
                    let (began, value) = (self.ready, text(&ready.value));
                    return Err(format!(
                        "a round began at {began} with {there} keys of {callers} callers, by {value:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether the one whose key was put at this revision is among those whom the ready key names, or moved in as it was put.
fn is_let_in(token: i64, ready: &KeyValue) -> bool {
    let names = text(&ready.value);
    ready.mod_revision == token || names.split_whitespace().any(|name| name.parse() == Ok(token))
}

/// Written by who holds, and not after: all keys of the token stand, and where there is one holder, are the oldest.
fn guarded(state: &State, behind: &str) -> Result<(), String> {
    let words: Vec<_> = behind.split(' ').collect();
    let [token, key, keys] = words[..] else { return Err(format!("says {behind:?}")) };
    let (Ok(token), Ok(keys)) = (token.parse::<i64>(), keys.parse::<usize>()) else {
        return Err(format!("says {behind:?}"));
    };
    if state.get(key.as_bytes()).is_none_or(|kv| kv.create_revision != token) {
        return Err(format!("is behind {key} of {token}, which was gone"));
    }
    // Those that were put together with it.
    let stand = state.values().filter(|kv| kv.create_revision == token && kv.lease != 0).count();
    if stand < keys {
        return Err(format!("is behind {key} of {token}, of whose {keys} keys {stand} stood"));
    }
    if key.starts_with(WAITERS) && !state.get(READY.as_bytes()).is_some_and(|ready| is_let_in(token, ready)) {
        return Err(format!("is behind {key} of {token}, which was not inside"));
    }
    let alone = ["mutex/", "election/"].iter().find(|name| key.starts_with(**name));
    let older = alone.and_then(|name| {
        let before = |kv: &&KeyValue| kv.key.starts_with(name.as_bytes()) && kv.create_revision < token;
        state.values().find(before)
    });
    match older {
        Some(older) => Err(format!("is behind {key} of {token}, while {older:?} held")),
        None => Ok(()),
    }
}

/// What a leader proclaims puts no key that is gone, and what is said late covers nothing newer.
fn said(state: &State, kv: &KeyValue) -> Result<(), String> {
    let number = |kv: &KeyValue| {
        let value = text(&kv.value);
        let number = value.strip_prefix(CAMPAIGN).or_else(|| value.strip_prefix(PROCLAIM));
        number.and_then(|number| number.parse::<u64>().ok())
    };
    match state.get(&kv.key) {
        None if kv.value.starts_with(PROCLAIM.as_bytes()) => {
            Err(format!("what was proclaimed put a key that was gone: {kv:?}"))
        }
        // A resident that does not know whether it has said something says it again.
        Some(before) if before.value == kv.value && kv.key.starts_with(MEMBERS.as_bytes()) => Ok(()),
        Some(before) if number(before) >= number(kv) => Err(format!("{kv:?} covers {before:?}")),
        _ => Ok(()),
    }
}

/// What a run read is what is there.
fn consistent(state: &State, read: &str) -> Result<(), String> {
    for read in read.lines() {
        let mut words = read.split(' ');
        let (Some(kind), Some(key)) = (words.next(), words.next()) else { continue };
        let seen = words.next().unwrap_or_default();
        let below = || state.values().filter(|kv| kv.key.starts_with(key.as_bytes()));
        let there = match kind {
            "key" => state.get(key.as_bytes()).map(|kv| text(&kv.value)).unwrap_or_default(),
            _ => listed(below().map(|kv| (&kv.key, &kv.value))),
        };
        if there != seen {
            return Err(format!("it had read {read:?}, and there was {there:?}"));
        }
    }
    Ok(())
}

/// Keys and values in one word.
pub(crate) fn listed<'a>(kvs: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> String {
    kvs.map(|(key, value)| format!("{}={},", text(key), text(value))).collect()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(value: &[u8]) -> i64 {
    text(value).split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}
