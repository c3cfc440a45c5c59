//! How works are timed.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::Report;
use crate::Result;
use crate::works::Task;

pub(super) type Future<T> = Pin<Box<dyn std::future::Future<Output = Result<T>> + Send>>;

/// Does the work once, and tells how long that took; None where it cannot be told.
pub(super) type Op = Box<dyn FnMut() -> Future<Option<Duration>> + Send>;

/// Whatever must live until the end.
pub(super) type Held = Box<dyn Any>;

/// A work that is set up.
pub(super) enum Plan {
    /// By as many workers at once, for a time. The counter counts attempts.
    Cycles(Vec<Op>, Option<Arc<AtomicU64>>),
    /// Opens many sessions at once; then they idle.
    Sessions(Box<dyn FnOnce() -> Future<Held>>),
    Waiters(Waiters),
}

/// Many waiters on one lock that is held.
pub(super) struct Waiters {
    /// Lets them queue up.
    pub(super) queue_up: Box<dyn FnOnce() -> Future<Held>>,
    /// How many wait, by the server's word.
    pub(super) queued: Box<dyn FnMut() -> Future<usize>>,
    /// Gives the lock to the first, who gives it on at once, and so forth until this many had it.
    pub(super) hand_over: Box<dyn FnOnce(usize) -> Future<()>>,
}

impl Plan {
    pub(super) async fn run(self, task: &Task) -> Result<(Report, Held)> {
        match self {
            Self::Cycles(ops, attempts) => Ok((cycles(ops, attempts, task).await?, Box::new(()))),
            Self::Sessions(open) => sessions(open, task).await,
            Self::Waiters(waiters) => self::waiters(waiters, task).await,
        }
    }
}

/// Builds an op.
pub(super) fn op<F>(mut f: impl FnMut() -> F + Send + 'static) -> Op
where
    F: std::future::Future<Output = Result<Option<Duration>>> + Send + 'static,
{
    Box::new(move || Box::pin(f()))
}

async fn cycles(ops: Vec<Op>, attempts: Option<Arc<AtomicU64>>, task: &Task) -> Result<Report> {
    let (cpu, start) = (cpu(), Instant::now());
    let end = start + Duration::from_secs_f64(task.seconds);
    let workers = ops.into_iter().map(|mut op| {
        tokio::spawn(async move {
            let (mut ops, mut took) = (0, Vec::new());
            while Instant::now() < end {
                took.extend(op().await?);
                ops += 1;
            }
            Result::Ok((ops, took))
        })
    });
    let (mut ops, mut took) = (0, Vec::new());
    for worker in workers.collect::<Vec<_>>() {
        let (done, mut times) = worker.await??;
        ops += done;
        took.append(&mut times);
    }
    let mut report = Report { ops, ..times(took) };
    report.seconds = start.elapsed().as_secs_f64();
    report.cpu = self::cpu() - cpu;
    report.memory = memory()?;
    if let Some(attempts) = attempts {
        let attempts = attempts.load(Ordering::Relaxed) as f64;
        report.more.insert("attempts per commit".into(), attempts / ops as f64);
    }
    Ok(report)
}

async fn sessions(open: Box<dyn FnOnce() -> Future<Held>>, task: &Task) -> Result<(Report, Held)> {
    let (before, start) = (memory()?, Instant::now());
    let held = open().await?;
    let opened = start.elapsed();
    let (cpu, start) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(task.seconds)).await;
    let mut report = Report { ops: task.workers as u64, ..Report::default() };
    report.seconds = start.elapsed().as_secs_f64();
    report.cpu = self::cpu() - cpu;
    report.memory = memory()?;
    report.more.insert("bytes each".into(), each(report.memory, before, task.workers));
    report.more.insert("CPU ms per second".into(), 1e3 * report.cpu / report.seconds);
    report.more.insert("seconds to open".into(), opened.as_secs_f64());
    Ok((report, held))
}

async fn waiters(mut waiters: Waiters, task: &Task) -> Result<(Report, Held)> {
    const HAND_OVERS: usize = 200;
    let (before, cpu, start) = (memory()?, cpu(), Instant::now());
    let held = (waiters.queue_up)().await?;
    while (waiters.queued)().await? < task.workers {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let queued = start.elapsed();
    // What is yet under way has arrived after a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waiting = memory()?;
    let start = Instant::now();
    (waiters.hand_over)(HAND_OVERS.min(task.workers)).await?;
    let mut report = Report { ops: HAND_OVERS.min(task.workers) as u64, ..Report::default() };
    report.seconds = start.elapsed().as_secs_f64();
    report.cpu = self::cpu() - cpu;
    report.memory = memory()?;
    report.more.insert("bytes each".into(), each(waiting, before, task.workers));
    report.more.insert("seconds to queue up".into(), queued.as_secs_f64());
    Ok((report, held))
}

fn each(after: u64, before: u64, count: usize) -> f64 {
    after.saturating_sub(before) as f64 / count as f64
}

fn times(mut took: Vec<Duration>) -> Report {
    took.sort_unstable();
    let at = |share: f64| {
        let index = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
        took.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Report { p50: at(0.5), p99: at(0.99), ..Report::default() }
}

/// What this process has used, in seconds.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What of this process is in memory, in bytes.
fn memory() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).ok_or("no such field")?.parse::<u64>()?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// When a lock was last given up, for whoever gets it next.
#[derive(Clone)]
pub(super) struct Gap {
    start: Instant,
    /// In nanoseconds since the start; 0 at first.
    released: Arc<AtomicU64>,
}

impl Gap {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), released: Arc::default() }
    }

    pub(super) fn releasing(&self) {
        self.released.store(self.now(), Ordering::Relaxed);
    }

    /// How long the lock was nobody's.
    pub(super) fn acquired(&self) -> Option<Duration> {
        let released = self.released.load(Ordering::Relaxed);
        (released > 0).then(|| Duration::from_nanos(self.now().saturating_sub(released)))
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// A name that no other work has had.
pub(super) fn name(of: &str) -> String {
    format!("{of}/{:016x}", fastrand::u64(..))
}

/// Two different accounts.
pub(super) fn accounts(count: usize) -> [String; 2] {
    let from = fastrand::usize(..count);
    let to = (from + fastrand::usize(1..count)) % count;
    [from, to].map(|account| format!("account/{account}"))
}
