//! The leases of a client: which are kept alive, and how the task that does it is reached.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::clock::LeaseClock;
use super::doomed::Doomed;
use super::fate::End;
use super::keepalive::KeepAlive;
use super::local::Locals;
use super::suspects::Suspects;
use super::time::Time;
use super::unsaved::Unsaved;
use super::{Lease, lock};
use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::transport::Transport;
use crate::transport::retry::Failures;

/// The leases of one client.
#[derive(Clone)]
pub(crate) struct Leases {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) transport: Transport,
    pub(super) runtime: Handle,
    time: Time,
    /// How to reach the task that keeps leases alive; it runs while there are any.
    task: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    /// Held while a lease is adopted again, and what users were given before gives way: a thread that stands still between the two
    /// makes nothing give way that a later adopter's users were given.
    adopting: Mutex<()>,
    /// All leases being kept alive, so that sessions of this client on one lease share its clock and its local turns.
    pub(super) by_id: Mutex<HashMap<i64, Known>>,
}

/// A lease as one session after another of this client has it.
pub(super) struct Known {
    pub(super) lease: Weak<Lease>,
    pub(super) carried: Weak<Carried>,
}

/// What is carried over when a lease is adopted again.
#[derive(Debug, Default)]
pub(super) struct Carried {
    pub(super) locals: Locals,
    pub(super) suspects: Suspects,
    pub(super) doomed: Doomed,
    /// The work that must end before the lease is revoked, of all sessions that are or were on it.
    pub(super) urgent: TaskTracker,
    /// The holds of barriers that may outlast the lease without an owner, of all sessions that are or were on it.
    pub(super) holds: TaskTracker,
    /// What is lost with the lease unless that work saves it, and what stays without it.
    pub(super) unsaved: Unsaved,
    /// How many revokes were sent that may be applied at any time.
    pub(super) revokes: AtomicU32,
    /// The lease is gone: one of them was answered, or the server has said so.
    pub(super) revoked: AtomicBool,
    /// What the answer to one of them tells of how long the lease lived.
    pub(super) end: Mutex<Option<End>>,
    /// How many handles of the lease there have been, the newest of them that a session came of by adoption, and the newest
    /// that was given away; 0 for none.
    pub(super) handles: AtomicU64,
    pub(super) adopted: AtomicU64,
    pub(super) given_away: AtomicU64,
    /// When the last of them was lost that was.
    pub(super) lost_at: Mutex<Option<Instant>>,
    /// How the server was asked whether it has the lease that was lost.
    pub(super) looks: Mutex<Looks>,
    /// Tells that the lease was adopted again, or is gone.
    pub(super) decided: Notify,
}

/// How the server was asked for a lease; None before the first time.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pub(super) next: Option<Instant>,
    pub(super) failures: Failures,
}

/// What the task is told.
pub(super) enum Command {
    Keep(Arc<Lease>),
    Forget(i64),
}

impl Leases {
    pub(crate) fn new(transport: Transport, runtime: Handle, time: Time) -> Self {
        let (task, adopting, by_id) = Default::default();
        Self { shared: Arc::new(Shared { transport, runtime, time, task, adopting, by_id }) }
    }

    pub(crate) fn time(&self) -> &Time {
        &self.shared.time
    }

    /// Keeps a lease alive until it is lost. One that is kept alive already keeps its own clock; one that was before keeps
    /// what is known of its keys.
    ///
    /// # Errors
    /// This client revokes it.
    pub(crate) fn keep(&self, id: i64, clock: LeaseClock) -> Result<Stay> {
        let now = self.time().now();
        let adopting = lock(&self.shared.adopting);
        let mut by_id = lock(&self.shared.by_id);
        let known = by_id.get(&id);
        let before = known.and_then(|known| known.lease.upgrade());
        let carried = known.and_then(|known| known.carried.upgrade());
        if let Some(before) = &before
            && before.is_believed(now)
            && before.enter_if_used()
        {
            return Ok(Stay(before.clone()));
        }
        if carried.as_ref().is_some_and(|carried| carried.revokes.load(Ordering::Relaxed) > 0) {
            drop(by_id);
            return Err(is_being_revoked());
        }
        let lease = Arc::new(Lease::new(id, clock, carried.clone().unwrap_or_default(), self.clone()));
        let known = Known { lease: Arc::downgrade(&lease), carried: Arc::downgrade(&lease.carried) };
        by_id.insert(id, known);
        // A handle may be the last one, and what it drops looks into the map: it must leave the lock first.
        drop(by_id);
        drop(before);
        if let Some(carried) = &carried {
            carried.locals.give_way();
        }
        drop(adopting);
        if let Some(carried) = carried {
            carried.decided.notify_waiters();
        }
        self.tell(Command::Keep(lease.clone()));
        Ok(Stay(lease))
    }

    /// A session comes of this handle's adoption: from here on those that were on the lease before do not revoke it.
    ///
    /// # Errors
    /// This client revokes it.
    pub(super) fn adopted(&self, lease: &Lease) -> Result<()> {
        let by_id = lock(&self.shared.by_id);
        let is_revoked = lease.carried.revokes.load(Ordering::Relaxed) > 0;
        if !is_revoked {
            lease.carried.adopted.fetch_max(lease.number, Ordering::Relaxed);
        }
        drop(by_id);
        match is_revoked {
            true => Err(is_being_revoked()),
            false => Ok(()),
        }
    }

    /// Another than this one that keeps the lease alive or is about to; where there is none, this is done before there can be.
    pub(super) fn successor_or(&self, lease: &Lease, otherwise: impl FnOnce()) -> Option<Arc<Lease>> {
        let now = self.time().now();
        let by_id = lock(&self.shared.by_id);
        let holder = by_id.get(&lease.id()).and_then(|known| known.lease.upgrade());
        let is_successor = |holder: &Arc<Lease>| !std::ptr::eq(&**holder, lease) && holder.is_believed(now);
        let is_one = holder.as_ref().is_some_and(is_successor);
        if !is_one {
            otherwise();
        }
        // A handle may be the last one: it must leave the lock first.
        drop(by_id);
        holder.filter(|_| is_one)
    }

    /// Whom a lease is kept alive for, if it is; or is about to be, where no keep-alive has proven that yet.
    pub(crate) fn holder(&self, id: i64) -> Option<Arc<Lease>> {
        let lease = lock(&self.shared.by_id).get(&id).and_then(|known| known.lease.upgrade());
        lease.filter(|lease| lease.is_believed(self.time().now()))
    }

    pub(super) fn tell(&self, command: Command) {
        let mut task = lock(&self.shared.task);
        let command = match &*task {
            Some(running) => match running.send(command) {
                Ok(()) => return,
                // The task went with its runtime.
                Err(mpsc::error::SendError(command)) => command,
            },
            None => command,
        };
        // Nothing is kept alive, so there is nothing to forget.
        let Command::Keep(_) = command else { return };
        let (sender, commands) = mpsc::unbounded_channel();
        let _ = sender.send(command);
        *task = Some(sender);
        // A runtime that has ended drops the task at once, and the task then wants the lock.
        drop(task);
        self.shared.runtime.spawn(KeepAlive::new(self.clone(), commands).run());
    }

    /// Ends the task if no command came in the meantime.
    pub(super) fn retire(&self, commands: &mpsc::UnboundedReceiver<Command>) -> bool {
        let mut task = lock(&self.shared.task);
        let idle = commands.is_empty();
        if idle {
            *task = None;
        }
        idle
    }
}

fn is_being_revoked() -> Error {
    let error = Error::new(ErrorKind::LeaseNotFound, Outcome::NotApplied).at("Lease/LeaseKeepAlive");
    error.because("this client has sent a revoke of the lease, which ends it sooner or later")
}

/// Holds a lease for one who is about to open a session on it. Where no session comes of it, and nothing else is on the
/// lease, the lease is left as it was found.
pub(crate) struct Stay(Arc<Lease>);

impl Stay {
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.0
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if self.0.leave() {
            // The dropping task may hold a borrow of the state.
            self.0.end(LostReason::Orphaned);
        }
    }
}
