//! Members that lag.

use std::time::Duration;

use super::State;
use crate::fake::core::Core;

impl State {
    /// The member that the client reads from has seen what there is now, and sees no more.
    pub(crate) fn lag(&mut self, client: &str, now: Duration) {
        self.note(now, format!("the member of {client} lags"));
        self.behind.insert(client.into(), self.core.store.clone());
    }

    pub(crate) fn catch_up(&mut self, client: &str, now: Duration) {
        if self.behind.remove(client).is_some() {
            self.note(now, format!("the member of {client} has caught up"));
        }
    }

    /// The newest revision that the client's member has seen.
    pub(crate) fn seen_by(&self, client: &str) -> i64 {
        let compacted = self.core.store.compacted();
        // A member compacts what it has seen. Here what was compacted is gone for all: so one that had not has caught up.
        let seen = self.behind.get(client).filter(|seen| seen.revision() >= compacted);
        seen.unwrap_or(&self.core.store).revision()
    }

    /// Looks at what the client's member has seen. What looks may write nothing.
    pub(crate) fn at_member<T>(&mut self, client: &str, look: impl FnOnce(&mut Core) -> T) -> T {
        let Some(seen) = self.behind.get_mut(client) else { return look(&mut self.core) };
        std::mem::swap(seen, &mut self.core.store);
        let out = look(&mut self.core);
        std::mem::swap(seen, &mut self.core.store);
        out
    }
}
