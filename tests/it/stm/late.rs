//! Requests that are applied long after their run had given them up, on the fake and its paused clock.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use etcd_concurrency::fake::{Do, FakeEtcd};
use etcd_concurrency::pb::etcdserverpb::response_op::Response;
use etcd_concurrency::pb::etcdserverpb::{RangeResponse, ResponseOp};
use etcd_concurrency::pb::mvccpb::KeyValue;
use etcd_concurrency::{ErrorKind, Outcome, Session, Stm, StmTxn};
use tokio::time::{sleep, timeout};

use super::faults::{A, S, Stage, commits, stage};
use super::{add, delete, ok, put, value};
use crate::support::lies;

/// The first request straggles, the second is applied: the first finds the marker changed. The client deleted the marker
/// twelve seconds later; a member that stood still for longer then applied the first, over what others had written.
#[tokio::test(start_paused = true)]
async fn a_straggler_is_not_applied_a_second_time() {
    for late in [S(9), S(20), S(3600)] {
        let s = stage().await;
        let straggler = s.fake.fault(commits().once(), Do::delay(late));
        let blind = |txn: StmTxn| async move { ok(txn.put(A, "ours")?) };
        let done = s.marked.run(blind).await.unwrap();
        assert_eq!((straggler.hits(), done.attempts), (1, 1));
        put(&s.other, A, "theirs").await;
        // Nor where the marker would be deleted meanwhile: it would expect none, and find none.
        let Stage { fake, other, session, plain, marked } = s;
        drop((plain, marked));
        sleep(late + S(1)).await;
        assert_eq!(value(&other, A).await.as_deref(), Some("theirs"), "{late:?}");
        assert!(session.is_valid());
        assert_eq!(fake.snapshot().keys.len(), 2, "the marker is what the server refuses it by");
        session.close().await.unwrap();
        assert_eq!(fake.snapshot().keys.len(), 1, "the marker goes with the session");
    }
}

/// The same, but the session ends while the request is still under way: without the lease the server refuses it.
#[tokio::test(start_paused = true)]
async fn a_straggler_is_not_applied_after_its_session() {
    for ends in ["closed", "expired", "let go and adopted"] {
        let s = stage().await;
        let straggler = s.fake.fault(commits().once(), Do::delay(S(600)));
        s.marked.run(|txn| async move { ok(txn.put(A, "ours")?) }).await.unwrap();
        assert_eq!(straggler.hits(), 1);
        put(&s.other, A, "theirs").await;
        let Stage { fake, other, session, plain, marked } = s;
        drop((plain, marked));
        let mut adopted = None;
        match ends {
            "closed" => session.close().await.unwrap(),
            "expired" => drop(fake.expire_lease(session.lease())),
            _ => {
                let lease = session.orphan();
                adopted = Some(Session::builder(&other).lease(lease).open().await.unwrap());
            }
        }
        sleep(S(700)).await;
        assert_eq!(value(&other, A).await.as_deref(), Some("theirs"), "{ends}");
        if let Some(adopted) = adopted {
            adopted.close().await.unwrap();
        }
        assert_eq!(fake.snapshot().keys.len(), 1, "{ends}");
    }
}

/// One marker must stay, another need not: that one goes with the `Stm`.
#[tokio::test(start_paused = true)]
async fn only_markers_that_stragglers_may_miss_stay() {
    let s = stage().await;
    let straggler = s.fake.fault(commits().once(), Do::delay(S(600)));
    let (one, other) = (s.marked.run(|txn| async move { ok(txn.put(A, "1")?) }), async {
        s.marked.run(|txn| async move { ok(txn.put("b", "1")?) }).await
    });
    let (one, other) = tokio::join!(one, other);
    assert!(one.is_ok() && other.is_ok());
    assert_eq!((straggler.hits(), s.markers()), (1, 2));
    let Stage { fake, session, marked, plain, .. } = s;
    drop((marked, plain));
    let markers =
        |fake: &FakeEtcd| fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(b"__stm/")).count();
    timeout(S(20), fake.until(|fake| markers(fake) == 1)).await.expect("the other goes");
    sleep(S(60)).await;
    assert_eq!(markers(&fake), 1);
    session.close().await.unwrap();
    assert_eq!(markers(&fake), 0);
}

/// A server said for ever that the marker had just become another's, and the run asked it without a pause, for ever.
#[tokio::test(start_paused = true)]
async fn a_marker_that_is_always_anothers_ends_the_run() {
    let fake = FakeEtcd::start();
    let asked = Arc::new(AtomicI64::new(0));
    let count = asked.clone();
    let client = lies::client(&fake, move |txn, answer| {
        if txn.success.len() < 2 {
            return;
        }
        let n = count.fetch_add(1, Ordering::Relaxed);
        let revision = 100 + n;
        let kv = KeyValue {
            key: "m".into(),
            value: "x".into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            ..Default::default()
        };
        answer.header.as_mut().unwrap().revision = revision;
        answer.succeeded = false;
        let range = RangeResponse { kvs: vec![kv], count: 1, ..Default::default() };
        answer.responses = vec![ResponseOp { response: Some(Response::ResponseRange(range)) }];
    });
    let session = Session::builder(&client).ttl(S(60)).open().await.unwrap();
    let stm = Stm::new(&client).exactly_once(&session);
    let running = stm.run(|txn| async move { ok(txn.put(A, "1")?) });
    let error = timeout(S(60), running).await.expect("it ends").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(asked.load(Ordering::Relaxed) < 10);
}

/// The first request straggles; the second meets a conflict that passes; then the first is applied, behind the back of
/// the second attempt. Whatever that one does, the run's end is the first one's.
#[tokio::test(start_paused = true)]
async fn a_straggler_that_is_applied_after_a_conflict_is_the_commit() {
    for second in ["writes", "reads", "fails", "is one too many"] {
        let s = stage().await;
        let straggler = s.fake.fault(commits().once(), Do::delay(S(9)));
        let (other, fake, runs) = (&s.other, &s.fake, &Cell::new(0));
        let body = |txn: StmTxn| {
            let attempts = runs.get() + 1;
            runs.set(attempts);
            async move {
                assert_eq!(txn.get(A).await?.is_none(), attempts == 1);
                if attempts == 1 {
                    let other = other.clone();
                    // While the second request is on its way.
                    tokio::spawn(async move {
                        sleep(S(4)).await;
                        put(&other, A, "for a moment").await;
                        sleep(S(2)).await;
                        delete(&other, A).await;
                    });
                    txn.put(A, "1")?;
                    return ok(attempts);
                }
                fake.until(|fake| fake.snapshot().value(A) == Some(b"1")).await;
                match second {
                    "writes" => txn.put(A, "2")?,
                    "fails" => txn.put("", "2")?,
                    _ => {}
                }
                ok(attempts)
            }
        };
        let stm = match second {
            "is one too many" => s.marked.clone().max_attempts(1),
            _ => s.marked.clone(),
        };
        let running = stm.run(body).await;
        assert_eq!(straggler.hits(), 1);
        if second == "is one too many" {
            // The straggler had not been applied yet; now it never will be.
            let error = running.unwrap_err();
            assert_eq!(error.outcome(), Outcome::NotApplied);
            sleep(S(60)).await;
            assert_eq!(s.value().await, None);
            continue;
        }
        let done = running.unwrap();
        assert_eq!((runs.get(), done.value, done.attempts), (2, 1, 1), "the second {second}");
        assert_eq!(done.revision, s.fake.snapshot().get(A).unwrap().mod_revision);
        assert_eq!(s.value().await.as_deref(), Some("1"));
    }
}

/// A straggler of a dropped run puts the marker after all was done. It goes with the session, as what the straggler wrote
/// stays: it was written once.
#[tokio::test(start_paused = true)]
async fn a_straggler_of_a_dropped_run_leaves_its_marker_to_the_sessions_end() {
    let s = stage().await;
    let straggler = s.fake.fault(commits().once(), Do::delay(S(60)));
    timeout(S(1), s.marked.run(|txn| add(txn, A, 1))).await.expect_err("it straggles");
    assert_eq!(straggler.hits(), 1);
    let Stage { fake, session, marked, .. } = s;
    drop(marked);
    fake.until(|fake| fake.snapshot().keys.len() == 2).await;
    session.close().await.unwrap();
    assert_eq!(fake.snapshot().keys.len(), 1);
}
