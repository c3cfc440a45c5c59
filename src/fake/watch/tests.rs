use prost::Message;

use super::*;

/// A store with a hub, as the core has them.
struct World {
    store: Store,
    hub: Hub,
}

impl World {
    fn new() -> Self {
        let mut world = Self { store: Store::new(), hub: Hub::new(2 << 20, None) };
        world.hub.open(1);
        world
    }

    fn write(&mut self, writes: &[(&'static str, Option<&'static str>)]) {
        let mut write = self.store.write();
        for (key, value) in writes {
            match value {
                Some(value) => write.put(bytes(key), bytes(value), 0),
                None => {
                    write.delete(key.as_bytes());
                }
            }
        }
        if let Some(changes) = write.commit() {
            self.hub.notify(&self.store, &changes);
        }
    }

    fn put(&mut self, key: &'static str) {
        self.write(&[(key, Some("v"))]);
    }

    fn watch(&mut self, request: WatchCreateRequest) -> WatchResponse {
        let made = self.hub.create(1, request, (self.store.revision(), self.store.revision()), Ok(()));
        assert!(made.is_ok() || made.is_err_and(|reason| !reason.is_empty()));
        self.next().expect("an answer")
    }

    fn next(&mut self) -> Option<WatchResponse> {
        self.hub.next(1, &self.store)
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn on(key: &'static str, end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

fn from(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, ..on("a", "c") }
}

/// Revision of the header and of each event.
fn revisions(response: &WatchResponse) -> (i64, Vec<i64>) {
    let events = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).collect();
    (response.header.map_or(0, |header| header.revision), events)
}

#[test]
fn events_of_one_revision_come_together_and_in_order() {
    let mut world = World::new();
    assert!(world.watch(on("a", "c")).created);
    world.write(&[("b", Some("1")), ("c", Some("outside")), ("a", Some("2"))]);
    let response = world.next().expect("events");
    let keys: Vec<_> = response.events.iter().map(|event| event.kv.clone().unwrap_or_default().key).collect();
    assert_eq!(keys, [bytes("b"), bytes("a")]);
    assert_eq!(revisions(&response), (2, vec![2, 2]));
    assert_eq!(world.next(), None);
}

#[test]
fn old_revisions_are_caught_up_from_the_log() {
    let mut world = World::new();
    for _ in 0..3 {
        world.put("a");
    }
    assert_eq!(revisions(&world.watch(from(3))), (4, vec![]));
    assert_eq!(world.next().map(|response| revisions(&response)), Some((4, vec![3, 4])));
    world.put("a");
    assert_eq!(world.next().map(|response| revisions(&response)), Some((5, vec![5])));
}

#[test]
fn a_watcher_of_the_future_waits_for_it() {
    let mut world = World::new();
    world.watch(from(4));
    world.hub.progress(1, world.store.revision());
    for _ in 0..4 {
        world.put("a");
    }
    assert_eq!(world.next().map(|response| revisions(&response)), Some((4, vec![4])));
    assert_eq!(world.next().map(|response| revisions(&response)), Some((5, vec![5])));
}

#[test]
fn a_long_past_comes_in_parts() {
    let mut world = World::new();
    for _ in 0..2500 {
        world.put("a");
    }
    world.watch(from(2));
    let parts: Vec<_> = std::iter::from_fn(|| world.next()).collect();
    let lengths: Vec<_> = parts.iter().map(|part| part.events.len()).collect();
    assert_eq!(lengths, [1000, 1000, 500]);
    assert!(parts.iter().all(|part| revisions(part).0 == 2501));
}

#[test]
fn filters_and_previous_values() {
    let mut world = World::new();
    let no_put = WatchCreateRequest { filters: vec![FilterType::Noput.into()], ..on("a", "") };
    let no_delete = WatchCreateRequest { filters: vec![FilterType::Nodelete.into()], ..on("a", "") };
    let prev_kv = WatchCreateRequest { prev_kv: true, ..on("a", "") };
    for request in [no_put, no_delete, prev_kv] {
        world.watch(request);
    }
    world.write(&[("a", Some("1"))]);
    world.write(&[("a", Some("2"))]);
    world.write(&[("a", None)]);
    let mut seen: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    while let Some(response) = world.next() {
        for event in &response.events {
            let prev = event.prev_kv.as_ref().map_or("-".into(), |kv| format!("{}", kv.value.escape_ascii()));
            seen.entry(response.watch_id)
                .or_default()
                .push(format!("{}:{prev}", event.r#type().as_str_name()));
        }
    }
    assert_eq!(seen[&0], ["DELETE:-"]);
    assert_eq!(seen[&1], ["PUT:-", "PUT:-"]);
    assert_eq!(seen[&2], ["PUT:-", "PUT:1", "DELETE:2"]);
}

#[test]
fn compaction_ends_only_who_lags_behind_it() {
    let mut world = World::new();
    world.watch(from(0));
    for _ in 0..4 {
        world.put("a");
    }
    while world.next().is_some() {}
    world.store.compact(4).expect("compacted");
    assert_eq!(world.next(), None, "who is up to date hears nothing of it");

    let created = world.watch(from(3));
    assert!(created.created && !created.canceled);
    let canceled = world.next().expect("told");
    assert!(canceled.canceled && canceled.cancel_reason.is_empty() && canceled.events.is_empty());
    assert_eq!((canceled.compact_revision, revisions(&canceled).0), (4, 0));
    assert_eq!(world.hub.watchers(), 1);

    world.watch(from(4));
    assert_eq!(world.next().map(|response| revisions(&response)), Some((5, vec![4, 5])));
}

#[test]
fn refusals() {
    let mut world = World::new();
    let refused = |response: WatchResponse| {
        assert!(response.created && response.canceled && response.watch_id == -1);
        response.cancel_reason
    };
    let reason = refused(world.watch(from(-1)));
    assert_eq!(reason, "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(refused(world.watch(on("b", "a"))), "mvcc: watcher range is empty");
    world.watch(WatchCreateRequest { watch_id: 7, ..on("a", "") });
    let reason = refused(world.watch(WatchCreateRequest { watch_id: 7, ..on("a", "") }));
    assert_eq!(reason, "mvcc: duplicate watch ID provided on the WatchStream");
    assert_eq!(world.hub.watchers(), 1);
}

#[test]
fn ids_are_the_clients_or_the_next_free() {
    let mut world = World::new();
    let mut id = |watch_id| world.watch(WatchCreateRequest { watch_id, ..on("a", "") }).watch_id;
    assert_eq!([id(1), id(0), id(0), id(9)], [1, 0, 2, 9]);
}

#[test]
fn cancel_is_answered_once_and_stops_events() {
    let mut world = World::new();
    world.watch(on("a", ""));
    world.hub.cancel(1, 0, 1);
    assert!(world.next().is_some_and(|response| response.canceled && response.compact_revision == 0));
    world.hub.cancel(1, 0, 1);
    world.put("a");
    assert_eq!(world.next(), None);
}

#[test]
fn progress_is_of_the_whole_stream_and_only_when_all_are_up_to_date() {
    let mut world = World::new();
    world.hub.progress(1, 1);
    assert_eq!(world.next(), None, "nobody watches");
    world.watch(on("a", ""));
    world.put("b");
    world.hub.progress(1, 2);
    let response = world.next().expect("progress");
    assert_eq!((response.watch_id, revisions(&response)), (-1, (2, vec![])));
    world.watch(from(10));
    world.hub.progress(1, 2);
    assert_eq!(world.next(), None, "one waits for revision 10");
}

#[test]
fn progress_by_time_is_for_who_asked_and_heard_nothing() {
    let mut world = World::new();
    world.watch(WatchCreateRequest { progress_notify: true, ..on("a", "") });
    world.watch(on("a", ""));
    assert!(world.hub.wants_progress(1));
    world.hub.tick(1, 1);
    assert_eq!(world.next().map(|response| response.watch_id), Some(0));
    world.put("a");
    while world.next().is_some() {}
    world.hub.tick(1, 2);
    assert_eq!(world.next(), None);
    world.hub.tick(1, 2);
    assert_eq!(world.next().map(|response| revisions(&response)), Some((2, vec![])));
}

#[test]
fn a_stream_that_does_not_read_loses_its_place_but_no_event() {
    let mut world = World::new();
    world.watch(on("a", ""));
    for _ in 0..300 {
        world.put("a");
    }
    let parts: Vec<_> = std::iter::from_fn(|| world.next()).collect();
    assert!(parts.len() < 300);
    let events: Vec<_> = parts.iter().flat_map(|part| revisions(part).1).collect();
    assert_eq!(events, (2..=301).collect::<Vec<_>>());
}

#[test]
fn fragments_are_small_enough_and_marked_but_the_last() {
    let mut world = World::new();
    world.hub = Hub::new(60, None);
    world.hub.open(1);
    world.watch(WatchCreateRequest { fragment: true, ..on("a", "\0") });
    world.write(&[("a", Some("0123456789")), ("b", Some("0123456789")), ("c", Some("0123456789"))]);
    let parts: Vec<_> = std::iter::from_fn(|| world.next()).collect();
    let shape: Vec<_> = parts.iter().map(|part| (part.events.len(), part.fragment)).collect();
    assert_eq!(shape.iter().map(|(events, _)| events).sum::<usize>(), 3);
    assert!(parts.len() > 1 && parts.iter().all(|part| part.encoded_len() < 60));
    assert!(shape.iter().rev().skip(1).all(|(_, more)| *more) && shape.last().is_some_and(|(_, more)| !more));
}

#[test]
fn split_pieces_keep_a_revision_together_unless_fragments_are_taken() {
    for (fragment, expected) in
        [(false, vec![(1, false), (2, false)]), (true, vec![(1, true), (1, true), (1, false)])]
    {
        let mut world = World::new();
        world.put("a");
        world.write(&[("a", Some("1")), ("b", Some("2"))]);
        world.watch(WatchCreateRequest { fragment, ..from(2) });
        let response = world.next().expect("events");
        let shape: Vec<_> =
            world.hub.pieces(1, response).iter().map(|piece| (piece.events.len(), piece.fragment)).collect();
        assert_eq!(shape, expected);
    }
}

#[test]
fn closing_a_stream_ends_its_watchers() {
    let mut world = World::new();
    world.watch(on("a", ""));
    world.watch(on("a", "z"));
    world.hub.close(1);
    assert_eq!(world.hub.watchers(), 0);
    world.put("a");
    assert!(world.hub.take_ready().is_empty());
}

#[test]
fn old_servers_lose_the_deletions_of_a_compactions_own_revision() {
    for loses in [false, true] {
        let mut world = World { store: Store::losing_deletions(loses), ..World::new() };
        world.put("a"); // 2
        world.write(&[("a", None), ("b", Some("v"))]); // 3
        world.write(&[("b", None)]); // 4
        world.store.compact(3).unwrap();
        world.watch(from(3));
        let missed = world.next().unwrap().events;
        let told: Vec<_> =
            missed.iter().map(|event| (event.kv.as_ref().unwrap().mod_revision, event.r#type)).collect();
        let deletion = (!loses).then_some((3, 1));
        assert_eq!(told, deletion.into_iter().chain([(3, 0), (4, 1)]).collect::<Vec<_>>());
    }
}
