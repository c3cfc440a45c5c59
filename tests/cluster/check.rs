//! What must hold of the histories that the processes wrote, and of what is left in etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use etcd_concurrency::pb::etcdserverpb as pb;
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{Client, Queue, Session};
use tokio::time::timeout;

use crate::work::{ACCOUNTS, START, TTL, account};
use crate::world::World;

/// One time that somebody believed to hold a lock.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    worker: (&'static str, usize),
    token: i64,
    entered: u128,
    /// The last moment that it says so of.
    last: u128,
    writes: u64,
}

/// The words of progress, and the moment that follows each.
const PROGRESS: [&str; 6] = ["held", "committed", "acked", "put", "left", "ok"];

/// For how long two believed to hold at once, at most, by who of them no longer did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Overlap {
    pub(crate) ours: Duration,
    pub(crate) go: Duration,
}

pub(crate) fn terms(world: &World, kinds: &[&'static str]) -> Vec<Term> {
    let mut terms = Vec::new();
    for kind in kinds {
        for (number, lines) in world.told(kind).into_iter().enumerate() {
            for line in &lines {
                let Some(held) = line.strip_prefix("held ") else { continue };
                let mut fields =
                    held.split(' ').skip(1).map(|field| field.parse::<u128>().expect("a number"));
                let mut field = || fields.next().expect("five fields");
                terms.push(Term {
                    worker: (kind, number),
                    token: i64::try_from(field()).expect("a revision"),
                    entered: field(),
                    last: field(),
                    writes: u64::try_from(field()).expect("a count"),
                });
            }
        }
    }
    terms.sort_by_key(|term| term.entered);
    terms
}

/// The longest overlaps in a time. Ours must have none: that is for the caller to say.
pub(crate) fn overlap(terms: &[Term], from: u128, to: u128) -> Overlap {
    let mut overlap = Overlap::default();
    for (place, one) in terms.iter().enumerate() {
        for other in terms[place + 1..].iter().take_while(|other| other.entered < one.last) {
            let begin = other.entered;
            if one.worker == other.worker || !(from..to).contains(&begin) {
                continue;
            }
            let both = one.last.min(other.last).saturating_sub(begin);
            let both = Duration::from_nanos(u64::try_from(both).expect("short"));
            let stale = if one.token < other.token { one } else { other };
            let longest = if stale.worker.0 == crate::work::GO { &mut overlap.go } else { &mut overlap.ours };
            *longest = both.max(*longest);
        }
    }
    overlap
}

/// The longest time in which no worker of a kind got anywhere.
pub(crate) fn standstill(world: &World, kind: &str, from: u128, to: u128) -> (usize, Duration) {
    let mut moments: Vec<u128> = world.told(kind).iter().flatten().filter_map(|line| moment(line)).collect();
    moments.retain(|moment| (from..to).contains(moment));
    let done = moments.len();
    moments.extend([from, to]);
    moments.sort_unstable();
    let longest = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    (done, Duration::from_nanos(u64::try_from(longest).expect("short")))
}

/// When a line of progress was printed.
pub(crate) fn moment(line: &str) -> Option<u128> {
    let (word, rest) = line.split_once(' ')?;
    let is_progress = PROGRESS.contains(&word);
    is_progress.then(|| rest.split(' ').next().expect("a moment").parse().expect("nanoseconds"))
}

/// All writes behind a fence were committed while their token's holder held: in the order of the tokens; and those
/// that were acknowledged are there.
pub(crate) async fn fenced(client: &Client, what: &str, terms: &[Term]) {
    let mut log = all(client, &format!("{what}-log/")).await;
    log.sort_by_key(|kv| kv.mod_revision);
    let parse = |kv: &KeyValue| {
        let key = String::from_utf8(kv.key.to_vec()).expect("text");
        let mut fields = key.split('/').skip(1).map(|field| field.parse::<i64>().expect("a number"));
        (fields.next().expect("a token"), fields.next().expect("a count"))
    };
    let written: Vec<(i64, i64)> = log.iter().map(parse).collect();
    for pair in written.windows(2) {
        assert!(pair[0].0 <= pair[1].0, "{what}: a write of token {} after one of {}", pair[1].0, pair[0].0);
    }
    let written: BTreeSet<(i64, i64)> = written.into_iter().collect();
    for term in terms {
        for count in 0..i64::try_from(term.writes).expect("few") {
            assert!(written.contains(&(term.token, count)), "{what}: write {count} of {term:?} is missing");
        }
    }
}

/// Each acknowledged transfer is there once, at its revision, and each saw what those before it left.
pub(crate) async fn bank(world: &World, client: &Client) {
    let mut records = all(client, "bank/record/").await;
    records.sort_by_key(|kv| kv.mod_revision);
    let mut accounts = [START; ACCOUNTS];
    for record in &records {
        let text = String::from_utf8(record.value.to_vec()).expect("text");
        let numbers: Vec<i64> = text.split(' ').map(|field| field.parse().expect("a number")).collect();
        let [from, to, sum, mine, yours] = numbers[..] else { panic!("no record: {text}") };
        let (from, to) = (usize::try_from(from).expect("one"), usize::try_from(to).expect("one"));
        assert_eq!(
            (accounts[from], accounts[to]),
            (mine, yours),
            "what {record:?} saw, in the order of revisions"
        );
        accounts[from] -= sum;
        accounts[to] += sum;
    }
    for (n, expected) in accounts.into_iter().enumerate() {
        let found = all(client, &account(n)).await;
        assert_eq!(*found[0].value, *expected.to_string().as_bytes(), "account {n}");
    }
    let there: BTreeMap<Vec<u8>, i64> =
        records.into_iter().map(|kv| (kv.key.to_vec(), kv.mod_revision)).collect();
    for line in world.told("bank").iter().flatten() {
        let fields: Vec<&str> = line.split(' ').collect();
        let revision = fields.get(2).and_then(|record| there.get(record.as_bytes()));
        match fields[0] {
            "committed" => {
                let told: i64 = fields[3].parse().expect("a revision");
                assert_eq!(revision, Some(&told), "{line}");
            }
            "refused" => assert_eq!(revision, None, "{line}"),
            _ => {}
        }
    }
}

/// What was put is acknowledged once or still there; nothing else is.
pub(crate) async fn queue(world: &World, client: &Client) {
    let mut items: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    let told = world.told("queue");
    for line in told.iter().flatten() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [word @ ("put" | "acking" | "acked" | "returned"), _, item] = fields[..] {
            *items.entry(word).or_default().entry(item.to_owned()).or_default() += 1;
        }
    }
    let told = |word: &str| items.get(word).cloned().unwrap_or_default();
    let (put, acking, acked, returned) = (told("put"), told("acking"), told("acked"), told("returned"));
    let count = |of: &BTreeMap<String, usize>, item: &str| of.get(item).copied().unwrap_or(0);
    // Whoever was killed in the middle of an acknowledgement never told what became of it.
    let is_doubtful = |item: &str| count(&acking, item) > count(&acked, item) + count(&returned, item);
    for (item, times) in &acked {
        assert_eq!(*times, 1, "{item} was acknowledged {times} times");
    }
    let session = Session::open(client).await.expect("a session");
    let queue = Queue::new(&session, "queue").expect("a name");
    let mut left = BTreeSet::new();
    // What a worker had taken returns when its lease ends.
    while let Ok(job) = timeout(4 * TTL, queue.take()).await {
        let job = job.expect("an item");
        let item = String::from_utf8(job.value().to_vec()).expect("text");
        job.ack().await.expect("acknowledged");
        assert!(!acked.contains_key(&item), "{item} was acknowledged, and is still there");
        assert!(left.insert(item.clone()), "{item} is there twice");
    }
    for letter in queue.dead_letters().await.expect("dead letters") {
        left.insert(String::from_utf8(letter.value.to_vec()).expect("text"));
    }
    for item in put.keys() {
        let is_known = acked.contains_key(item) || is_doubtful(item) || left.contains(item);
        assert!(is_known, "{item} is lost");
    }
    assert!(!acked.is_empty(), "nothing was acknowledged");
    session.close().await.expect("closed");
}

async fn all(client: &Client, prefix: &str) -> Vec<KeyValue> {
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().expect("a prefix") += 1;
    let range =
        pb::RangeRequest { key: prefix.to_owned().into(), range_end: range_end.into(), ..Default::default() };
    client.kv_client().range(range).await.expect("a range").into_inner().kvs
}
