//! What the models share that are checked over all their states: a server, and the check.
//!
//! A model is a protocol without its code: what clients know, what they ask for, and what a server that takes each request when
//! it likes makes of that. Where the crate decides by what it is told, the model asks the crate. What cannot be asked, since it
//! stands between two awaits, the model does as well; and it can leave that undone, to show that it would be found.

mod server;
mod watches;

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

pub(crate) use server::{Change, Kv, Server, Told, Watching};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path, Property};
pub(crate) use watches::{OfWatches, listens, of_watches};

/// What was covered.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    pub(crate) took: Duration,
    /// The steps to a state in which a promise is broken, and which.
    pub(crate) broken: Option<(&'static str, Vec<String>)>,
    /// What is to happen in some state, and does in none.
    pub(crate) never: Option<&'static str>,
}

/// Goes through all states of a model, the nearest first, until a promise is broken.
pub(crate) fn check<M>(model: M) -> Checked
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker =
        model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let model = checker.model();
    let found = checker.discoveries();
    let is_promise = |name: &'static str| model.property(name).expectation == Expectation::Always;
    let broken = found
        .iter()
        .filter(|(name, _)| is_promise(name))
        .min_by_key(|(_, path)| (*path).clone().into_actions().len());
    let is_missing = |property: &Property<M>| {
        property.expectation == Expectation::Sometimes && !found.contains_key(property.name)
    };
    Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: begun.elapsed(),
        broken: broken.map(|(promise, path)| (*promise, steps(model, path.clone()))),
        never: model.properties().into_iter().find(is_missing).map(|property| property.name),
    }
}

fn steps<M: Model>(model: &M, path: Path<M::State, M::Action>) -> Vec<String>
where
    M::State: Clone + Debug + PartialEq + Hash,
    M::Action: Clone + Debug + PartialEq,
{
    path.into_actions().iter().map(|action| model.format_action(action)).collect()
}

impl Checked {
    /// Says what was covered, and fails where a promise is broken.
    #[track_caller]
    pub(crate) fn holds(self, of: &str) {
        self.tell(of);
        if let Some((promise, steps)) = self.broken {
            panic!("{of}: {promise} does not hold after\n  {}", steps.join("\n  "));
        }
        assert_eq!(self.never, None, "{of}: this never happens");
    }

    /// Says after how much it was found that something was left undone, and fails where it was not.
    #[track_caller]
    pub(crate) fn breaks(self, undone: &str) {
        self.tell(undone);
        assert!(self.broken.is_some(), "without {undone} no promise is broken");
    }

    fn tell(&self, of: &str) {
        let found = self.broken.as_ref().map_or(String::new(), |(promise, steps)| {
            format!("; {promise} is broken after {} steps", steps.len())
        });
        println!("{of}: {} states, {} deep, in {:.1?}{found}", self.states, self.depth, self.took);
    }
}

/// Whether more is to be gone through than fits into every run of the tests.
pub(crate) fn is_large() -> bool {
    match std::env::var("MODEL_LARGE") {
        Err(_) => false,
        Ok(large) if large == "1" => true,
        Ok(other) => panic!("MODEL_LARGE is 1, or is not set; it is {other:?}"),
    }
}
