//! Whether two streams said the same.

use std::collections::{BTreeMap, BTreeSet};

use etcd_concurrency::pb::etcdserverpb::WatchResponse;

use super::stream::is_marker;

/// Up to which revision each watcher of a stream was catching up.
pub(super) type Settled = BTreeMap<i64, i64>;

/// Compares what two streams logged, watcher by watcher: the order among watchers is the server's choice.
///
/// What a watcher was sent while it caught up with the past comes in as many responses, under as late a
/// header, as the moment happened to allow: there, events are compared in order, and the rest is held to the
/// protocol's rules. From then on every response is compared as a whole.
pub(super) fn streams(
    settled: &Settled,
    fake: &[WatchResponse],
    real: &[WatchResponse],
) -> Result<(), (String, String)> {
    let voices: BTreeSet<_> = fake.iter().chain(real).map(voice).collect();
    for (id, refusal) in voices {
        let until = settled.get(&id).copied().unwrap_or(0);
        let of = |log: &[WatchResponse]| {
            let log: Vec<_> = log.iter().filter(|response| voice(response) == (id, refusal)).collect();
            Seen::of(id, until, &log)
        };
        let (fake, real) = (of(fake), of(real));
        let cuts = fake.cuts.len().min(real.cuts.len());
        // The write that proves that a watcher has caught up may be in its last piece, or make one more.
        let same_cuts =
            fake.cuts[..cuts] == real.cuts[..cuts] && fake.cuts.len().abs_diff(real.cuts.len()) < 2;
        if fake.lines != real.lines {
            return Err((fake.unlike(&real), real.unlike(&fake)));
        }
        if !same_cuts {
            return Err((format!("watcher {id}: {:?}", fake.cuts), format!("watcher {id}: {:?}", real.cuts)));
        }
    }
    Ok(())
}

/// Whose response it is. That of no watcher is a refusal, or a stream's progress: between these two a real server
/// keeps no order.
fn voice(response: &WatchResponse) -> (i64, bool) {
    (response.watch_id, response.created && response.canceled)
}

/// What one watcher saw.
struct Seen {
    lines: Vec<String>,
    /// How many events there were in each piece but the last of what was cut while it caught up.
    cuts: Vec<usize>,
}

impl Seen {
    /// What it saw, from where the other saw something else.
    fn unlike(&self, other: &Seen) -> String {
        let same = self.lines.iter().zip(&other.lines).take_while(|(one, other)| one == other).count();
        format!("{same} alike, then\n  {}", self.lines[same..].join("\n  "))
    }

    fn of(id: i64, until: i64, log: &[&WatchResponse]) -> Seen {
        let mut lines = Vec::new();
        let mut cuts = Vec::new();
        for response in log {
            let last =
                response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
            let Some(last) = last.filter(|last| *last <= until) else {
                lines.push(format!("{response:?}"));
                continue;
            };
            let told = response.events.iter().filter(|event| !is_marker(event));
            lines.extend(told.map(|event| format!("watcher {id}: {event:?}")));
            if response.fragment {
                cuts.push(response.events.len());
            }
            let header = response.header.as_ref().map_or(0, |header| header.revision);
            if header < last || response.canceled || response.created || response.compact_revision != 0 {
                lines.push(format!("odd: {response:?}"));
            }
        }
        Seen { lines, cuts }
    }
}
