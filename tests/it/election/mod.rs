//! What an election does: on the fake and on every real version, from the same bodies.

mod faults;
mod lead;
mod observe;
mod rivals;

use etcd_concurrency::{Election, ErrorKind, Leadership, LostReason, Op, Session, Txn};
use tokio::task::JoinHandle;

use crate::support::backend::{Backend, on_every_backend};
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, queue, quiet, revoke, session, until_queue};

pub(crate) fn election(session: &Session, name: &str) -> Election {
    Election::new(session, name).expect("a good name")
}

/// Campaigns in a task, and returns once the candidate stands in the queue.
async fn stand(
    backend: &Backend,
    session: &Session,
    name: &str,
    place: usize,
    value: &str,
) -> JoinHandle<etcd_concurrency::Result<Leadership>> {
    let (election, value) = (election(session, name), value.to_owned());
    let standing = tokio::spawn(async move { election.campaign(value).await });
    until_queue(&backend.client(), name, place).await;
    standing
}

async fn leader(election: &Election) -> Option<String> {
    let leader = election.leader().await.expect("a read")?;
    Some(String::from_utf8(leader.value.to_vec()).expect("text"))
}

on_every_backend! {
    /// The budget: campaign 1, proclaim 1, leader 1, resign 1.
    async fn every_step_of_a_leaders_life_is_one_rpc(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        let election = election(&session(&client).await, &backend.key("seat"));
        counter.reset();
        let leadership = election.campaign("a").await.unwrap();
        assert_eq!(counter.unary_total(), 1, "{counter}");
        leadership.proclaim("b").await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
        leadership.proclaim("c").await.unwrap();
        assert_eq!(counter.unary_total(), 3, "{counter}");
        let leader = election.leader().await.unwrap().unwrap();
        assert_eq!(counter.unary_total(), 4, "{counter}");
        assert_eq!((&leader.value[..], leader.token), (&b"c"[..], leadership.token()));
        assert_eq!((&leader.key, leader.lease), (leadership.key(), election.session().lease()));
        assert!(leader.mod_revision > leader.token);
        leadership.resign().await.unwrap();
        assert_eq!((counter.unary_total(), counter.count("Txn")), (5, 4), "{counter}");
        assert_eq!(election.leader().await.unwrap(), None);
    }

    /// Go's keys: the name, a slash, and the lease in lower-case hex.
    async fn a_candidates_key_is_gos(backend: Backend) {
        let (name, session) = (backend.key("seat"), session(&backend.client()).await);
        let leadership = election(&session, &name).campaign("a").await.unwrap();
        assert_eq!(*leadership.key(), format!("{name}/{:x}", session.lease()));
        assert_eq!(leadership.header().revision, leadership.token());
        assert_eq!(leadership.session().lease(), session.lease());
    }

    async fn candidates_lead_in_the_order_of_standing(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let mut sessions = vec![session(&client).await];
        let mut leadership = election(&sessions[0], &name).campaign("0").await.unwrap();
        let mut standing = Vec::new();
        for n in 1..5 {
            sessions.push(session(&client).await);
            standing.push(stand(&backend, &sessions[n], &name, n + 1, &n.to_string()).await);
        }
        let contenders = election(&sessions[0], &name).contenders().await.unwrap();
        let values: Vec<_> = contenders.iter().map(|candidate| &candidate.value[..]).collect();
        assert_eq!(values, [b"0", b"1", b"2", b"3", b"4"]);
        assert!(contenders.windows(2).all(|pair| pair[0].token < pair[1].token));
        for (n, standing) in standing.into_iter().enumerate() {
            let token = leadership.token();
            leadership.resign().await.unwrap();
            leadership = standing.await.unwrap().unwrap();
            assert!(leadership.token() > token);
            assert_eq!(leader(&election(&sessions[0], &name)).await, Some((n + 1).to_string()));
        }
        leadership.resign().await.unwrap();
        assert_eq!(queue(&client, &name).await, 0);
    }

    /// The direct successor of the leader needs no RPC after the resignation.
    async fn the_successor_is_told_by_the_resignation_itself(backend: Backend) {
        let backend = backend.alone().await;
        let (name, counter) = (backend.key("seat"), RpcCounter::new());
        let first = election(&session(&backend.client()).await, &name).campaign("a").await.unwrap();
        let next = session(&backend.client_with(counter.clone())).await;
        let next = stand(&backend, &next, &name, 2, "b").await;
        until("the successor's watch", LONG, async || (counter.count("Watch") == 1).then_some(())).await;
        quiet(&counter).await;
        counter.reset();
        first.resign().await.unwrap();
        let next = next.await.unwrap().unwrap();
        assert_eq!(counter.unary_total(), 0, "{counter}");
        next.resign().await.unwrap();
    }

    /// Go's Proclaim checks too; ours says so by its kind, and the guard is lost.
    async fn a_proclamation_of_the_deposed_is_refused(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let leadership = election(&session, &name).campaign("a").await.unwrap();
        client.txn(Txn::new().success(Op::delete(leadership.key().clone()))).await.unwrap();
        let error = leadership.proclaim("b").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Fenced);
        assert_eq!(leadership.lost().await, LostReason::KeyDeleted);
        let error = leadership.proclaim("b").await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
        assert_eq!(queue(&client, &name).await, 0, "nothing was put");
        let error = leadership.resign().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
    }

    /// The key is there again, put by the next campaign of the same session: not this leadership's.
    async fn a_proclamation_never_writes_the_next_leaderships_key(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let leadership = election(&session, &name).campaign("a").await.unwrap();
        let put = Op::put_with_lease(leadership.key().clone(), "other", session.lease());
        client.txn(Txn::new().success(Op::delete(leadership.key().clone()))).await.unwrap();
        client.txn(Txn::new().success(put)).await.unwrap();
        let error = leadership.proclaim("b").await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Fenced);
        assert_eq!(leader(&election(&session, &name)).await.as_deref(), Some("other"));
    }

    /// Somebody writes the leader's value by hand: the next proclamation covers it.
    async fn a_value_written_by_another_is_proclaimed_over(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let leadership = election(&session, &name).campaign("a").await.unwrap();
        let put = Op::put_with_lease(leadership.key().clone(), "other", session.lease());
        client.txn(Txn::new().success(put)).await.unwrap();
        leadership.proclaim("b").await.unwrap();
        assert_eq!(leader(&election(&session, &name)).await.as_deref(), Some("b"));
    }

    async fn many_proclamations_at_once_are_made_one_after_the_other(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let leadership = std::sync::Arc::new(election(&session, &name).campaign("a").await.unwrap());
        let tasks: Vec<_> = (0..16)
            .map(|n| {
                let leadership = leadership.clone();
                tokio::spawn(async move { leadership.proclaim(n.to_string()).await.unwrap().revision })
            })
            .collect();
        let mut revisions = Vec::new();
        for task in tasks {
            revisions.push(task.await.unwrap());
        }
        let last = (0..16).max_by_key(|n| revisions[*n]).unwrap();
        assert_eq!(leader(&election(&session, &name)).await, Some(last.to_string()));
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions.len(), 16);
    }

    /// Go's seed example: of two candidates the second wins first, and the first later.
    async fn a_fenced_transaction_of_the_deposed_is_refused(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let first = election(&a, &name).campaign("a").await.unwrap();
        let next = stand(&backend, &b, &name, 2, "b").await;
        revoke(&client, a.lease()).await;
        let next = next.await.unwrap().unwrap();
        // What the first would send if it did not know.
        let late = Txn::new().compare(first.is_owner()).success(Op::put(backend.key("data"), "late"));
        assert!(!client.txn(late).await.unwrap().succeeded);
        let write = next.txn().success(Op::put(backend.key("data"), "next"));
        assert!(write.commit().await.unwrap().succeeded);
        assert_eq!(first.lost().await, LostReason::Revoked);
    }

    /// etcd#19597: a campaign in Go's package goes on after the death of its session.
    async fn a_campaign_ends_with_its_session(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let _leads = election(&a, &name).campaign("a").await.unwrap();
        let waits = stand(&backend, &b, &name, 2, "b").await;
        b.close().await.unwrap();
        let error = waits.await.unwrap().unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed), "{error}");
    }

    async fn a_leadership_that_is_dropped_resigns(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        drop(election(&session, &name).campaign("a").await.unwrap());
        until_queue(&client, &name, 0).await;
    }

    async fn work_of_a_leader_ends_with_the_leadership(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let leadership = election(&session, &name).campaign("a").await.unwrap();
        let fence = leadership.fence().clone();
        let error = leadership
            .run(async {
                client.txn(Txn::new().success(Op::delete(fence.key().clone()))).await.unwrap();
                std::future::pending::<()>().await
            })
            .await
            .unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));
        // The fence's handle outlives the guard, and knows.
        assert!(!fence.is_valid());
        let error = fence.txn().success(Op::put(backend.key("data"), "late")).commit().await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::KeyDeleted));

        let leadership = election(&session, &name).campaign("a").await.unwrap();
        let fence = leadership.fence().clone();
        assert_eq!(leadership.run_cooperative(|_| async { 7 }).await.unwrap(), 7);
        assert_eq!(fence.lost().await, LostReason::Released);
        assert_eq!(queue(&client, &name).await, 0);
    }

    /// After a restart: the lease is adopted, the seat taken up where it was left.
    async fn a_leadership_is_resumed_by_the_next_process(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let before = session(&client).await;
        let leadership = election(&before, &name).campaign("a").await.unwrap();
        leadership.proclaim("b").await.unwrap();
        let (key, token) = (leadership.key().clone(), leadership.token());
        let lease = before.orphan();
        drop(leadership);

        let after = Session::builder(&backend.client()).lease(lease).open().await.unwrap();
        let election = election(&after, &name);
        let resumed = election.resume(&key, token).await.unwrap();
        assert_eq!((resumed.token(), resumed.key()), (token, &key));
        // The same session leads already.
        let error = election.resume(&key, token).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        resumed.proclaim("c").await.unwrap();
        assert_eq!(leader(&election).await.as_deref(), Some("c"));
        resumed.resign().await.unwrap();
        // And once the seat is gone, that is said.
        let error = election.resume(&key, token).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::NotLeader);
        let error = election.resume("another/key", token).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
        // A key of another incarnation is not the one that led.
        let newer = election.campaign("d").await.unwrap();
        drop(newer);
        until_queue(&client, &name, 0).await;
    }

    async fn one_who_waits_cannot_resume(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let (a, b) = (session(&client).await, session(&client).await);
        let _leads = election(&a, &name).campaign("a").await.unwrap();
        let key = format!("{name}/{:x}", b.lease());
        let put = Txn::new().success(Op::put_with_lease(key.clone(), "b", b.lease()));
        let token = client.txn(put).await.unwrap().header.revision;
        for token in [token, token - 1] {
            let error = election(&b, &name).resume(&key, token).await.unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::NotLeader);
        }
    }

    /// A key that the last process left behind with the lease: it is ours, and says what we say from now on.
    async fn a_key_left_by_the_last_process_takes_the_new_value(backend: Backend) {
        let (name, client) = (backend.key("seat"), backend.client());
        let session = session(&client).await;
        let key = format!("{name}/{:x}", session.lease());
        let old = client.txn(Txn::new().success(Op::put_with_lease(key, "old", session.lease()))).await.unwrap();
        let leadership = election(&session, &name).campaign("new").await.unwrap();
        assert_eq!(leadership.token(), old.header.revision);
        assert_eq!(leader(&election(&session, &name)).await.as_deref(), Some("new"));
        leadership.proclaim("newer").await.unwrap();
        assert_eq!(leader(&election(&session, &name)).await.as_deref(), Some("newer"));
    }

    async fn an_empty_name_is_refused(backend: Backend) {
        let session = session(&backend.client()).await;
        let error = Election::new(&session, "").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }), "{error}");
    }
}
