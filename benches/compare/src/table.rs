//! Runs as tables.

use std::fmt::Write;

use crate::drive::Run;
use crate::works::{GO, OURS, Work};

/// What is read off a run.
pub(crate) type Read = fn(&Run) -> f64;

pub(crate) fn per_second(run: &Run) -> f64 {
    run.report.ops as f64 / run.report.seconds
}

pub(crate) fn p50(run: &Run) -> f64 {
    run.report.p50
}

pub(crate) fn p99(run: &Run) -> f64 {
    run.report.p99
}

pub(crate) fn cpu_each(run: &Run) -> f64 {
    run.report.cpu * 1e6 / run.report.ops as f64
}

/// The values of a client at a work, in the order of the rounds.
pub(crate) fn values(runs: &[Run], work: &str, peer: &str, read: impl Fn(&Run) -> f64) -> Vec<f64> {
    let mut runs: Vec<&Run> = runs.iter().filter(|run| run.work == work && run.peer == peer).collect();
    runs.sort_by_key(|run| run.round);
    runs.into_iter().map(read).collect()
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The median of one client's value in another's, over the rounds that both of them did.
pub(crate) fn ratio(
    runs: &[Run],
    work: &str,
    of: &str,
    to: &str,
    read: impl Fn(&Run) -> f64 + Copy,
) -> Option<f64> {
    let of_work = runs.iter().filter(|run| run.work == work);
    let ratios = of_work.clone().filter(|run| run.peer == of).filter_map(|ours| {
        let theirs = of_work.clone().find(|run| run.peer == to && run.round == ours.round)?;
        Some(read(ours) / read(theirs))
    });
    median(&ratios.collect::<Vec<_>>())
}

/// A table for each work: medians, and the least and the most in brackets.
pub(crate) fn table(works: &[Work], runs: &[Run]) -> String {
    let mut text = String::new();
    for work in works {
        let _ = writeln!(text, "## {}\n", work.title);
        let _ = writeln!(
            text,
            "| | a second | p50 µs | p99 µs | client CPU µs each | client MiB | server MiB | requests each | more |"
        );
        let _ = writeln!(text, "|---|---|---|---|---|---|---|---|---|");
        for peer in work.peers {
            let column = |read: Read| spread(&values(runs, work.name, peer, read));
            let mebibytes: [Read; 2] = [
                |run| run.report.memory as f64 / f64::from(1 << 20),
                |run| run.server_memory as f64 / f64::from(1 << 20),
            ];
            let _ = writeln!(
                text,
                "| {peer} | {} | {} | {} | {} | {} | {} | {} | {} |",
                column(per_second),
                column(p50),
                column(p99),
                column(cpu_each),
                column(mebibytes[0]),
                column(mebibytes[1]),
                requests(runs, work.name, peer),
                more(runs, work.name, peer),
            );
        }
        for (peer, what) in work
            .peers
            .iter()
            .filter(|peer| **peer != OURS)
            .map(|peer| (*peer, if *peer == GO { "Go" } else { peer }))
        {
            let of = |read: Read| {
                ratio(runs, work.name, OURS, peer, read).map_or("–".into(), |ratio| format!("{ratio:.2}"))
            };
            let _ = write!(
                text,
                "\nOurs in {what}'s: {} a second, p50 {}, p99 {}, CPU {}.",
                of(per_second),
                of(p50),
                of(p99),
                of(cpu_each)
            );
        }
        let _ = writeln!(text, "\n");
    }
    text
}

fn spread(values: &[f64]) -> String {
    let Some(middle) = median(values).filter(|middle| *middle > 0.0) else { return "–".into() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({}–{})", number(middle), number(least), number(most))
}

pub(crate) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// By method, of the middle round.
fn requests(runs: &[Run], work: &str, peer: &str) -> String {
    let methods: std::collections::BTreeSet<&String> = runs
        .iter()
        .filter(|run| run.work == work && run.peer == peer)
        .flat_map(|run| run.calls.keys())
        .collect();
    let each = methods.into_iter().filter_map(|method| {
        let each = |run: &Run| run.calls.get(method).copied().unwrap_or(0.0) / run.report.ops as f64;
        let each = median(&values(runs, work, peer, each))?;
        (each >= 0.005).then(|| format!("{method} {each:.2}"))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn more(runs: &[Run], work: &str, peer: &str) -> String {
    let Some(run) = runs.iter().find(|run| run.work == work && run.peer == peer) else {
        return String::new();
    };
    let values = run.report.more.keys().map(|name| {
        let read = |run: &Run| run.report.more.get(name).copied().unwrap_or(f64::NAN);
        format!("{name} {}", spread(&values(runs, work, peer, read)))
    });
    values.collect::<Vec<_>>().join(", ")
}
