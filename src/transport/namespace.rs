//! A prefix before every key: put before the keys of requests, taken from the keys of answers.

use bytes::Bytes;

use crate::key::prefix_end;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use pb::request_op::Request;
use pb::response_op::Response;

/// The prefix; empty for none.
pub(crate) struct Namespace(Bytes);

impl Namespace {
    pub(crate) fn new(prefix: impl Into<Bytes>) -> Self {
        Self(prefix.into())
    }

    pub(crate) fn range(&self, mut request: pb::RangeRequest) -> pb::RangeRequest {
        self.enter(&mut request.key, &mut request.range_end);
        request
    }

    pub(crate) fn ranged(&self, mut response: pb::RangeResponse) -> pb::RangeResponse {
        self.leave_all(&mut response.kvs);
        response
    }

    pub(crate) fn txn(&self, mut request: pb::TxnRequest) -> pb::TxnRequest {
        if !self.0.is_empty() {
            self.enter_txn(&mut request);
        }
        request
    }

    pub(crate) fn txned(&self, mut response: pb::TxnResponse) -> pb::TxnResponse {
        if !self.0.is_empty() {
            self.leave_txn(&mut response);
        }
        response
    }

    pub(crate) fn watch(&self, mut request: pb::WatchRequest) -> pb::WatchRequest {
        use pb::watch_request::RequestUnion;
        if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
            self.enter(&mut create.key, &mut create.range_end);
        }
        request
    }

    pub(crate) fn watched(&self, mut response: pb::WatchResponse) -> pb::WatchResponse {
        if !self.0.is_empty() {
            for event in &mut response.events {
                event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|kv| self.leave(&mut kv.key));
            }
        }
        response
    }

    pub(crate) fn time_to_live(
        &self,
        mut response: pb::LeaseTimeToLiveResponse,
    ) -> pb::LeaseTimeToLiveResponse {
        // A lease can hold keys outside of the namespace, put there by others: they have no name in here.
        response.keys.retain(|key| key.starts_with(&self.0));
        response.keys.iter_mut().for_each(|key| self.leave(key));
        response
    }

    fn enter_txn(&self, request: &mut pb::TxnRequest) {
        for compare in &mut request.compare {
            self.enter(&mut compare.key, &mut compare.range_end);
        }
        for op in request.success.iter_mut().chain(&mut request.failure) {
            match &mut op.request {
                Some(Request::RequestRange(range)) => self.enter(&mut range.key, &mut range.range_end),
                Some(Request::RequestPut(put)) => put.key = self.inside(&put.key),
                Some(Request::RequestDeleteRange(delete)) => {
                    self.enter(&mut delete.key, &mut delete.range_end);
                }
                Some(Request::RequestTxn(txn)) => self.enter_txn(txn),
                None => {}
            }
        }
    }

    fn leave_txn(&self, response: &mut pb::TxnResponse) {
        for op in &mut response.responses {
            match &mut op.response {
                Some(Response::ResponseRange(range)) => self.leave_all(&mut range.kvs),
                Some(Response::ResponsePut(put)) => self.leave_all(put.prev_kv.as_mut_slice()),
                Some(Response::ResponseDeleteRange(delete)) => self.leave_all(&mut delete.prev_kvs),
                Some(Response::ResponseTxn(txn)) => self.leave_txn(txn),
                None => {}
            }
        }
    }

    /// An end of `\0` means the end of the key space: here, that of the namespace.
    fn enter(&self, key: &mut Bytes, end: &mut Bytes) {
        if self.0.is_empty() {
            return;
        }
        *key = self.inside(key);
        if end == &b"\0"[..] {
            *end = prefix_end(&self.0);
        } else if !end.is_empty() {
            *end = self.inside(end);
        }
    }

    fn inside(&self, key: &[u8]) -> Bytes {
        [&self.0, key].concat().into()
    }

    fn leave_all(&self, kvs: &mut [KeyValue]) {
        kvs.iter_mut().for_each(|kv| self.leave(&mut kv.key));
    }

    fn leave(&self, key: &mut Bytes) {
        if key.starts_with(&self.0) {
            *key = key.slice(self.0.len()..);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> pb::RangeRequest {
        pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
    }

    #[test]
    fn the_whole_key_space_is_that_of_the_namespace() {
        let namespace = Namespace::new("app/");
        let inside = namespace.range(range("\0", "\0"));
        assert_eq!((&inside.key[..], &inside.range_end[..]), (&b"app/\0"[..], &b"app0"[..]));
        let one = namespace.range(range("k", ""));
        assert_eq!((&one.key[..], &one.range_end[..]), (&b"app/k"[..], &b""[..]));
    }

    #[test]
    fn nested_transactions_are_entered_and_left() {
        let namespace = Namespace::new("app/");
        let put = pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest { key: "k".into(), ..Default::default() })),
        };
        let inner = pb::TxnRequest { success: vec![put], ..Default::default() };
        let outer = pb::TxnRequest {
            success: vec![pb::RequestOp { request: Some(Request::RequestTxn(inner)) }],
            ..Default::default()
        };
        let sent = namespace.txn(outer);
        let Some(Request::RequestTxn(inner)) = &sent.success[0].request else { panic!("{sent:?}") };
        let Some(Request::RequestPut(put)) = &inner.success[0].request else { panic!("{inner:?}") };
        assert_eq!(put.key, "app/k");

        let kvs = vec![KeyValue { key: "app/k".into(), ..Default::default() }];
        let ranged = pb::ResponseOp {
            response: Some(Response::ResponseRange(pb::RangeResponse { kvs, ..Default::default() })),
        };
        let inner = pb::TxnResponse { responses: vec![ranged], ..Default::default() };
        let outer = pb::TxnResponse {
            responses: vec![pb::ResponseOp { response: Some(Response::ResponseTxn(inner)) }],
            ..Default::default()
        };
        let left = namespace.txned(outer);
        assert!(format!("{left:?}").contains("key: b\"k\""), "{left:?}");
    }
}
