//! What two watches of one stream are told when it is read slowly.

use std::collections::BTreeMap;

use etcd_concurrency::Client;
use etcd_concurrency::pb::etcdserverpb as pb;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{create, put, revision};
use crate::support::etcd::{Etcd, Version};

/// How many writes of the first key are made while its watch is not read, and how large they are: more than the server
/// has room for in a stream (up to 1,024 answers, and what is on the line).
const WRITES: usize = 2_500;
const SIZE: usize = 1_000;

/// A client that reads its stream slowly is owed events of one watch, and is told newer ones of another first: with no
/// cut, no cancellation and no word of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real etcd: `.ci/run servers` builds it"]
async fn a_watch_that_is_owed_events_is_overtaken_by_another_of_its_stream() {
    for version in Version::ALL {
        let etcd = Etcd::start(version).await;
        let client = Client::connect(etcd.endpoint()).await.expect("a client");
        let (requests, receiver) = tokio::sync::mpsc::unbounded_channel();
        for (id, key) in [(1, "one"), (2, "two")] {
            requests.send(create(id, key, 0)).expect("the receiver is here");
        }
        let watch = client.watch_client().watch(UnboundedReceiverStream::new(receiver)).await;
        let mut answers = watch.expect("a stream").into_inner();
        for _ in 0..2 {
            assert!(answers.next().await.expect("an answer").expect("no error").created);
        }

        let mut last = 0;
        for _ in 0..WRITES {
            let write =
                pb::PutRequest { key: "one".into(), value: vec![7; SIZE].into(), ..Default::default() };
            let answer = client.kv_client().put(write).await.expect("put").into_inner();
            last = answer.header.expect("a header").revision;
        }
        let mut told: BTreeMap<i64, i64> = BTreeMap::new();
        let mut overtaken = None;
        let mut newer = 0;
        while told.get(&1).is_none_or(|told| *told < last) || told.get(&2).is_none_or(|told| *told < newer) {
            if newer == 0 && told.contains_key(&1) {
                // There is room in the stream again.
                newer = put(&client, "two").await;
            }
            let answer = answers.next().await.expect("an answer").expect("no error");
            told.insert(answer.watch_id, revision(&answer));
            if answer.watch_id == 2 && told.get(&1).is_some_and(|told| *told < last) {
                overtaken = Some(last - told[&1]);
            }
        }
        println!("etcd {version}: overtaken while it was owed so many revisions: {overtaken:?}");
        assert!(overtaken.is_some(), "etcd {version} tells of all in order");
    }
}
