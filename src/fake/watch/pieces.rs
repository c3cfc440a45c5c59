//! Cutting watch responses into pieces.

use prost::Message;

use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::Event;

/// Cuts a response that is too large down to its first fragment, and returns the rest. A single event is
/// never cut.
pub(super) fn split_off(response: &mut WatchResponse, limit: usize) -> Option<WatchResponse> {
    if response.encoded_len() < limit || response.events.len() < 2 {
        return None;
    }
    let events = std::mem::take(&mut response.events);
    response.fragment = true;
    let mut size = response.encoded_len();
    let mut kept = 0;
    for event in &events {
        // A field's tag, its length, and itself.
        size += 1 + prost::length_delimiter_len(event.encoded_len()) + event.encoded_len();
        if kept > 0 && size >= limit {
            break;
        }
        kept += 1;
    }
    let mut rest = WatchResponse { fragment: false, ..response.clone() };
    let mut events = events.into_iter();
    response.events = events.by_ref().take(kept).collect();
    rest.events = events.collect();
    if rest.events.is_empty() {
        response.fragment = false;
        return None;
    }
    Some(rest)
}

/// The smallest pieces that the protocol allows: one revision each, and one event each for watchers that
/// take fragments.
pub(super) fn smallest(response: WatchResponse, fragments: bool) -> Vec<WatchResponse> {
    let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    let last = response.events.len().saturating_sub(1);
    let mut pieces: Vec<WatchResponse> = Vec::new();
    for (index, event) in response.events.iter().enumerate() {
        let before =
            pieces.last_mut().filter(|piece| piece.events.last().map(revision) == Some(revision(event)));
        match before {
            Some(piece) if !fragments => piece.events.push(event.clone()),
            _ => pieces.push(WatchResponse {
                header: response.header,
                watch_id: response.watch_id,
                fragment: fragments && index < last,
                events: vec![event.clone()],
                ..Default::default()
            }),
        }
    }
    if pieces.is_empty() { vec![response] } else { pieces }
}
