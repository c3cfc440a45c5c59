//! One who makes transactions that append to lists and read them, at each isolation level, some at once at each: judged by
//! what they saw of each other.
//!
//! `begun`, then the number of the transaction, its level, its set of lists, and what it is to append; afterwards
//! `committed`, its number, and its steps in order, or `refused` or `unknown`, and its number. A step is `+0=17`, which
//! appends 17 to list 0, or `?0=17,18`, which has read two values in it.
//!
//! What ended before another began is taken to be before it, whichever processes they are of. So their moments must be of
//! one clock: all processes are on one machine, and its wall clock must not be set back while they work.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use etcd_concurrency::Client;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{open, tell};
use crate::support::append::{Done, Fate, Step};
use crate::support::lists::{LEVELS, Lists, appends};

/// How many make transactions at once, at each level, in each process.
const TASKS: u64 = 2;
/// A list is left alone once it is so long. What is judged grows by the product of the transactions and the lengths.
const LONG: usize = 50;
/// Between two transactions, on average half of it: there are others who need the members.
const PAUSE_MS: u64 = 100;

/// A set of lists, of which there are as many as are needed, one after the other.
pub(crate) fn lists(level: usize, set: usize) -> Lists {
    Lists::new(&format!("append/{level}/{set}"), LEVELS[level])
}

pub(super) async fn work(client: Client, number: usize) {
    let mut tasks = JoinSet::new();
    for level in 0..LEVELS.len() {
        for task in 0..TASKS {
            let number = u64::try_from(number * LEVELS.len() + level).expect("few") * TASKS + task;
            // As many transactions and values as no run has.
            tasks.spawn(transactions(client.clone(), level, (number + 1) * 100_000_000));
        }
    }
    tasks.join_all().await;
}

async fn transactions(client: Client, level: usize, first: u64) {
    let mut random = fastrand::Rng::new();
    let (mut values, mut session) = (first.., open(&client).await);
    let (mut set, mut is_made) = (0, false);
    for id in first.. {
        if !session.is_valid() {
            session = open(&client).await;
        }
        let lists = lists(level, set);
        while !is_made {
            match lists.make(&client).await {
                Ok(()) => is_made = true,
                Err(error) => {
                    tell("trouble", &error.to_string());
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        let wanted = lists.wanted(&mut random, &mut values);
        tell("begun", &format!("{id} {level} {set}{}", written(&lists, &appends(&wanted))));
        let (fate, steps) = lists.transact(&client, &session, &mut random, &wanted).await;
        match fate {
            Fate::Committed => tell("committed", &format!("{id}{}", written(&lists, &steps))),
            Fate::Refused => tell("refused", &id.to_string()),
            Fate::Unknown => tell("unknown", &id.to_string()),
        }
        if steps.iter().any(|step| matches!(step, Step::Read(_, seen) if seen.len() >= LONG)) {
            (set, is_made) = (set + 1, false);
        }
        sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
    }
}

/// Each step after a space.
fn written(lists: &Lists, steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let written = match step {
            Step::Append(list, value) => write!(text, " +{}={value}", lists.number(list)),
            Step::Read(list, seen) => {
                let seen: Vec<String> = seen.iter().map(u64::to_string).collect();
                write!(text, " ?{}={}", lists.number(list), seen.join(","))
            }
        };
        written.expect("a string takes all");
    }
    text
}

/// The transactions at each level, as the workers told them. Those that were begun, and have no end, are of unknown fate.
///
/// # Errors
/// What cannot be read, and where it is: by worker and line, both from 1 on.
pub(crate) fn told(workers: &[Vec<String>]) -> Result<[Vec<Done>; LEVELS.len()], String> {
    let mut done: [Vec<Done>; LEVELS.len()] = Default::default();
    for (worker, lines) in workers.iter().enumerate() {
        let mut begun = BTreeMap::new();
        for (number, line) in lines.iter().enumerate() {
            let read = read(line, &mut begun);
            let ended = read
                .map_err(|wrong| format!("append {}, line {}: {wrong}: {line:?}", worker + 1, number + 1))?;
            if let Some((level, ended)) = ended {
                done[level].push(ended);
            }
        }
        for (level, _, open) in begun.into_values() {
            done[level].push(open);
        }
    }
    Ok(done)
}

/// By their numbers, the transactions that have begun, with their levels and lists; each as it is if it never ends.
type Begun = BTreeMap<u64, (usize, Lists, Done)>;

/// What a line tells of: the end of a transaction, or its beginning, or something else.
fn read(line: &str, begun: &mut Begun) -> Result<Option<(usize, Done)>, String> {
    let mut fields = line.split(' ');
    let word = fields.next().unwrap_or_default();
    let fate = match word {
        "begun" => None,
        "committed" => Some(Fate::Committed),
        "refused" => Some(Fate::Refused),
        "unknown" => Some(Fate::Unknown),
        _ => return Ok(None),
    };
    let mut number = |what: &str| {
        let field = fields.next().ok_or_else(|| format!("no {what}"))?;
        field.parse::<u64>().map_err(|_| format!("{field:?} is no {what}"))
    };
    let (moment, id) = (number("moment")?, number("number")?);
    let Some(fate) = fate else {
        let index = |number: u64| usize::try_from(number).map_err(|_| format!("{number} is too large"));
        let (level, set) = (index(number("level")?)?, index(number("set")?)?);
        if level >= LEVELS.len() {
            return Err(format!("there is no level {level}"));
        }
        let lists = lists(level, set);
        let steps = fields.map(|field| step(&lists, field)).collect::<Result<_, _>>()?;
        // It may be applied at any time.
        let open = Done { began: moment, ended: u64::MAX, fate: Fate::Unknown, steps };
        if begun.insert(id, (level, lists, open)).is_some() {
            return Err(format!("{id} begins twice"));
        }
        return Ok(None);
    };
    let (level, lists, open) = begun.remove(&id).ok_or_else(|| format!("{id} ends and never began"))?;
    if moment < open.began {
        return Err(format!("{id} ends before it began"));
    }
    let steps = match fate {
        Fate::Committed => fields.map(|field| step(&lists, field)).collect::<Result<_, _>>()?,
        Fate::Refused | Fate::Unknown => open.steps,
    };
    Ok(Some((level, Done { ended: moment, fate, steps, ..open })))
}

fn step(lists: &Lists, field: &str) -> Result<Step, String> {
    let wrong = || format!("{field:?} is no step");
    let value = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (list, values) = field.split_once('=').ok_or_else(wrong)?;
    let list = |kind| {
        let number = list.strip_prefix(kind)?.parse().ok()?;
        Some(lists.list(number))
    };
    if let Some(list) = list('+') {
        return Ok(Step::Append(list, value(values)?));
    }
    let seen = values.split(',').filter(|value| !value.is_empty()).map(value);
    Ok(Step::Read(list('?').ok_or_else(wrong)?, seen.collect::<Result<_, _>>()?))
}

#[test]
fn what_was_told_is_read_back() {
    let lists = lists(1, 7);
    let steps = [
        Step::Read(lists.list(3), vec![]),
        Step::Append(lists.list(3), 17),
        Step::Read(lists.list(3), vec![17]),
        Step::Read(lists.list(0), vec![5, 6]),
    ];
    assert_eq!(written(&lists, &steps), " ?3= +3=17 ?3=17 ?0=5,6");
    let told = |lines: &[&str]| told(&[vec![], lines.iter().map(|line| (*line).to_owned()).collect()]);
    let committed = format!("committed 200 1{}", written(&lists, &steps));
    let read =
        told(&["begun 100 1 1 7 +3=17", "trouble 1 x", &committed, "begun 300 2 1 8 +0=18"]).expect("good");
    let [one, open] = &read[1][..] else { panic!("not two: {read:?}") };
    assert_eq!((one.began, one.ended, one.fate, &one.steps[..]), (100, 200, Fate::Committed, &steps[..]));
    assert_eq!((open.began, open.ended, open.fate), (300, u64::MAX, Fate::Unknown));
    assert_eq!(open.steps, [Step::Append("append/1/8/0".to_owned(), 18)]);
    assert!(read[0].is_empty() && read[2].is_empty() && read[3].is_empty());
    let wrong = [
        (&["begun x 1 1 7"][..], "line 1: \"x\" is no moment"),
        (&["begun 100 1 4 7"], "line 1: there is no level 4"),
        (&["begun 100 1 1"], "line 1: no set"),
        (&["begun 100 1 1 7 +3"], "line 1: \"+3\" is no step"),
        (&["begun 100 1 1 7 3=17"], "line 1: \"3=17\" is no step"),
        (&["begun 100 1 1 7", "begun 101 1 1 7"], "line 2: 1 begins twice"),
        (&["committed 200 1"], "line 1: 1 ends and never began"),
        (&["begun 100 1 1 7", "refused 99 1"], "line 2: 1 ends before it began"),
        (&["begun 100 1 1 7", "committed 200 1 ?0=5;6"], "line 2: \"?0=5;6\" is no step"),
    ];
    for (lines, expected) in wrong {
        let error = told(lines).expect_err(expected);
        assert!(error.starts_with(&format!("append 2, {expected}")), "{error}");
    }
}
