//! The clock that leases are measured on: tokio's, plus the time that the machine stood still.
//!
//! tokio's clock is the monotonic one, which on Linux stands still while the machine sleeps; the server's does not.
//! CLOCK_BOOTTIME counts that time, so its lead over CLOCK_MONOTONIC is what was slept. Adding only that lead keeps
//! tokio's paused clock working in tests.
//!
//! A virtual machine that is paused by its host counts nothing on either. What may tell is its wall clock, once something
//! sets that right: where it jumps ahead of the others, the jump counts as time that was slept. A wall clock that was set
//! by hand ends sessions early then, and none late.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::clock::Moment;
use super::lock;

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
    Given(Arc<Given>),
}

impl Time {
    /// The system's clock.
    pub(crate) fn system() -> Self {
        Self::new(Suspended::System(Arc::new(SystemLead::new())))
    }

    /// A clock whose suspended time is given: what a test of a sleeping machine wants.
    pub(crate) fn suspended_for(slept: Arc<dyn Fn() -> Duration + Send + Sync>) -> Self {
        Self::new(Suspended::Given(Arc::new(Given { slept, greatest: AtomicU64::new(0) })))
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
            Suspended::Given(given) => given.read(),
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

/// What a user's function tells.
struct Given {
    slept: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// The greatest that it has told: time that was slept does not come back.
    greatest: AtomicU64,
}

impl Given {
    fn read(&self) -> Duration {
        // Those that this thread is asking.
        thread_local!(static ASKED: RefCell<Vec<*const Given>> = const { RefCell::new(Vec::new()) });
        struct Asked;
        impl Drop for Asked {
            fn drop(&mut self) {
                ASKED.with_borrow_mut(Vec::pop);
            }
        }
        let this: *const Self = self;
        // One that looks at a session of its own while it is asked gets what was told last.
        if !ASKED.with_borrow(|asked| asked.contains(&this)) {
            ASKED.with_borrow_mut(|asked| asked.push(this));
            let _asked = Asked;
            self.greatest.fetch_max(nanos((self.slept)()), Ordering::Relaxed);
        }
        Duration::from_nanos(self.greatest.load(Ordering::Relaxed))
    }
}

/// The lead of CLOCK_BOOTTIME over CLOCK_MONOTONIC, and the jumps of the wall clock ahead of both, since this was made.
struct SystemLead {
    base: Duration,
    /// The greatest lead seen, in nanoseconds: two clocks cannot be read at once, and the lead must not shrink.
    greatest: AtomicU64,
    wall: Mutex<Jumps>,
    /// What the wall clock has jumped, in nanoseconds.
    jumped: AtomicU64,
}

impl SystemLead {
    fn new() -> Self {
        let wall = Mutex::new(Jumps::default());
        Self { base: boottime_lead(), greatest: AtomicU64::new(0), wall, jumped: AtomicU64::new(0) }
    }

    fn read(&self) -> Duration {
        let lead = boottime_lead().saturating_sub(self.base);
        // Below this it is the time between the two readings.
        if lead >= NOISE {
            self.greatest.fetch_max(nanos(lead), Ordering::Relaxed);
        }
        self.note(wall_lead);
        let counted = |part: &AtomicU64| Duration::from_nanos(part.load(Ordering::Relaxed));
        counted(&self.greatest) + counted(&self.jumped)
    }

    /// Counts what the wall clock has jumped by. The lead is read under the lock, where no user's code runs: a thread that
    /// asks meanwhile waits for the jump to be counted, and goes on with it.
    fn note(&self, lead: impl FnOnce() -> Option<i128>) {
        let mut wall = lock(&self.wall);
        let Some(jumped) = lead().and_then(|lead| wall.see(lead)) else { return };
        self.jumped.fetch_add(nanos(jumped), Ordering::Relaxed);
        drop(wall);
        // A subscriber is a user's code: it may block or panic.
        tracing::warn!(
            ?jumped,
            "the wall clock jumped ahead: the machine may have stood still, which counts"
        );
    }
}

/// Tells the jumps of the wall clock, against one that cannot be set, from what a clock is tuned and drifts by.
#[derive(Debug, Default)]
struct Jumps {
    /// The lead of the wall clock when it was last read, in nanoseconds: it may be behind.
    last: Option<i128>,
}

impl Jumps {
    /// How far it has jumped ahead since it was last read.
    fn see(&mut self, lead: i128) -> Option<Duration> {
        let ahead = lead - self.last.replace(lead)?;
        let ahead = Duration::from_nanos(u64::try_from(ahead).ok()?);
        (ahead >= JUMP).then_some(ahead)
    }
}

/// The lead of the wall clock over the clock that counts suspension, in nanoseconds. None where the reading took so long
/// that it says nothing: the process stood still in the midst of it.
fn wall_lead() -> Option<i128> {
    let before = since_boot();
    let wall = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok()?,
        Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
    };
    let after = since_boot();
    (after.saturating_sub(before) < NOISE)
        .then(|| wall - i128::try_from(before.as_nanos()).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads the lead, never too large: the monotonic clock is read last, and time passes between the readings.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn boottime_lead() -> Duration {
    since_boot().saturating_sub(clock(rustix::time::ClockId::Monotonic))
}

/// A clock that is never set, and counts suspension.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn since_boot() -> Duration {
    clock(rustix::time::ClockId::Boottime)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn clock(id: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(id);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Elsewhere no safe binding tells of suspension: the wall clock does, which goes on meanwhile.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boottime_lead() -> Duration {
    Duration::ZERO
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn since_boot() -> Duration {
    use std::sync::LazyLock;
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// What the wall clock jumps by at least where it is a jump: it is tuned in smaller steps, if in steps at all.
const JUMP: Duration = Duration::from_millis(50);
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
    /// What a user's function tells must not shrink: belief would grow.
    #[tokio::test(start_paused = true)]
    async fn time_that_was_slept_does_not_come_back() {
        let slept = Arc::new(AtomicU64::new(60));
        let reader = slept.clone();
        let time = Time::suspended_for(Arc::new(move || Duration::from_secs(reader.load(Ordering::Relaxed))));
        assert_eq!(time.now(), Duration::from_secs(60));
        slept.store(3, Ordering::Relaxed);
        assert_eq!(time.now(), Duration::from_secs(60));
    }

    /// One thread had seen the jump, and logged it before it counted it. The log was slow, and meanwhile all other threads
    /// believed in leases whose hour had passed.
    #[test]
    fn a_jump_counts_before_it_is_logged() {
        struct Slow {
            lead: Arc<SystemLead>,
            seen: Arc<AtomicU64>,
        }
        impl tracing::Subscriber for Slow {
            fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
                true
            }
            fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                tracing::span::Id::from_u64(1)
            }
            fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
            fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
            fn event(&self, _: &tracing::Event<'_>) {
                let lead = self.lead.clone();
                let counted = std::thread::spawn(move || lead.read()).join().expect("no panic");
                self.seen.store(counted.as_secs(), Ordering::Relaxed);
                panic!("a subscriber of the user's");
            }
            fn enter(&self, _: &tracing::span::Id) {}
            fn exit(&self, _: &tracing::span::Id) {}
        }
        let lead = Arc::new(SystemLead::new());
        let seen = Arc::new(AtomicU64::new(0));
        let now = wall_lead().expect("read in time");
        lead.note(|| Some(now - 3_600 * 1_000_000_000));
        let log = Slow { lead: lead.clone(), seen: seen.clone() };
        let logged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tracing::subscriber::with_default(log, || lead.note(|| Some(now)));
        }));
        assert!(logged.is_err(), "it was logged");
        assert_eq!(seen.load(Ordering::Relaxed), 3_600, "by another thread, meanwhile");
        assert!(lead.read() >= Duration::from_secs(3_600), "and after the panic");
    }

    /// A virtual machine that was paused for an hour believed in its leases: no clock had counted the hour. Its wall clock
    /// was set right a moment later.
    #[test]
    fn a_jump_of_the_wall_clock_counts_as_suspension() {
        const S: i128 = 1_000_000_000;
        let mut wall = Jumps::default();
        assert_eq!(wall.see(7 * S), None, "nothing is known before");
        assert_eq!(wall.see(7 * S), None);
        assert_eq!(wall.see(3_607 * S), Some(Duration::from_secs(3_600)));
        assert_eq!(wall.see(3_607 * S), None, "once");
        assert_eq!(wall.see(-5 * S), None, "back is no sleep");
        assert_eq!(wall.see(0), Some(Duration::from_secs(5)), "and says nothing of the next");
        // A clock that drifts is followed.
        assert!((0..10_000).all(|n| wall.see(n * S / 1_000).is_none()));
    }
}
