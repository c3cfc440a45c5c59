//! Messages for people to read.

use etcd_concurrency::pb::etcdserverpb::{
    Compare, RangeRequest, RequestOp, TxnRequest, WatchRequest, WatchResponse, request_op::Request,
    watch_request::RequestUnion,
};
use etcd_concurrency::pb::mvccpb::event::EventType;
use prost::Message;

/// What a client asks.
pub(crate) fn asked(method: &str, message: &[u8]) -> String {
    match method {
        "Txn" => TxnRequest::decode(message).map_or_else(|_| "Txn".into(), |txn| transaction(&txn)),
        "Range" => RangeRequest::decode(message).map_or_else(|_| "Range".into(), |range| read(&range)),
        method => method.into(),
    }
}

fn transaction(txn: &TxnRequest) -> String {
    let all = |ops: &[RequestOp]| ops.iter().map(operation).collect::<Vec<_>>().join(", ");
    let ifs: Vec<_> = txn.compare.iter().map(compare).collect();
    let mut told = String::from("Txn");
    if !ifs.is_empty() {
        told += &format!(" if {}", ifs.join(", "));
    }
    told += &format!(" then {}", all(&txn.success));
    if !txn.failure.is_empty() {
        told += &format!(" else {}", all(&txn.failure));
    }
    told
}

fn compare(compare: &Compare) -> String {
    let what = compare.target_union.as_ref().map_or_else(String::new, |union| format!(" {union:?}"));
    format!("{}{what}", short(&compare.key))
}

fn operation(op: &RequestOp) -> String {
    match &op.request {
        Some(Request::RequestRange(range)) => read(range),
        Some(Request::RequestPut(put)) => format!("put {}", short(&put.key)),
        Some(Request::RequestDeleteRange(delete)) => format!("delete {}", short(&delete.key)),
        Some(Request::RequestTxn(txn)) => format!("({})", transaction(txn)),
        None => String::new(),
    }
}

fn read(range: &RangeRequest) -> String {
    match range.range_end.is_empty() {
        true => format!("get {}", short(&range.key)),
        false => format!("list {}", short(&range.key)),
    }
}

/// What a client asks of a watch stream.
pub(crate) fn of_watch(name: &str, message: &[u8]) -> String {
    let what = match WatchRequest::decode(message).ok().and_then(|request| request.request_union) {
        Some(RequestUnion::CreateRequest(create)) => {
            format!("watch {} from {}", short(&create.key), create.start_revision)
        }
        Some(RequestUnion::CancelRequest(cancel)) => format!("end of watch {}", cancel.watch_id),
        _ => "progress of a watch".into(),
    };
    format!("{name} {what} arrives")
}

/// Which watch a message of a stream is for, and what it tells.
pub(crate) fn events(name: &str, message: &[u8]) -> (i64, String) {
    let Ok(response) = WatchResponse::decode(message) else { return (0, format!("{name} is told")) };
    let events = response.events.iter().map(|event| {
        let deleted = event.r#type() == EventType::Delete;
        let kv = event.kv.as_ref();
        let (key, at) = kv.map_or((String::new(), 0), |kv| (short(&kv.key), kv.mod_revision));
        format!("{} {key} at {at}", if deleted { "delete" } else { "put" })
    });
    let events: Vec<_> = events.collect();
    let what = match (response.created, response.canceled, events.is_empty()) {
        (true, _, _) => "begun".into(),
        (_, true, _) => "ended".into(),
        (_, _, true) => "progress".into(),
        _ => events.join(", "),
    };
    (response.watch_id, format!("{name} is told by watch {}: {what}", response.watch_id))
}

/// Lease ids are long, and say little: their first digits do.
fn short(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    let mut parts: Vec<_> = text.split('/').map(str::to_owned).collect();
    if let Some(last) = parts.last_mut().filter(|last| last.len() > 12) {
        last.truncate(4);
    }
    parts.join("/")
}
