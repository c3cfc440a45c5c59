use std::task::{Context, Poll, Waker};

use super::*;
use crate::watch::mailbox::Budget;
use crate::watch::testing::{answer, puts};
use pb::watch_request::RequestUnion;

struct Bench {
    table: Table,
    mailboxes: Vec<Arc<Mailbox>>,
}

#[derive(Debug, PartialEq)]
enum Sent {
    Create { id: i64, key: String, start: i64 },
    Cancel(i64),
}

/// What every reason means here.
fn judge(reason: &str) -> (Error, bool) {
    let error = crate::transport::classify::cancel_reason(reason);
    let mends = *error.kind() == ErrorKind::InvalidToken;
    (error, mends)
}

impl Bench {
    fn new() -> Self {
        let mut table = Table::new(0);
        table.opened();
        Self { table, mailboxes: Vec::new() }
    }

    fn watch(&mut self, watch: Watch) {
        let mailbox = Arc::new(Mailbox::new(watch.targets.len(), watch.buffer, Budget::new(usize::MAX)));
        self.table.add(self.mailboxes.len() as u64, watch, mailbox.clone());
        self.mailboxes.push(mailbox);
    }

    fn sent(&mut self) -> Vec<Sent> {
        let sent = |request: pb::WatchRequest| match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => Sent::Create {
                id: create.watch_id,
                key: String::from_utf8_lossy(&create.key).into(),
                start: create.start_revision,
            },
            Some(RequestUnion::CancelRequest(cancel)) => Sent::Cancel(cancel.watch_id),
            other => panic!("{other:?}"),
        };
        self.table.outbox().into_iter().map(sent).collect()
    }

    fn respond(&mut self, response: pb::WatchResponse) -> Turn {
        self.table.respond(response, &judge)
    }

    fn acknowledge(&mut self, id: i64, revision: i64) -> Turn {
        self.respond(pb::WatchResponse { created: true, ..answer(id, revision) })
    }

    fn refuse(&mut self, id: i64, reason: &str) -> Turn {
        let cancel_reason = reason.to_owned();
        self.respond(pb::WatchResponse { created: true, canceled: true, cancel_reason, ..answer(id, 1) })
    }

    /// The end of a watcher, if it has come.
    fn end(&self, watcher: usize) -> Option<ErrorKind> {
        match self.mailboxes[watcher].poll_created(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Some(error.kind().clone()),
            _ => None,
        }
    }
}

fn create(id: i64, key: &str, start: i64) -> Sent {
    Sent::Create { id, key: key.into(), start }
}

#[test]
fn a_refusal_without_an_id_is_the_oldest_unanswered_creates() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.watch(Watch::key(key));
    }
    assert_eq!(bench.sent(), [create(1, "a", 0), create(2, "b", 0), create(3, "c", 0)]);
    assert!(matches!(bench.acknowledge(1, 5), Turn::Acknowledged));
    assert!(matches!(bench.refuse(-1, "etcdserver: permission denied"), Turn::Refused));
    assert!(matches!(bench.acknowledge(3, 5), Turn::Acknowledged));
    assert_eq!([0, 1, 2].map(|w| bench.end(w)), [None, Some(ErrorKind::PermissionDenied), None]);
    assert_eq!(bench.sent(), []);
}

#[test]
fn a_refusal_by_id_means_a_stream_that_is_no_longer_read() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a"));
    bench.watch(Watch::key("b"));
    bench.sent();
    let turn = bench.refuse(1, "etcdserver: permission denied");
    assert!(matches!(turn, Turn::Reopen(_)), "{turn:?}");
    assert_eq!(bench.end(0), Some(ErrorKind::PermissionDenied));
    bench.table.closed();
    bench.table.opened();
    assert_eq!(bench.sent(), [create(3, "b", 0)]);
}

#[test]
fn a_refusal_for_a_watcher_that_is_gone_hurts_nobody() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a"));
    bench.watch(Watch::key("b"));
    bench.table.remove(0);
    assert_eq!(bench.sent(), [create(1, "a", 0), create(2, "b", 0), Sent::Cancel(1)]);
    assert!(matches!(bench.refuse(-1, "etcdserver: invalid auth token"), Turn::Refused));
    assert!(matches!(bench.acknowledge(2, 5), Turn::Acknowledged));
    assert_eq!(bench.end(1), None);
}

#[test]
fn one_refused_target_ends_its_watcher_and_cancels_the_others() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a").and_key("b").and_key("c"));
    bench.sent();
    bench.acknowledge(1, 5);
    bench.refuse(-1, "etcdserver: permission denied");
    assert_eq!(bench.sent(), [Sent::Cancel(1), Sent::Cancel(3)]);
    assert_eq!(bench.end(0), Some(ErrorKind::PermissionDenied));
    assert!(bench.table.is_empty());
    // Both answers are still on their way.
    assert!(matches!(bench.acknowledge(3, 5), Turn::Acknowledged));
    let canceled = pb::WatchResponse { canceled: true, ..answer(1, 5) };
    assert!(matches!(bench.respond(canceled), Turn::Heard));
}

/// While users and roles were edited, three refusals of the token in a row ended every wait for good.
#[test]
fn a_token_is_renewed_however_often_it_is_refused() {
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    let mut bench = Bench::new();
    bench.watch(Watch::key("a"));
    bench.watch(Watch::key("b"));
    bench.sent();
    bench.acknowledge(1, 5);
    for start in (3..100).step_by(2) {
        assert!(matches!(bench.refuse(-1, reason), Turn::Reopen(_)));
        bench.table.closed();
        bench.table.opened();
        assert_eq!(bench.sent(), [create(start, "a", 6), create(start + 1, "b", 0)]);
        bench.acknowledge(start, 9);
    }
    // Also where it is refused when the watch was there already.
    let cancel_reason = reason.to_owned();
    let turn = bench.respond(pb::WatchResponse { canceled: true, cancel_reason, ..answer(99, 9) });
    assert!(matches!(turn, Turn::Reopen(_)), "{turn:?}");
    assert_eq!([0, 1].map(|w| bench.end(w)), [None, None]);
}

#[test]
fn compaction_and_cancellation_end_the_one_watch() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.watch(Watch::key(key).from_revision(2));
    }
    (1..=3).for_each(|id| drop(bench.acknowledge(id, 9)));
    // This is how servers say it: the header's revision is 0.
    bench.respond(pb::WatchResponse { canceled: true, compact_revision: 7, ..answer(1, 0) });
    let cancel_reason = "the moon".to_owned();
    bench.respond(pb::WatchResponse { canceled: true, cancel_reason, ..answer(3, 9) });
    assert_eq!(bench.end(0), Some(ErrorKind::Compacted { revision: 7 }));
    assert_eq!(bench.end(1), None);
    assert_eq!(bench.end(2), Some(ErrorKind::WatchCanceled { reason: "the moon".into() }));
}

#[test]
fn answers_that_make_no_sense_are_told_apart() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a"));
    bench.watch(Watch::key("b"));
    // One watch's events are wrong: its own trouble.
    bench.acknowledge(1, 5);
    bench.respond(pb::WatchResponse { events: puts(&[("a", 7), ("a", 6)]), ..answer(1, 7) });
    assert!(matches!(bench.end(0), Some(ErrorKind::Protocol { .. })));
    // An answer to another create than the next, and to none: nobody's answers can be trusted.
    assert!(matches!(bench.acknowledge(17, 5), Turn::Broken(_)));
    assert!(matches!(bench.acknowledge(2, 5), Turn::Broken(_)));
    assert_eq!(bench.end(1), None);
}

#[test]
fn what_is_for_every_watch_moves_none() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a").progress());
    bench.acknowledge(1, 5);
    bench.respond(answer(-1, 100));
    bench.table.closed();
    bench.table.opened();
    assert_eq!(bench.sent().last(), Some(&create(2, "a", 6)));
    bench.acknowledge(2, 100);
    bench.respond(answer(2, 100));
    bench.table.closed();
    bench.table.opened();
    assert_eq!(bench.sent().last(), Some(&create(3, "a", 101)));
}

#[test]
fn only_what_was_asked_for_is_reported() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a").and(Watch::key("b").progress()));
    bench.acknowledge(1, 5);
    bench.acknowledge(2, 5);
    bench.respond(answer(1, 8));
    bench.respond(answer(2, 9));
    let mut cx = Context::from_waker(Waker::noop());
    let (Poll::Ready(Ok(events)), _) = bench.mailboxes[0].poll_events(&mut cx) else { panic!("none") };
    assert_eq!(events, Events { target: 1, revision: 9, events: Vec::new() });
    assert!(bench.mailboxes[0].poll_events(&mut cx).0.is_pending());
}

#[test]
fn a_stream_with_every_watch_parked_is_still_asked_something() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a").buffer(1));
    bench.acknowledge(1, 5);
    bench.respond(pb::WatchResponse { events: puts(&[("a", 6), ("a", 7)]), ..answer(1, 7) });
    assert_eq!(bench.sent(), [create(1, "a", 0), Sent::Cancel(1)]);
    bench.table.closed();
    bench.table.opened();
    assert_eq!(bench.sent(), [create(2, "a", 0), Sent::Cancel(2)]);
    assert!(matches!(bench.acknowledge(2, 9), Turn::Acknowledged));
    bench.table.drained(0);
    assert_eq!(bench.sent(), [create(3, "a", 8)]);
}

#[test]
fn fragments_that_a_break_cut_off_come_again() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("a"));
    bench.acknowledge(1, 5);
    bench.respond(pb::WatchResponse { events: puts(&[("a", 6), ("a", 7)]), fragment: true, ..answer(1, 9) });
    bench.table.closed();
    bench.table.opened();
    assert_eq!(bench.sent().last(), Some(&create(2, "a", 6)));
    bench.respond(pb::WatchResponse { events: puts(&[("a", 6), ("a", 7), ("a", 8)]), ..answer(2, 9) });
    let mut cx = Context::from_waker(Waker::noop());
    let (Poll::Ready(Ok(events)), _) = bench.mailboxes[0].poll_events(&mut cx) else { panic!("none") };
    assert_eq!(events.events, puts(&[("a", 6), ("a", 7), ("a", 8)]));
}

#[test]
fn watching_costs_little_memory() {
    assert!(size_of::<Row>() <= 176, "{}", size_of::<Row>());
    assert!(size_of::<Mailbox>() <= 128, "{}", size_of::<Mailbox>());
}

/// A watch was ended for having broken the stream five times, though each time it had come further. What it is ended for is
/// one event that breaks every stream.
#[test]
fn a_watch_that_moves_on_each_stream_is_not_ended() {
    let mut bench = Bench::new();
    bench.watch(Watch::key("k").from_revision(3));
    let error = Arc::new(Error::protocol("broken", Outcome::NotApplied));
    for stream in 0..30 {
        if stream > 0 {
            bench.table.opened();
        }
        // What is asked is answered, until the watch is among it: a probe starts with now.
        let mut watched = None;
        for _ in 0..10 {
            for sent in bench.sent() {
                let Sent::Create { id, start, .. } = sent else { continue };
                bench.acknowledge(id, 100);
                watched = watched.or((start > 0).then_some(id));
            }
            if watched.is_some() {
                break;
            }
            bench.table.advance();
        }
        let id = watched.expect("it goes onto the stream");
        // At first it is stuck, and comes under suspicion.
        if stream > 4 {
            bench.respond(pb::WatchResponse { events: puts(&[("k", stream)]), ..answer(id, 100) });
        }
        bench.table.broke(true, &error);
        bench.table.closed();
        assert_eq!(bench.end(0), None, "{stream}");
    }
}
