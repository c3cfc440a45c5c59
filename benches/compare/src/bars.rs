//! What is asked of the crate, each as a ratio of medians in one run.

use std::fmt::Write;

use crate::drive::Run;
use crate::table::{cpu_each, median, number, p50, p99, per_second, ratio, values};
use crate::works::{BARE, BARE_SAME, GO, GO_PREFETCH, OURS};

enum Bar {
    AtMost(f64),
    AtLeast(f64),
}
use Bar::{AtLeast, AtMost};

pub(crate) fn bars(runs: &[Run]) -> String {
    let mut text = String::from("| Work | what | bar | measured | |\n|---|---|---|---|---|\n");
    let mut bar = |work: &str, what: &str, bar: Bar, measured: Option<f64>| {
        let Some(measured) = measured else { return };
        let (wanted, holds) = match bar {
            AtMost(limit) => (format!("≤ {}", number(limit)), measured <= limit),
            AtLeast(limit) => (format!("≥ {}", number(limit)), measured >= limit),
        };
        let verdict = if holds { "holds" } else { "**missed**" };
        let _ = writeln!(text, "| {work} | {what} | {wanted} | {} | {verdict} |", number(measured));
    };
    let of = |work: &str, to: &str, read: fn(&Run) -> f64| ratio(runs, work, OURS, to, read);
    bar("lock", "p50 in bare stubs'", AtMost(1.05), of("lock", BARE, p50));
    bar("lock", "p50 in Go's", AtMost(1.0), of("lock", GO, p50));
    bar("lock", "client CPU in bare stubs'", AtMost(1.15), of("lock", BARE, cpu_each));
    bar("lock", "client CPU in Go's", AtMost(0.6), of("lock", GO, cpu_each));
    bar("locks-64", "a second, in Go's", AtLeast(1.5), of("locks-64", GO, per_second));
    bar("locks-64", "a second, in bare stubs'", AtLeast(0.95), of("locks-64", BARE, per_second));
    let same = "a second, in bare stubs' with our messages";
    bar("locks-64", same, AtLeast(0.95), of("locks-64", BARE_SAME, per_second));
    for (work, limit) in [("handover-2", 30.0), ("handover-8", 10.0), ("handover-64", 1.5)] {
        bar(work, "a second, in Go's", AtLeast(limit), of(work, GO, per_second));
    }
    bar("handover-8", "p99 in Go's", AtMost(0.1), of("handover-8", GO, p99));
    bar("held-8", "p50 in Go's", AtMost(0.75), of("held-8", GO, p50));
    bar("held-2", "p50 in bare stubs'", AtMost(1.1), of("held-2", BARE, p50));
    bar("failover-close", "p50 in Go's", AtMost(0.05), of("failover-close", GO, p50));
    bar("stm", "a second, in Go's", AtLeast(1.6), of("stm", GO, per_second));
    bar("stm", "a second, in Go's with prefetch", AtLeast(1.15), of("stm", GO_PREFETCH, per_second));
    bar("stm", "a second, in bare stubs'", AtLeast(0.95), of("stm", BARE, per_second));
    bar("stm-8-10", "commits a second, in Go's", AtLeast(1.0), of("stm-8-10", GO, per_second));
    bar(
        "stm-8-10",
        "attempts in Go's",
        AtMost(1.0),
        of("stm-8-10", GO, |run| more(run, "attempts per commit")),
    );
    bar("stm-read", "a second, in Go's", AtLeast(1.4), of("stm-read", GO, per_second));
    let bytes = values(runs, "sessions", OURS, |run| more(run, "bytes each"));
    bar("sessions", "bytes each", AtMost(1024.0), median(&bytes));
    bar(
        "sessions",
        "idle CPU in Go's",
        AtMost(0.7),
        of("sessions", GO, |run| more(run, "CPU ms per second")),
    );
    bar(
        "waiters",
        "bytes each, in Go's",
        AtMost(1.0 / 3.0),
        of("waiters", GO, |run| more(run, "bytes each")),
    );
    bar(
        "waiters",
        "time to queue up, in Go's",
        AtMost(0.7),
        of("waiters", GO, |run| more(run, "seconds to queue up")),
    );
    bar("tasks", "a second, in Go's", AtLeast(2.0), of("tasks", GO, per_second));
    text
}

fn more(run: &Run, name: &str) -> f64 {
    run.report.more.get(name).copied().unwrap_or(f64::NAN)
}
