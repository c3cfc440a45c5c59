//! Range: what is asked, filtered, sorted and cut in etcd's order, which is not always the obvious one.

use std::cmp::Ordering;

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use super::keys::KeyRange;
use super::refusal::Refusal;
use super::store::{Store, Write};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use crate::pb::mvccpb::KeyValue;

/// What the server refuses before it looks at the store.
pub(crate) fn check(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(Refusal::InvalidSort);
    }
    Ok(())
}

/// Reads from the committed store.
pub(crate) fn read(store: &Store, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let found = store.range(&range, request.revision)?;
    Ok(answer(request, found, store.revision()))
}

/// What the server refuses to stream.
pub(crate) fn check_stream(request: &RangeRequest) -> Result<(), Refusal> {
    check(request)?;
    if request.sort_order() != SortOrder::None && !by_key_ascending(request) {
        let words = "RangeStream does not support custom sort orders";
        return Err(Refusal::Other(Code::Unimplemented, words));
    }
    if has_revision_filters(request) {
        let words = "RangeStream does not support revision filters";
        return Err(Refusal::Other(Code::Unimplemented, words));
    }
    Ok(())
}

/// Reads in pieces, all of one revision: 10 keys first, then twice or half as many as before, to get near
/// `target` bytes. The last piece alone tells the header, the count, and whether there is more.
///
/// Each piece is a range of its own, from behind the last key on: where a target to sort by is set without an
/// order, each is sorted for itself, and the next one repeats or misses keys, as on the server.
pub(crate) fn stream(
    store: &Store,
    request: &RangeRequest,
    target: usize,
) -> Result<Vec<RangeResponse>, Refusal> {
    if request.count_only {
        return Ok(vec![read(store, request)?]);
    }
    let total = if request.limit == 0 { i64::MAX } else { request.limit };
    let mut ask = RangeRequest { limit: FIRST_PIECE.min(total), ..request.clone() };
    let mut header = None;
    let mut count = 0;
    let mut pieces = Vec::new();
    loop {
        let piece = read(store, &ask)?;
        if ask.revision == 0 {
            ask.revision = store.revision();
        }
        header = header.or(piece.header);
        count += signed(piece.kvs.len());
        let next = piece.kvs.last().filter(|_| piece.more).map(|last| [&last.key[..], &[0]].concat().into());
        let more = next.is_some();
        // The server measures the piece with all that it has read: one key more than it sends.
        let read_keys = signed(piece.kvs.len()) + i64::from(more);
        let size = RangeResponse { count: read_keys, ..piece.clone() }.encoded_len();
        if let Some(next) = next {
            ask.key = next;
            if count != total {
                pieces.push(RangeResponse { kvs: piece.kvs, ..Default::default() });
                ask.limit = next_limit(ask.limit, size, target).min(total - count);
                continue;
            }
            count += read(store, &RangeRequest { count_only: true, ..ask.clone() })?.count;
        }
        pieces.push(RangeResponse { header, kvs: piece.kvs, more, count });
        return Ok(pieces);
    }
}

fn next_limit(limit: i64, size: usize, target: usize) -> i64 {
    if size < target / 2 {
        limit.saturating_mul(2)
    } else if size > target.saturating_mul(2) {
        (limit / 2).max(1)
    } else {
        limit
    }
}

/// Reads inside a transaction, which sees its own writes.
pub(crate) fn read_in(write: &Write<'_>, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let found = write.range(&range, request.revision)?;
    Ok(answer(request, found, write.revision()))
}

/// The checks of a range inside a transaction, which come before anything is applied.
pub(crate) fn check_revision(store: &Store, request: &RangeRequest) -> Result<(), Refusal> {
    match request.revision {
        0 => Ok(()),
        revision if revision > store.revision() => Err(Refusal::FutureRevision),
        revision if revision < store.compacted() => Err(Refusal::Compacted),
        _ => Ok(()),
    }
}

fn answer<'s>(
    request: &RangeRequest,
    mut found: impl Iterator<Item = &'s KeyValue>,
    revision: i64,
) -> RangeResponse {
    let header = Some(ResponseHeader { revision, ..Default::default() });
    if request.count_only {
        return RangeResponse { header, count: signed(found.count()), ..Default::default() };
    }
    // One more than asked for, to know whether there is more. A limit comes before the sorting whenever the
    // order is unset, even if a target is set: the server then sorts only what it has cut.
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let cut = match limit {
        0 => usize::MAX,
        _ if request.sort_order() != SortOrder::None && !by_key_ascending(request) => usize::MAX,
        _ if has_revision_filters(request) => usize::MAX,
        limit => limit.saturating_add(1),
    };
    let mut kvs: Vec<KeyValue> = found.by_ref().take(cut).map(|kv| shaped(request, kv)).collect();
    // The count is of all keys in the range: neither limit nor filters touch it.
    let count = signed(kvs.len() + found.count());
    kvs.retain(|kv| passes(request, kv));
    sort(request, &mut kvs);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header, kvs, more, count }
}

/// Keys-only reads are answered from the index of 3.7, which knows no leases; only a sort by value needs
/// the values themselves, and then the lease comes with them.
fn shaped(request: &RangeRequest, kv: &KeyValue) -> KeyValue {
    if request.keys_only && request.sort_target() != SortTarget::Value {
        KeyValue { value: Bytes::new(), lease: 0, ..kv.clone() }
    } else {
        kv.clone()
    }
}

fn has_revision_filters(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ] != [0; 4]
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn by_key_ascending(request: &RangeRequest) -> bool {
    request.sort_target() == SortTarget::Key && request.sort_order() == SortOrder::Ascend
}

fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let target = request.sort_target();
    let order = match request.sort_order() {
        SortOrder::None if target == SortTarget::Key => return,
        SortOrder::None => SortOrder::Ascend,
        order => order,
    };
    let compare = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    // Stable both ways: equals stay in key order.
    match order {
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
        _ => kvs.sort_by(compare),
    }
}

/// So many keys come in a stream's first piece.
const FIRST_PIECE: i64 = 10;

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        let mut store = Store::new();
        // Revisions 2..=5; "b" is written twice, so its mod revision is the newest.
        for (key, value) in [("a", "3"), ("b", "2"), ("c", "1"), ("b", "9")] {
            let mut write = store.write();
            write.put(Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()), 7);
            write.commit();
        }
        store
    }

    fn all() -> RangeRequest {
        RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            ..Default::default()
        }
    }

    fn keys(response: &RangeResponse) -> String {
        response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
    }

    fn ask(request: RangeRequest) -> RangeResponse {
        read(&store(), &request).unwrap_or_default()
    }

    #[test]
    fn limit_and_more_leave_the_count_alone() {
        let response = ask(RangeRequest { limit: 2, ..all() });
        assert_eq!((keys(&response).as_str(), response.more, response.count), ("ab", true, 3));
        let response = ask(RangeRequest { limit: 3, ..all() });
        assert_eq!((keys(&response).as_str(), response.more, response.count), ("abc", false, 3));
    }

    #[test]
    fn sorts_before_it_cuts_when_an_order_is_given() {
        let newest = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Mod.into(),
            limit: 1,
            ..all()
        };
        assert_eq!(keys(&ask(newest.clone())), "b");
        let unordered = RangeRequest { sort_order: SortOrder::None.into(), ..newest };
        assert_eq!(keys(&ask(unordered)), "a", "cut to a and b first, then sorted ascending");
    }

    #[test]
    fn every_target_sorts_both_ways() {
        let cases = [
            (SortTarget::Key, "abc", "cba"),
            (SortTarget::Version, "acb", "bac"),
            (SortTarget::Create, "abc", "cba"),
            (SortTarget::Mod, "acb", "bca"),
            (SortTarget::Value, "cab", "bac"),
        ];
        for (target, up, down) in cases {
            let sorted = |order: SortOrder| {
                keys(&ask(RangeRequest { sort_order: order.into(), sort_target: target.into(), ..all() }))
            };
            assert_eq!((sorted(SortOrder::Ascend).as_str(), sorted(SortOrder::Descend).as_str()), (up, down));
        }
    }

    #[test]
    fn filters_hide_keys_but_not_from_the_count() {
        let response = ask(RangeRequest { min_mod_revision: 3, max_create_revision: 3, ..all() });
        assert_eq!((keys(&response).as_str(), response.count), ("b", 3));
        let response = ask(RangeRequest { max_mod_revision: 4, min_create_revision: 3, ..all() });
        assert_eq!(keys(&response), "c");
    }

    #[test]
    fn keys_only_has_no_values_and_no_leases() {
        let response = ask(RangeRequest { keys_only: true, ..all() });
        assert!(response.kvs.iter().all(|kv| kv.value.is_empty() && kv.lease == 0 && kv.mod_revision > 0));
        let by_value = RangeRequest { keys_only: true, sort_target: SortTarget::Value.into(), ..all() };
        let response = ask(by_value);
        assert_eq!(keys(&response), "cab");
        assert!(response.kvs.iter().all(|kv| kv.value.is_empty() && kv.lease == 7));
    }

    #[test]
    fn count_only_reads_at_old_revisions_too() {
        let response = ask(RangeRequest { count_only: true, revision: 3, ..all() });
        assert_eq!((response.count, response.kvs.len()), (2, 0));
        assert_eq!(response.header.map(|header| header.revision), Some(5));
    }

    #[test]
    fn each_piece_of_a_stream_is_sorted_for_itself() {
        let mut store = Store::new();
        // Written backwards, so that the first key of all is the newest.
        for key in (b'a'..=b'k').rev() {
            let mut write = store.write();
            write.put(Bytes::copy_from_slice(&[key]), Bytes::new(), 0);
            write.commit();
        }
        let request = RangeRequest { sort_target: SortTarget::Mod.into(), limit: 12, ..all() };
        let pieces = stream(&store, &request, 1 << 20).unwrap_or_default();
        let seen: Vec<_> = pieces.iter().map(|piece| (keys(piece), piece.more, piece.count)).collect();
        // The second goes on behind "b", the last of the first, reads three keys and may send two of them; the
        // count is of what was sent, and of what lies behind its last.
        assert_eq!(seen, [("kjihgfedcb".into(), false, 0), ("ed".into(), true, 19)]);
    }

    #[test]
    fn refuses_what_the_server_refuses() {
        assert_eq!(check(&RangeRequest::default()), Err(Refusal::EmptyKey));
        assert_eq!(check(&RangeRequest { sort_order: 3, ..all() }), Err(Refusal::InvalidSort));
        assert_eq!(check(&RangeRequest { sort_target: 5, ..all() }), Err(Refusal::InvalidSort));
        let ahead = RangeRequest { revision: 6, ..all() };
        assert_eq!(read(&store(), &ahead).err(), Some(Refusal::FutureRevision));
    }
}
