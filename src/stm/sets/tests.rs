use proptest::prelude::*;

use super::*;

fn kv(key: &'static str, value: &'static str, mod_revision: i64) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), mod_revision, ..Default::default() }
}

fn key(key: &'static str) -> Span {
    Span::key(key.into())
}

fn range(start: &'static str, end: &'static str) -> Span {
    Span::range(start.into(), end.into())
}

fn put(value: &'static str) -> Write {
    Write::Put { value: value.into(), lease: 0 }
}

fn learned(isolation: Isolation) -> Sets {
    let mut sets = Sets::new(isolation);
    sets.learn([(key("a"), vec![kv("a", "1", 4)]), (key("b"), vec![])], 7);
    sets
}

fn unchanged(key: &'static str, end: &'static str, revision: i64) -> Compare {
    let unchanged = pb::Compare {
        result: CompareResult::Less.into(),
        target: CompareTarget::Mod.into(),
        key: key.into(),
        range_end: end.into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
    };
    unchanged.into()
}

#[test]
fn what_was_asked_for_is_compared_and_nothing_else() {
    let mut sets = learned(Isolation::SerializableSnapshot);
    assert_eq!((sets.compares(), sets.revision()), (vec![], 0));
    sets.write("w".into(), put("x")).expect("no lease is kept");
    assert_eq!(sets.compares(), [], "without a read there is no snapshot");
    sets.ask_key(&"a".into()).expect("known");
    sets.write("a".into(), Write::Delete).expect("no lease is kept");
    let a = Compare::mod_revision("a").is(4);
    assert_eq!(sets.compares(), [a.clone(), unchanged("w", "", 8)]);
    assert_eq!(sets.revision(), 7);
    sets.ask_key(&"b".into()).expect("known");
    assert_eq!(sets.compares(), [a, Compare::mod_revision("b").is(0), unchanged("w", "", 8)]);
}

#[test]
fn a_range_is_compared_as_a_whole_and_by_its_keys() {
    let read = |isolation| {
        let mut sets = Sets::new(isolation);
        sets.learn([(range("a", "d"), vec![kv("a", "1", 3), kv("c", "2", 5)])], 9);
        sets.write("b".into(), put("new")).expect("no lease is kept");
        sets.write("c".into(), Write::Delete).expect("no lease is kept");
        let seen = sets.ask_range(&range("a", "d")).expect("known");
        assert_eq!(seen, [("a".into(), "1".into()), ("b".into(), Bytes::from("new"))]);
        // Part of it, and a key of it, are known with it.
        assert_eq!(sets.ask_range(&range("b", "c")).expect("known").len(), 1);
        assert_eq!(sets.ask_key(&"c".into()).expect("known").mod_revision, 5);
        assert_eq!(sets.ask_key(&"d".into()), None);
        sets.compares()
    };
    let (a, c) = (Compare::mod_revision("a").is(3), Compare::mod_revision("c").is(5));
    for serializable in [Isolation::SerializableSnapshot, Isolation::Serializable] {
        assert_eq!(read(serializable), [a.clone(), c.clone(), unchanged("a", "d", 10)]);
    }
    assert_eq!(read(Isolation::RepeatableReads), [a, c]);
    assert_eq!(read(Isolation::ReadCommitted), []);
}

#[test]
fn one_key_has_one_value_within_an_attempt() {
    let mut sets = learned(Isolation::RepeatableReads);
    // Read later, at another revision: what was known stays.
    sets.learn([(range("a", "d"), vec![kv("a", "2", 8), kv("b", "3", 9), kv("c", "4", 9)])], 9);
    let seen = sets.ask_range(&range("a", "d")).expect("known");
    assert_eq!(seen, [("a".into(), Bytes::from("1")), ("c".into(), "4".into())]);
    // A part that overlaps has a key that was not there before.
    sets.learn([(range("c", "z"), vec![kv("c", "5", 10), kv("cc", "6", 10), kv("e", "7", 10)])], 10);
    assert_eq!(sets.ask_key(&"cc".into()), Some(Seen { value: None, mod_revision: 0, asked: true }));
    let seen = sets.ask_range(&range("c", "z")).expect("known");
    assert_eq!(seen, [("c".into(), Bytes::from("4")), ("e".into(), "7".into())]);
}

#[test]
fn the_next_attempt_reads_what_this_one_asked_for() {
    let mut sets = learned(Isolation::default());
    sets.learn([(range("m", "p"), vec![kv("n", "1", 2)]), (range("n", "o"), vec![kv("n", "1", 2)])], 7);
    sets.ask_key(&"a".into()).expect("known");
    sets.ask_key(&"n".into()).expect("known");
    sets.ask_range(&range("n", "o")).expect("known");
    sets.ask_range(&range("m", "p")).expect("known");
    let again = sets.again(&["p".into(), "a".into(), "o".into()], 1, usize::MAX);
    assert_eq!(again, [range("m", "p"), key("a"), key("p")]);
    // What is known is not read again.
    assert_eq!(sets.unknown(vec![key("z"), key("b"), key("o"), range("m", "n"), key("z")]), [key("z")]);
    assert_eq!(sets.sizes(), "keys read: 2; ranges read: 1, with 0 keys more; keys written: 0");
}

#[test]
fn spans_cover_one_another() {
    let (to_end, all) = (range("k", "\0"), range("\0", "\0"));
    assert!(all.covers(&to_end) && !to_end.covers(&all));
    assert!(to_end.covers(&range("l", "zz")) && !range("k", "zz").covers(&to_end));
    assert!(range("a", "c").covers(&key("b")) && !range("a", "c").covers(&key("c")));
    assert!(key("a").covers(&key("a")) && !key("a").covers(&range("a", "b")));
}

/// A store of five keys, and what others do to it after the snapshot.
type Store = BTreeMap<Bytes, (Bytes, i64)>;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
enum Step {
    Get(usize),
    Range(usize, usize),
    Put(usize, u8),
    Del(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..5usize).prop_map(Step::Get),
        (0..5usize, 1..5usize).prop_map(|(start, len)| Step::Range(start, (start + len).min(5))),
        (0..5usize, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        (0..5usize).prop_map(Step::Del),
    ];
    proptest::collection::vec(step, 0..12)
}

fn span(start: usize, end: usize) -> Span {
    Span::range(NAMES[start].into(), NAMES.get(end).map_or("f".into(), |end| (*end).into()))
}

fn read(store: &Store, span: &Span) -> Vec<KeyValue> {
    let kv = |(key, (value, revision)): (&Bytes, &(Bytes, i64))| KeyValue {
        key: key.clone(),
        value: value.clone(),
        mod_revision: *revision,
        ..Default::default()
    };
    store.iter().filter(|(key, _)| span.holds(key)).map(kv).collect()
}

/// As etcd does: over nothing, a compare is one with a key whose numbers are all zero.
fn holds(store: &Store, compare: &pb::Compare) -> bool {
    let mut found = read(store, &Span { start: compare.key.clone(), end: compare.range_end.clone() });
    if found.is_empty() {
        found.push(KeyValue::default());
    }
    let Some(TargetUnion::ModRevision(than)) = compare.target_union else { panic!("{compare:?}") };
    found.iter().all(|kv| match compare.result() {
        CompareResult::Equal => kv.mod_revision == than,
        CompareResult::Less => kv.mod_revision < than,
        other => panic!("{other:?}"),
    })
}

proptest! {
    /// Reads see the store with the own writes over it; and the commit's compares hold exactly while all that was read
    /// is as it was (and, for a snapshot, what is written was not written by others).
    #[test]
    fn compares_hold_while_what_was_read_is_as_it_was(
        before in proptest::collection::btree_map(0..5usize, 1..10i64, 0..5),
        steps in steps(),
        after in proptest::collection::vec((0..5usize, any::<bool>()), 0..3),
        level in 0..2usize,
    ) {
        let isolation = [Isolation::SerializableSnapshot, Isolation::Serializable][level];
        let mut store: Store = before
            .into_iter()
            .map(|(key, revision)| (NAMES[key].into(), (format!("v{revision}").into(), revision)))
            .collect();
        let mut own = store.clone();
        let (mut sets, mut asked, mut written) = (Sets::new(isolation), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Get(at) => {
                    let name = Bytes::from(NAMES[at]);
                    if sets.written(&name).is_none() {
                        asked.push(Span::key(name.clone()));
                        let unknown = sets.unknown(vec![Span::key(name.clone())]);
                        sets.learn(unknown.into_iter().map(|span| (span.clone(), read(&store, &span))), 10);
                    }
                    let seen = match sets.written(&name) {
                        Some(written) => written,
                        None => sets.ask_key(&name).expect("known").value,
                    };
                    prop_assert_eq!(seen, own.get(&name).map(|(value, _)| value.clone()));
                }
                Step::Range(start, end) => {
                    let span = span(start, end);
                    asked.push(span.clone());
                    let unknown = sets.unknown(vec![span.clone()]);
                    sets.learn(unknown.into_iter().map(|span| (span.clone(), read(&store, &span))), 10);
                    let seen = sets.ask_range(&span).expect("known");
                    let expected = own.iter().filter(|(key, _)| span.holds(key));
                    let expected: Vec<_> = expected.map(|(k, (v, _))| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(seen, expected);
                }
                Step::Put(at, value) => {
                    let value = Bytes::from(value.to_string());
                    own.insert(NAMES[at].into(), (value.clone(), 0));
                    written.push(Span::key(NAMES[at].into()));
                    sets.write(NAMES[at].into(), Write::Put { value, lease: 0 }).expect("no lease is kept");
                }
                Step::Del(at) => {
                    own.remove(NAMES[at].as_bytes());
                    written.push(Span::key(NAMES[at].into()));
                    sets.write(NAMES[at].into(), Write::Delete).expect("no lease is kept");
                }
            }
        }
        let snapshot = store.clone();
        let mut now = 10;
        for (at, puts) in after {
            now += 1;
            match puts {
                true => drop(store.insert(NAMES[at].into(), (format!("v{now}").into(), now))),
                false => drop(store.remove(NAMES[at].as_bytes())),
            }
        }
        let same = asked.iter().all(|span| read(&snapshot, span) == read(&store, span));
        let blind = isolation == Isolation::SerializableSnapshot && !asked.is_empty();
        // A key that was deleted since cannot be told from one that was missing all along.
        let untouched = !blind || written.iter().all(|span| read(&store, span).iter().all(|kv| kv.mod_revision <= 10));
        let request = pb::TxnRequest::from(
            sets.compares().into_iter().fold(crate::txn::Txn::new(), crate::txn::Txn::compare),
        );
        let held = request.compare.iter().all(|compare| holds(&store, compare));
        prop_assert_eq!(held, same && untouched, "{:?}", request.compare);
        let mut keys: Vec<_> = request.compare.iter().map(|c| (&c.key, &c.range_end)).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), request.compare.len(), "compared twice");
        // And what the next attempt starts with is all that this one asked for.
        let mut next = Sets::new(isolation);
        next.learn(sets.again(&[], 0, usize::MAX).into_iter().map(|span| (span.clone(), read(&store, &span))), now);
        prop_assert_eq!(next.unknown(asked), []);
        prop_assert!(!next.has_read() && next.compares().is_empty());
    }
}
