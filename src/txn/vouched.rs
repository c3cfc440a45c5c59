//! What a transaction's compares are decided by: the cluster, or one member alone.
//!
//! A transaction with a write, or with a transaction within it, goes through the log. One that only reads is answered by
//! the member that is asked: after it has made sure that it is up to date, if a range in it (in either branch) is not
//! serializable; and otherwise, also where there is no operation at all, from whatever it has, which may be the past.

use super::{Op, Txn, TxnReply, unexpected};
use crate::error::Result;
use crate::pb::etcdserverpb as pb;
use pb::request_op::Request;

/// False for a transaction whose compares one member alone decides, by what may be the past.
pub(crate) fn is_vouched(request: &pb::TxnRequest) -> bool {
    let vouches = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestRange(range)) => !range.serializable,
        Some(_) => true,
        None => false,
    };
    request.compare.is_empty() || request.success.iter().chain(&request.failure).any(vouches)
}

impl Txn {
    /// The same transaction, whose compares are decided by the cluster; and whether a read was added for that, to both
    /// branches, as their last operation. The read is of a key that is compared: it needs no other permission.
    pub(crate) fn vouched(self) -> (Self, bool) {
        let Some(first) = self.compare.first() else { return (self, false) };
        let vouches = |Op(op): &Op| !matches!(op, Request::RequestRange(range) if range.serializable);
        if self.success.iter().chain(&self.failure).any(vouches) {
            return (self, false);
        }
        let key = first.0.key.clone();
        let read = pb::RangeRequest { key, keys_only: true, limit: 1, ..Default::default() };
        (self.success(read.clone().into()).failure(read.into()), true)
    }
}

impl TxnReply {
    /// The answer without that to the read that [`Txn::vouched`] added.
    pub(crate) fn without_read(mut self, added: bool) -> Result<Self> {
        use pb::response_op::Response;
        if added {
            let read = self.responses.pop().and_then(|op| op.response);
            let Some(Response::ResponseRange(_)) = read else {
                return Err(unexpected("no answer for a read"));
            };
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::Compare;

    fn range(serializable: bool) -> Op {
        pb::RangeRequest { key: "k".into(), serializable, ..Default::default() }.into()
    }

    /// What the servers of 3.4 to 3.7 do: see `isTxnReadonly` and `isTxnSerializable` in their sources.
    #[test]
    fn compares_are_decided_by_one_member_where_nothing_in_the_transaction_asks_others() {
        let compared = || Txn::new().compare(Compare::missing("k"));
        for alone in [compared(), compared().success(range(true)), compared().failure(range(true))] {
            assert!(!is_vouched(&alone.clone().into()));
            let (vouched, added) = alone.vouched();
            assert!(added && is_vouched(&vouched.into()));
        }
        for fine in [
            Txn::new(),
            Txn::new().success(range(true)),
            compared().success(range(false)),
            compared().failure(range(false)),
            compared().success(range(true)).success(Op::put("k", "")),
            compared().success(Op::txn(Txn::new())),
            compared().failure(Op::delete("k")),
        ] {
            assert!(is_vouched(&fine.clone().into()));
            assert_eq!(fine.clone().vouched(), (fine, false));
        }
    }

    #[test]
    fn the_read_is_of_what_is_compared_and_does_not_show() {
        let (txn, _) = Txn::new().compare(Compare::exists("a")).compare(Compare::missing("b")).vouched();
        let request = pb::TxnRequest::from(txn);
        for branch in [&request.success, &request.failure] {
            let [pb::RequestOp { request: Some(Request::RequestRange(read)) }] = &branch[..] else {
                panic!("{branch:?}")
            };
            assert_eq!((&read.key[..], &read.range_end[..], read.keys_only), (&b"a"[..], &b""[..], true));
        }
        let header = pb::ResponseHeader { revision: 7, ..Default::default() };
        let read = pb::response_op::Response::ResponseRange(pb::RangeResponse::default());
        let reply = |responses| TxnReply { succeeded: true, header, responses };
        let answered = reply(vec![pb::ResponseOp { response: Some(read) }]);
        assert!(answered.clone().without_read(true).expect("answered").responses.is_empty());
        assert_eq!(answered.clone().without_read(false).expect("not ours"), answered);
        reply(Vec::new()).without_read(true).expect_err("a read without an answer");
    }
}
