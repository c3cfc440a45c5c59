//! What must be true of all that was done through a member that stood still.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use etcd_concurrency::Outcome;
use etcd_concurrency::pb::mvccpb::event::EventType;

use super::act::{Ending, Fate, Kind, value};

/// One thing that was done.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) kind: Kind,
    pub(crate) ending: Ending,
    pub(crate) name: String,
    pub(crate) fate: Fate,
    /// How many items a third party found.
    pub(crate) found: usize,
}

/// A write of a key, as a watch told of it.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) kind: EventType,
    pub(crate) key: String,
    pub(crate) revision: i64,
    /// Since the member went on; None before.
    pub(crate) after: Option<Duration>,
}

/// For people to read.
impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Write { kind, key, revision, after } = self;
        let when = after.map_or("before".to_owned(), |after| format!("{after:.1?} after"));
        write!(f, "{} {key} at {revision} ({when})", kind.as_str_name())
    }
}

/// What is wrong with a deed, by the keys that are left below its name and all writes of those that ever were.
pub(crate) fn wrong(deed: &Deed, left: &[String], writes: &[Write]) -> Vec<String> {
    let below = |part: &str| {
        let prefix = format!("{}/{part}", deed.name);
        left.iter().filter(move |key| key.starts_with(&prefix)).collect::<Vec<_>>()
    };
    let mut wrong = Vec::new();
    let mut say = |what: String| wrong.push(what);
    let is_put = |write: &Write, key: &str| write.key.starts_with(key) && write.kind == EventType::Put;
    let puts = |key: &str| writes.iter().filter(|write| is_put(write, key)).count();
    let is_refused = deed.fate == Fate::Failed(Outcome::NotApplied);
    let no_longer = matches!(deed.fate, Fate::Failed(Outcome::Unknown | Outcome::Applied));
    match deed.kind {
        Kind::Take => {
            if !below("claims/").is_empty() {
                say("a claim without an owner".into());
            }
            let items = below("items/").len();
            let acked = deed.ending == Ending::Release && deed.fate == Fate::Released;
            let perhaps = deed.ending == Ending::Release && deed.fate == Fate::Got;
            if acked && items != 0 {
                say("an item that was acknowledged is there".into());
            } else if !acked && !perhaps && items != 1 {
                say("an item is lost that was not acknowledged".into());
            }
            if items == 0 && !below("returns/").is_empty() {
                say("a count of returns without its item".into());
            }
        }
        Kind::Dequeue => {
            if !below("claims/").is_empty() {
                say("a claim without an owner".into());
            }
            let items = below("items/").len();
            let got = matches!(deed.fate, Fate::Got | Fate::Released);
            if got && items != 0 {
                say("an item is there that was dequeued".into());
            } else if !got && !no_longer && items != 1 {
                say("an item is lost that no consumer got".into());
            }
        }
        Kind::Enqueue => {
            let items = below("items/").len() + deed.found;
            if items > 1 {
                say("an item was put twice".into());
            }
            if is_refused && items > 0 {
                say("called not applied, and put".into());
            }
            if matches!(deed.fate, Fate::Got | Fate::Released) && items != 1 {
                say(format!("an item that was put is there {items} times"));
            }
        }
        Kind::ExactlyOnce => {
            let puts = puts(&value(&deed.name));
            if puts > 1 {
                say(format!("applied {puts} times"));
            }
            if is_refused && puts > 0 {
                say("called not applied, and applied".into());
            }
            if matches!(deed.fate, Fate::Got | Fate::Released) && puts == 0 {
                say("acknowledged and not applied".into());
            }
        }
        Kind::Barrier => {
            if left.contains(&deed.name) {
                say("a barrier is held whose hold was given up".into());
            }
            if is_refused && puts(&deed.name) > 0 {
                say("called not applied, and applied".into());
            }
        }
        _ => {
            // The first is kept for good. The second is of a round; where no participant is inside any more, the next that enters
            // takes it away.
            let stays = [format!("{}/limit", deed.name), format!("{}/ready", deed.name)];
            for key in below("").into_iter().filter(|key| !stays.contains(key)) {
                say(format!("a key without an owner: {key}"));
            }
        }
    }
    wrong
}

/// The writes by the deed that each belongs to.
pub(crate) fn by_name(writes: Vec<Write>) -> BTreeMap<String, Vec<Write>> {
    let mut by_name: BTreeMap<String, Vec<Write>> = BTreeMap::new();
    for write in writes {
        let name = write.key.split('/').take(3).collect::<Vec<_>>().join("/");
        by_name.entry(name).or_default().push(write);
    }
    by_name
}

/// How long the longest key stood that came after the member went on.
pub(crate) fn longest(writes: &[Write]) -> Duration {
    let mut since: BTreeMap<&str, Duration> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for write in writes {
        let Some(after) = write.after else { continue };
        match write.kind {
            EventType::Put => drop(since.entry(&write.key).or_insert(after)),
            EventType::Delete => {
                if let Some(from) = since.remove(write.key.as_str()) {
                    longest = longest.max(after.saturating_sub(from));
                }
            }
        }
    }
    longest
}
