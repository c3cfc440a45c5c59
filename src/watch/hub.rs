//! All watches of a client: what starts the task that owns their one stream, and says to it what watchers want.

mod line;
mod task;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, error::SendError, unbounded_channel};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::mailbox::{Budget, Mailbox};
use super::{Watch, Watcher};
use crate::transport::Transport;
use task::Task;

/// All watches of a client. A clone is another handle on the same.
#[derive(Clone)]
pub(crate) struct Hub {
    shared: Arc<Shared>,
    /// The last handle's end is the end of a stream that waits for watchers to come.
    _open: Arc<DropGuard>,
}

struct Shared {
    transport: Transport,
    runtime: Handle,
    watchers: AtomicU64,
    budget: Arc<Budget>,
    slot: Mutex<Slot>,
    /// No handle is left.
    closed: CancellationToken,
}

/// How to reach the task, while there is one.
#[derive(Default)]
struct Slot {
    commands: Option<UnboundedSender<Command>>,
    past: Past,
}

/// What is known of the tasks before.
#[derive(Debug, Default, Clone, Copy)]
struct Past {
    /// The last watch id that one used.
    last_id: i64,
    /// A watch was acknowledged once: what does not make sense since then is a balancer's, and passes.
    worked: bool,
}

/// What watchers have to say.
pub(super) enum Command {
    Watch { id: u64, watch: Watch, mailbox: Arc<Mailbox> },
    Drained(u64),
    Drop(u64),
}

impl Hub {
    pub(crate) fn new(transport: Transport, runtime: Handle) -> Self {
        let closed = CancellationToken::new();
        let open = Arc::new(closed.clone().drop_guard());
        let (watchers, budget) = (AtomicU64::new(0), Budget::new(MOST_BYTES));
        let slot = Mutex::default();
        Self { shared: Arc::new(Shared { transport, runtime, watchers, budget, slot, closed }), _open: open }
    }

    /// Starts a watch. Sends nothing itself and never blocks; may be called from `Drop`, and outside the runtime.
    pub(crate) fn watch(&self, watch: Watch) -> Watcher {
        let id = self.shared.watchers.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(watch.targets.len(), watch.buffer, self.shared.budget.clone()));
        if let Err(error) = watch.check() {
            mailbox.end(&Arc::new(error));
            return Watcher { mailbox, commands: None, id, done: false };
        }
        let commands = self.tell(Command::Watch { id, watch, mailbox: mailbox.clone() });
        Watcher { mailbox, commands: Some(commands), id, done: false }
    }

    /// Hands a command to the task, and starts it where there is none.
    fn tell(&self, command: Command) -> UnboundedSender<Command> {
        let mut slot = self.shared.slot();
        let command = match &slot.commands {
            Some(commands) => match commands.send(command) {
                Ok(()) => return commands.clone(),
                Err(SendError(command)) => command,
            },
            None => command,
        };
        let (sender, receiver) = unbounded_channel();
        // The receiver is at hand, so it takes this.
        let _ = sender.send(command);
        slot.commands = Some(sender.clone());
        let task = Task::new(self.shared.clone(), receiver, slot.past);
        // A runtime that has shut down drops the task at once, and the task then wants the lock.
        drop(slot);
        drop(self.shared.runtime.spawn(task.run()));
        sender
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all watches of a client together hold that is yet to be read; and one delivery more for each that waits for one.
const MOST_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests;
