//! Taking back what was put: repeated until it is settled, and looked after where nobody knows whether it was put.

use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;

use crate::error::{LostReason, Result};
use crate::fence::Fence;
use crate::lease::Turn;
use crate::lease::suspects::{ANY, Suspect};
use crate::session::Session;
use crate::session::settle::Settler;

/// Keys of a session, that go together. This does not keep the session open.
#[derive(Debug)]
pub(super) struct Leave {
    settler: Settler,
    keys: Vec<Bytes>,
    /// One's turn among the tasks that share the keys; kept until it is known that the keys are gone.
    turn: Option<Turn>,
}

/// What became of a delete of keys that were ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deleted {
    /// They stood until then.
    ByUs,
    /// One was gone before.
    Before,
    /// They are gone. An attempt of ours was not answered: it, or another before it, deleted them.
    Unknown,
}

impl Leave {
    pub(super) fn new(session: &Session, keys: Vec<Bytes>, turn: Option<Turn>) -> Self {
        Self { settler: session.settler().clone(), keys, turn }
    }

    pub(super) fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    /// The user is given the keys: who adopts the lease may take them up, and who waits for the turn has it once they are
    /// lost. Or, with None, that is over. False where it came to that.
    pub(super) fn set_held(&self, fence: Option<&Fence>) -> bool {
        self.turn.as_ref().is_none_or(|turn| turn.set_held(fence.map(Fence::held)))
    }

    /// This incarnation of the keys is ours.
    pub(super) fn owns(&self, create_revision: i64) {
        if self.turn.is_some() {
            self.keys.iter().for_each(|key| self.settler.lease().owns(key, create_revision));
        }
    }

    /// True where the keys can have been put by requests of the present put alone: they are drawn, or tasks of this process
    /// put them in turn, and none before left a question.
    pub(super) fn is_fresh(&self) -> bool {
        let lease = self.settler.lease();
        self.turn.is_none() || lease.is_granted() && !self.keys.iter().any(|key| lease.suspects().knows(key))
    }

    /// True where keys that are found may be another process's: the lease was given away, and its adopter puts keys of the same
    /// names in its own turn.
    pub(super) fn may_be_anothers(&self) -> bool {
        let lease = self.settler.lease();
        self.turn.is_some() && (lease.lost_reason() == Some(LostReason::Orphaned) || lease.is_away())
    }

    /// So many requests may yet put the keys, of which an incarnation has an owner, or had; seen at the revision `since`.
    pub(super) fn suspect(&self, owned: i64, requests: u32, since: i64) {
        for key in &self.keys {
            self.settler.look_out_for(self.as_suspect(key, owned, requests), since);
        }
    }

    /// The keys, of this create_revision, have no owner any more, and so many requests may yet put them.
    fn disown(&self, create_revision: i64, requests: u32) {
        for key in &self.keys {
            self.settler.lease().suspects().disown(key, create_revision);
            self.settler.look_out_for(self.as_suspect(key, create_revision - 1, requests), 0);
        }
    }

    fn as_suspect(&self, key: &Bytes, owned: i64, requests: u32) -> Suspect {
        let turn = self.turn.as_ref().map(|turn| turn.name().clone());
        Suspect { key: key.clone(), turn, mark: None, owned, requests }
    }

    /// Deletes the keys, of this create_revision. After an error it is tried again in the background until it is settled.
    pub(super) async fn release(self, create_revision: i64) -> Result<Deleted> {
        let deleted = self.delete(create_revision).await;
        if deleted.is_err() {
            self.spawn(create_revision);
        }
        deleted
    }

    /// Deletes the keys, of this create_revision, in the background: until it is settled, or the lease's end settles it.
    pub(super) fn spawn(self, create_revision: i64) {
        let cleanup = self.settler.cleanup().clone();
        cleanup.spawn(async move {
            let delete = || async { self.delete(create_revision).await.map(drop) };
            if !self.settler.settle(WHAT, delete).await {
                if self.turn.is_some() {
                    // While the turn is ours: who has it next deletes this incarnation before it puts its own.
                    let keys = self.keys.iter().map(|key| (key.clone(), create_revision));
                    self.settler.lease().doomed().given_up(keys);
                }
                // It has no owner any more. Where the lease goes on, adopted again by this client, it is looked for and
                // deleted, unless a task has taken it up in its turn.
                let requests = if self.turn.is_some() { ANY } else { 1 };
                self.disown(create_revision, requests);
            }
        });
    }

    /// Deletes the keys, of this create_revision, once this client has adopted the lease again: but where its session takes
    /// them up.
    pub(super) fn abandon(self, create_revision: i64) {
        let cleanup = self.settler.cleanup().clone();
        cleanup.spawn(async move {
            if !self.settler.lease().adopted_again().await {
                return;
            }
            let lease = self.settler.lease();
            match self.turn {
                // Its guard is responsible for it from then on, and leaves it to the next adopter where that session is orphaned.
                Some(_) if self.keys.iter().any(|key| lease.was_taken_up(key, create_revision)) => {}
                Some(_) => self.disown(create_revision, 1),
                // Its name was drawn: no session takes it up.
                None => self.spawn(create_revision),
            }
        });
    }

    /// Takes back a put of which nobody knows whether it was applied, and looks out for it from then on. The turn is kept
    /// until the first is done.
    pub(super) fn settle(self) {
        let cleanup = self.settler.cleanup().clone();
        cleanup.spawn(async move {
            let looked_at = AtomicI64::new(0);
            let work = || async {
                let in_turn = self.turn.is_some();
                // Another process that adopts the lease puts the same key: it is not to be taken from that.
                while !in_turn || self.settler.is_kept().await {
                    if let Some(revision) = self.settler.take_back(&self.keys, in_turn).await? {
                        looked_at.store(revision, Ordering::Relaxed);
                        break;
                    }
                }
                Ok(())
            };
            self.settler.settle(WHAT, work).await;
            self.suspect(0, ANY, looked_at.load(Ordering::Relaxed));
        });
    }

    /// Ends what may yet be deleted of a key that is found: from here on it is gone, and what is found is another.
    pub(super) async fn end_doomed(&self) -> Result<()> {
        let doomed = self.keys.iter().filter(|_| self.turn.is_some());
        for key in doomed {
            if let Some(created) = self.settler.lease().doomed().incarnation(key) {
                self.delete_at_once(&[(key.clone(), created)]).await?;
            }
        }
        Ok(())
    }

    /// Whether this incarnation of the keys may yet be deleted.
    pub(super) fn is_doomed(&self, create_revision: i64) -> bool {
        let incarnation = |key| self.settler.lease().doomed().incarnation(key);
        self.turn.is_some() && self.keys.iter().any(|key| incarnation(key) == Some(create_revision))
    }

    async fn delete(&self, create_revision: i64) -> Result<Deleted> {
        let ours: Vec<_> = self.keys.iter().map(|key| (key.clone(), create_revision)).collect();
        match self.delete_at_once(&ours).await {
            // What the server does not take at once it may take one by one.
            Err(error) if self.settler.client().transport().is_final(error.kind()) && ours.len() > 1 => {
                let mut all = Ok(Deleted::ByUs);
                for one in ours.chunks(1) {
                    all = match (self.delete_at_once(one).await, all) {
                        (Ok(Deleted::ByUs), all) => all,
                        (Ok(deleted), Ok(_)) => Ok(deleted),
                        (Ok(_), refused) | (refused @ Err(_), _) => refused,
                    };
                }
                all
            }
            deleted => deleted,
        }
    }

    async fn delete_at_once(&self, ours: &[(Bytes, i64)]) -> Result<Deleted> {
        let answer = self.settler.delete(ours, self.turn.is_some()).await?;
        let reply = answer.value;
        let stood =
            reply.succeeded && (0..ours.len()).all(|index| reply.inner_succeeded(index) != Some(false));
        Ok(match (stood, answer.ambiguous) {
            (true, _) => Deleted::ByUs,
            (false, false) => Deleted::Before,
            (false, true) => Deleted::Unknown,
        })
    }
}

/// What is being settled, for people to read.
const WHAT: &str = "keys of our own";
