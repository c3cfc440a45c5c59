//! Commits an attempt: one transaction, and what its answer says.

use tokio::time::sleep;

use super::Stm;
use super::handle::answered;
use super::known::Found;
use super::marker::Mark;
use super::sets::{Sets, Span};
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb as pb;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Txn, TxnReply};

/// What became of a commit, where that is known.
pub(super) enum Commit {
    /// An attempt was committed, at this revision: this one, or one before it that was in doubt until now.
    Done { attempt: u32, revision: i64 },
    /// Others wrote what it had read. What is there now.
    Conflict(Sets),
    /// It got no answer, and was not applied, nor ever will be.
    Failed(Error),
}

impl Stm {
    /// The error that the end of the fence or of the session is, if either ended.
    pub(super) fn standing(&self) -> Result<()> {
        if let Some(fence) = &self.fence {
            fence.check()?;
        }
        self.markers.as_ref().map_or(Ok(()), |markers| markers.session().check())
    }

    /// Whether an attempt's end needs the server. One that only read a snapshot does not: it is the state of one
    /// revision already. Nor does one that is not to be compared with anything.
    pub(super) fn needs_commit(&self, sets: &Sets) -> bool {
        let compares_reads =
            self.isolation == super::Isolation::RepeatableReads && !sets.compares().is_empty();
        sets.has_written() || compares_reads || self.fence.is_some()
    }

    /// Commits an attempt: one RPC where all goes well. An attempt that writes has a mark, where the run is to be
    /// applied exactly once.
    pub(super) async fn commit(
        &self,
        sets: &Sets,
        attempt: u32,
        mut mark: Option<&mut Mark>,
    ) -> Result<Commit> {
        let (mut strangers, mut backoff) = (0, Backoff::default());
        loop {
            self.standing()?;
            let (txn, again) = self.transaction(sets, attempt, mark.as_deref());
            self.fence.as_ref().map_or(Ok(()), |fence| fence.permits(&txn))?;
            let answer = match &mut mark {
                Some(mark) => mark.send(txn).await,
                None => {
                    let repeat = if sets.has_written() { Repeat::Never } else { Repeat::Read };
                    self.client.transport().txn(txn.into(), repeat).await
                }
            };
            let answer = match self.learn_of_past(answer) {
                Ok(answer) => answer.value,
                Err(error) if error.outcome() == Outcome::Unknown => return settle(error, mark).await,
                Err(error) => return Err(self.explain(error, sets, mark.is_some()).await),
            };
            let succeeded = answer.succeeded;
            let reply = TxnReply::try_from(answer)
                .map_err(|error| if succeeded { error } else { error.with_outcome(Outcome::NotApplied) })?;
            if reply.succeeded {
                let mut revision = reply.header.revision;
                if let Some(mark) = mark {
                    mark.committed(revision);
                }
                // What was compared held at the commit; what was not is known of the read's revision alone.
                if !sets.has_written() && (self.isolation.has_snapshot() || sets.compares().is_empty()) {
                    revision = sets.revision();
                }
                return Ok(Commit::Done { attempt, revision });
            }
            let behind = again.len() + self.fence.as_ref().map_or(0, |fence| fence.keys().len());
            if let Some(mark) = &mut mark {
                match mark.look(reply.kvs(behind).unwrap_or_default()) {
                    Found::Unchanged => {}
                    Found::Committed { attempt, revision } => return Ok(Commit::Done { attempt, revision }),
                    Found::Gone if mark.in_doubt() => {
                        return Err(unknown(Error::protocol(
                            "somebody deleted the marker",
                            Outcome::Unknown,
                        )));
                    }
                    // A run that was dropped in mid-commit had the marker before: nothing is wrong with this attempt. What is
                    // expected now nothing of that run's expects, unless that is a missing key.
                    Found::Other | Found::Gone if strangers < MOST_STRANGERS => {
                        if strangers > 0 {
                            sleep(backoff.next()).await;
                        }
                        strangers += 1;
                        continue;
                    }
                    Found::Other | Found::Gone => {
                        return Err(Error::protocol(
                            "the marker is another's again and again",
                            Outcome::NotApplied,
                        )
                        .at("KV/Txn"));
                    }
                }
            }
            if let Some(fence) = &self.fence {
                stands(fence, &reply, again.len())?;
            }
            let mut seen = Sets::new(self.isolation);
            // Where nothing was read again, the next attempt is to begin at its own first read, and not here.
            if !again.is_empty() {
                seen.learn(answered(again, &reply)?, reply.header.revision);
            }
            return Ok(Commit::Conflict(seen));
        }
    }

    /// The transaction, and what it reads first if it cannot be committed.
    fn transaction(&self, sets: &Sets, attempt: u32, mark: Option<&Mark>) -> (Txn, Vec<Span>) {
        let needs_no_compares = self.isolation.has_snapshot() && !sets.has_written();
        let compares = if needs_no_compares { Vec::new() } else { sets.compares() };
        // Half, as others may have put more since.
        let most = (self.client.transport().limits().answer / 2).min(MOST_READ_AGAIN);
        // Where nothing is compared there are no conflicts.
        let beside = self.fence.as_ref().map_or(0, |fence| fence.keys().len());
        let again = if compares.is_empty() { Vec::new() } else { sets.again(&self.prefetch, beside, most) };
        let mut txn = compares.into_iter().fold(Txn::new(), Txn::compare);
        txn = sets.ops().into_iter().fold(txn, Txn::success);
        // Never serializable, even where the attempt's own reads are: a transaction without any write is answered by
        // the member alone that is asked, unless there is a read in it that may not be.
        txn = again.iter().fold(txn, |txn, span| txn.failure(span.request().into()));
        if let Some(fence) = &self.fence {
            txn = fence.stands_whole().fold(txn, Txn::compare);
            for key in fence.keys() {
                let key = pb::RangeRequest { key: key.clone(), keys_only: true, ..Default::default() };
                txn = txn.failure(key.into());
            }
        }
        if let Some(mark) = mark {
            txn = txn.compare(mark.unchanged()).success(mark.put(attempt)).failure(mark.get());
        }
        // Where nothing is read again, and nothing is written, no read is in it yet.
        let (txn, _) = txn.vouched();
        (txn, again)
    }

    /// The sessions of the fence and of the markers end with a cluster that has lost revisions.
    fn learn_of_past<T>(&self, answer: Result<T>) -> Result<T> {
        let is_lost =
            answer.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::RevisionsLost { .. }));
        if let (true, Some(markers)) = (is_lost, &self.markers) {
            markers.session().lease_handle().lose(LostReason::RevisionsLost);
        }
        match &self.fence {
            Some(fence) => fence.learn_of_past(answer),
            None => answer,
        }
    }

    /// Adds to an error what can be known about it.
    async fn explain(&self, error: Error, sets: &Sets, marked: bool) -> Error {
        match (error.kind(), &self.markers) {
            (ErrorKind::TooManyOps { .. }, _) => error.because(sets.sizes()),
            // The session's, or one that the closure put a key with?
            (ErrorKind::LeaseNotFound, Some(markers)) if marked => {
                Box::pin(markers.session().settler().whose_lease(error)).await
            }
            _ => error,
        }
    }
}

/// What becomes of a commit that nobody answered: with a marker, that can be found out.
async fn settle(error: Error, mark: Option<&mut Mark>) -> Result<Commit> {
    let Some(mark) = mark else { return Err(unknown(error)) };
    match mark.settle().await {
        Ok(Some((attempt, revision))) => Ok(Commit::Done { attempt, revision }),
        Ok(None) => Ok(Commit::Failed(error.with_outcome(Outcome::NotApplied))),
        Err(settling) => {
            tracing::debug!(error = %settling, "a commit's fate cannot be found out");
            Err(unknown(error))
        }
    }
}

/// A transaction that was not committed read the keys behind the fence, from this answer on: do they stand?
fn stands(fence: &Fence, reply: &TxnReply, index: usize) -> Result<()> {
    let stands = |index| reply.first(index).is_some_and(|kv| kv.create_revision == fence.token());
    if (index..).take(fence.keys().len()).all(stands) {
        return Ok(());
    }
    fence.fall(LostReason::KeyDeleted);
    Err(Error::new(ErrorKind::Fenced, Outcome::NotApplied).at("KV/Txn"))
}

pub(super) fn unknown(cause: Error) -> Error {
    Error::new(ErrorKind::CommitUnknown, Outcome::Unknown).at("KV/Txn").because(cause)
}

/// How often others may have put the marker before a commit: a dropped run's attempt that expected what was known, and
/// one that expected it to be missing.
const MOST_STRANGERS: u32 = 5;
/// How much is read again together with a commit that meets a conflict: a quarter of what proxies let pass by default.
const MOST_READ_AGAIN: usize = 1 << 20;
