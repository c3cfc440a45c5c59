//! Judges transactions that append to lists and read them, by what they saw of each other: the method of Elle (Kingsbury
//! and Alvaro, VLDB 2020), which knows nothing of how the transactions are made.
//!
//! Each value is appended once, so a list tells the order of those that wrote it, and which of them a reader had seen. From
//! that follow dependencies: who wrote after whom (`ww`), who read what whom wrote (`wr`), and who read before whom wrote
//! (`rw`). With those of real time (`rt`: one had ended before the other began) no cycle is possible where the history is that
//! of some order of the transactions.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;

use petgraph::Direction;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Append(String, u64),
    Read(String, Vec<u64>),
}

/// What its caller was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Committed,
    /// It was not applied, and never will be.
    Refused,
    Unknown,
}

/// A transaction: the last attempt of a run.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    /// Moments of a clock that all share. What ended at the moment at which another began is not taken to be before it.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) fate: Fate,
    pub(crate) steps: Vec<Step>,
}

/// What is to hold of the order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Order {
    /// There is one of all transactions, in which none comes before one that had ended when it began.
    Strict,
    /// Others may be written over, and read before they are: no order can be told from the lists. What is read was
    /// committed, and once.
    Committed,
}

/// What was judged.
#[derive(Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) transactions: usize,
    pub(crate) appends: usize,
    pub(crate) longest: usize,
    pub(crate) dependencies: usize,
}

/// Why a transaction must come before another.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Why {
    Ww,
    Wr,
    Rw,
    Rt,
}

/// Judges a history, of which `last` has read all lists after all others had ended.
///
/// # Errors
/// What is wrong with it, for people to read.
pub(crate) fn judge(
    history: &[Done],
    last: &BTreeMap<String, Vec<u64>>,
    order: Order,
) -> Result<Judged, String> {
    let writers = writers(history)?;
    for (index, done) in history.iter().enumerate() {
        sees_itself(index, done)?;
        for (key, list) in done.reads() {
            was_committed(history, &writers, index, key, list)?;
        }
    }
    for (key, list) in last {
        was_committed(history, &writers, usize::MAX, key, list)?;
    }
    let appends = history.iter().map(|done| done.appends().count()).sum();
    let longest = last.values().map(Vec::len).max().unwrap_or(0);
    let mut judged = Judged { transactions: history.len(), appends, longest, dependencies: 0 };
    if order == Order::Committed {
        return Ok(judged);
    }
    let places = places(last);
    for (key, value) in history.iter().filter(|done| done.fate == Fate::Committed).flat_map(Done::appends) {
        if !places.contains_key(&value) {
            return Err(format!("{value} was appended to {key}, and is lost: {:?}", last.get(key)));
        }
    }
    for (index, done) in history.iter().enumerate() {
        for (key, list) in done.reads() {
            let all = last.get(key).map_or(&[][..], Vec::as_slice);
            if !all.starts_with(list) {
                return Err(format!("the {index}th saw {list:?} in {key}, which {all:?} never was"));
            }
        }
        // What the list has beyond the transaction's own appends is not to be between them.
        let mut own: HashMap<&String, usize> = HashMap::new();
        for (key, value) in done.appends() {
            let Some(place) = places.get(&value) else { continue };
            if own.insert(key, *place).is_some_and(|before| *place != before + 1) {
                let list = last.get(key);
                return Err(format!(
                    "others appended to {key} between the appends of the {index}th: {list:?}"
                ));
            }
        }
    }
    let graph = dependencies(history, last, &writers);
    judged.dependencies = graph.edge_count();
    // Not Tarjan's, which recurses as deep as the history is long.
    match kosaraju_scc(&graph).into_iter().find(|component| component.len() > 1) {
        Some(component) => Err(cycle(history, &graph, &component)),
        None => Ok(judged),
    }
}

/// Where each value is in its list.
fn places(last: &BTreeMap<String, Vec<u64>>) -> HashMap<u64, usize> {
    last.values().flat_map(|list| list.iter().copied().zip(0..)).collect()
}

impl Done {
    fn appends(&self) -> impl Iterator<Item = (&String, u64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append(key, value) => Some((key, *value)),
            Step::Read(..) => None,
        })
    }

    /// What it read of others: without what it had appended itself.
    fn reads(&self) -> impl Iterator<Item = (&String, &[u64])> {
        self.steps.iter().filter_map(|step| match step {
            Step::Read(key, list) => {
                let others =
                    list.iter().take_while(|value| !self.appends().any(|(_, own)| own == **value)).count();
                Some((key, &list[..others]))
            }
            Step::Append(..) => None,
        })
    }
}

/// Who appended each value, and to which list.
type Writers<'h> = HashMap<u64, (usize, &'h str)>;

fn writers(history: &[Done]) -> Result<Writers<'_>, String> {
    let mut writers = HashMap::new();
    for (index, done) in history.iter().enumerate() {
        for (key, value) in done.appends() {
            if writers.insert(value, (index, key.as_str())).is_some() {
                return Err(format!(
                    "{value} is appended twice, to {key} at last: the history cannot be judged"
                ));
            }
        }
    }
    Ok(writers)
}

/// A transaction sees what it has appended itself, and each list as it was before.
fn sees_itself(index: usize, done: &Done) -> Result<(), String> {
    let mut lists: HashMap<&String, Vec<u64>> = HashMap::new();
    let mut own: HashMap<&String, Vec<u64>> = HashMap::new();
    for step in &done.steps {
        match step {
            Step::Append(key, value) => {
                own.entry(key).or_default().push(*value);
                if let Some(list) = lists.get_mut(key) {
                    list.push(*value);
                }
            }
            Step::Read(key, list) => {
                let expected = match lists.get(key) {
                    Some(known) => known == list,
                    None => list.ends_with(own.get(key).map_or(&[], Vec::as_slice)),
                };
                if !expected {
                    return Err(format!(
                        "the {index}th does not see itself: {list:?} in {key}; {:?}",
                        done.steps
                    ));
                }
                lists.insert(key, list.clone());
            }
        }
    }
    Ok(())
}

/// What was read was appended, once, by transactions that were not refused.
fn was_committed(
    history: &[Done],
    writers: &Writers<'_>,
    reader: usize,
    key: &str,
    list: &[u64],
) -> Result<(), String> {
    let mut seen = HashSet::new();
    for value in list {
        let Some(&(writer, to)) = writers.get(value) else {
            return Err(format!("{value} in {key} was never appended: {list:?}"));
        };
        if to != key {
            return Err(format!("{value} in {key} was appended to {to}: {list:?}"));
        }
        if history[writer].fate == Fate::Refused {
            return Err(format!("{value} in {key} is of the {writer}th, which was not applied: {list:?}"));
        }
        if !seen.insert(value) {
            return Err(format!("{value} is in {key} twice: {list:?}"));
        }
    }
    // A list that ends in the midst of a transaction's appends was never committed.
    let Some(value) = list.last() else { return Ok(()) };
    let (writer, _) = writers[value];
    let last_own = history[writer].appends().filter(|(of, _)| *of == key).last();
    match last_own {
        Some((_, last)) if last != *value && writer != reader => {
            Err(format!("the {reader}th saw {key} in the midst of the {writer}th: {list:?}"))
        }
        _ => Ok(()),
    }
}

type Graph = DiGraph<usize, (Why, String)>;

/// Which transaction must come before which. One of unknown fate counts where it is seen.
fn dependencies(history: &[Done], last: &BTreeMap<String, Vec<u64>>, writers: &Writers<'_>) -> Graph {
    let mut graph = Graph::new();
    let nodes: Vec<NodeIndex> = (0..history.len()).map(|index| graph.add_node(index)).collect();
    let mut add = |from: usize, to: usize, why: Why, what: String| {
        if from != to {
            graph.add_edge(nodes[from], nodes[to], (why, what));
        }
    };
    for (key, list) in last {
        for pair in list.windows(2) {
            let what = format!("{key}: {} before {}", pair[0], pair[1]);
            add(writers[&pair[0]].0, writers[&pair[1]].0, Why::Ww, what);
        }
    }
    let is_done = |done: &Done| done.fate == Fate::Committed;
    for (index, done) in history.iter().enumerate().filter(|(_, done)| is_done(done)) {
        for (key, list) in done.reads() {
            if let Some(value) = list.last() {
                add(writers[value].0, index, Why::Wr, format!("{key}: saw {value}"));
            }
            if let Some(next) = last.get(key).and_then(|all| all.get(list.len())) {
                add(index, writers[next].0, Why::Rw, format!("{key}: did not see {next}"));
            }
        }
    }
    // Of those that had ended, only those count that no other has begun after and ended: the rest follows. One of unknown
    // fate has an end at any time, but what had ended when it began was before it all the same.
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, done) in history.iter().enumerate().filter(|(_, done)| done.fate != Fate::Refused) {
        moments.push((done.began, false, index));
        if is_done(done) {
            moments.push((done.ended, true, index));
        }
    }
    // At one moment, beginnings come first.
    moments.sort_unstable();
    let (mut frontier, mut before): (Vec<usize>, HashMap<usize, Vec<usize>>) = Default::default();
    for (_, ends, index) in moments {
        if ends {
            let earlier = before.remove(&index).unwrap_or_default();
            frontier.retain(|one| !earlier.contains(one));
            frontier.push(index);
        } else {
            frontier.iter().for_each(|earlier| add(*earlier, index, Why::Rt, "had ended".to_owned()));
            if is_done(&history[index]) {
                before.insert(index, frontier.clone());
            }
        }
    }
    graph
}

/// From how many transactions of a component a cycle is looked for: a component may be as large as the history.
const STARTS: usize = 500;

/// The shortest cycle through one of some transactions of a component, for people to read.
fn cycle(history: &[Done], graph: &Graph, component: &[NodeIndex]) -> String {
    let shortest = component.iter().take(STARTS).filter_map(|start| path(graph, *start)).min_by_key(Vec::len);
    let steps = shortest.unwrap_or_default();
    let mut told = format!("a cycle of {} transactions\n", steps.len());
    for (from, (why, what)) in steps {
        let done = &history[graph[from]];
        told += &format!("  {:?} {why}, {what}\n", Brief(graph[from], done));
    }
    told
}

/// From a transaction back to it.
fn path(graph: &Graph, start: NodeIndex) -> Option<Vec<(NodeIndex, (Why, String))>> {
    let mut came: HashMap<NodeIndex, (NodeIndex, (Why, String))> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for edge in graph.edges_directed(node, Direction::Outgoing) {
            let next = edge.target();
            if next == start {
                let mut path = vec![(node, edge.weight().clone())];
                let mut at = node;
                while at != start {
                    let (from, why) = came[&at].clone();
                    path.push((from, why));
                    at = from;
                }
                path.reverse();
                return Some(path);
            }
            if let Entry::Vacant(unseen) = came.entry(next) {
                unseen.insert((node, edge.weight().clone()));
                queue.push_back(next);
            }
        }
    }
    None
}

/// A transaction in a line.
struct Brief<'h>(usize, &'h Done);

impl fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(index, done) = self;
        write!(f, "the {index}th ({} to {}, {:?}", done.began, done.ended, done.fate)?;
        for step in &done.steps {
            match step {
                Step::Append(key, value) => write!(f, "; {key} += {value}")?,
                Step::Read(key, list) => write!(f, "; {key} of {} to {:?}", list.len(), list.last())?,
            }
        }
        write!(f, ")")
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ww => "wrote before",
            Self::Wr => "was read by",
            Self::Rw => "read before it was written by",
            Self::Rt => "ended before",
        })
    }
}
