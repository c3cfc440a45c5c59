//! Whether an answer can be a store's: fences, and who stands where in a line, are calculated from what it says.

use crate::error::{Error, Outcome, Result};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::KeyValue;
use pb::response_op::Response;

/// Refuses a revision that no store has, or that is a store's last.
pub(super) fn revision(revision: i64) -> Result<()> {
    if (1..i64::MAX).contains(&revision) {
        return Ok(());
    }
    Err(unexpected(format!("an answer at the revision {revision}")))
}

/// Refuses what no store at this revision can have read.
pub(super) fn responses(responses: &[pb::ResponseOp], revision: i64) -> Result<()> {
    responses.iter().filter_map(|op| op.response.as_ref()).try_for_each(|answer| match answer {
        Response::ResponseRange(read) => range(read, revision),
        Response::ResponseTxn(inner) => self::responses(&inner.responses, revision),
        _ => Ok(()),
    })
}

/// Refuses what no store at this revision can have read.
pub(super) fn range(read: &pb::RangeResponse, revision: i64) -> Result<()> {
    let found = read.kvs.len();
    if usize::try_from(read.count).map_or(true, |count| count < found) {
        return Err(unexpected(format!("{found} keys of {}", read.count)));
    }
    let sound =
        |kv: &KeyValue| [1, kv.create_revision, kv.mod_revision, revision].is_sorted() && kv.version >= 1;
    match read.kvs.iter().find(|kv| !sound(kv)) {
        None => Ok(()),
        Some(kv) => Err(unexpected(format!(
            "a key created at {}, put at {} and of version {}, read at {revision}",
            kv.create_revision, kv.mod_revision, kv.version
        ))),
    }
}

/// An answer that does not fit what was asked.
pub(crate) fn unexpected(detail: impl Into<String>) -> Error {
    Error::protocol(detail, Outcome::Unknown).at("KV/Txn")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(count: i64, kvs: &[[i64; 3]]) -> pb::RangeResponse {
        let kvs = kvs.iter().map(|&[create_revision, mod_revision, version]| KeyValue {
            create_revision,
            mod_revision,
            version,
            ..Default::default()
        });
        pb::RangeResponse { count, kvs: kvs.collect(), ..Default::default() }
    }

    #[test]
    fn a_store_counts_what_it_finds_and_knows_no_future() {
        for sound in [read(0, &[]), read(5, &[]), read(1, &[[1, 1, 1]]), read(9, &[[2, 7, 3], [7, 7, 1]])] {
            range(&sound, 7).unwrap();
        }
        for unsound in [
            read(-1, &[]),
            read(i64::MIN, &[[2, 7, 3], [7, 7, 1]]),
            read(1, &[[2, 7, 3], [7, 7, 1]]),
            read(1, &[[0, 7, 1]]),
            read(1, &[[i64::MIN, 7, 1]]),
            read(1, &[[6, 5, 1]]),
            read(1, &[[6, 8, 1]]),
            read(1, &[[i64::MAX, i64::MAX, 1]]),
            read(1, &[[6, 7, 0]]),
            read(2, &[[1, 1, 1], [6, 7, i64::MIN]]),
        ] {
            range(&unsound, 7).unwrap_err();
            let op = |response| pb::ResponseOp { response: Some(response) };
            let inner = pb::TxnResponse {
                responses: vec![op(Response::ResponseRange(unsound))],
                ..Default::default()
            };
            responses(&[op(Response::ResponseTxn(inner))], 7).unwrap_err();
        }
    }

    #[test]
    fn a_store_begins_at_1_and_goes_on() {
        for sound in [1, 2, i64::MAX - 1] {
            revision(sound).unwrap();
        }
        for unsound in [0, -1, i64::MIN, i64::MAX] {
            revision(unsound).unwrap_err();
        }
    }
}
