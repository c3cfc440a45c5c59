//! Transactions.

use bytes::Bytes;
use etcd_concurrency::pb::etcdserverpb::compare::TargetUnion;
use etcd_concurrency::pb::etcdserverpb::request_op::Request;
use etcd_concurrency::pb::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::Generator;
use crate::support::etcd::Version;

impl Generator {
    fn compare(&mut self) -> Compare {
        let key = self.key();
        let range_end = if self.one_in(3) { self.range_end(&key) } else { Bytes::new() };
        let target = self.rng.i32(0..5);
        let operand = if self.one_in(20) { self.rng.i32(0..5) } else { target };
        let target_union = match operand {
            _ if self.one_in(40) => None,
            0 => Some(TargetUnion::Version(self.rng.i64(-1..4))),
            1 => Some(TargetUnion::CreateRevision(self.revision())),
            2 => Some(TargetUnion::ModRevision(self.revision())),
            3 => Some(TargetUnion::Value(self.value())),
            _ => Some(TargetUnion::Lease(if self.one_in(2) { 0 } else { self.lease() })),
        };
        let unknown = self.one_in(100);
        let result = if self.one_in(100) { 7 } else { self.rng.i32(0..4) };
        Compare { result, target: if unknown { 9 } else { target }, key, range_end, target_union }
    }

    pub(super) fn txn(&mut self, depth: u32) -> TxnRequest {
        if depth == 0 {
            self.keeps = self.one_in(2);
        }
        let compare = (0..self.rng.usize(0..3)).map(|_| self.compare()).collect();
        let most = if self.one_in(12) { self.profile.max_txn_ops.min(20) + 2 } else { 4 };
        // Refused ones teach little: keys are kept apart in most transactions.
        let apart = !self.one_in(4);
        let (success, failure) = (self.ops(most, depth, apart), self.ops(4, depth, apart));
        TxnRequest { compare, success, failure }
    }

    fn ops(&mut self, most: usize, depth: u32, apart: bool) -> Vec<RequestOp> {
        let mut written = Vec::new();
        let mut ops = Vec::new();
        for _ in 0..self.rng.usize(0..most) {
            let request = match self.rng.u32(0..20) {
                0..9 => {
                    let put = self.put();
                    let (ignore_value, ignore_lease) =
                        (put.ignore_value && self.keeps, put.ignore_lease && self.keeps);
                    Request::RequestPut(PutRequest { ignore_value, ignore_lease, ..put })
                }
                9..12 => {
                    let mut delete = self.delete();
                    if delete.range_end == "\0" {
                        if self.keeps || self.racing {
                            delete.range_end = "z".into();
                        } else {
                            self.fragile.insert(self.view.revision + 1);
                        }
                    }
                    Request::RequestDeleteRange(delete)
                }
                12..17 => Request::RequestRange(self.range()),
                17 if self.one_in(8) => {
                    ops.push(RequestOp { request: None });
                    continue;
                }
                _ if depth < 3 => Request::RequestTxn(self.txn(depth + 1)),
                _ => continue,
            };
            let request = match request {
                Request::RequestPut(mut put) if apart => {
                    if put.key.is_empty() || written.contains(&put.key) {
                        continue;
                    }
                    // What else is refused, is refused often enough outside.
                    put.ignore_value &= put.value.is_empty();
                    put.ignore_lease &= put.lease == 0;
                    written.push(put.key.clone());
                    Request::RequestPut(put)
                }
                Request::RequestRange(mut range) if apart => {
                    range.revision = if self.one_in(4) && !self.racing { self.view.revision } else { 0 };
                    Request::RequestRange(range)
                }
                // Before 3.6 the puts of a transaction are checked before its ranges.
                Request::RequestRange(range) if self.profile.version < Version::V3_6 => {
                    Request::RequestRange(RangeRequest { revision: 0, ..range })
                }
                request => request,
            };
            ops.push(RequestOp { request: Some(request) });
        }
        ops
    }
}
