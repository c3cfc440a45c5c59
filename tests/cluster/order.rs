//! Whether the transactions that appended to lists were in an order that their levels promise.

use std::collections::BTreeMap;

use etcd_concurrency::Client;

use crate::now;
use crate::support::append::{Done, Fate, judge};
use crate::support::lists::{LEVELS, order, reads};
use crate::work::append::{lists, told};
use crate::world::World;

/// Reads all lists, once those who append to them are gone, and judges what they told.
pub(crate) async fn of_appends(world: &World, client: &Client) {
    let told = told(&world.told("append")).unwrap_or_else(|wrong| panic!("{wrong}"));
    for (level, mut history) in told.into_iter().enumerate() {
        let mut last = BTreeMap::new();
        for set in 0.. {
            let began = moment();
            let read = lists(level, set).read(client).await;
            if read.is_empty() {
                break;
            }
            history.push(Done { began, ended: moment(), fate: Fate::Committed, steps: reads(&read) });
            last.extend(read);
        }
        let count = |fate| history.iter().filter(|done| done.fate == fate).count();
        let (refused, unknown) = (count(Fate::Refused), count(Fate::Unknown));
        let isolation = LEVELS[level];
        let judged = judge(&history, &last, order(isolation))
            .unwrap_or_else(|wrong| panic!("lists at {isolation:?}: {wrong}"));
        println!(
            "lists at {isolation:?}: {judged:?}, {} lists, {refused} refused, {unknown} unknown",
            last.len()
        );
        assert!(judged.appends > 0, "there was nothing to judge");
    }
}

fn moment() -> u64 {
    u64::try_from(now()).expect("before 2554")
}
