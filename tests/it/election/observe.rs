//! Following an election.

use std::time::Duration;

use etcd_concurrency::fake::{Do, On, Rpc};
use etcd_concurrency::{LostReason, Observer, Op, Txn};
use tokio_stream::StreamExt;

use super::{election, stand};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::queue::{quiet, revoke, session};

/// What the observer sees next.
async fn next(observer: &mut Observer) -> Option<String> {
    let seen = tokio::time::timeout(Duration::from_secs(60), observer.next()).await;
    let leader = seen.expect("something to see").expect("no error")?;
    Some(String::from_utf8(leader.value.to_vec()).expect("text"))
}

on_every_backend! {
    /// Who leads at first, every change of the leader, of its value, and the empty seat; and no RPC for any of it.
    async fn every_change_is_told_and_costs_nothing(backend: Backend) {
        let (name, counter) = (backend.key("seat"), RpcCounter::new());
        let client = backend.client();
        let watching = session(&backend.client_with(counter.clone())).await;
        let (a, b) = (session(&client).await, session(&client).await);
        counter.reset();
        let mut observer = election(&watching, &name).observe();
        assert_eq!(next(&mut observer).await, None);
        assert_eq!((counter.unary_total(), counter.streams()), (1, 1), "{counter}");
        let first = election(&a, &name).campaign("a").await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("a"));
        first.proclaim("a again").await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("a again"));
        // One who waits is no change.
        let second = stand(&backend, &b, &name, 2, "b").await;
        first.resign().await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("b"));
        let second = second.await.unwrap().unwrap();
        second.resign().await.unwrap();
        assert_eq!(next(&mut observer).await, None);
        quiet(&counter).await;
        assert_eq!((counter.unary_total(), counter.streams()), (1, 1), "{counter}");
    }

    /// Nobody reads for a while: nothing is left out, however short it lasted.
    async fn what_happened_while_nobody_read_is_told_in_order(backend: Backend) {
        let name = backend.key("seat");
        let client = backend.client();
        let session = session(&client).await;
        let election = election(&session, &name);
        let mut observer = election.observe();
        assert_eq!(next(&mut observer).await, None);
        for n in 0..5 {
            let leadership = election.campaign(format!("{n}")).await.unwrap();
            leadership.proclaim(format!("{n} more")).await.unwrap();
            leadership.resign().await.unwrap();
        }
        for n in 0..5 {
            assert_eq!(next(&mut observer).await, Some(format!("{n}")));
            assert_eq!(next(&mut observer).await, Some(format!("{n} more")));
            assert_eq!(next(&mut observer).await, None);
        }
    }

    async fn the_present_leader_is_the_first_item(backend: Backend) {
        let name = backend.key("seat");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let leads = election(&a, &name).campaign("a").await.unwrap();
        let mut observer = election(&b, &name).observe();
        let seen = observer.next().await.unwrap().unwrap();
        assert_eq!((seen.token, &seen.value[..]), (leads.token(), &b"a"[..]));
        // A leader whose lease is gone, with one behind it: one change, not two.
        let next_in_line = stand(&backend, &b, &name, 2, "b").await;
        revoke(&client, a.lease()).await;
        assert_eq!(next(&mut observer).await.as_deref(), Some("b"));
        drop(next_in_line.await.unwrap().unwrap());
    }

    /// Go's Observe reports the wrong leader when a key is created anew (etcd#18163).
    async fn a_key_that_comes_back_is_the_youngest(backend: Backend) {
        let name = backend.key("seat");
        let client = backend.client();
        let (a, b) = (session(&client).await, session(&client).await);
        let mut observer = election(&a, &name).observe();
        assert_eq!(next(&mut observer).await, None);
        let leads = election(&a, &name).campaign("a").await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("a"));
        let waits = stand(&backend, &b, &name, 2, "b").await;
        let (key, lease) = (leads.key().clone(), a.lease());
        client.txn(Txn::new().success(Op::delete(key.clone()))).await.unwrap();
        client.txn(Txn::new().success(Op::put_with_lease(key, "a again", lease))).await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("b"));
        waits.await.unwrap().unwrap().resign().await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("a again"));
    }

    /// A key that an application keeps below the name was taken for a candidate, and for the leader.
    async fn keys_of_other_shapes_are_no_candidates(backend: Backend) {
        let name = backend.key("seat");
        let client = backend.client();
        let session = session(&client).await;
        let election = election(&session, &name);
        let put = async |key: &str, lease| {
            let op = Op::put_with_lease(format!("{name}/{key}"), "x", lease);
            client.txn(Txn::new().success(op)).await.unwrap();
        };
        let own = format!("{:x}", session.lease());
        for key in ["owner", "a/1f", "", "0", &format!("{own}/x")] {
            put(key, session.lease()).await;
        }
        let mut observer = election.observe();
        assert_eq!((next(&mut observer).await, election.leader().await.unwrap()), (None, None));
        put("config", session.lease()).await;
        put(&own, session.lease()).await;
        assert_eq!(next(&mut observer).await.as_deref(), Some("x"));
        let leads = election.leader().await.unwrap().expect("a leader");
        assert_eq!(leads.key, format!("{name}/{own}"));
        assert_eq!(election.contenders().await.unwrap(), [leads]);
    }

    /// As a stream it ends after its error, which has a reason.
    async fn it_ends_with_its_session(backend: Backend) {
        let session = session(&backend.client()).await;
        let mut observer = election(&session, &backend.key("seat")).observe();
        assert!(matches!(StreamExt::next(&mut observer).await, Some(Ok(None))));
        session.close().await.unwrap();
        let error = StreamExt::next(&mut observer).await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
        assert!(StreamExt::next(&mut observer).await.is_none());
    }

    /// Whatever it would have seen next is there for the next call.
    async fn dropping_a_wait_loses_nothing(backend: Backend) {
        let session = session(&backend.client()).await;
        let election = election(&session, &backend.key("seat"));
        let mut observer = election.observe();
        for polls in 0..20 {
            // Dropped early; the first items need several polls.
            let waiting = observer.next();
            tokio::pin!(waiting);
            for _ in 0..polls % 3 {
                tokio::select! {
                    biased;
                    seen = &mut waiting => assert_eq!(seen.unwrap(), None),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        let leadership = election.campaign("a").await.unwrap();
        let seen = next(&mut observer).await;
        let seen = if seen.is_none() { next(&mut observer).await } else { seen };
        assert_eq!(seen.as_deref(), Some("a"));
        leadership.resign().await.unwrap();
        assert_eq!(next(&mut observer).await, None);
    }
}

/// The observer counted the keys while an event was on its way, took the event for lost, and passed over the leaders in
/// between.
#[test]
fn what_is_late_is_not_taken_for_lost() {
    crate::support::backend::on_fake(module_path!(), async |backend| {
        let fake = backend.fake().expect("on the fake");
        let (watching, standing) =
            (session(&fake.client_for("watching")).await, session(&fake.client()).await);
        let mut observer = election(&watching, "seat").observe();
        assert_eq!(next(&mut observer).await, None);
        fake.fault(On::response(Rpc::Watch).client("watching"), Do::delay(Duration::from_millis(900)));
        let (election, second) = (election(&standing, "seat"), Duration::from_secs(1));
        let leading = tokio::spawn(async move {
            for n in 0..150 {
                let leadership = election.campaign(format!("{n}")).await.unwrap();
                tokio::time::sleep(second).await;
                leadership.resign().await.unwrap();
                tokio::time::sleep(second).await;
            }
        });
        for n in 0..150 {
            assert_eq!(next(&mut observer).await, Some(format!("{n}")));
            assert_eq!(next(&mut observer).await, None);
        }
        assert_eq!(observer.gaps(), 0);
        leading.await.unwrap();
    });
}

/// The stream breaks, the seat changes hands, and the revisions in between are compacted before the observer is back.
#[test]
fn it_survives_cuts_and_compaction() {
    crate::support::backend::on_fake(module_path!(), async |backend| {
        let fake = backend.fake().expect("on the fake");
        let (watching, client) = (session(&fake.client_for("watching")).await, fake.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let mut observer = election(&watching, "seat").observe();
        assert_eq!(next(&mut observer).await, None);
        let first = election(&a, "seat").campaign("a").await.unwrap();
        assert_eq!(next(&mut observer).await.as_deref(), Some("a"));
        for stall in [false, true] {
            if stall {
                fake.stall_streams("watching");
            } else {
                fake.cut_streams("watching");
            }
            first.proclaim(format!("{stall}")).await.unwrap();
            assert_eq!(next(&mut observer).await, Some(format!("{stall}")));
        }
        let away = fake.fault(On::open(Rpc::Watch).client("watching"), Do::cut());
        fake.cut_streams("watching");
        first.resign().await.unwrap();
        // Of whom the observer is never told; but it can be seen that there may have been others.
        assert_eq!(observer.gaps(), 0);
        drop(election(&a, "seat").campaign("unseen").await.unwrap().resign().await);
        let second = election(&b, "seat").campaign("b").await.unwrap();
        for n in 0..10 {
            client.txn(Txn::new().success(Op::put("noise", format!("{n}")))).await.unwrap();
        }
        fake.compact(fake.revision()).unwrap();
        // And the server does not answer the read for a minute: that, too, is waited out.
        let deaf =
            fake.fault(On::rpc(Rpc::Range).client("watching"), Do::fail(tonic::Status::unavailable("no")));
        away.remove();
        tokio::time::sleep(Duration::from_secs(60)).await;
        deaf.remove();
        assert_eq!(next(&mut observer).await.as_deref(), Some("b"));
        assert_eq!(observer.gaps(), 1);
        // One who led before and after a gap has led all the time.
        let away = fake.fault(On::open(Rpc::Watch).client("watching"), Do::cut());
        fake.cut_streams("watching");
        client.txn(Txn::new().success(Op::put("noise", "more"))).await.unwrap();
        client.txn(Txn::new().success(Op::put("noise", "still more"))).await.unwrap();
        fake.compact(fake.revision()).unwrap();
        away.remove();
        let unchanged = tokio::time::timeout(Duration::from_secs(10), observer.next()).await;
        unchanged.expect_err("nothing has changed");
        second.resign().await.unwrap();
        assert_eq!((next(&mut observer).await, observer.gaps()), (None, 1));
        drop(observer);
        fake.until(|fake| fake.watchers() == 0).await;
    });
}
