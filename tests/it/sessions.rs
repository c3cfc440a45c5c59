//! What a session does: on the fake and on every real version, from the same bodies.

use std::time::Duration;

use etcd_concurrency::{ErrorKind, LostReason, Mutex, Op, Session, SessionState, Txn};
use tokio_util::sync::CancellationToken;

use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{queue, revoke};

const LONG: Duration = Duration::from_secs(20);
const S: fn(u64) -> Duration = Duration::from_secs;

on_every_backend! {
    async fn a_session_is_one_grant_and_one_stream_for_all(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        let mut sessions = Vec::new();
        for _ in 0..5 {
            sessions.push(Session::builder(&client).ttl(S(2)).open().await.unwrap());
        }
        assert_eq!(counter.count("LeaseGrant"), 5);
        // Each of them lives on past its TTL.
        tokio::time::sleep(S(3)).await;
        assert!(sessions.iter().all(Session::is_valid));
        assert_eq!(counter.count("LeaseKeepAlive"), 1, "{counter}");
        assert_eq!(*sessions[0].state().borrow(), SessionState::Active);
        for session in &sessions {
            session.close().await.unwrap();
            assert_eq!(session.lost().await, LostReason::Closed);
            assert!(!session.is_valid() && session.remaining().is_zero());
        }
        assert_eq!(counter.count("LeaseRevoke"), 5, "{counter}");
    }

    async fn dropping_the_last_handle_revokes(backend: Backend) {
        let client = backend.client();
        let session = Session::open(&client).await.unwrap();
        assert_eq!(session.ttl(), S(60));
        let key = backend.key("mine");
        let put = Op::put_with_lease(key.clone(), "1", session.lease());
        client.txn(Txn::new().success(put)).await.unwrap();
        let other = session.clone();
        drop(session);
        assert!(other.is_valid());
        drop(other);
        until("the key to go with the lease", LONG, async || {
            let read = client.txn(Txn::new().success(Op::get(key.clone()))).await.unwrap();
            read.kvs(0).unwrap().is_empty().then_some(())
        })
        .await;
    }

    async fn an_orphaned_lease_can_be_adopted(backend: Backend) {
        let (old, new) = (backend.client(), backend.client());
        let session = Session::builder(&old).ttl(S(30)).open().await.unwrap();
        let name = backend.key("lock");
        let guard = Mutex::new(&session, &name).unwrap().lock().await.unwrap();
        let token = guard.token();
        let handle = session.clone();
        let lease = session.orphan();
        assert_eq!(handle.lost().await, LostReason::Orphaned);
        drop((guard, handle));

        let adopted = Session::builder(&new).lease(lease).open().await.unwrap();
        assert_eq!((adopted.lease(), adopted.ttl()), (lease, S(30)));
        assert!(adopted.remaining() > S(20), "{:?}", adopted.remaining());
        // The lock is still there, and is the adopter's to take up.
        let guard = Mutex::new(&adopted, &name).unwrap().lock().await.unwrap();
        assert_eq!(guard.token(), token);
        guard.unlock().await.unwrap();
        adopted.close().await.unwrap();
    }

    async fn two_sessions_on_one_lease_share_its_turns(backend: Backend) {
        let client = backend.client();
        let first = Session::open(&client).await.unwrap();
        let second = Session::builder(&client).lease(first.lease()).open().await.unwrap();
        let name = backend.key("lock");
        let guard = Mutex::new(&first, &name).unwrap().lock().await.unwrap();
        let error = Mutex::new(&second, &name).unwrap().try_lock().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Locked);
        drop(second);
        assert!(first.is_valid(), "the lease is not the second's alone to revoke");
        guard.unlock().await.unwrap();
        first.close().await.unwrap();
    }

    async fn a_lease_that_is_not_there_cannot_be_adopted(backend: Backend) {
        let client = backend.client();
        let error = Session::builder(&client).lease(0x0123_4567).open().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::LeaseNotFound, "{error}");
    }

    async fn a_lease_revoked_by_another_is_told_with_the_next_keep_alive(backend: Backend) {
        let client = backend.client();
        let session = Session::builder(&client).ttl(S(3)).open().await.unwrap();
        revoke(&backend.client(), session.lease()).await;
        assert_eq!(session.lost().await, LostReason::Revoked);
        session.close().await.unwrap();
    }

    async fn a_cancelled_parent_closes_the_session(backend: Backend) {
        let client = backend.client();
        let parent = CancellationToken::new();
        let session = Session::builder(&client).parent(parent.clone()).open().await.unwrap();
        let name = backend.key("lock");
        let guard = Mutex::new(&session, &name).unwrap().lock().await.unwrap();
        parent.cancel();
        assert_eq!(guard.lost().await, LostReason::Closed);
        until("the lease to be revoked", LONG, async || {
            (queue(&backend.client(), &name).await == 0).then_some(())
        })
        .await;
        let late = Session::builder(&client).parent(parent).open().await.unwrap_err();
        assert_eq!(late.lost_reason(), Some(LostReason::Closed));
    }

    async fn bad_ttls_are_refused_and_leave_nothing(backend: Backend) {
        let counter = RpcCounter::new();
        let client = backend.client_with(counter.clone());
        for ttl in [Duration::ZERO, Duration::MAX] {
            let error = Session::builder(&client).ttl(ttl).open().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "ttl", .. }), "{error}");
        }
        assert_eq!(counter.unary_total(), 0, "{counter}");

        // The server's minimum is 2 s: 1 s would be granted as those.
        let error = Session::builder(&client).ttl(S(1)).open().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "ttl", .. }), "{error}");
        assert!(error.to_string().contains("minimum of 2 s"), "{error}");
        until("the longer lease to be revoked", LONG, async || {
            (counter.count("LeaseRevoke") == 1).then_some(())
        })
        .await;
        let session = Session::builder(&client).ttl(S(1)).or_longer().open().await.unwrap();
        assert_eq!(session.ttl(), S(2));
        session.close().await.unwrap();
    }

    async fn an_empty_name_is_refused_and_nothing_is_sent(backend: Backend) {
        let counter = RpcCounter::new();
        let session = Session::open(&backend.client_with(counter.clone())).await.unwrap();
        counter.reset();
        let error = Mutex::new(&session, "").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "name", .. }), "{error}");
        assert_eq!(counter.unary_total(), 0);
    }
}
