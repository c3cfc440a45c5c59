//! Reads of all keys under a prefix.

use bytes::Bytes;

use crate::error::{Error, Outcome, Result};
use crate::key::prefix_end;
use crate::pb::etcdserverpb as pb;
use crate::txn::sound;
use pb::range_request::{SortOrder, SortTarget};

/// The keys that were created first, the oldest first; 0 for all.
pub(crate) fn by_age(prefix: &Bytes, limit: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..Default::default()
    }
}

/// The keys that were created last, the youngest first; where it is not 0, of those up to a create_revision.
pub(crate) fn by_youth(prefix: &Bytes, limit: i64, max_create_revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { sort_order: SortOrder::Descend.into(), max_create_revision, ..by_age(prefix, limit) }
}

/// The revision that an answer is of. An error where no store can have answered so.
pub(crate) fn revision(answer: &pb::RangeResponse) -> Result<i64> {
    let missing = || Error::protocol("a range's answer without header", Outcome::NotApplied).at("KV/Range");
    let revision = answer.header.as_ref().map(|header| header.revision).ok_or_else(missing)?;
    let check = sound::revision(revision).and_then(|()| sound::range(answer, revision));
    check.map_err(|error| error.with_outcome(Outcome::NotApplied).at("KV/Range"))?;
    Ok(revision)
}

/// How many keys there are.
pub(crate) fn count(prefix: &Bytes) -> pb::RangeRequest {
    let range_end = prefix_end(prefix);
    pb::RangeRequest { key: prefix.clone(), range_end, count_only: true, ..Default::default() }
}
