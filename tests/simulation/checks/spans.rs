//! What must have held at some moment between two.

use etcd_concurrency::pb::mvccpb::{Event, event::EventType};

use super::log::{BARRIER, LIMIT, text};
use super::record::revision;
use super::told::Told;

pub(crate) fn judge(events: &[Event], told: &Told) -> Result<(), String> {
    let of = |key: &'static str| {
        let mine = events.iter().filter(move |event| event.kv.as_ref().is_some_and(|kv| kv.key == key));
        mine.map(|event| (revision(event), event)).collect::<Vec<_>>()
    };
    let gates: Vec<(i64, bool)> =
        of(BARRIER).into_iter().map(|(at, event)| (at, event.r#type() == EventType::Delete)).collect();
    for (began, ended) in &told.passed {
        if !within(&gates, true, *began, *ended).any(|open| open) {
            return Err(format!("a barrier was passed between {began} and {ended}, and was never open"));
        }
    }
    let limits: Vec<(i64, u32)> = of(LIMIT).into_iter().map(|(at, event)| (at, limit(event))).collect();
    for (began, ended, out) in &told.permits {
        let most = within(&limits, u32::MAX, *began, *ended).filter(|limit| *limit < u32::MAX).max();
        if most.is_some_and(|most| *out > most) {
            return Err(format!("{out} permits were out of {most:?}, between {began} and {ended}"));
        }
    }
    Ok(())
}

/// What was so at one revision of a span at least.
fn within<T: Copy>(changes: &[(i64, T)], first: T, began: i64, ended: i64) -> impl Iterator<Item = T> {
    let before = changes.iter().take_while(|(at, _)| *at <= began).last().map_or(first, |(_, now)| *now);
    let meanwhile = changes.iter().filter(move |(at, _)| began < *at && *at <= ended).map(|(_, now)| *now);
    std::iter::once(before).chain(meanwhile)
}

/// The last of its numbers.
fn limit(event: &Event) -> u32 {
    let value = event.kv.as_ref().map(|kv| text(&kv.value)).unwrap_or_default();
    value.split(' ').next_back().and_then(|word| word.parse().ok()).unwrap_or(u32::MAX)
}
