//! Looking out for keys that are put after all had given them up.
//!
//! A member that stood still proposes what lies in its socket when it goes on, after any time. So a put that got no answer
//! is never over while its lease lives: its key is watched, and taken away if it comes and has no owner in this process.
//! That costs no RPC while nothing happens. Once the lease is gone the server refuses the put.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::settle::Settler;
use crate::error::{ErrorKind, LostReason, Outcome, Result};
use crate::lease::Lease;
use crate::lease::suspects::{Group, Suspect};
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::transport::Answer;
use crate::transport::retry::{Backoff, Failures, Repeat, Rounds, is_of_rights, second_look};
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::watch::{Events, Watch};

impl Settler {
    /// Takes a key away whenever it is put without an owner in this process, until the lease ends. At the revision `since`
    /// it was not there, or had its owner; 0 if nobody looked.
    ///
    /// Where the session was orphaned, this goes on. A key that the adopter puts as well is taken away only where a session
    /// of this client has adopted the lease: another's cannot be told from it.
    pub(crate) fn look_out_for(&self, suspect: Suspect, since: i64) {
        if let Some(group) = self.lease().suspects().add(suspect, since) {
            let settler = self.clone();
            // Not among the session's own tasks: closing it is not to wait for this.
            drop(self.client().runtime().spawn(async move { settler.follow(&group).await }));
        }
    }

    async fn follow(&self, group: &Arc<Group>) {
        tokio::select! {
            biased;
            () = self.gone() => self.lease().suspects().forget(group),
            () = self.look_out(group) => {}
        }
    }

    /// Resolves once nothing can come any more.
    async fn gone(&self) {
        let mut reason = self.lease().lost().await;
        loop {
            let is_kept = match reason {
                LostReason::Orphaned => self.is_kept().await,
                // The server may have the lease for a moment yet, and this client adopt it.
                LostReason::Expired | LostReason::Closed => self.lease().adopted_again().await,
                _ => false,
            };
            if !is_kept {
                return;
            }
            let Some(holder) = self.holder() else { continue };
            reason = holder.lost().await;
        }
    }

    /// A session of this client keeps the lease alive. One that is about to may fail: the lease is another's then.
    fn has_holder(&self) -> bool {
        self.holder().is_some_and(|holder| holder.is_proven())
    }

    /// Waits until an adoption that is under way is proven, or has failed.
    async fn adoption_decided(&self) {
        let Some(adopter) = self.holder() else { return };
        tokio::select! {
            () = adopter.proven() => {}
            _ = adopter.lost() => {}
        }
    }

    /// Who keeps the lease alive in this process, or is about to: a session of this client.
    fn holder(&self) -> Option<Arc<Lease>> {
        self.client().leases().holder(self.lease().id())
    }

    /// True once a session of this client keeps the lease alive, false once it is gone.
    pub(crate) async fn is_kept(&self) -> bool {
        let (mut next_look, mut failures) = (Instant::now() + second_look(), Failures::default());
        loop {
            if self.has_holder() {
                return true;
            }
            match self.lease().lost_reason() {
                None | Some(LostReason::Orphaned | LostReason::Expired) => {}
                Some(LostReason::Closed) if self.lease().is_away() => {}
                Some(LostReason::Closed) => {
                    if !self.lease().adopted_again().await {
                        return false;
                    }
                    self.adoption_decided().await;
                    continue;
                }
                Some(_) => return false,
            }
            sleep(PAUSE).await;
            if Instant::now() < next_look {
                continue;
            }
            next_look = Instant::now() + second_look();
            match self.lease().is_over().await {
                Ok(true) => return false,
                Ok(false) => failures.answered(),
                // Rights are edited: a refusal says nothing of the lease, unless it lasts.
                Err(error) if is_of_rights(error.kind()) => failures.refused(),
                Err(error) if self.client().transport().is_final(error.kind()) => return false,
                Err(_) => failures.unanswered(),
            }
            if failures.are_many() {
                return false;
            }
        }
    }

    async fn look_out(&self, group: &Group) {
        let mut rounds = Rounds::new();
        while let Err(error) = self.watch(group).await {
            group.starts_at(0);
            rounds.again().await;
            if !matches!(error.kind(), ErrorKind::Compacted { .. }) {
                tracing::warn!(%error, key = ?group.range, "a key that may come late cannot be watched for now");
                sleep(second_look()).await;
                // Where that is refused for good, it is looked for now and then.
                self.read(group, false).await;
            }
        }
    }

    /// Follows the puts of a group, until it is empty.
    async fn watch(&self, group: &Group) -> Result<()> {
        let range = if group.exact { Watch::key(&group.range) } else { Watch::prefix(&group.range) };
        let from = group.unseen();
        let mut watcher = self.client().watch(range.no_delete().progress().from_revision(from));
        // Where nothing says from when on, it is read once the watch has begun.
        let (mut begins, mut looks, mut missed) = (from == 0, from != 0, false);
        let mut patient = true;
        let mut next_look = Instant::now() + second_look();
        loop {
            if looks {
                missed |= !self.read(group, patient).await;
            }
            (looks, patient) = (!begins, true);
            if self.lease().suspects().retire(group) {
                return Ok(());
            }
            let told = async {
                match begins {
                    true => watcher.created().await.map(Told::Begun),
                    false => watcher.next().await.map(Told::Events),
                }
            };
            tokio::select! {
                biased;
                told = told => match told? {
                    Told::Begun(revision) => {
                        group.starts_at(revision);
                        (begins, looks) = (false, true);
                    }
                    Told::Events(events) => {
                        let put = events.events.iter().filter(|event| event.r#type() == EventType::Put);
                        let put = put.filter_map(|event| event.kv.as_ref());
                        let strays = group.told(events.revision, put, self.lease().id());
                        missed |= !self.remove(group, strays).await;
                    }
                },
                () = group.added() => {}
                () = sleep_until(next_look) => {
                    next_look = Instant::now() + second_look();
                    // A watch that does not begin tells nothing, nor does one whose stream is not opened again. What was refused
                    // may be allowed by now: operators edit roles.
                    if missed || !watcher.is_live() {
                        group.look_again();
                        (looks, patient, missed) = (true, false, false);
                    }
                }
            }
        }
    }

    /// Reads those that may have come before they were suspected; again until it is answered, or with no patience once. False
    /// where that, or deleting what was found, is to be tried again later.
    async fn read(&self, group: &Group, patient: bool) -> bool {
        let mut done = true;
        for asked in group.unread().chunks(AT_ONCE) {
            let get = |suspect: &Suspect| -> Op {
                // What a key holds may be long. It is needed only where the key says too little.
                pb::RangeRequest { key: suspect.key.clone(), keys_only: !group.exact, ..Default::default() }
                    .into()
            };
            let txn = asked.iter().map(get).fold(Txn::new(), Txn::success);
            let mut backoff = Backoff::default();
            let reply = loop {
                match self.read_all(txn.clone()).await {
                    Ok(reply) => break Some(reply),
                    Err(error) if !patient || self.client().transport().is_final(error.kind()) => {
                        tracing::warn!(%error, "a key of unknown fate cannot be read for now, and may stay");
                        done = false;
                        break None;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "not read yet; trying again");
                        sleep(backoff.next()).await;
                    }
                }
            };
            let found =
                reply.iter().flat_map(|reply| (0..asked.len()).filter_map(|index| reply.first(index)));
            done &= self.remove(group, group.read(asked, found, self.lease().id())).await;
        }
        done
    }

    async fn read_all(&self, txn: Txn) -> Result<TxnReply> {
        let answer = self.client().transport().txn(txn.into(), Repeat::Read).await;
        TxnReply::try_from(self.lease().learn_of_past(answer)?.value)
    }

    /// Whether what came is not another's. Where no session of this client has the lease, a key that is put in turn may be of a
    /// process that the lease was given to. Where it was only lost here, this client may adopt it again: that is waited for.
    async fn is_ours(&self, suspect: &Suspect) -> bool {
        while suspect.turn.is_some() && !self.has_holder() {
            if self.holder().is_some() {
                self.adoption_decided().await;
                continue;
            }
            if self.lease().is_away() || !self.lease().adopted_again().await {
                return false;
            }
        }
        true
    }

    /// Deletes keys that have no owner, each of its incarnation. False where the server refuses that.
    async fn remove(&self, group: &Group, strays: Vec<(Suspect, i64)>) -> bool {
        let mut done = true;
        for (suspect, created) in strays {
            if !self.is_ours(&suspect).await {
                group.owned(&suspect, created);
                continue;
            }
            // Who has the turn may be about to find the key and take it for its own. So it is waited for, behind all
            // others, and kept until it is known that no delete is under way.
            let _turn = match &suspect.turn {
                Some(name) => Some(self.lease().locals().unwanted_turn(name).await),
                None => None,
            };
            if !self.is_ours(&suspect).await {
                group.owned(&suspect, created);
            }
            if !group.is_stray(&suspect, created) {
                continue;
            }
            tracing::debug!(key = ?suspect.key, "a put that had been given up was applied: its key is deleted");
            let late = [(suspect.key.clone(), created)];
            let delete = || async { self.delete(&late, suspect.turn.is_some()).await.map(drop) };
            match self.settle("a key that came late", delete).await {
                true => group.removed(&suspect, created),
                false => done = false,
            }
        }
        done
    }

    /// Deletes each key that still is of its create_revision. Where they are put in turn, who has the turn next does not
    /// take one up before that is answered, whatever becomes of this.
    pub(crate) async fn delete(&self, keys: &[(Bytes, i64)], in_turn: bool) -> Result<Answer<TxnReply>> {
        let deleting = in_turn.then(|| self.lease().doomed().deleting(keys));
        let answer = self.transact(delete_each(keys), Repeat::Harmless).await;
        match (deleting, &answer) {
            (Some(deleting), Ok(_)) => {
                deleting.are_gone();
                self.lease().suspects().are_gone(keys);
            }
            (Some(deleting), Err(error)) if error.outcome() == Outcome::NotApplied => deleting.are_refused(),
            _ => {}
        }
        answer
    }

    /// Deletes those keys that are there with the lease: each as it was found, since a delete may arrive when it has been
    /// given up, and meet the key of the one whose turn it is by then. Gives the revision at which they were looked for.
    ///
    /// None where they are put in turn, and the lease was let go meanwhile: what was read may be its adopter's.
    pub(crate) async fn take_back(&self, keys: &[Bytes], in_turn: bool) -> Result<Option<i64>> {
        let read = keys.iter().fold(Txn::new(), |txn, key| txn.success(Op::get(key.clone())));
        let reply = self.read_all(read).await?;
        let mut there = Vec::new();
        for index in 0..keys.len() {
            there.extend(reply.found(index)?.iter().filter(|kv| kv.lease == self.lease().id()));
        }
        if !there.is_empty() {
            if in_turn && !self.has_holder() {
                return Ok(None);
            }
            let created = |kv: &&KeyValue| (kv.key.clone(), kv.create_revision);
            self.delete(&there.iter().map(created).collect::<Vec<_>>(), in_turn).await?;
        }
        Ok(Some(reply.header.revision))
    }
}

/// Deletes each key that still is of its create_revision.
pub(crate) fn delete_each(keys: &[(Bytes, i64)]) -> Txn {
    let delete = |(key, created): &(Bytes, i64)| {
        let ours = Compare::create_revision(key.clone()).is(*created);
        Txn::new().compare(ours).success(Op::delete(key.clone()))
    };
    match keys {
        [key] => delete(key),
        keys => keys.iter().fold(Txn::new(), |all, key| all.success(Op::txn(delete(key)))),
    }
}

/// What a watch tells.
enum Told {
    /// From this revision on.
    Begun(i64),
    Events(Events),
}

/// How many keys are read at once: a server takes 128 operations in one transaction by default.
const AT_ONCE: usize = 32;
/// How often one looks whether an orphaned lease has been adopted here.
const PAUSE: Duration = Duration::from_millis(250);
