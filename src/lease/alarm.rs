//! The timer of one who waits for a lease's end, on the runtime that it waits on.
//!
//! The task that keeps leases alive runs on the client's runtime. While that stands still, its timers do not fire, and a
//! lease still ends at its deadline.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Lease;
use crate::error::LostReason;

/// Wakes one who waits at the deadline. It is made when there is a wait: most who ask need none.
#[derive(Default)]
pub(super) struct Alarm {
    /// And the runtime that it is on. One who waits may be polled on another next, and the first may have ended.
    timer: Option<(Id, Pin<Box<Sleep>>)>,
}

impl Alarm {
    /// Ready once the deadline has passed. A renewal moves it: that is seen when the timer fires, not at every renewal.
    pub(super) fn poll(&mut self, lease: &Lease, context: &mut Context<'_>) -> Poll<LostReason> {
        // No timer without a runtime of tokio's: the lease's own task will tell.
        let Ok(runtime) = Handle::try_current().map(|runtime| runtime.id()) else { return Poll::Pending };
        let here = self.timer.take_if(|(on, _)| *on == runtime);
        let (_, timer) =
            self.timer.insert(here.unwrap_or_else(|| (runtime, Box::pin(sleep_until(lease.ends_at())))));
        loop {
            ready!(timer.as_mut().poll(context));
            if let Some(reason) = lease.lost_reason() {
                return Poll::Ready(reason);
            }
            // Later than now in any case, so that this ends.
            timer.as_mut().reset(lease.ends_at().max(Instant::now() + super::MOMENT));
        }
    }
}
