//! Reading the keys of a live copy, or how many there are.

use bytes::Bytes;

use crate::client::Client;
use crate::error::{Error, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use crate::transport::retry::Repeat;
use crate::txn::{self, Op, Txn, TxnReply};

fn ranges(parts: &[(Bytes, Bytes)], count_only: bool) -> Vec<pb::RangeRequest> {
    let range = |(key, range_end): &(Bytes, Bytes)| pb::RangeRequest {
        key: key.clone(),
        range_end: range_end.clone(),
        count_only,
        ..Default::default()
    };
    parts.iter().map(range).collect()
}

/// Reads all parts at one revision: one RPC.
async fn range(client: &Client, ranges: Vec<pb::RangeRequest>) -> Result<(i64, Vec<pb::RangeResponse>)> {
    let transport = client.transport();
    if let [one] = &ranges[..] {
        let answer = transport.range(one.clone()).await?;
        return Ok((txn::revision(&answer)?, vec![answer]));
    }
    let asked = ranges.len();
    let txn = ranges.into_iter().fold(Txn::new(), |txn, range| txn.success(Op::from(range)));
    let answer = transport.txn(txn.into(), Repeat::Read).await?.value;
    // One that makes no sense has written nothing.
    let reply = TxnReply::try_from(answer).map_err(|error| error.with_outcome(Outcome::NotApplied))?;
    let missing = || Error::protocol("a read that was not answered", Outcome::NotApplied).at("KV/Txn");
    let answers = (0..asked).map(|index| reply.ranged(index).cloned().ok_or_else(missing));
    Ok((reply.header.revision, answers.collect::<Result<_>>()?))
}

/// All keys, and at which revision.
pub(super) async fn read(client: &Client, parts: &[(Bytes, Bytes)]) -> Result<(i64, Vec<KeyValue>)> {
    let (revision, answers) = range(client, ranges(parts, false)).await?;
    Ok((revision, answers.into_iter().flat_map(|answer| answer.kvs).collect()))
}

/// How many keys there are, and at which revision.
pub(super) async fn count(client: &Client, parts: &[(Bytes, Bytes)]) -> Result<(i64, usize)> {
    let (revision, answers) = range(client, ranges(parts, true)).await?;
    let keys = answers.iter().map(|answer| usize::try_from(answer.count).unwrap_or_default()).sum();
    Ok((revision, keys))
}
