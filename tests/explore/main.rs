//! The explorer: all schedules of a small scene, up to a bound. Each message between the clients and the fake waits until it is
//! let through, one after another; which one goes next, what is lost, put aside until later, or done by a third party is a
//! choice, and all choices are tried, depth first.
//!
//! - `EXPLORE_PREEMPTIONS=2` and `EXPLORE_FAULTS=1` set the bounds of all scenes.
//! - `EXPLORE_SCENE=lock` plays that scene alone.
//! - `EXPLORE_SCHEDULE=0,0,3` replays one schedule of that scene, within the same bounds, and prints it.
//!
//! A schedule that breaks a promise is printed as a list of what was let through, and as what replays it.

#![expect(clippy::print_stdout, reason = "it says how much it has covered")]

mod bounds;
mod gate;
mod play;
mod scenes;
mod told;
mod wire;

use std::fmt::Write;
use std::time::Instant;

use bounds::{Bounds, explore};
use play::{Played, Scene, play};

/// The value of an environment variable, if it is set.
fn env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} cannot be read: {value}")))
}

fn all_of(scene: &Scene, of: &[Bounds]) {
    let only = env::<String>("EXPLORE_SCENE");
    if let Some(only) = &only {
        assert!(NAMES.contains(&&only[..]), "EXPLORE_SCENE: {only:?} is none of {NAMES:?}");
        if only != scene.name {
            return;
        }
    }
    let asked = (env("EXPLORE_PREEMPTIONS"), env("EXPLORE_FAULTS"));
    let by_hand = Bounds { preemptions: asked.0.unwrap_or(0), faults: asked.1.unwrap_or(0) };
    let of = if asked == (None, None) { of.to_vec() } else { vec![by_hand] };
    if let Some(schedule) = env::<String>("EXPLORE_SCHEDULE") {
        assert!(only.is_some(), "EXPLORE_SCHEDULE is of one scene: EXPLORE_SCENE names it");
        let schedule: Vec<usize> = schedule
            .split(',')
            .map(|choice| {
                choice.parse().unwrap_or_else(|_| panic!("EXPLORE_SCHEDULE: {choice:?} is no choice"))
            })
            .collect();
        let played = play(scene, of[0], &schedule);
        println!("{}", picture(&played));
        let longer = schedule.len().saturating_sub(played.points.len().max(1));
        assert_eq!(longer, 0, "EXPLORE_SCHEDULE goes on after the end of the scene");
        assert_eq!(played.violation, None);
        return;
    }
    for bounds in of {
        let started = Instant::now();
        let explored = explore(scene, bounds);
        println!(
            "{}: {}{} schedules of at most {} preemptions and {} faults, of up to {} points, in {:.1?}",
            scene.name,
            if explored.violation.is_none() { "all " } else { "" },
            explored.schedules,
            bounds.preemptions,
            bounds.faults,
            explored.points,
            started.elapsed()
        );
        if let Some((taken, played)) = explored.violation {
            let end = taken.iter().rposition(|taken| *taken != 0).map_or(1, |last| last + 1);
            let mut taken: Vec<_> = taken.iter().take(end).map(usize::to_string).collect();
            if taken.is_empty() {
                taken.push("0".into());
            }
            panic!(
                "\n{}\nthe {}th schedule; it replays with EXPLORE_SCENE={} EXPLORE_PREEMPTIONS={} EXPLORE_FAULTS={} EXPLORE_SCHEDULE={}",
                picture(&played),
                explored.schedules,
                scene.name,
                bounds.preemptions,
                bounds.faults,
                taken.join(",")
            );
        }
    }
}

/// What was let through, and what came of it.
fn picture(played: &Played) -> String {
    let mut told = String::new();
    for (index, point) in played.points.iter().enumerate() {
        let mark = if point.taken == 0 { ' ' } else { '*' };
        let _ = writeln!(told, "{index:3} {mark} {}", point.what);
    }
    let _ = write!(told, "{}", played.violation.as_deref().unwrap_or("all promises are kept"));
    told
}

/// What fits into two minutes when it is optimized, and into as much when it is not.
const IN_ORDER: Bounds = Bounds { preemptions: if cfg!(debug_assertions) { 1 } else { 2 }, faults: 0 };
const IN_TROUBLE: Bounds = Bounds { preemptions: if cfg!(debug_assertions) { 0 } else { 1 }, faults: 1 };
/// The same for a scene of many messages.
const ONE_OVERTAKES: Bounds = Bounds { preemptions: 1, faults: 0 };
const ONE_FAULT: Bounds = Bounds { preemptions: 0, faults: if cfg!(debug_assertions) { 0 } else { 1 } };

macro_rules! scenes {
    ($($name:ident: $scene:expr, $($bounds:expr),+;)+) => {
        /// The names of all scenes.
        const NAMES: &[&str] = &[$($scene.name),+];
        $(
            #[test]
            fn $name() {
                all_of(&$scene, &[$($bounds),+]);
            }
        )+
    };
}

scenes! {
    no_schedule_of_a_lock_breaks_a_promise: scenes::lock::SCENE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_a_lock_whose_keys_are_deleted_breaks_a_promise: scenes::lock::DELETED, IN_TROUBLE;
    no_schedule_of_a_lock_beside_a_compaction_breaks_a_promise: scenes::lock::COMPACTED, IN_TROUBLE;
    no_schedule_of_a_lock_whose_lease_ends_breaks_a_promise: scenes::lock::ENDED, IN_TROUBLE;
    no_schedule_of_a_lock_whose_lease_is_adopted_breaks_a_promise: scenes::lock::ADOPTED, IN_ORDER, IN_TROUBLE;
    no_schedule_of_readers_and_a_writer_breaks_a_promise: scenes::rwlock::SCENE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_a_semaphore_breaks_a_promise: scenes::semaphore::SCENE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_permits_that_are_kept_breaks_a_promise: scenes::semaphore::KEPT, IN_ORDER, IN_TROUBLE;
    no_schedule_of_two_transactions_breaks_a_promise: scenes::stm::SCENE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_a_commit_that_comes_late_breaks_a_promise: scenes::stm::TWICE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_a_queue_breaks_a_promise: scenes::queue::SCENE, IN_ORDER, IN_TROUBLE;
    no_schedule_of_a_double_barrier_breaks_a_promise: scenes::barrier::SCENE, ONE_OVERTAKES, ONE_FAULT;
}
