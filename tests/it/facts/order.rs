//! In which order two watches of one stream learn of things.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_concurrency::Client;
use etcd_concurrency::pb::etcdserverpb as pb;
use tokio::time::Instant;

use super::{Stream, delete, put, revision};
use crate::support::backend::{Backend, on_every_backend};

const TRIES: usize = 200;

on_every_backend! {
    /// A waiter watches its predecessor's key and its own by two watches, and an operator deletes both at once. Either may
    /// be told of first, so a decision after the first alone is made too early. What can be relied on is this: of
    /// watches that are up to date, none is told of a later revision before each has been told of this one.
    async fn one_revision_is_told_to_all_watches_before_the_next(backend: Backend) {
        let client = backend.client();
        let (one, two, other) = (backend.key("m/1"), backend.key("m/2"), backend.key("n"));
        let mut seen = Seen::default();
        for way in [Way::Range, Way::Transaction, Way::Revoke] {
            let mut stream = Stream::open(&client, &[&one, &two, &other], 0).await;
            stream.created(3).await;
            for _ in 0..TRIES {
                way.put(&client, &backend, [&one, &two]).await;
                let at = way.delete(&client, &backend, [&one, &two]).await;
                let after = put(&client, &other).await;
                let answers = stream.until(&[(1, at), (2, at), (3, after)]).await;
                let order: Vec<_> =
                    answers.iter().filter(|(_, answer)| revision(answer) >= at).map(|(_, answer)| answer).collect();
                assert_eq!(order.len(), 3, "one answer a watch: {order:?}");
                assert_eq!(order.iter().map(|answer| revision(answer)).collect::<Vec<_>>(), [at, at, after]);
                seen.note(format!("{way:?}: {} before {}", order[0].watch_id, order[1].watch_id));
                let header = order[0].header.as_ref().expect("a header").revision;
                seen.note(format!("{way:?}: the first's header is of {}", if header == at { "this revision" } else { "a later one" }));
            }
        }
        seen.tell(&backend);
    }

    /// A client's stream breaks, and it watches again, from where it was. Its watches then catch up each by itself.
    async fn watches_catch_up_each_by_itself(backend: Backend) {
        let client = backend.client();
        let (one, two) = (backend.key("m/1"), backend.key("m/2"));
        let mut seen = Seen::default();
        let mut longest = Duration::ZERO;
        for number in 0..TRIES {
            let (first, second) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
            let from = put(&client, first).await;
            let to = put(&client, second).await;
            let mut stream = Stream::open(&client, &[&one, &two], from).await;
            let answers = stream.until(&[(1, from), (2, from)]).await;
            let told: Vec<_> = answers.iter().filter(|(_, answer)| !answer.events.is_empty()).collect();
            let [(at, earlier), (later_at, later)] = told[..] else { panic!("one answer a watch: {told:?}") };
            let order = if revision(earlier) < revision(later) { "in order" } else { "the later revision first" };
            assert!(revision(earlier).max(revision(later)) == to);
            seen.note(order.to_owned());
            let between = answers.iter().skip_while(|(_, answer)| answer.watch_id != earlier.watch_id || answer.events.is_empty());
            let created = between.take_while(|(_, answer)| answer.watch_id != later.watch_id || answer.events.is_empty());
            if created.filter(|(_, answer)| answer.created).count() > 0 {
                seen.note("events of one before the other was created".to_owned());
            }
            longest = longest.max(*later_at - *at);
        }
        println!("longest between the two: {longest:?}");
        seen.tell(&backend);
    }

    /// The same, with writes going on: a watch that has caught up is told of what happens now, while another still owes
    /// what happened long ago.
    async fn a_watch_that_caught_up_is_ahead_of_one_that_did_not(backend: Backend) {
        let client = backend.client();
        let (one, two) = (backend.key("m/1"), backend.key("m/2"));
        let mut seen = Seen::default();
        for _ in 0..TRIES / 10 {
            let from = put(&client, &one).await;
            let owed = put(&client, &two).await;
            let mut stream = Stream::open(&client, &[&one], from).await;
            stream.until(&[(1, from)]).await;
            stream.watch(2, &two, from);
            let mut answers = Vec::new();
            let begun = Instant::now();
            // Until it was told, the other is written again and again.
            while !answers.iter().any(|(_, answer): &(_, pb::WatchResponse)| answer.watch_id == 2 && revision(answer) >= owed) {
                let now = put(&client, &one).await;
                answers.extend(stream.until(&[(1, now)]).await);
                assert!(begun.elapsed() < Duration::from_secs(10), "it is never told");
            }
            let created = answers.iter().position(|(_, answer)| answer.watch_id == 2 && answer.created);
            let told = answers.iter().position(|(_, answer)| answer.watch_id == 2 && revision(answer) >= owed);
            let (Some(created), Some(told)) = (created, told) else { panic!("{answers:?}") };
            let ahead = answers[created..told].iter().filter(|(_, answer)| revision(answer) > owed).count();
            seen.note(format!("ahead by {}", match ahead { 0 => "nothing", 1..10 => "some", _ => "ten or more" }));
        }
        seen.tell(&backend);
    }
}

/// How two keys go at one revision.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `etcdctl del --prefix`
    Range,
    Transaction,
    /// They have a lease in common.
    Revoke,
}

impl Way {
    async fn put(self, client: &Client, backend: &Backend, keys: [&str; 2]) {
        let lease = match self {
            Way::Range | Way::Transaction => 0,
            Way::Revoke => {
                let grant = pb::LeaseGrantRequest { ttl: 60, id: lease(backend) };
                client.lease_client().lease_grant(grant).await.expect("granted").into_inner().id
            }
        };
        for key in keys {
            let put = pb::PutRequest { key: key.to_owned().into(), lease, ..Default::default() };
            client.kv_client().put(put).await.expect("put");
        }
    }

    async fn delete(self, client: &Client, backend: &Backend, keys: [&str; 2]) -> i64 {
        match self {
            Way::Range => delete(client, &backend.key("m/")).await,
            Way::Transaction => {
                let txn = keys.iter().fold(etcd_concurrency::Txn::new(), |txn, key| {
                    txn.success(etcd_concurrency::Op::delete((*key).to_owned()))
                });
                client.txn(txn).await.expect("deleted").header.revision
            }
            Way::Revoke => {
                let revoke = pb::LeaseRevokeRequest { id: lease(backend) };
                let answer = client.lease_client().lease_revoke(revoke).await.expect("revoked").into_inner();
                answer.header.expect("a header").revision
            }
        }
    }
}

/// This test's own.
fn lease(backend: &Backend) -> i64 {
    backend.prefix().bytes().fold(7, |id: i64, byte| id.wrapping_mul(31).wrapping_add(byte.into())) & i64::MAX
}

/// How often what was seen.
#[derive(Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    fn note(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    fn tell(&self, backend: &Backend) {
        match backend.version() {
            Some(version) => println!("etcd {version}: {:?}", self.0),
            None => println!("fake: {:?}", self.0),
        }
    }
}
