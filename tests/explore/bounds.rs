//! Depth first through all schedules of a scene, up to a bound.

use crate::play::{Played, Point, Scene, play};

/// How far schedules may stray from the one in which each message is let through as it comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How often another message than the oldest goes first.
    pub(crate) preemptions: usize,
    /// How often something goes wrong: a message that is lost with its connection, or put aside; a third party's strike; time
    /// that passes while messages wait.
    pub(crate) faults: usize,
}

/// What is left of the bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left(Bounds);

impl Left {
    pub(crate) fn of(bounds: Bounds) -> Self {
        Self(bounds)
    }

    pub(crate) fn allows(self, (preemptions, faults): (usize, usize)) -> bool {
        preemptions <= self.0.preemptions && faults <= self.0.faults
    }

    pub(crate) fn without(self, (preemptions, faults): (usize, usize)) -> Self {
        let Bounds { preemptions: p, faults: f } = self.0;
        Self(Bounds { preemptions: p - preemptions, faults: f - faults })
    }
}

/// What was explored.
#[derive(Debug, Default)]
pub(crate) struct Explored {
    pub(crate) schedules: u64,
    /// Of the longest schedule.
    pub(crate) points: usize,
    /// The first schedule that broke a promise, and how it went.
    pub(crate) violation: Option<(Vec<usize>, Played)>,
}

/// Plays a scene by all schedules within the bounds, or until one breaks a promise.
pub(crate) fn explore(scene: &Scene, bounds: Bounds) -> Explored {
    let (mut explored, mut schedule) = (Explored::default(), Vec::new());
    let mut before: Vec<Point> = Vec::new();
    loop {
        let played = play(scene, bounds, &schedule);
        explored.schedules += 1;
        explored.points = explored.points.max(played.points.len());
        let taken: Vec<_> = played.points.iter().map(|point| point.taken).collect();
        if played.violation.is_some() {
            explored.violation = Some((taken, played));
            return explored;
        }
        // Up to where it differs it goes as before: else not all schedules are tried.
        let same = schedule.len().saturating_sub(1);
        let options = |points: &[Point]| {
            points.iter().take(same).map(|p| (p.options, p.what.clone())).collect::<Vec<_>>()
        };
        assert_eq!(options(&before), options(&played.points), "a schedule does not replay: {schedule:?}");
        assert!(taken.len() >= schedule.len(), "a schedule does not replay: {schedule:?}, {taken:?}");
        // The next in order: the last choice that has another after it.
        let last = played.points.iter().rposition(|point| point.taken + 1 < point.options);
        let Some(last) = last else { return explored };
        schedule = taken[..last].to_vec();
        schedule.push(taken[last] + 1);
        before = played.points;
    }
}
