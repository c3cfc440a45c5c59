//! Makes a failing schedule smaller: leaves out what it fails without.

use crate::plan::Plan;
use crate::run::run;

/// The smallest schedule found that still breaks a promise, and how many were run for it.
pub(crate) fn shrink(plan: &Plan) -> (Plan, u32) {
    let (mut least, mut left) = (plan.clone(), MOST_RUNS);
    loop {
        let before = (least.events.len(), least.actors.len());
        shorten(&mut least, &mut left, |plan| &mut plan.events);
        shorten(&mut least, &mut left, |plan| &mut plan.actors);
        if left == 0 || before == (least.events.len(), least.actors.len()) {
            return (least, MOST_RUNS - left);
        }
    }
}

/// Leaves out ever smaller pieces of a list.
fn shorten<T>(least: &mut Plan, left: &mut u32, list: impl Fn(&mut Plan) -> &mut Vec<T>) {
    let mut piece = list(least).len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < list(least).len() {
            if *left == 0 {
                return;
            }
            *left -= 1;
            let mut shorter = least.clone();
            let whole = list(&mut shorter);
            let end = whole.len().min(at + piece);
            whole.drain(at..end);
            match run(&shorter, 0).violation {
                Some(_) => *least = shorter,
                None => at += piece,
            }
        }
        piece /= 2;
    }
}

const MOST_RUNS: u32 = 400;
