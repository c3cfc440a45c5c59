//! What became of a transaction.

use crate::error::{Error, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::txn::sound::{self, unexpected};
use pb::response_op::Response;

/// What became of a transaction.
///
/// ```
/// # use etcd_concurrency::{Op, Txn, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// client.txn(Txn::new().success(Op::put("a/1", "x")).success(Op::put("a/2", "y"))).await?;
/// let reply = client.txn(Txn::new().success(Op::get_prefix("a/")).success(Op::delete_prefix("b/"))).await?;
/// assert_eq!(reply.kvs(0).map(|kvs| kvs.len()), Some(2));
/// assert_eq!(reply.deleted(1), Some(0));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TxnReply {
    /// Whether all compares held.
    pub succeeded: bool,
    /// The header; its revision is the transaction's where it wrote.
    pub header: pb::ResponseHeader,
    /// One answer for each operation that was applied, in their order.
    pub responses: Vec<pb::ResponseOp>,
}

impl TxnReply {
    /// What the operation at `index` read, if it was a read.
    pub fn kvs(&self, index: usize) -> Option<&[KeyValue]> {
        self.ranged(index).map(|range| &range.kvs[..])
    }

    /// How many keys the operation at `index` deleted, if it was a delete.
    pub fn deleted(&self, index: usize) -> Option<i64> {
        match self.responses.get(index)?.response.as_ref()? {
            Response::ResponseDeleteRange(delete) => Some(delete.deleted),
            _ => None,
        }
    }

    /// The first key that the operation at `index` read, if it was a read and there is one.
    pub(crate) fn first(&self, index: usize) -> Option<&KeyValue> {
        self.kvs(index)?.first()
    }

    /// The keys that the operation at `index` read. An error where it was not answered.
    pub(crate) fn found(&self, index: usize) -> Result<&[KeyValue]> {
        self.range(index).map(|range| &range.kvs[..])
    }

    /// The answer to the read at `index`. An error where there is none.
    pub(crate) fn range(&self, index: usize) -> Result<&pb::RangeResponse> {
        self.ranged(index).ok_or_else(|| unexpected("no answer for a read"))
    }

    pub(crate) fn ranged(&self, index: usize) -> Option<&pb::RangeResponse> {
        match self.responses.get(index)?.response.as_ref()? {
            Response::ResponseRange(range) => Some(range),
            _ => None,
        }
    }

    /// Whether the transaction within this one, at `index`, succeeded; None where there is none.
    pub(crate) fn inner_succeeded(&self, index: usize) -> Option<bool> {
        match self.responses.get(index)?.response.as_ref()? {
            Response::ResponseTxn(inner) => Some(inner.succeeded),
            _ => None,
        }
    }

    /// What the first operation of the transaction within this one, at `index`, read, if that was a read.
    pub(crate) fn inner_kvs(&self, index: usize) -> Option<&[KeyValue]> {
        match self.responses.get(index)?.response.as_ref()? {
            Response::ResponseTxn(inner) => match inner.responses.first()?.response.as_ref()? {
                Response::ResponseRange(range) => Some(&range.kvs),
                _ => None,
            },
            _ => None,
        }
    }

    /// The answer of the transaction that was the only operation of this one.
    pub(crate) fn inner(self) -> Result<Self> {
        let header = self.header;
        match self.responses.into_iter().next().and_then(|op| op.response) {
            // An inner answer has a header of its own in name only.
            Some(Response::ResponseTxn(inner)) => {
                Ok(Self { succeeded: inner.succeeded, header, responses: inner.responses })
            }
            other => {
                let what = if other.is_some() { "that of another operation" } else { "none" };
                let detail = format!("for the answer of a nested transaction, {what}");
                Err(Error::protocol(detail, Outcome::Applied).at("KV/Txn"))
            }
        }
    }
}

impl TryFrom<pb::TxnResponse> for TxnReply {
    type Error = Error;

    fn try_from(response: pb::TxnResponse) -> Result<Self> {
        let missing =
            || Error::protocol("a transaction's answer without header", Outcome::Applied).at("KV/Txn");
        let header = response.header.ok_or_else(missing)?;
        sound::revision(header.revision)?;
        sound::responses(&response.responses, header.revision)?;
        Ok(Self { succeeded: response.succeeded, header, responses: response.responses })
    }
}
