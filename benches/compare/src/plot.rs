//! Runs as pictures.

use std::path::Path;

use plotters::prelude::*;

use crate::Result;
use crate::drive::Run;
use crate::table::{Read, cpu_each, median, p50, per_second, values};
use crate::works::{BARE, ETCD_CLIENT, GO, GO_PREFETCH, OURS, Work};

const PICTURES: [(&str, &str, Read); 3] = [
    ("throughput.svg", "a second, in Go's (further right is better)", per_second),
    ("latency.svg", "p50 in Go's (further left is better)", p50),
    ("cpu.svg", "client CPU each, in Go's (further left is better)", cpu_each),
];

const COLOURS: [(&str, RGBColor); 5] = [
    (BARE, RGBColor(150, 150, 150)),
    (OURS, RGBColor(200, 60, 30)),
    (GO, RGBColor(0, 125, 156)),
    (GO_PREFETCH, RGBColor(110, 190, 210)),
    (ETCD_CLIENT, RGBColor(130, 110, 40)),
];

pub(crate) fn plot(results: &Path, works: &[Work], runs: &[Run]) -> Result<()> {
    for (name, title, read) in PICTURES {
        picture(&results.join(name), title, works, runs, read)?;
    }
    Ok(())
}

/// A row for each work, with a mark for each client, on a logarithmic scale.
fn picture(path: &Path, title: &str, works: &[Work], runs: &[Run], read: Read) -> Result<()> {
    let marks = |work: &Work| -> Vec<(&'static str, f64)> {
        let value = |peer: &str| median(&values(runs, work.name, peer, read)).filter(|value| *value > 0.0);
        let Some(go) = value(GO) else { return Vec::new() };
        work.peers.iter().filter_map(|peer| Some((*peer, value(peer)? / go))).collect()
    };
    let rows: Vec<(&Work, Vec<(&str, f64)>)> =
        works.iter().map(|work| (work, marks(work))).filter(|(_, marks)| !marks.is_empty()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let all = || rows.iter().flat_map(|(_, marks)| marks.iter().map(|mark| mark.1));
    let (least, most) = (all().fold(1.0, f64::min) / 1.3, all().fold(1.0, f64::max) * 1.3);
    let height = 110 + 26 * rows.len() as u32;
    let root = SVGBackend::new(path, (960, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18).into_font())
        .margin(10)
        .margin_top(30)
        .x_label_area_size(30)
        .y_label_area_size(290)
        .build_cartesian_2d((least..most).log_scale(), 0..rows.len())?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_labels(12).draw()?;
    let middle = |row: usize| rows.len() - 1 - row;
    for (row, (work, _)) in rows.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(least, middle(row)));
        let at = (x - 285, y - 18);
        root.draw(&Text::new(work.title, at, ("sans-serif", 14).into_font()))?;
    }
    for (peer, colour) in COLOURS {
        let marks: Vec<(i32, i32)> = rows
            .iter()
            .enumerate()
            .flat_map(|(row, (_, marks))| {
                marks.iter().filter(|mark| mark.0 == peer).map(move |mark| (row, mark.1)).collect::<Vec<_>>()
            })
            .map(|(row, value)| {
                let (x, y) = chart.backend_coord(&(value, middle(row)));
                (x, y - 11)
            })
            .collect();
        for &mark in &marks {
            root.draw(&Circle::new(mark, 5, colour.filled()))?;
        }
    }
    for (place, (peer, colour)) in COLOURS.into_iter().enumerate() {
        let x = 300 + 120 * place as i32;
        root.draw(&Circle::new((x, 16), 5, colour.filled()))?;
        root.draw(&Text::new(peer, (x + 10, 8), ("sans-serif", 14).into_font()))?;
    }
    root.present()?;
    Ok(())
}
