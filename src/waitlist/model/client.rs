//! What the clients of the model know, and do when they are told something.

use super::Undone;
use super::state::{PREFIX, key};
use crate::lease::suspects::{Group, Suspect, Suspects};
use crate::model::{Server, Watching, listens};
use crate::waitlist::Predecessor;
use crate::waitlist::decide::Wait;

/// A task of a client: one waits for one answer at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Actor {
    pub(super) client: u8,
    /// What looks out for keys that come late, beside the task that takes the lock.
    pub(super) looks_out: bool,
}

/// What a client asks of the server, about its own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Asked {
    /// To put it where it is missing, and who stands in the line.
    Put,
    /// Whether it stands since this create_revision, and who is older.
    Look(i64),
    /// Whether it is there.
    Read,
    /// To delete it, of this create_revision.
    Delete(i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Client {
    /// How often it is yet to take the lock.
    pub(super) rounds: u8,
    /// How often it had it.
    pub(super) held: u8,
    pub(super) phase: Phase,
    pub(super) look_out: Option<LookOut>,
    /// It no longer believes in its lease.
    pub(super) is_lost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    /// The put is under way. So many before it had no answer. Where the future was dropped, it goes on in the background.
    Joining {
        unanswered: u8,
        dropped: bool,
    },
    /// The line is read: in the midst of a wait, or because that is over.
    Looking {
        own: i64,
        wait: Option<Waiting>,
    },
    Waiting {
        own: i64,
        wait: Waiting,
    },
    Holding {
        own: i64,
        fence: Watching,
    },
    /// The key is deleted. The turn among the tasks is kept until that was answered.
    Leaving {
        own: i64,
    },
    /// What a dropped put may have left is looked for; then it is deleted.
    TakingBack {
        deleting: Option<i64>,
        seen_at: i64,
    },
}

/// A wait behind a predecessor: what is needed to make a [`Wait`] again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    pub(super) predecessor: u8,
    pub(super) created: i64,
    pub(super) is_first: bool,
    pub(super) seen_at: i64,
    pub(super) on_one_cursor: bool,
    pub(super) unseen: bool,
    pub(super) resumed: bool,
    /// It may have lost the word of its predecessor's end, and then looks for itself.
    pub(super) deaf: bool,
    pub(super) watches: Vec<Watching>,
}

/// What looks out for keys that come late: what is needed to make a [`Group`] again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LookOut {
    pub(super) watch: Watching,
    pub(super) owned: i64,
    pub(super) requests: u32,
    /// What was found, and waits for the turn.
    pub(super) found: Vec<i64>,
    pub(super) deleting: Option<i64>,
}

impl Actor {
    pub(super) fn both(client: u8) -> [Self; 2] {
        [Self { client, looks_out: false }, Self { client, looks_out: true }]
    }

    pub(super) fn main(client: u8) -> Self {
        Self { client, looks_out: false }
    }
}

impl Client {
    pub(super) fn new(rounds: u8) -> Self {
        Self { rounds, held: 0, phase: Phase::Idle, look_out: None, is_lost: false }
    }

    /// The turn among the tasks of the process is free.
    fn is_free(&self) -> bool {
        let deletes = self.look_out.as_ref().is_some_and(|look_out| look_out.deleting.is_some());
        self.phase == Phase::Idle && !deletes && !self.is_lost
    }

    pub(super) fn may_lock(&self) -> bool {
        self.rounds > 0 && self.is_free()
    }

    pub(super) fn may_sweep(&self) -> bool {
        self.is_free() && self.look_out.as_ref().is_some_and(|look_out| !look_out.found.is_empty())
    }

    pub(super) fn may_drop(&self) -> bool {
        match self.phase {
            Phase::Joining { dropped, .. } => !dropped,
            Phase::Looking { .. } | Phase::Waiting { .. } => true,
            _ => false,
        }
    }

    /// What its wait watches.
    pub(super) fn watches(&self) -> &[Watching] {
        match &self.phase {
            Phase::Waiting { wait, .. } => &wait.watches,
            _ => &[],
        }
    }

    /// It waits, and the server has acknowledged all that it watches.
    pub(super) fn listens(&self) -> bool {
        listens(self.watches())
    }

    /// It may have missed something, and looks for that after a while.
    pub(super) fn may_look(&self) -> bool {
        matches!(&self.phase, Phase::Waiting { wait, .. } if wait.deaf)
    }

    /// What happened before its watch began is yet to be read, where the read of that failed.
    pub(super) fn has_unseen(&self) -> bool {
        matches!(&self.phase, Phase::Waiting { wait, .. } if wait.unseen)
    }

    /// The incarnation of its key that it knows to have.
    pub(super) fn own(&self) -> Option<i64> {
        match self.phase {
            Phase::Looking { own, .. }
            | Phase::Waiting { own, .. }
            | Phase::Holding { own, .. }
            | Phase::Leaving { own } => Some(own),
            Phase::Idle | Phase::Joining { .. } | Phase::TakingBack { .. } => None,
        }
    }

    /// If it waits, its predecessor stands, or it will look.
    pub(super) fn is_behind(&self, server: &Server) -> bool {
        let Phase::Waiting { wait, .. } = &self.phase else { return true };
        let stands = server.get(wait.predecessor).is_some_and(|kv| kv.created == wait.created);
        stands || wait.deaf
    }

    /// It has nothing to do of its own accord, but for what its user wants.
    pub(super) fn is_still(&self, server: &Server) -> bool {
        let is_told = |watch: &Watching| watch.next != 0 && watch.has_news(server) == 0;
        let fence_is_told = match &self.phase {
            Phase::Holding { fence, .. } => is_told(fence),
            _ => true,
        };
        self.watches().iter().all(is_told)
            && fence_is_told
            && self.look_out.as_ref().is_none_or(|look_out| is_told(&look_out.watch))
            && !self.may_sweep()
            && !self.has_unseen()
    }

    /// An incarnation of its key is its own.
    pub(super) fn owns(&mut self, created: i64) {
        if let Some(look_out) = &mut self.look_out {
            look_out.owned = look_out.owned.max(created);
        }
    }
}

impl LookOut {
    pub(super) fn new(client: u8, owned: i64, requests: u32, since: i64) -> Self {
        let watch = Watching { keys: 1 << client, next: since + 1, puts: true, deletes: false };
        Self { watch, owned, requests, found: Vec::new(), deleting: None }
    }

    pub(super) fn suspect(&self, client: u8) -> Suspect {
        let turn = Some(PREFIX.into());
        Suspect { key: key(client), turn, mark: None, owned: self.owned, requests: self.requests }
    }

    /// The crate's own, as it is now.
    pub(super) fn group(&self, client: u8) -> std::sync::Arc<Group> {
        Suspects::default().add(self.suspect(client), self.watch.next - 1).expect("the first")
    }
}

impl Waiting {
    pub(super) fn behind(client: u8, predecessor: Predecessor, undone: Option<Undone>) -> Self {
        let number = (0..u8::MAX).find(|number| key(*number) == predecessor.key).expect("one of them");
        let is_first = predecessor.is_first || undone == Some(Undone::NoConfirm);
        let (created, seen_at) = (predecessor.create_revision, predecessor.seen_at);
        let on_one_cursor = Wait::behind(Predecessor { is_first, ..predecessor }).on_one_cursor;
        let watch = |keys| Watching { keys, next: 0, puts: false, deletes: true };
        let (low, high) = (number.min(client), number.max(client));
        let watches = match on_one_cursor {
            // The range from the one to the other.
            true => vec![watch((low..=high).fold(0, |keys, key| keys | 1 << key))],
            false => vec![watch(1 << number), watch(1 << client)],
        };
        let (unseen, resumed, deaf) = (false, false, false);
        Self {
            predecessor: number,
            created,
            is_first,
            seen_at,
            on_one_cursor,
            unseen,
            resumed,
            deaf,
            watches,
        }
    }

    /// The crate's own, as it is now.
    pub(super) fn wait(&self) -> Wait {
        let predecessor = Predecessor {
            key: key(self.predecessor),
            create_revision: self.created,
            is_first: self.is_first,
            is_noisy: false,
            among_many: false,
            seen_at: self.seen_at,
        };
        Wait { unseen: self.unseen, ..Wait::behind(predecessor) }
    }
}
