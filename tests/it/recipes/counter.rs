//! Counters.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RangeResponse, TxnRequest, request_op::Request};
use etcd_concurrency::{Client, Counter, ErrorKind, Op, Outcome, Txn};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::world::{World, explore, patience};
use crate::drops::{MANY, at_most, take_time};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::lies;

const S: fn(u64) -> Duration = Duration::from_secs;

fn counter(client: &Client, name: &str) -> Counter {
    Counter::new(client, name).expect("a good name")
}

async fn put(client: &Client, key: &str, value: &str) {
    client.txn(Txn::new().success(Op::put(key.to_owned(), value.to_owned()))).await.unwrap();
}

/// Writes a number with a mark.
fn adds(txn: &TxnRequest) -> bool {
    txn.success
        .iter()
        .any(|op| matches!(&op.request, Some(Request::RequestPut(put)) if put.value.contains(&b' ')))
}

on_every_backend! {
    /// get 1; add 1, and 1 more at first or where somebody else was quicker; compare and set 1 where one knows.
    async fn what_each_step_costs(backend: Backend) {
        let (name, counted, others) = (backend.key("n"), RpcCounter::new(), RpcCounter::new());
        let (one, two) = (counter(&backend.client_with(counted.clone()), &name), counter(&backend.client_with(others.clone()), &name));
        assert_eq!((one.get().await.unwrap(), counted.unary_total()), (0, 1));
        assert_eq!((one.add(1).await.unwrap(), counted.unary_total()), (1, 3));
        assert_eq!((one.add(-3).await.unwrap(), counted.unary_total()), (-2, 4));
        assert_eq!((two.add(10).await.unwrap(), others.unary_total()), (8, 2));
        assert_eq!((one.clone().add(1).await.unwrap(), counted.unary_total()), (9, 6), "{counted}");
        assert_eq!((one.add(0).await.unwrap(), counted.unary_total()), (9, 7));
        assert_eq!((one.compare_and_set(9, 5).await.unwrap(), counted.unary_total()), (true, 8));
        assert_eq!((one.compare_and_set(9, 6).await.unwrap(), counted.unary_total()), (false, 9));
        assert_eq!((two.compare_and_set(5, 6).await.unwrap(), others.unary_total()), (true, 4));
        assert_eq!((one.compare_and_set(5, 7).await.unwrap(), counted.unary_total()), (false, 10));
        assert_eq!((one.get().await.unwrap(), counted.unary_total()), (6, 11));
        let new = counter(&backend.client_with(counted.clone()), &backend.key("new"));
        assert!(new.compare_and_set(0, 3).await.unwrap());
        assert_eq!(counted.unary_total(), 13, "it is made, and set: {counted}");
    }

    /// Sixty-four tasks on eight clients: every sum is seen once.
    async fn nothing_is_lost_and_nothing_twice(backend: Backend) {
        let name = backend.key("n");
        let mut adding = JoinSet::new();
        for _ in 0..8 {
            let shared = counter(&backend.client(), &name);
            for _ in 0..8 {
                let shared = shared.clone();
                adding.spawn(async move {
                    let mut sums = Vec::new();
                    for _ in 0..3 {
                        sums.push(shared.add(1).await.unwrap());
                    }
                    sums
                });
            }
        }
        let mut sums: Vec<_> = adding.join_all().await.into_iter().flatten().collect();
        sums.sort_unstable();
        assert_eq!(sums, (1..=192).collect::<Vec<_>>());
        assert_eq!(counter(&backend.client(), &name).get().await.unwrap(), 192);
    }

    async fn what_is_no_number_is_told_and_changes_nothing(backend: Backend) {
        let (name, client) = (backend.key("n"), backend.client());
        let number = counter(&client, &name);
        put(&client, &name, "41").await;
        assert_eq!(number.add(1).await.unwrap(), 42);
        for value in ["", "four", "4.2", "99999999999999999999 x"] {
            put(&client, &name, value).await;
            let mismatch = ErrorKind::Mismatch { what: "number", found: value.into() };
            assert_eq!(*number.get().await.unwrap_err().kind(), mismatch);
            let error = number.add(1).await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (&mismatch, Outcome::NotApplied));
            assert_eq!(*number.compare_and_set(42, 1).await.unwrap_err().kind(), mismatch);
            let read = client.txn(Txn::new().success(Op::get(name.clone()))).await.unwrap();
            assert_eq!(read.kvs(0).unwrap()[0].value, value);
        }
        put(&client, &name, &i64::MAX.to_string()).await;
        let error = number.add(1).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "delta", .. }), "{error}");
        assert_eq!(number.add(-1).await.unwrap(), i64::MAX - 1);
        // What was seen last says out of range; what is there now does not.
        put(&client, &name, "5").await;
        assert_eq!(number.add(i64::MAX - 5).await.unwrap(), i64::MAX);
        client.txn(Txn::new().success(Op::delete(name.clone()))).await.unwrap();
        assert!(!number.compare_and_set(3, 4).await.unwrap());
        assert!(number.compare_and_set(0, 4).await.unwrap());
        client.txn(Txn::new().success(Op::delete(name.clone()))).await.unwrap();
        assert_eq!(number.add(1).await.unwrap(), 1);
        assert!(Counter::new(&client, "").is_err());
    }

    async fn dropped_at_every_point(backend: Backend) {
        take_time(&backend);
        let (number, reader) = (counter(&backend.client(), &backend.key("n")), counter(&backend.client(), &backend.key("n")));
        let mut expected = 0..=0;
        for polls in 0..MANY {
            let added = at_most(polls, number.add(1)).await;
            // One that was dropped may have been made; the next is made after it.
            let sum = number.add(1).await.unwrap();
            expected = expected.start() + 1..=expected.end() + 2;
            assert!(expected.contains(&sum), "{sum} of {expected:?}");
            assert_eq!(reader.get().await.unwrap(), sum);
            expected = sum..=sum;
            let set = at_most(polls, number.compare_and_set(sum, sum)).await;
            if let (Some(added), Some(set)) = (added, set) {
                return assert!(added.unwrap() == sum - 1 && set.unwrap());
            }
        }
        panic!("never done");
    }
}

/// Lost replies, with others writing, and deleting, right after: found in the key, or in its history.
#[tokio::test(start_paused = true)]
async fn a_lost_reply_adds_once() {
    let fake = FakeEtcd::start();
    let client = fake.client_for("a");
    let (number, other) = (counter(&client, "n"), fake.client_for("b"));
    number.add(0).await.unwrap();
    let mut expected = 0;
    for (n, then) in ["", "1000 other", "deleted"].into_iter().cycle().take(6).enumerate() {
        let lost = if n < 3 { LoseReply::Error } else { LoseReply::Hang };
        fake.fault(On::rpc(Rpc::Txn).client("a").matching(adds).once(), Do::lose_reply_by(lost));
        let before = fake.revision();
        let adding = tokio::spawn({
            let number = number.clone();
            async move { number.add(7).await }
        });
        fake.until(|fake| fake.revision() > before).await;
        match then {
            "" => {}
            "deleted" => drop(other.txn(Txn::new().success(Op::delete("n"))).await.unwrap()),
            value => put(&other, "n", value).await,
        }
        assert_eq!(adding.await.unwrap().unwrap(), expected + 7, "{n}");
        expected = match then {
            "" => expected + 7,
            "deleted" => 0,
            _ => 1000,
        };
        assert_eq!(number.get().await.unwrap(), expected, "{n}");
    }
    // An attempt that was never applied, with somebody else's write in its place: it is made after that.
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(adds).once(), Do::vanish());
    let adding = tokio::spawn({
        let number = number.clone();
        async move { number.add(7).await }
    });
    sleep(S(1)).await;
    put(&other, "n", "50").await;
    assert_eq!(adding.await.unwrap().unwrap(), 57);
}

/// An addition that comes late finds its ground gone.
#[tokio::test(start_paused = true)]
async fn what_comes_late_is_not_added_again() {
    let fake = FakeEtcd::start();
    let number = counter(&fake.client(), "n");
    number.add(1).await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).matching(adds).once(), Do::delay(S(9)));
    assert_eq!(number.add(1).await.unwrap(), 2);
    sleep(S(20)).await;
    assert_eq!(number.get().await.unwrap(), 2);
}

/// The history that would tell is compacted, or nobody answers: that is said.
#[tokio::test(start_paused = true)]
async fn what_nobody_can_tell_is_unknown() {
    let fake = FakeEtcd::start();
    let (number, other) = (counter(&fake.client_for("a"), "n"), fake.client_for("b"));
    number.add(1).await.unwrap();
    fake.fault(On::rpc(Rpc::Txn).client("a").matching(adds).once(), Do::lose_reply_by(LoseReply::Hang));
    let before = fake.revision();
    let adding = tokio::spawn({
        let number = number.clone();
        async move { number.add(1).await }
    });
    fake.until(|fake| fake.revision() > before).await;
    put(&other, "n", "7").await;
    put(&other, "n", "8").await;
    fake.compact(fake.revision()).unwrap();
    let error = adding.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(number.add(1).await.unwrap(), 9);
    let lost = fake.fault(On::rpc(Rpc::Txn).matching(adds), Do::lose_reply());
    let error = number.add(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    lost.remove();
    assert_eq!(number.add(1).await.unwrap(), 11);
    fake.until(|fake| fake.watchers() == 0).await;
}

/// A server said of a key that it was written at the last revision there is: the client reckoned with the next one.
#[tokio::test(start_paused = true)]
async fn a_counter_believes_in_no_revision_that_a_store_has_not() {
    let fake = FakeEtcd::start();
    put(&fake.client(), "n", "5").await;
    let far = |range: &mut RangeResponse| range.kvs.iter_mut().for_each(|kv| kv.mod_revision = i64::MAX);
    let number = counter(&lies::of_ranges(&fake, far), "n");
    for error in [number.get().await.unwrap_err(), number.compare_and_set(5, 6).await.unwrap_err()] {
        assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
    }
    assert_eq!(counter(&fake.client(), "n").get().await.unwrap(), 5);
}

/// Additions by many, dropped in the middle or not, and everything that goes wrong. Each that was told a sum made it,
/// and alone; none that was told it did nothing did anything.
#[test]
fn random_schedules() {
    explore(async |world: World| {
        let actors = world.actors(act);
        let told = actors.join_all().await;
        sleep(S(60)).await;
        world.recorded(world.revision()).await;
        let written = world.between(0, world.revision());
        let sums: Vec<i64> = written
            .iter()
            .map(|event| {
                let value = String::from_utf8(event.kv.as_ref().unwrap().value.to_vec()).unwrap();
                value.split(' ').next().unwrap().parse().unwrap()
            })
            .collect();
        // The zero at first, and then one more each time.
        assert_eq!(sums, (0..sums.len() as i64).collect::<Vec<_>>());
        let (mut seen, mut unknown) = (BTreeSet::new(), 0);
        for told in told.iter().flatten() {
            match told {
                Some(sum) => assert!(seen.insert(*sum), "{sum} was told twice"),
                None => unknown += 1,
            }
        }
        let made = sums.len().saturating_sub(1);
        assert!((seen.len()..=seen.len() + unknown).contains(&made), "{made}: {} and {unknown}", seen.len());
    });

    /// The sums that were told; None for what may have been made.
    async fn act(world: World, actor: usize) -> Vec<Option<i64>> {
        let mut rng = world.rng(actor);
        let number = counter(&world.client(actor), "n");
        let mut told = Vec::new();
        for _ in 0..15 {
            let (limit, from) = (patience(&mut rng), world.revision());
            match timeout(limit, number.add(1)).await {
                Ok(Ok(sum)) => {
                    let window = (from, world.revision());
                    let text = format!("{sum} ");
                    let made = |keys: &[etcd_concurrency::pb::mvccpb::KeyValue]| {
                        keys.iter().any(|kv| kv.value.starts_with(text.as_bytes()))
                    };
                    assert!(world.held_between(window, "n", made).await, "{sum}: {window:?}");
                    told.push(Some(sum));
                }
                Ok(Err(error)) if error.outcome() == Outcome::NotApplied => {}
                Ok(Err(_)) | Err(_) => told.push(None),
            }
            sleep(Duration::from_millis(rng.u64(0..1_500))).await;
        }
        told
    }
}
