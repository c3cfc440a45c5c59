//! Whether all answers are of one cluster, and of one history of it.
//!
//! The first answer's `cluster_id` is the client's cluster. An answer with another id is of a member of another cluster.
//!
//! A cluster's revision never falls, but a member's may be lower than another's, since it learns of writes later. So a
//! lower revision proves nothing by itself. It does where the later answer is linearizable: let an answer of revision r
//! have been received, from whichever member, before a linearizable request was sent. A member applies only what is
//! committed, so the write of revision r was committed before the request was sent, and a linearizable answer reflects
//! all writes that were: its revision is r or more. If it is less, then what was committed is not there any more: the
//! cluster was restored from a backup (whose id may be the same), or lost its data. So the revision that must be reached
//! is read before a request is sent, and only these answers are held against it: a range that is not serializable, and a
//! transaction that goes through the log or has such a range in it. What raises it are the answers of ranges and
//! transactions alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::error::ErrorKind;
use crate::pb::etcdserverpb as pb;

/// What a client has seen of its cluster, shared by all of its calls.
#[derive(Clone, Default)]
pub(crate) struct Cluster(Arc<Seen>);

#[derive(Default)]
struct Seen {
    /// 0 until the first answer.
    id: AtomicU64,
    revision: AtomicI64,
    /// An answer of another cluster has been told of.
    told: AtomicBool,
}

/// What an answer says of the store's revision.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    /// All that was committed before it was asked for.
    Now,
    /// A revision that the store has had.
    Past,
    /// Nothing.
    Nothing,
}

impl Cluster {
    /// The revision that an answer must have that sees [`Sees::Now`] and is asked for from here on.
    pub(super) fn revision(&self) -> i64 {
        self.0.revision.load(Ordering::Acquire)
    }

    /// Refuses the answer of another cluster.
    pub(super) fn same(&self, header: &pb::ResponseHeader) -> Result<(), ErrorKind> {
        let found = header.cluster_id;
        // Old proxies and servers written by hand may leave it out.
        if found == 0 {
            return Ok(());
        }
        match self.0.id.compare_exchange(0, found, Ordering::AcqRel, Ordering::Acquire) {
            Err(expected) if expected != found => {
                if !self.0.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        expected = format_args!("{expected:x}"),
                        found = format_args!("{found:x}"),
                        "an endpoint answers for another cluster, and is avoided; if the cluster was replaced by another \
                         behind the same endpoints, this client will not take it: make a new one"
                    );
                }
                Err(ErrorKind::ClusterMismatch { expected, found })
            }
            _ => Ok(()),
        }
    }

    /// Refuses an answer that is not of this cluster's history, and notes its revision. `before` is the revision that
    /// was known when it was asked for.
    pub(super) fn learn(
        &self,
        header: &pb::ResponseHeader,
        sees: Sees,
        before: i64,
    ) -> Result<(), ErrorKind> {
        self.same(header)?;
        let found = header.revision;
        // No store has these, so they are no revisions to hold others against.
        if sees == Sees::Nothing || !(1..i64::MAX).contains(&found) {
            return Ok(());
        }
        if sees == Sees::Now && found < before {
            return Err(ErrorKind::RevisionsLost { seen: before, found });
        }
        self.0.revision.fetch_max(found, Ordering::AcqRel);
        Ok(())
    }
}

/// Answers that have a header.
pub(super) trait Headed {
    fn header(&self) -> Option<&pb::ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ident),*) => {
        $(impl Headed for pb::$answer {
            fn header(&self) -> Option<&pb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

headed!(RangeResponse, TxnResponse, AuthenticateResponse);
headed!(LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, LeaseKeepAliveResponse);

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader { cluster_id, revision, ..Default::default() }
    }

    #[test]
    fn the_first_answer_says_which_cluster_it_is() {
        let cluster = Cluster::default();
        cluster.same(&header(0, 1)).expect("says nothing");
        cluster.same(&header(7, 1)).expect("the first");
        cluster.same(&header(7, 1)).expect("the same");
        cluster.same(&header(0, 1)).expect("says nothing");
        let mismatch = ErrorKind::ClusterMismatch { expected: 7, found: 8 };
        assert_eq!(cluster.same(&header(8, 1)), Err(mismatch));
    }

    #[test]
    fn revisions_fall_only_for_who_asked_after_the_higher_one_was_known() {
        let cluster = Cluster::default();
        let before = cluster.revision();
        cluster.learn(&header(7, 10), Sees::Now, before).expect("the first");
        cluster.learn(&header(7, 9), Sees::Now, before).expect("it was asked for at the same time");
        cluster.learn(&header(7, 3), Sees::Past, cluster.revision()).expect("a member may lag");
        cluster
            .learn(&header(7, 3), Sees::Nothing, cluster.revision())
            .expect("it says nothing of the store");
        let lost = ErrorKind::RevisionsLost { seen: 10, found: 9 };
        assert_eq!(cluster.learn(&header(7, 9), Sees::Now, cluster.revision()), Err(lost));
        cluster.learn(&header(7, 10), Sees::Now, cluster.revision()).expect("nothing was written");
        // What a stale answer has seen was committed, too.
        cluster.learn(&header(7, 12), Sees::Past, cluster.revision()).expect("later");
        cluster.learn(&header(7, 11), Sees::Now, cluster.revision()).expect_err("gone");
        for nonsense in [0, -1, i64::MIN, i64::MAX] {
            cluster.learn(&header(7, nonsense), Sees::Now, cluster.revision()).expect("told elsewhere");
        }
        assert_eq!(cluster.revision(), 12);
    }
}
