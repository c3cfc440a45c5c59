//! The table against a model of a server, under any interleaving of what both sides do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::watch::mailbox::Budget;
use crate::watch::testing::{answer, puts};
use pb::watch_request::RequestUnion;

#[derive(Debug, Clone)]
enum Op {
    /// A watcher of these keys, from so far back, with this buffer.
    Watch {
        keys: Vec<usize>,
        back: i64,
        buffer: usize,
    },
    Drop(usize),
    Read(usize),
    /// The server takes a request.
    Take,
    /// The client takes an answer.
    Receive,
    Put(usize),
    /// The stream breaks, and another is opened.
    Break,
    Probe,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        2 => (prop::collection::vec(0..KEYS.len(), 1..3), -1..6i64, 1..4usize)
            .prop_map(|(keys, back, buffer)| Op::Watch { keys, back, buffer }),
        1 => (0..8usize).prop_map(Op::Drop),
        6 => (0..8usize).prop_map(Op::Read),
        6 => Just(Op::Take),
        8 => Just(Op::Receive),
        5 => (0..KEYS.len()).prop_map(Op::Put),
        1 => Just(Op::Break),
        1 => Just(Op::Probe),
    ];
    prop::collection::vec(op, 0..120)
}

const KEYS: [&str; 4] = ["a", "b", "c", "forbidden"];

#[derive(Default)]
struct Server {
    /// Which key each revision wrote, from revision 1 on.
    history: Vec<&'static str>,
    watches: BTreeMap<i64, (String, i64, bool)>,
    requests: VecDeque<pb::WatchRequest>,
    answers: VecDeque<pb::WatchResponse>,
}

struct Client {
    mailbox: Arc<Mailbox>,
    keys: Vec<&'static str>,
    from: i64,
    read: Vec<Vec<i64>>,
    ended: bool,
}

impl Server {
    fn revision(&self) -> i64 {
        self.history.len() as i64
    }

    fn take(&mut self) {
        match self.requests.pop_front().and_then(|request| request.request_union) {
            Some(RequestUnion::CreateRequest(create)) => {
                let header = answer(create.watch_id, self.revision());
                if create.key == "forbidden" {
                    let cancel_reason = "etcdserver: permission denied".into();
                    let refusal = pb::WatchResponse {
                        watch_id: -1,
                        created: true,
                        canceled: true,
                        cancel_reason,
                        ..header
                    };
                    return self.answers.push_back(refusal);
                }
                let key = String::from_utf8(create.key.to_vec()).expect("a key");
                self.answers.push_back(pb::WatchResponse { created: true, ..header });
                let start =
                    if create.start_revision == 0 { self.revision() + 1 } else { create.start_revision };
                let deaf = create.filters.len() == 2;
                let before = self.watches.insert(create.watch_id, (key.clone(), start, deaf));
                assert!(before.is_none(), "an id was used twice");
                let past = (start..=self.revision()).filter(|&r| self.history[r as usize - 1] == key);
                let past: Vec<_> = past.map(|revision| (&*key, revision)).collect();
                if !past.is_empty() && !deaf {
                    let events = puts(&past);
                    self.answers
                        .push_back(pb::WatchResponse { events, ..answer(create.watch_id, self.revision()) });
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                if self.watches.remove(&cancel.watch_id).is_some() {
                    let canceled = answer(cancel.watch_id, self.revision());
                    self.answers.push_back(pb::WatchResponse { canceled: true, ..canceled });
                }
            }
            Some(RequestUnion::ProgressRequest(_)) | None => {}
        }
    }

    fn put(&mut self, key: &'static str) {
        self.history.push(key);
        let revision = self.revision();
        for (&id, (watched, start, deaf)) in &self.watches {
            if watched == key && *start <= revision && !deaf {
                let events = puts(&[(key, revision)]);
                self.answers.push_back(pb::WatchResponse { events, ..answer(id, revision) });
            }
        }
    }
}

struct World {
    table: Table,
    server: Server,
    clients: BTreeMap<u64, Client>,
    next: u64,
    budget: Arc<Budget>,
}

impl World {
    fn new() -> Self {
        let mut table = Table::new(0);
        table.opened();
        let server = Server { history: vec!["start"], ..Server::default() };
        // So little that it is often used up.
        let budget = Budget::new(1000);
        Self { table, server, clients: BTreeMap::new(), next: 0, budget }
    }

    fn nth(&self, nth: usize) -> Option<u64> {
        self.clients.keys().nth(nth % self.clients.len().max(1)).copied()
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Watch { keys, back, buffer } => {
                let from = if back < 0 { 0 } else { (self.server.revision() - back).max(1) };
                let keys: Vec<_> = keys.into_iter().map(|key| KEYS[key]).collect();
                let watch = keys.iter().map(Watch::key).reduce(Watch::and).expect("a key");
                let watch = Watch { buffer, ..watch.from_revision(from) };
                let mailbox = Arc::new(Mailbox::new(keys.len(), buffer, self.budget.clone()));
                let read = vec![Vec::new(); keys.len()];
                self.clients
                    .insert(self.next, Client { mailbox: mailbox.clone(), keys, from, read, ended: false });
                self.table.add(self.next, watch, mailbox);
                self.next += 1;
            }
            Op::Drop(nth) => {
                if let Some(id) = self.nth(nth) {
                    self.clients.remove(&id);
                    self.table.remove(id);
                }
            }
            Op::Read(nth) => {
                self.nth(nth).map(|id| self.read(id));
            }
            Op::Take => self.server.take(),
            Op::Receive => {
                if let Some(response) = self.server.answers.pop_front() {
                    let judge = |reason: &str| (crate::transport::classify::cancel_reason(reason), false);
                    match self.table.respond(response, &judge) {
                        Turn::Heard | Turn::Refused | Turn::Acknowledged => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
            Op::Put(key) => self.server.put(KEYS[key]),
            Op::Break => {
                self.table.closed();
                self.server.watches.clear();
                self.server.requests.clear();
                self.server.answers.clear();
                self.table.opened();
            }
            Op::Probe => self.table.probe(),
        }
        self.server.requests.extend(self.table.outbox());
    }

    /// Reads one delivery. False where there is none.
    fn read(&mut self, id: u64) -> bool {
        let client = self.clients.get_mut(&id).expect("a client");
        let (events, drained) = client.mailbox.poll_events(&mut Context::from_waker(Waker::noop()));
        if drained {
            self.table.drained(id);
        }
        match events {
            Poll::Ready(Ok(events)) => {
                let revisions =
                    events.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision);
                client.read[events.target].extend(revisions);
                true
            }
            Poll::Ready(Err(error)) => {
                assert_eq!(*error.kind(), ErrorKind::PermissionDenied);
                assert!(client.keys.contains(&"forbidden"));
                client.ended = true;
                false
            }
            Poll::Pending => false,
        }
    }

    /// Lets everything that is under way come to its end.
    fn settle(&mut self) {
        loop {
            while !self.server.requests.is_empty() || !self.server.answers.is_empty() {
                self.run(Op::Take);
                self.run(Op::Receive);
            }
            let ids: Vec<u64> = self.clients.keys().copied().collect();
            let mut read = false;
            for id in ids {
                while self.read(id) {
                    read = true;
                }
            }
            self.server.requests.extend(self.table.outbox());
            if !read && self.server.requests.is_empty() {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn each_watcher_reads_each_event_once_and_the_server_keeps_no_watch_too_many(ops in ops()) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.settle();
        // One more of everything: what is watched now comes through.
        (0..KEYS.len()).for_each(|key| world.run(Op::Put(key)));
        world.settle();

        let mut watches = 0;
        for client in world.clients.values() {
            prop_assert_eq!(client.ended, client.keys.contains(&"forbidden"));
            if client.ended {
                continue;
            }
            watches += client.keys.len();
            let Poll::Ready(created) = client.mailbox.poll_created(&mut Context::from_waker(Waker::noop())) else {
                panic!("not created");
            };
            let created = created.expect("created");
            for (key, read) in client.keys.iter().zip(&client.read) {
                let written = |&revision: &i64| world.server.history[revision as usize - 1] == *key;
                let from = if client.from == 0 { created + 1 } else { client.from };
                let expected: Vec<i64> = (from..=world.server.revision()).filter(written).collect();
                // A target that was created before the last one may have delivered a little more.
                let after: Vec<i64> = read.iter().copied().filter(|&revision| revision >= from).collect();
                prop_assert_eq!(after, expected);
                prop_assert!(read.is_sorted_by(|a, b| a < b));
            }
        }
        prop_assert_eq!(world.server.watches.len(), watches);
        prop_assert_eq!(world.table.wire.len(), watches);
        prop_assert!(world.table.asked.is_empty());
        let ids: BTreeSet<i64> = world.server.watches.keys().copied().collect();
        prop_assert_eq!(ids, world.table.wire.keys().copied().collect());
    }
}
