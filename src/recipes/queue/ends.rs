//! Whether the end of an item was applied, where its reply was lost: as what it did tells.
//!
//! An end is one transaction behind the claim, which it deletes. So it has the revision at which the claim was deleted, if it
//! was applied at all: what the transaction was to do is looked for at that revision, and not at the one at which the item
//! was deleted, since the item may have been deleted by a third party before that.

use bytes::Bytes;

use super::core::{Core, Item};
use super::fate::{Fate, deleted_at, fate, read_at};
use crate::client::Client;
use crate::error::Result;
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::transport::retry::Repeat;
use crate::txn::{Op, Txn, TxnReply};

/// Whether what is decided of an item ends it.
pub(super) enum Ends {
    /// It is left to others.
    Not,
    /// It is deleted, and the operations of the caller's are applied at once with that.
    With(Along),
    /// It is deleted, and put among the dead letters.
    Buries,
}

/// What can be found again of operations that are applied at once with an item's end.
#[derive(Default)]
pub(super) struct Along {
    /// A key that is put.
    put: Option<Bytes>,
    /// What is deleted, as reads that count what is there of it.
    deleted: Vec<pb::RangeRequest>,
    /// More is done, which leaves no trace of its own.
    hidden: bool,
}

impl Along {
    pub(super) fn of(ops: &[Op]) -> Self {
        let put = ops.iter().find_map(Op::put_key).cloned();
        // Each of them tells as much as all.
        let deleted: Vec<_> = ops.iter().filter_map(Op::count_deleted).take(MOST_COUNTS).collect();
        let is_traced = |op: &Op| op.is_read() || op.put_key().is_some() || op.count_deleted().is_some();
        Self { put, deleted, hidden: !ops.iter().all(is_traced) }
    }
}

/// Whether an item whose claim is gone was ended by its worker, and with it all that was to be done at once, by what was sent when
/// this revision was known. None where that cannot be told.
pub(super) async fn was_ended(
    core: &Core,
    fence: &Fence,
    item: &Item,
    ends: Ends,
    sent_at: i64,
) -> Option<bool> {
    let client = core.session.client();
    let at = deleted_at(client, fence.key(), stood_at(client, fence, sent_at).await?).await.ok()??;
    let (along, buries) = match ends {
        Ends::Not => return None,
        Ends::With(along) => (along, false),
        Ends::Buries => {
            let put = Some(core.keys.undelivered(&item.place));
            (Along { put, ..Along::default() }, true)
        }
    };
    let seen = look(core, item, &along, at).await.ok()?;
    if buries && seen.put != Some(true) {
        return match fate(client, &core.keys, item).await.ok()? {
            // Another consumer has done it since.
            Fate::Buried => Some(true),
            Fate::Forgotten | Fate::Gone(_) => None,
            // It was delivered again, or deleted by hand.
            Fate::Written | Fate::Deleted(_) | Fate::Unmoved(_) => Some(false),
        };
    }
    match (seen.item, seen.put) {
        // It outlived the claim.
        (Ended::Later, _) => Some(false),
        (_, Some(put)) => Some(put),
        _ if seen.remains => Some(false),
        // The end of the lease, which takes what is bound to it along, does not take the item.
        (Ended::AtOnce, None) => (!along.hidden || seen.deleted).then_some(true),
        // It was deleted by hand, and no other has had it, nor will.
        (Ended::Before, None) if along.deleted.is_empty() => (!along.hidden).then_some(true),
        (Ended::Before, None) if along.hidden || !seen.deleted => None,
        // While the lease stands, it was not the lease's end that deleted that with the claim.
        (Ended::Before, None) => matches!(core.session.lease_handle().ask().await, Ok(None)).then_some(true),
    }
}

/// The last revision at which the claim is known to have stood, of the one that was known when its end was sent and the one at which
/// it was put: a job may take longer than the server keeps its history.
async fn stood_at(client: &Client, fence: &Fence, sent_at: i64) -> Option<i64> {
    let sent_at = sent_at.max(fence.token());
    match read_at(client, fence.key(), sent_at).await {
        Ok(claim) => {
            let stood = claim.is_some_and(|kv| kv.create_revision == fence.token());
            Some(if stood { sent_at } else { fence.token() })
        }
        // So is what was before.
        Err(_) => None,
    }
}

/// When an item was deleted, as against its claim.
enum Ended {
    Before,
    AtOnce,
    Later,
}

/// What was found at the revision at which the claim was deleted.
struct Seen {
    item: Ended,
    /// Whether what is put was put at that revision, where there is such a key.
    put: Option<bool>,
    /// Some of what is deleted was deleted at that revision.
    deleted: bool,
    /// Some of what is deleted was there after that revision.
    remains: bool,
}

async fn look(core: &Core, item: &Item, along: &Along, at: i64) -> Result<Seen> {
    let key =
        |key: Bytes, revision| pb::RangeRequest { key, revision, keys_only: true, ..Default::default() };
    let own = core.keys.item(&item.place);
    let mut ranges = vec![key(own.clone(), at - 1), key(own, at)];
    ranges.extend(along.put.iter().map(|put| key(put.clone(), at)));
    let counts = ranges.len();
    for deleted in &along.deleted {
        ranges.extend([at - 1, at].map(|revision| pb::RangeRequest { revision, ..deleted.clone() }));
    }
    let read = ranges.into_iter().map(Op::from).fold(Txn::new(), Txn::success);
    let answer = core.session.client().transport().txn(read.into(), Repeat::Read).await?;
    let reply = TxnReply::try_from(answer.value)?;
    let stood = |index| -> Result<bool> {
        Ok(reply.found(index)?.iter().any(|kv| kv.create_revision == item.kv.create_revision))
    };
    let ended = match (stood(0)?, stood(1)?) {
        (_, true) => Ended::Later,
        (true, false) => Ended::AtOnce,
        (false, false) => Ended::Before,
    };
    let put = match along.put {
        Some(_) => Some(reply.found(2)?.iter().any(|kv| kv.mod_revision == at)),
        None => None,
    };
    let (mut deleted, mut remains) = (false, false);
    for index in (counts..).step_by(2).take(along.deleted.len()) {
        let (before, after) = (reply.range(index)?.count, reply.range(index + 1)?.count);
        remains |= after > 0;
        deleted |= before > 0 && after == 0;
    }
    Ok(Seen { item: ended, put, deleted, remains })
}

/// A server takes 128 operations by default, and each count is read at two revisions.
const MOST_COUNTS: usize = 50;
