//! What goes wrong between a queue's users and the server, on the fake and its paused clock.

use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{TxnRequest, request_op::Request};
use etcd_concurrency::{Client, LostReason, Outcome, Queue, Session};
use tokio::time::timeout;

use super::{queue, text};
use crate::support::requests::deletes;

pub(super) const S: fn(u64) -> Duration = Duration::from_secs;

pub(super) async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(S(60)).open().await.unwrap()
}

/// Transactions that put a key of this kind.
pub(super) fn puts(kind: &'static str) -> impl Fn(&TxnRequest) -> bool + Send + Sync + 'static {
    move |txn| {
        txn.success.iter().any(|op| match &op.request {
            Some(Request::RequestPut(put)) => put.key.starts_with(format!("q/{kind}/").as_bytes()),
            _ => false,
        })
    }
}

pub(super) fn count(fake: &FakeEtcd, kind: &str) -> usize {
    let prefix = format!("q/{kind}/");
    fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(prefix.as_bytes())).count()
}

/// Waits for something, not for ever: keep-alives go on while nothing else does.
pub(super) async fn until(fake: &FakeEtcd, condition: impl Fn(&FakeEtcd) -> bool) {
    let waited = timeout(S(120), fake.until(|fake| condition(fake))).await;
    assert!(waited.is_ok(), "{}", fake.snapshot());
}

pub(super) async fn until_clean(fake: &FakeEtcd) {
    let kinds = ["items", "claims", "returns", "waiting"];
    until(fake, |fake| kinds.iter().all(|kind| count(fake, kind) == 0)).await;
}

/// The item is consumed between the attempt whose reply is lost and the next: put-if-missing would put it twice.
#[tokio::test(start_paused = true)]
async fn the_reply_of_an_enqueue_is_lost() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (sender, consumer) = (queue(&a, "q"), queue(&b, "q"));
    for lost in [LoseReply::Error, LoseReply::Hang] {
        for consumed in [false, true] {
            let fault = fake
                .fault(On::rpc(Rpc::Txn).matching(puts("senders")).once(), Do::lose_reply_by(lost.clone()));
            let consuming = tokio::spawn({
                let consumer = consumer.clone();
                async move { if consumed { Some(consumer.dequeue().await.unwrap()) } else { None } }
            });
            sender.enqueue("item").await.unwrap();
            assert_eq!(fault.hits(), 1);
            let item = match consuming.await.unwrap() {
                Some(item) => item,
                None => consumer.try_dequeue().await.unwrap().unwrap(),
            };
            assert_eq!(text(item), "item");
            until_clean(&fake).await;
            assert_eq!(consumer.try_dequeue().await.unwrap(), None);
        }
    }
}

/// An attempt that arrives when everybody has forgotten it changes nothing.
#[tokio::test(start_paused = true)]
async fn a_straggling_enqueue_puts_nothing_twice() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let consumer = queue(&session, "q");
    for _ in 0..2 {
        let straggler = fake.fault(On::rpc(Rpc::Txn).matching(puts("senders")).once(), Do::delay(S(9)));
        let sender = queue(&session, "q");
        sender.enqueue("item").await.unwrap();
        assert_eq!(straggler.hits(), 1);
        drop(sender);
        assert_eq!(text(consumer.dequeue().await.unwrap()), "item");
        tokio::time::sleep(S(30)).await;
        assert_eq!(consumer.len().await.unwrap(), 0, "{}", fake.snapshot());
    }
}

#[tokio::test(start_paused = true)]
async fn an_enqueue_of_unknown_fate_is_told() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts("senders")), Do::lose_reply());
    let error = queue.enqueue("item").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    queue.enqueue("next").await.unwrap();
    assert_eq!(queue.len().await.unwrap(), 2);
    let cut = fake.fault(On::rpc(Rpc::Txn).matching(puts("senders")).once(), Do::fail(tonic_too_many()));
    queue.enqueue("last").await.unwrap();
    assert_eq!((cut.hits(), queue.len().await.unwrap()), (1, 3));
}

fn tonic_too_many() -> tonic::Status {
    tonic::Status::resource_exhausted("etcdserver: too many requests")
}

#[tokio::test(start_paused = true)]
async fn the_reply_of_a_take_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for lost in [LoseReply::Error, LoseReply::Hang] {
        queue.enqueue("first").await.unwrap();
        queue.enqueue("second").await.unwrap();
        let fault = fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")).once(), Do::lose_reply_by(lost));
        assert_eq!(text(queue.dequeue().await.unwrap()), "first");
        assert_eq!(fault.hits(), 1);
        assert_eq!(text(queue.dequeue().await.unwrap()), "second");
        until_clean(&fake).await;
    }
}

/// Nobody can tell what became of the take: the caller hears that, and the item goes back to its place.
#[tokio::test(start_paused = true)]
async fn a_take_of_unknown_fate_is_taken_back() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    queue.enqueue("first").await.unwrap();
    queue.enqueue("second").await.unwrap();
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(puts("claims")), Do::lose_reply());
    let error = queue.dequeue().await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    until(&fake, |fake| count(fake, "claims") == 0).await;
    assert!(session.is_valid());
    assert_eq!(text(queue.dequeue().await.unwrap()), "first");
    assert_eq!(text(queue.dequeue().await.unwrap()), "second");
    until_clean(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn the_reply_of_an_items_end_is_lost() {
    let fake = FakeEtcd::start();
    let session = session(&fake.client()).await;
    let queue = queue(&session, "q");
    for n in ["1", "2", "3"] {
        queue.enqueue(n).await.unwrap();
    }
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(deletes).times(5), Do::lose_reply());
    for n in ["1", "2", "3"] {
        assert_eq!(text(queue.dequeue().await.unwrap()), n);
    }
    until_clean(&fake).await;
    assert!(lost.hits() >= 3);
}

/// The future is dropped and the session closed while the answer is on its way: the item is put again.
#[tokio::test(start_paused = true)]
async fn an_item_on_its_way_is_saved_from_the_sessions_end() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let (taker, other) = (queue(&a, "q"), queue(&b, "q"));
    other.enqueue("first").await.unwrap();
    other.enqueue("second").await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")), Do::delay_reply(S(1)));
    timeout(Duration::from_millis(500), taker.dequeue()).await.expect_err("the answer takes longer");
    a.close().await.unwrap();
    until(&fake, |fake| count(fake, "claims") == 0 && count(fake, "items") == 2).await;
    let mut items = [text(other.dequeue().await.unwrap()), text(other.dequeue().await.unwrap())];
    items.sort();
    assert_eq!(items, ["first", "second"]);
    until_clean(&fake).await;
}

/// A race for each item: whoever loses one learns from the same answer what to try next.
#[tokio::test(start_paused = true)]
async fn a_race_that_is_lost_costs_one_rpc_more() {
    let fake = FakeEtcd::start();
    let counter = crate::support::count::RpcCounter::new();
    let counted = Client::from_service(tower::Layer::layer(&counter, raw(&fake, "a")));
    let (slow, fast) =
        (queue(&session(&counted).await, "q"), queue(&session(&fake.client_for("b")).await, "q"));
    for n in 0..3 {
        fast.enqueue(n.to_string()).await.unwrap();
    }
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(puts("claims")).once(), Do::delay(S(1)));
    counter.reset();
    let (lost, won) = tokio::join!(slow.dequeue(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fast.dequeue().await
    });
    assert_eq!((text(won.unwrap()), text(lost.unwrap())), ("0".into(), "1".into()));
    assert!(counter.unary_total() <= 4, "a look, two takes, an end: {counter}");
}

fn raw(fake: &FakeEtcd, client: &str) -> etcd_concurrency::RawService {
    use tower::ServiceExt;
    etcd_concurrency::RawService::new(
        fake.service_for(client).map_err(|error| tonic::Status::from_error(error.into())),
    )
}

/// What is left when a consumer gives up is nothing, not even for those who wait behind it.
#[tokio::test(start_paused = true)]
async fn a_partitioned_consumer_is_told_at_its_deadline() {
    let fake = FakeEtcd::start();
    let (a, b) = (session(&fake.client_for("a")).await, session(&fake.client_for("b")).await);
    let waiting = tokio::spawn({
        let queue: Queue = queue(&a, "q");
        async move { queue.dequeue().await }
    });
    until(&fake, |fake| fake.watchers() == 1).await;
    fake.partition("a");
    let error = timeout(S(61), waiting).await.expect("at the deadline").unwrap().unwrap_err();
    assert_eq!(error.lost_reason(), Some(LostReason::Expired), "{error}");
    // The next is served once the server has ended the lease.
    let next = queue(&b, "q");
    next.enqueue("item").await.unwrap();
    assert_eq!(text(timeout(S(120), next.dequeue()).await.unwrap().unwrap()), "item");
}
