//! The clock that leases are measured on: tokio's, plus the time that the machine was suspended.
//!
//! tokio's clock is the monotonic one, which on Linux stands still while the machine sleeps; the server's does not.
//! CLOCK_BOOTTIME counts that time, so its lead over CLOCK_MONOTONIC is what was slept. Adding only that lead keeps
//! tokio's paused clock working in tests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::clock::Moment;

/// A clock that counts suspension.
#[derive(Clone)]
pub(crate) struct Time {
    epoch: Instant,
    suspended: Suspended,
}

/// Where the suspended time is read.
#[derive(Clone)]
enum Suspended {
    System(Arc<SystemLead>),
    Given(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Time {
    /// The system's clock.
    pub(crate) fn system() -> Self {
        Self::new(Suspended::System(Arc::new(SystemLead::new())))
    }

    /// A clock whose suspended time is given: what a test of a sleeping machine wants.
    pub(crate) fn suspended_for(slept: Arc<dyn Fn() -> Duration + Send + Sync>) -> Self {
        Self::new(Suspended::Given(slept))
    }

    fn new(suspended: Suspended) -> Self {
        Self { epoch: Instant::now(), suspended }
    }

    pub(crate) fn now(&self) -> Moment {
        self.epoch.elapsed() + self.slept()
    }

    /// The time that the machine slept since the epoch. Never less than before.
    pub(crate) fn slept(&self) -> Duration {
        match &self.suspended {
            Suspended::System(lead) => lead.read(),
            Suspended::Given(slept) => slept(),
        }
    }

    /// When tokio's clock reaches this moment, if the machine does not sleep until then.
    pub(crate) fn instant_of(&self, moment: Moment) -> Instant {
        let awake = moment.saturating_sub(self.slept());
        // A TTL of 285 years is legal; tokio's instants do not reach as far.
        self.epoch.checked_add(awake).unwrap_or_else(|| Instant::now() + FAR)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Time").field("now", &self.now()).finish()
    }
}

/// The lead of CLOCK_BOOTTIME over CLOCK_MONOTONIC, since this was made.
struct SystemLead {
    base: Duration,
    /// The greatest lead seen, in nanoseconds: two clocks cannot be read at once, and the lead must not shrink.
    greatest: AtomicU64,
}

impl SystemLead {
    fn new() -> Self {
        Self { base: boottime_lead(), greatest: AtomicU64::new(0) }
    }

    fn read(&self) -> Duration {
        let lead = boottime_lead().saturating_sub(self.base);
        // Below this it is the time between the two readings.
        if lead >= NOISE {
            let nanos = u64::try_from(lead.as_nanos()).unwrap_or(u64::MAX);
            self.greatest.fetch_max(nanos, Ordering::Relaxed);
        }
        Duration::from_nanos(self.greatest.load(Ordering::Relaxed))
    }
}

/// Reads the lead, never too large: the monotonic clock is read last, and time passes between the readings.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn boottime_lead() -> Duration {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let duration = |time: Timespec| {
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
    };
    let boot = duration(clock_gettime(ClockId::Boottime));
    boot.saturating_sub(duration(clock_gettime(ClockId::Monotonic)))
}

/// Elsewhere suspension is not counted: no safe binding tells it.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boottime_lead() -> Duration {
    Duration::ZERO
}

const NOISE: Duration = Duration::from_millis(10);
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleep_counts_and_the_paused_clock_works() {
        let slept = Arc::new(AtomicU64::new(0));
        let reader = slept.clone();
        let time = Time::suspended_for(Arc::new(move || Duration::from_secs(reader.load(Ordering::Relaxed))));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(time.now(), Duration::from_secs(3));
        slept.store(60, Ordering::Relaxed);
        assert_eq!(time.now(), Duration::from_secs(63));
        // A moment 10 s ahead is 10 s ahead for timers too.
        let ahead = time.instant_of(Duration::from_secs(73)) - Instant::now();
        assert_eq!(ahead, Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_does_not_sleep_adds_nothing() {
        let time = Time::system();
        assert_eq!(time.now(), time.now());
        assert_eq!(time.slept(), Duration::ZERO);
    }
}
