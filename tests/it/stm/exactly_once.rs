//! Runs that are applied exactly once: what their markers leave behind, on the fake and on every real version.

use std::time::Duration;

use etcd_concurrency::{Client, ErrorKind, LostReason, Outcome, Session, Stm, StmTxn};

use super::{add, delete, key, ok, put, value};
use crate::drops::at_most;
use crate::support::backend::{Backend, on_every_backend};
use crate::support::poll::until;
use crate::support::queue::{queue, revoke};

const LONG: Duration = Duration::from_secs(30);

async fn session(client: &Client) -> Session {
    Session::builder(client).ttl(Duration::from_secs(30)).open().await.unwrap()
}

/// Markers of this test's own, and the name that they stand under.
fn marked(backend: &Backend, session: &Session) -> (Stm, String) {
    let name = backend.key("markers");
    let stm = Stm::new(session.client()).exactly_once(session).marker_prefix(format!("{name}/"));
    (stm, name)
}

async fn until_markers(client: &Client, name: &str, markers: usize) {
    let look = async || (queue(client, name).await == markers).then_some(());
    until(&format!("{markers} markers"), LONG, look).await;
}

on_every_backend! {
    async fn a_marker_is_used_again_and_goes_with_the_last_clone(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let session = session(&client).await;
        let (stm, name) = marked(&backend, &session);
        // Neither reading nor an error of the closure's takes one.
        stm.run(|txn| async move { ok(txn.get(a).await?) }).await.unwrap();
        stm.run(|txn| async move {
            txn.put(a, "1")?;
            txn.put("", "1")
        })
        .await
        .unwrap_err();
        assert_eq!(queue(&client, &name).await, 0);
        for n in 1..5 {
            let done = stm.clone().run(|txn| add(txn, a, 1)).await.unwrap();
            assert_eq!((done.value, done.attempts), (n, 1));
            assert_eq!(queue(&client, &name).await, 1);
        }
        drop(stm);
        until_markers(&client, &name, 0).await;
        assert!(session.is_valid());
        assert_eq!(value(&client, a).await.unwrap(), "4");
    }

    async fn there_are_as_many_markers_as_runs_at_once(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let (stm, name) = marked(&backend, &session);
        let a = key(&backend, "a");
        for _ in 0..3 {
            let mut runs = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let stm = stm.clone();
                runs.spawn(async move { stm.run(|txn| add(txn, a, 1)).await });
            }
            assert!(runs.join_all().await.iter().all(Result::is_ok));
        }
        assert_eq!(value(&client, a).await.unwrap(), "12");
        let markers = queue(&client, &name).await;
        assert!((1..=4).contains(&markers), "{markers}");
        // The session takes them along, too.
        session.close().await.unwrap();
        assert_eq!(queue(&client, &name).await, 0);
        let error = stm.run(|txn| add(txn, a, 1)).await.unwrap_err();
        assert_eq!(error.lost_reason(), Some(LostReason::Closed));
        assert_eq!(value(&client, a).await.unwrap(), "12");
    }

    async fn two_stms_of_a_session_do_not_meet(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let session = session(&client).await;
        let ((one, name), (two, _)) = (marked(&backend, &session), marked(&backend, &session));
        one.run(|txn| add(txn, a, 1)).await.unwrap();
        two.run(|txn| add(txn, a, 1)).await.unwrap();
        assert_eq!(queue(&client, &name).await, 2);
        drop(one);
        until_markers(&client, &name, 1).await;
        assert_eq!(two.run(|txn| add(txn, a, 1)).await.unwrap().value, 3);
    }

    /// The lease that is gone is the closure's, or the session's: told apart.
    async fn a_missing_lease_is_told_from_a_lost_session(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let (own, other) = (session(&client).await, session(&client).await);
        let (stm, _) = marked(&backend, &own);
        let gone = other.lease();
        other.close().await.unwrap();
        let body = |txn: StmTxn| async move { ok(txn.put_with_lease(a, "1", gone)?) };
        let error = stm.run(body).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::LeaseNotFound, Outcome::NotApplied));
        assert!(own.is_valid());
        stm.run(|txn| add(txn, a, 1)).await.unwrap();
        revoke(&client, own.lease()).await;
        let error = stm.run(|txn| add(txn, a, 1)).await.unwrap_err();
        assert_eq!((error.lost_reason(), error.outcome()), (Some(LostReason::Revoked), Outcome::NotApplied));
        assert_eq!(value(&client, a).await.unwrap(), "1");
    }

    /// Conflicts are conflicts, with a marker or without.
    async fn conflicts_are_met_as_ever(backend: Backend) {
        let (client, other) = (backend.client(), backend.client());
        let (a, b) = (key(&backend, "a"), key(&backend, "b"));
        let session = session(&client).await;
        let (stm, name) = marked(&backend, &session);
        let (other, mut attempts) = (&other, 0);
        let body = |txn: StmTxn| {
            attempts += 1;
            async move {
                txn.get(a).await?;
                if attempts < 4 {
                    put(other, a, "theirs").await;
                }
                ok(txn.put(b, "ours")?)
            }
        };
        assert_eq!(stm.run(body).await.unwrap().attempts, 4);
        assert_eq!(queue(&client, &name).await, 1);
    }

    /// Nobody is to touch them; but where nothing is in doubt, nothing is lost by it.
    async fn a_marker_that_somebody_deleted_is_made_again(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let session = session(&client).await;
        let (stm, name) = marked(&backend, &session);
        stm.run(|txn| add(txn, a, 1)).await.unwrap();
        let marker = client
            .txn(etcd_concurrency::Txn::new().success(etcd_concurrency::Op::get_prefix(format!("{name}/"))))
            .await
            .unwrap();
        let marker = String::from_utf8(marker.kvs(0).unwrap()[0].key.to_vec()).unwrap();
        delete(&client, marker.leak()).await;
        let done = stm.max_attempts(1).run(|txn| add(txn, a, 1)).await.unwrap();
        assert_eq!((done.value, done.attempts), (2, 1));
    }

    /// Dropped at every await point: the sum tells how often it was applied, and the next run is none the worse.
    async fn a_run_that_is_dropped(backend: Backend) {
        crate::drops::take_time(&backend);
        let (client, observer) = (backend.client(), backend.client());
        let session = session(&client).await;
        for exactly_once in [false, true] {
            let a = key(&backend, if exactly_once { "a" } else { "b" });
            let (marked, name) = marked(&backend, &session);
            let stm = if exactly_once { marked } else { Stm::new(&client) };
            let mut done = 0;
            for polls in 0..200 {
                let ended = at_most(polls, stm.run(|txn| add(txn, a, 1))).await.is_some();
                let applied = stm.clone().max_attempts(9).run(|txn| add(txn, a, 1)).await.unwrap().value - done;
                assert!(applied == 1 || applied == 2, "{applied} of at most two after {polls} polls");
                done += applied;
                assert!(queue(&observer, &name).await <= 1);
                if ended {
                    assert_eq!(applied, 2);
                    break;
                }
                assert!(polls < 199, "never done");
            }
            drop(stm);
            until_markers(&observer, &name, 0).await;
        }
    }
}
