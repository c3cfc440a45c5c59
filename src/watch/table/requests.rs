//! What is asked of the server.

use crate::pb::etcdserverpb as pb;
use crate::watch::Target;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;

pub(super) fn create(id: i64, target: &Target, start_revision: i64) -> pb::WatchRequest {
    let filters = [(target.no_put, FilterType::Noput), (target.no_delete, FilterType::Nodelete)];
    let create = pb::WatchCreateRequest {
        key: target.key.clone(),
        range_end: target.end.clone(),
        start_revision,
        // Only where it is asked for: members make the reports one by one on the path of the events, and each costs
        // them a read transaction. With 20,000 watches on a stream nothing else goes out for seconds.
        progress_notify: target.progress,
        filters: filters.into_iter().filter(|(wanted, _)| *wanted).map(|(_, filter)| filter.into()).collect(),
        prev_kv: target.prev_kv,
        watch_id: id,
        fragment: true,
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

pub(super) fn cancel(watch_id: i64) -> pb::WatchRequest {
    let cancel = pb::WatchCancelRequest { watch_id };
    pb::WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }
}
