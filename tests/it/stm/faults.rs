//! What goes wrong between a run and the server, on the fake and its paused clock.

use std::cell::Cell;
use std::error::Error as _;
use std::time::Duration;

use etcd_concurrency::fake::{Do, FakeEtcd, LoseReply, On, Rpc};
use etcd_concurrency::pb::etcdserverpb::{RangeRequest, TxnRequest, request_op::Request};
use etcd_concurrency::{
    Client, Error, ErrorKind, Isolation, LostReason, MultiLock, Mutex, Outcome, Session, Stm, StmTxn,
};
use tokio::time::{sleep, timeout};

use super::{add, delete, ok, put, value};

pub(super) const S: fn(u64) -> Duration = Duration::from_secs;
/// What the runs write; `lock` is what they may be fenced by.
pub(super) const A: &str = "a";
const LOCK: &str = "lock";

pub(super) struct Stage {
    pub(super) fake: FakeEtcd,
    pub(super) other: Client,
    pub(super) session: Session,
    pub(super) plain: Stm,
    pub(super) marked: Stm,
}

pub(super) async fn stage() -> Stage {
    let fake = FakeEtcd::start();
    let client = fake.client();
    let session = Session::builder(&client).ttl(S(60)).open().await.unwrap();
    let plain = Stm::new(&client);
    let marked = plain.clone().exactly_once(&session);
    Stage { other: fake.client_for("other"), fake, session, plain, marked }
}

impl Stage {
    pub(super) fn markers(&self) -> usize {
        self.fake.snapshot().keys.iter().filter(|kv| kv.key.starts_with(b"__stm/")).count()
    }

    pub(super) async fn value(&self) -> Option<String> {
        value(&self.other, A).await
    }
}

/// Commits that write `A`, of the client that the runs have.
pub(super) fn commits() -> On {
    On::rpc(Rpc::Txn).client("default").matching(|txn: &TxnRequest| {
        txn.success.iter().any(|op| match &op.request {
            Some(Request::RequestPut(put)) => put.key == A,
            _ => false,
        })
    })
}

/// Nobody repeats what may have been applied; so nobody can tell.
#[tokio::test(start_paused = true)]
async fn without_a_marker_a_lost_reply_is_an_unknown_commit() {
    for (how, left) in [(Do::lose_reply(), Some("1")), (Do::cut(), None)] {
        let s = stage().await;
        s.fake.fault(commits().once(), how);
        let error = s.plain.run(|txn| add(txn, A, 1)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::CommitUnknown, Outcome::Unknown));
        assert!(error.source().is_some());
        assert_eq!(s.value().await.as_deref(), left);
        assert_eq!(s.markers(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_marker_a_lost_reply_is_a_commit() {
    for lost in [LoseReply::Error, LoseReply::Hang] {
        let s = stage().await;
        let fault = s.fake.fault(commits().once(), Do::lose_reply_by(lost));
        let done = s.marked.run(|txn| add(txn, A, 1)).await.unwrap();
        assert_eq!((fault.hits(), done.value, done.attempts), (1, 1, 1));
        assert_eq!(done.revision, s.fake.snapshot().get(A).unwrap().mod_revision);
        // The marker is known again.
        assert_eq!(s.marked.run(|txn| add(txn, A, 1)).await.unwrap().attempts, 1);
        assert_eq!((s.value().await.as_deref(), s.markers()), (Some("2"), 1));
    }
}

/// Every reply to the commit is lost, until the request timeout: the marker is read by another transaction.
#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_ever_answers_is_found_out() {
    let s = stage().await;
    let lost = s.fake.fault(commits(), Do::lose_reply());
    let done = s.marked.run(|txn| add(txn, A, 1)).await.unwrap();
    assert!(lost.hits() > 1);
    assert_eq!((done.value, done.attempts), (1, 1));
    assert_eq!(done.revision, s.fake.snapshot().get(A).unwrap().mod_revision);
}

/// Every commit is lost before it is applied: that none will ever be is found out, and then it is tried again.
#[tokio::test(start_paused = true)]
async fn a_commit_that_never_arrived_is_made_again() {
    let s = stage().await;
    let lost = s.fake.fault(commits(), Do::cut());
    let stm = s.marked.clone();
    let running = tokio::spawn(async move { stm.run(|txn| add(txn, A, 1)).await });
    s.fake.until(|_| s.markers() == 1).await;
    lost.remove();
    let done = running.await.unwrap().unwrap();
    assert_eq!((done.value, done.attempts), (1, 2));
    assert_eq!(s.value().await.as_deref(), Some("1"));

    // With no attempt left it ends with what went wrong, and that is certain.
    let late = s.fake.fault(commits(), Do::delay(S(30)));
    let error = s.marked.clone().max_attempts(1).run(|txn| add(txn, A, 1)).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Timeout, Outcome::NotApplied));
    assert!(late.hits() > 1);
    late.remove();
    sleep(S(60)).await;
    assert_eq!(s.value().await.as_deref(), Some("1"), "none of the stragglers was applied");
}

/// A run that is dropped in mid-commit gives its marker back without knowing what it says.
#[tokio::test(start_paused = true)]
async fn a_marker_that_a_dropped_run_changed_is_no_conflict() {
    let s = stage().await;
    for sum in [1, 3, 5] {
        assert_eq!(s.marked.run(|txn| add(txn, A, 1)).await.unwrap().value, sum);
        let lost = s.fake.fault(commits().once(), Do::lose_reply_by(LoseReply::Hang));
        timeout(S(1), s.marked.run(|txn| add(txn, A, 1))).await.expect_err("nobody answers");
        assert_eq!(lost.hits(), 1);
    }
    let done = s.marked.clone().max_attempts(1).run(|txn| add(txn, A, 1)).await.unwrap();
    assert_eq!((done.value, done.attempts, s.markers()), (7, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_before_the_fate_is_known_leaves_it_unknown() {
    let s = stage().await;
    let lost = s.fake.fault(On::rpc(Rpc::Txn).client("default"), Do::lose_reply());
    let (stm, lease) = (s.marked.clone(), s.session.lease());
    let running = tokio::spawn(async move { stm.run(|txn| add(txn, A, 1)).await });
    s.fake.until(|_| lost.hits() > 0).await;
    s.fake.revoke_lease(lease);
    let error = timeout(S(30), running).await.expect("it ends").unwrap().unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (&ErrorKind::CommitUnknown, Outcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_in_mid_run_writes_nothing() {
    for told in [true, false] {
        let s = stage().await;
        let (fake, lease, session) = (&s.fake, s.session.lease(), &s.session);
        if !told {
            // Only the commit itself can tell.
            fake.stall_streams("default");
        }
        let body = |txn: StmTxn| async move {
            txn.put(A, "1")?;
            fake.revoke_lease(lease);
            if told {
                session.lost().await;
            }
            ok(())
        };
        let error = s.marked.run(body).await.unwrap_err();
        assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::Revoked), Outcome::NotApplied));
        assert_eq!((s.value().await, s.session.is_valid()), (None, false));
    }
}

/// The lock is lost while the closure runs: the server refuses what it wrote, and what it only read is worth nothing.
#[tokio::test(start_paused = true)]
async fn a_fence_that_falls_in_mid_run_refuses_it() {
    for (writes, marked) in [(true, false), (true, true), (false, false)] {
        let s = stage().await;
        let guard = Mutex::new(&s.session, LOCK).unwrap().lock().await.unwrap();
        let stm = if marked { &s.marked } else { &s.plain }.clone().fenced(&guard);
        stm.run(|txn| add(txn, A, 1)).await.unwrap();
        let other = &s.other;
        let lock: &'static str = String::from_utf8(guard.key().to_vec()).unwrap().leak();
        let runs = &Cell::new(0);
        let body = |txn: StmTxn| {
            runs.set(runs.get() + 1);
            async move {
                let seen = txn.get(A).await?;
                delete(other, lock).await;
                if writes {
                    txn.put(A, "late")?;
                }
                ok(seen)
            }
        };
        let error = stm.run(body).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Fenced, Outcome::NotApplied));
        assert_eq!((runs.get(), s.value().await.as_deref()), (1, Some("1")));
        assert_eq!(guard.lost().await, LostReason::KeyDeleted);
        // From here on it is known without asking, and the closure is not run.
        let error = stm.run(body).await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
        assert_eq!(runs.get(), 1);
        assert!(s.session.is_valid());
    }
}

/// What a run had read in several answers, each of which was small enough, was read again in one with the commit's conflict. That
/// answer was refused as too large, and whether the commit was applied was called unknown.
#[tokio::test(start_paused = true)]
async fn a_conflict_whose_answer_would_be_too_large_is_a_conflict() {
    let fake = FakeEtcd::start();
    let client = Client::builder().service(fake.service()).max_answer_size(1 << 20).connect().await.unwrap();
    let other = fake.client_for("other");
    let large: &str = "x".repeat(500 << 10).leak();
    for key in ["b", "c", "d"] {
        put(&other, key, large).await;
    }
    let (other, mut attempts) = (&other, 0);
    let body = |txn: StmTxn| {
        attempts += 1;
        async move {
            for key in ["b", "c", "d"] {
                txn.get(key).await?;
            }
            if attempts == 1 {
                put(other, "b", large).await;
            }
            txn.put(A, "1")
        }
    };
    let done = Stm::new(&client).run(body).await.unwrap();
    assert_eq!(done.attempts, 2);
}

/// A run had read much and written nothing, so its commit read nothing again, and was of compares alone: the member that had served
/// the reads from the past decided that nothing had changed.
#[tokio::test(start_paused = true)]
async fn a_run_that_only_read_much_is_decided_by_the_cluster() {
    let s = stage().await;
    let large: &str = "x".repeat(500 << 10).leak();
    for key in ["b", "c", "d"] {
        put(&s.other, key, large).await;
    }
    s.fake.lag("default");
    put(&s.other, "d", "new").await;
    let (fake, mut attempts) = (&s.fake, 0);
    let body = |txn: StmTxn| {
        attempts += 1;
        if attempts == 2 {
            fake.catch_up("default");
        }
        async move {
            txn.get_many(["b", "c"]).await?;
            txn.get("d").await
        }
    };
    let done = s.plain.clone().isolation(Isolation::RepeatableReads).run(body).await.unwrap();
    assert_eq!((done.value.as_deref(), done.attempts), (Some(&b"new"[..]), 2));
}

/// A conflict behind a fence that stands is a conflict.
#[tokio::test(start_paused = true)]
async fn a_conflict_is_told_from_a_fallen_fence() {
    let s = stage().await;
    let guard = Mutex::new(&s.session, LOCK).unwrap().lock().await.unwrap();
    for stm in [s.plain.clone(), s.marked.clone()] {
        let (other, mut attempts) = (&s.other, 0);
        let body = |txn: StmTxn| {
            attempts += 1;
            async move {
                if attempts == 1 {
                    txn.get(A).await?;
                    put(other, A, "7").await;
                }
                add(txn, A, 1).await
            }
        };
        let done = stm.fenced(&guard).run(body).await.unwrap();
        assert_eq!((done.value, done.attempts), (8, 2));
    }
    assert!(guard.is_valid());
}

/// The snapshot is compacted while the closure runs: it starts over, whatever the closure made of the error.
#[tokio::test(start_paused = true)]
async fn a_compacted_snapshot_starts_over() {
    for swallows in [true, false] {
        let s = stage().await;
        let (fake, other) = (&s.fake, &s.other);
        let compacted = |last: u32| {
            let mut attempts = 0;
            move |txn: StmTxn| {
                attempts += 1;
                async move {
                    txn.get(A).await?;
                    if attempts <= last {
                        let now = put(other, "b", "new").await;
                        fake.compact(now).map_err(|status| panic!("{status}")).unwrap_or_default();
                    }
                    match txn.get("b").await {
                        Err(error) if !swallows => return Err(error),
                        _ => {}
                    }
                    txn.put(A, "1")?;
                    ok(attempts)
                }
            }
        };
        let done = s.plain.run(compacted(2)).await.unwrap();
        assert_eq!((done.value, done.attempts), (3, 3));
        let error = s.plain.clone().max_attempts(2).run(compacted(2)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (&ErrorKind::Conflict { attempts: 2 }, Outcome::NotApplied)
        );
        let source = error.source().and_then(|source| source.downcast_ref::<Error>()).unwrap();
        assert!(matches!(source.kind(), ErrorKind::Compacted { .. }), "{source}");
    }
}

/// etcd#11963: a member that lags behind does not have the snapshot's revision yet.
#[tokio::test(start_paused = true)]
async fn a_member_that_lags_behind_is_waited_for() {
    let s = stage().await;
    put(&s.other, A, "1").await;
    let future = tonic::Status::out_of_range("etcdserver: mvcc: required revision is a future revision");
    let pinned =
        On::rpc(Rpc::Range).matching(|range: &RangeRequest| range.revision > 0 && range.serializable);
    let lags = s.fake.fault(pinned.times(3), Do::fail(future));
    let body = |txn: StmTxn| async move {
        txn.get("b").await?;
        add(txn, A, 1).await
    };
    let done = s.plain.run(body).await.unwrap();
    assert_eq!((lags.hits(), done.value, done.attempts), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn times_without_a_leader_or_a_network_are_survived() {
    let s = stage().await;
    let fake = &s.fake;
    for (n, trouble) in (1..).zip(["leader", "partition", "long partition"]) {
        let body = |txn: StmTxn| async move {
            let fake = fake.clone();
            let sum = add(txn, A, 1).await?;
            match trouble {
                "leader" => fake.leader_loss(S(4)),
                _ => {
                    fake.partition("default");
                    let lasts = if trouble == "partition" { S(3) } else { S(8) };
                    tokio::spawn(async move {
                        sleep(lasts).await;
                        fake.heal("default");
                    });
                }
            }
            ok(sum)
        };
        assert_eq!(s.marked.run(body).await.unwrap().value, n, "{trouble}");
        assert_eq!(s.value().await, Some(n.to_string()), "{trouble}");
    }
}

/// A first read that was begun and is not polled any more kept the other reads of its attempt waiting, without an end.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_polled_keeps_no_other_waiting() {
    let s = stage().await;
    put(&s.other, A, "1").await;
    s.fake.fault(On::rpc(Rpc::Range).client("default").once(), Do::delay_reply(S(1)));
    let body = |txn: StmTxn| async move {
        let mut first = std::pin::pin!(txn.get(A));
        tokio::select! {
            biased;
            read = &mut first => panic!("read without an answer: {read:?}"),
            () = std::future::ready(()) => {}
        }
        let other = timeout(S(60), txn.get("b")).await.expect("it is read in the end")?;
        assert_eq!(other, None);
        ok(first.await?.expect("it is there"))
    };
    assert_eq!(s.plain.run(body).await.unwrap().value, "1");
}

/// What is fetched ahead is read again by a commit that fails, and so are the keys of its fence: together they were more than
/// a server takes.
#[tokio::test(start_paused = true)]
async fn what_is_fetched_ahead_leaves_room_for_a_fence_of_many_keys() {
    let s = stage().await;
    let names: Vec<String> = (0..40).map(|name| format!("lock/{name}")).collect();
    let guard = MultiLock::new(&s.session, names).unwrap().lock().await.unwrap();
    let ahead = (0..120).map(|key| format!("ahead/{key}"));
    let stm = s.marked.clone().prefetch(ahead).fenced(&guard.fences()[0]);
    assert_eq!(stm.run(|txn| add(txn, A, 1)).await.unwrap().value, 1);
}

/// The revision of a commit that had nothing to compare, and wrote nothing, was one at which nothing was read. Where it was
/// behind no fence, it was a transaction of nothing, which one member answers from its own past.
#[tokio::test(start_paused = true)]
async fn a_commit_that_compared_nothing_is_of_what_was_read() {
    let s = stage().await;
    let guard = Mutex::new(&s.session, LOCK).unwrap().lock().await.unwrap();
    let txns = s.fake.fault(On::rpc(Rpc::Txn).client("default"), Do::delay(Duration::ZERO));
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableReads] {
        let (stm, other, fake) = (&s.plain.clone().isolation(isolation), &s.other, &s.fake);
        let empty = |txn: StmTxn| async move {
            let read = fake.revision();
            txn.get_prefix("none/").await?;
            put(other, "later", "").await;
            ok(read)
        };
        for fenced in [false, true] {
            let stm = if fenced { stm.clone().fenced(&guard) } else { stm.clone() };
            let before = txns.seen();
            let done = stm.run(empty).await.unwrap();
            assert_eq!(done.revision, done.value, "{isolation:?}, {fenced}");
            assert_eq!(txns.seen() - before, u64::from(fenced), "{isolation:?}, {fenced}");
        }
        let done = stm.clone().fenced(&guard).run(|_| async { ok(()) }).await.unwrap();
        assert_eq!(done.revision, 0, "nothing was read, {isolation:?}");
    }
}
