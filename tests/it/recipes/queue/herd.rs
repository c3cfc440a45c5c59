//! A thousand consumers wait, and one item comes.

use std::time::Duration;

use etcd_concurrency::Client;
use etcd_concurrency::fake::FakeEtcd;
use tower::Layer;
use tower::ServiceExt;

use super::faults::{count, session, until};
use super::{queue, text};
use crate::support::count::RpcCounter;
use crate::support::queue::quiet;

/// It wakes the first of them, who makes way for the next: what that costs does not depend on how many there are.
#[tokio::test(start_paused = true)]
async fn one_item_wakes_one_of_a_thousand() {
    let (fake, counter) = (FakeEtcd::start(), RpcCounter::new());
    let service = fake.service().map_err(|error| tonic::Status::from_error(error.into()));
    let client = Client::from_service(counter.layer(etcd_concurrency::RawService::new(service)));
    let (served, mut serving) = tokio::sync::mpsc::unbounded_channel();
    let mut consumers = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (queue, served) = (queue(&session(&client).await, "q"), served.clone());
        consumers.spawn(async move {
            let item = queue.dequeue().await.unwrap();
            served.send((n, text(item))).unwrap();
        });
        // The first watches the items, the second what is between its predecessor and itself, and each other these two.
        until(&fake, |fake| fake.watchers() == (2 * n).max(1)).await;
    }
    let sender = queue(&session(&fake.client_for("sender")).await, "q");
    assert_eq!(count(&fake, "waiting"), 1000);
    quiet(&counter).await;
    for n in 0..3 {
        counter.reset();
        sender.enqueue(n.to_string()).await.unwrap();
        assert_eq!(serving.recv().await, Some((n, n.to_string())));
        quiet(&counter).await;
        // The take, the item's end, the way out; the next one's proof that it is the first, and its look at the queue. The
        // consumer's session ends with it.
        assert!(counter.count("Txn") <= 5 && counter.unary_total() <= 6, "{counter}");
        assert_eq!(count(&fake, "waiting"), 999 - n);
    }
    consumers.abort_all();
    while consumers.join_next().await.is_some() {}
    until(&fake, |fake| fake.watchers() == 0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(count(&fake, "waiting"), 0);
}
