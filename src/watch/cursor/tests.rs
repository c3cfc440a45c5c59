use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn event(revision: i64, key: &str) -> Event {
    let kv = KeyValue { key: key.to_owned().into(), mod_revision: revision, ..Default::default() };
    Event { kv: Some(kv), ..Default::default() }
}

fn answer(header: i64, revisions: &[i64]) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(pb::ResponseHeader { revision: header, ..Default::default() }),
        events: revisions.iter().map(|&revision| event(revision, "k")).collect(),
        ..Default::default()
    }
}

fn fragment(header: i64, revisions: &[i64]) -> pb::WatchResponse {
    pb::WatchResponse { fragment: true, ..answer(header, revisions) }
}

fn created(cursor: &mut Cursor, revision: i64) {
    let header = pb::ResponseHeader { revision, ..Default::default() };
    assert_eq!(cursor.created(Some(&header)), Ok(revision));
}

/// The revisions of what is delivered; none for nothing.
fn take(cursor: &mut Cursor, response: pb::WatchResponse) -> Option<Vec<i64>> {
    let batch = cursor.take(response).expect("no fault")?;
    Some(batch.events.iter().map(mod_revision).collect())
}

#[test]
fn a_watch_from_now_resumes_after_the_revision_it_was_created_at() {
    let mut cursor = Cursor::new(0);
    assert_eq!(cursor.start(), 0);
    created(&mut cursor, 7);
    assert_eq!(cursor.start(), 8);
    // A second creation resumes; its answer tells nothing new.
    created(&mut cursor, 12);
    assert_eq!(cursor.start(), 8);
}

#[test]
fn a_watch_from_the_past_starts_there_whatever_the_answer() {
    let mut cursor = Cursor::new(5);
    created(&mut cursor, 12);
    assert_eq!(cursor.start(), 5);
    assert_eq!(take(&mut cursor, answer(12, &[5, 9])), Some(vec![5, 9]));
    assert_eq!(cursor.start(), 10);
}

#[test]
fn what_was_delivered_is_not_delivered_again() {
    let mut cursor = Cursor::new(5);
    assert_eq!(take(&mut cursor, answer(6, &[5, 6])), Some(vec![5, 6]));
    assert_eq!(take(&mut cursor, answer(7, &[6, 7])), Some(vec![7]));
    assert_eq!(take(&mut cursor, answer(7, &[5])), None);
    assert_eq!(cursor.start(), 8);
}

#[test]
fn a_report_moves_the_cursor_forward_only() {
    let mut cursor = Cursor::new(5);
    assert_eq!(take(&mut cursor, answer(9, &[])), Some(vec![]));
    assert_eq!(cursor.start(), 10);
    assert_eq!(take(&mut cursor, answer(8, &[])), Some(vec![]));
    assert_eq!(cursor.start(), 10);
    // etcd 3.4 and 3.5 report on watches of the future too.
    let mut future = Cursor::new(1_000_000);
    take(&mut future, answer(9, &[]));
    assert_eq!(future.start(), 1_000_000);
}

#[test]
fn events_do_not_move_it_to_the_header() {
    // A watch that catches up is told of the store's revision with only a part of the events before it.
    let mut cursor = Cursor::new(5);
    take(&mut cursor, answer(100, &[5, 6]));
    assert_eq!(cursor.start(), 7);
}

#[test]
fn fragments_are_merged() {
    let mut cursor = Cursor::new(5);
    assert_eq!(take(&mut cursor, fragment(9, &[5, 6])), None);
    assert_eq!(take(&mut cursor, answer(9, &[])), None, "a report between fragments says nothing");
    assert_eq!(cursor.start(), 5);
    assert_eq!(take(&mut cursor, fragment(9, &[6, 7])), None);
    assert_eq!(take(&mut cursor, answer(9, &[7, 8])), Some(vec![5, 6, 6, 7, 7, 8]));
    assert_eq!(cursor.start(), 9);
}

#[test]
fn a_break_between_fragments_starts_them_over() {
    let mut cursor = Cursor::new(5);
    take(&mut cursor, fragment(9, &[5, 6]));
    cursor.broken();
    assert_eq!(cursor.start(), 5);
    assert_eq!(take(&mut cursor, answer(9, &[5, 6, 7])), Some(vec![5, 6, 7]));
}

#[test]
fn a_long_row_of_fragments_is_delivered_by_whole_revisions() {
    let large = |revision| {
        let mut response = fragment(9, &[revision, revision]);
        for event in &mut response.events {
            event.kv.as_mut().expect("a key").value = vec![0; ENOUGH_BYTES / 3].into();
        }
        response
    };
    let mut cursor = Cursor::new(5);
    assert_eq!(take(&mut cursor, large(5)), None);
    assert_eq!(take(&mut cursor, large(6)), Some(vec![5, 5]));
    assert_eq!(cursor.start(), 6, "more of revision 6 may follow");
    assert_eq!(take(&mut cursor, large(6)), None);
    cursor.broken();
    assert_eq!(take(&mut cursor, answer(9, &[6, 6, 6, 6, 7])), Some(vec![6, 6, 6, 6, 7]));
}

#[test]
fn one_revision_without_end_is_a_fault() {
    let mut response = fragment(9, &[5]);
    response.events[0].kv.as_mut().expect("a key").value = vec![0; 1 << 20].into();
    let mut cursor = Cursor::new(5);
    let fault = (0..1000).find_map(|_| cursor.take(response.clone()).err());
    assert_eq!(fault, Some(Fault::TooLarge(5)));
}

#[test]
fn what_no_etcd_answers_is_a_fault() {
    let mut nameless = answer(9, &[5]);
    nameless.events[0].kv = None;
    let headless = pb::WatchResponse { header: None, ..answer(9, &[5]) };
    for (response, fault) in [
        (headless, Fault::NoHeader),
        (answer(0, &[5]), Fault::NoRevision(0)),
        (answer(-3, &[]), Fault::NoRevision(-3)),
        (nameless, Fault::NoKey),
        (answer(9, &[0]), Fault::NoRevision(0)),
        (answer(9, &[5, 7, 6]), Fault::Backwards(7, 6)),
    ] {
        assert_eq!(Cursor::new(5).take(response), Err(fault));
    }
    assert_eq!(Cursor::new(0).created(None), Err(Fault::NoHeader));
}

#[test]
fn the_last_revision_there_can_be() {
    let mut cursor = Cursor::new(5);
    assert_eq!(take(&mut cursor, answer(i64::MAX, &[i64::MAX])), Some(vec![i64::MAX]));
    assert_eq!(cursor.start(), i64::MAX);
    created(&mut Cursor::new(0), i64::MAX);
}

/// What a server may do next with the watch.
#[derive(Debug, Clone)]
enum Step {
    /// Sends so many revisions, cut into fragments of so many events.
    Send { revisions: usize, fragment: usize },
    /// The stream breaks after so many fragments of such a response.
    Break { revisions: usize, fragment: usize, sent: usize },
    /// Says that all has been sent, if so.
    Report,
    /// A server with etcd#20221 sends what is long past.
    Past { revisions: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..6usize, 1..5usize).prop_map(|(revisions, fragment)| Step::Send { revisions, fragment }),
        (1..6usize, 1..5usize, 0..4usize).prop_map(|(revisions, fragment, sent)| Step::Break {
            revisions,
            fragment,
            sent
        }),
        Just(Step::Report),
        (1..4usize).prop_map(|revisions| Step::Past { revisions }),
    ];
    prop::collection::vec(step, 0..40)
}

/// The store's history: how many events each revision has, from revision 2 on.
fn history() -> impl Strategy<Value = BTreeMap<i64, Vec<Event>>> {
    prop::collection::vec(0..4usize, 1..40).prop_map(|counts| {
        let revisions = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        revisions
            .map(|(at, count)| {
                let revision = at as i64 + 2;
                (revision, (0..count).map(|key| event(revision, &key.to_string())).collect())
            })
            .collect()
    })
}

proptest! {
    /// However a history is cut into responses, fragments, breaks and resumes, each event of it is delivered once
    /// and in order, and never a part of a revision.
    #[test]
    fn each_event_once_and_in_order(history in history(), steps in steps(), at in 0..60i64, from_now: bool) {
        let current = history.keys().last().copied().unwrap_or(1);
        let start = at.min(current);
        let mut cursor = Cursor::new(if from_now { 0 } else { start.max(1) });
        if from_now {
            created(&mut cursor, start.max(1));
        }
        let first = cursor.start();
        let mut delivered: Vec<Event> = Vec::new();
        let mut deliver = |cursor: &mut Cursor, response| -> Result<(), TestCaseError> {
            if let Some(batch) = cursor.take(response).expect("no fault") {
                if let Some(last) = batch.events.last().map(mod_revision) {
                    prop_assert!(batch.revision >= last);
                    let whole = history[&last].len();
                    prop_assert_eq!(batch.events.iter().filter(|e| mod_revision(e) == last).count(), whole);
                }
                delivered.extend(batch.events);
            }
            Ok(())
        };
        // Where the server has come to with this creation of the watch.
        let mut sent = cursor.start();
        let send = |sent: &mut i64, revisions: usize, size: usize| -> Vec<pb::WatchResponse> {
            let next: Vec<_> = history.range(*sent..).take(revisions).collect();
            let Some((last, _)) = next.last() else { return Vec::new() };
            *sent = **last + 1;
            let events: Vec<Event> = next.into_iter().flat_map(|(_, events)| events.clone()).collect();
            let count = events.len().div_ceil(size);
            let header = answer(current, &[]);
            let cut = events.chunks(size).enumerate();
            cut.map(|(at, events)| pb::WatchResponse {
                events: events.to_vec(),
                fragment: at + 1 < count,
                ..header.clone()
            }).collect()
        };
        for step in steps.into_iter().chain([Step::Send { revisions: usize::MAX, fragment: usize::MAX }]) {
            match step {
                Step::Send { revisions, fragment } => {
                    for response in send(&mut sent, revisions, fragment) {
                        deliver(&mut cursor, response)?;
                    }
                }
                Step::Break { revisions, fragment, sent: arrived } => {
                    for response in send(&mut sent, revisions, fragment).into_iter().take(arrived) {
                        deliver(&mut cursor, response)?;
                    }
                    cursor.broken();
                    sent = cursor.start();
                    created(&mut cursor, current);
                }
                Step::Report if sent > current => deliver(&mut cursor, answer(current, &[]))?,
                Step::Report => {}
                Step::Past { revisions } => {
                    let past: Vec<i64> = history.range(..cursor.start()).take(revisions).map(|(r, _)| *r).collect();
                    if !past.is_empty() {
                        deliver(&mut cursor, answer(current, &past))?;
                    }
                }
            }
        }
        let expected: Vec<Event> = history.range(first..).flat_map(|(_, events)| events.clone()).collect();
        prop_assert_eq!(delivered, expected);
    }
}
