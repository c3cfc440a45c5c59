//! What a run can do: on the fake and on every real version, from the same bodies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::{Client, Error, ErrorKind, Isolation, Outcome, Session, Stm, StmTxn};

use super::{add, delete, key, ok, put, read, value};
use crate::support::backend::on_every_backend;
use crate::support::poll::until;
use crate::support::queue::queue;

/// An error of the closure's own.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not enough")]
    NotEnough,
    #[error(transparent)]
    Etcd(#[from] Error),
}

fn some(value: &'static str) -> Option<Bytes> {
    Some(value.into())
}

on_every_backend! {
    async fn what_is_written_is_read_and_committed(backend: Backend) {
        let client = backend.client();
        let (a, b, c, missing) = (key(&backend, "a"), key(&backend, "b"), key(&backend, "c"), key(&backend, "m"));
        put(&client, b, "old").await;
        let written = put(&client, c, "kept").await;
        let stm = Stm::new(&client);
        let done = stm
            .run(|txn| async move {
                assert_eq!(txn.get(missing).await?, None);
                assert_eq!((txn.rev(missing).await?, txn.rev(c).await?), (0, written));
                txn.put(a, "1")?;
                txn.put(b, "2")?;
                assert_eq!(txn.get(a).await?, some("1"));
                txn.put(a, "3")?;
                assert_eq!(txn.get_many([c, a, missing, b, a]).await?, [some("kept"), some("3"), None, some("2"), some("3")]);
                txn.del(b)?;
                txn.del(missing)?;
                assert_eq!(txn.get(b).await?, None);
                // Own writes do not count.
                assert!(txn.rev(b).await? > 0 && txn.rev(a).await? == 0);
                ok("done")
            })
            .await
            .unwrap();
        assert_eq!((done.value, done.attempts), ("done", 1));
        let kv = read(&client, a).await.unwrap();
        assert_eq!((&kv.value[..], kv.mod_revision, kv.lease), (&b"3"[..], done.revision, 0));
        assert_eq!((value(&client, b).await, value(&client, c).await), (None, Some("kept".into())));
    }

    async fn ranges_have_own_writes_laid_over_them(backend: Backend) {
        let client = backend.client();
        for (name, value) in [("r/1", "a"), ("r/2", "b"), ("r/4", "d"), ("s", "not in it")] {
            put(&client, key(&backend, name), value).await;
        }
        let (prefix, new, gone, over) =
            (key(&backend, "r/"), key(&backend, "r/3"), key(&backend, "r/1"), key(&backend, "r/4"));
        let everything: &'static str = key(&backend, "");
        let done = Stm::new(&client)
            .run(|txn| async move {
                txn.put(new, "c")?;
                txn.del(gone)?;
                txn.put(over, "e")?;
                let part = txn.get_range(gone, new).await?;
                ok((txn.get_prefix(prefix).await?, part))
            })
            .await
            .unwrap();
        let values = |kvs: Vec<(Bytes, Bytes)>| kvs.into_iter().map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(values(done.value.0), ["b", "c", "e"]);
        assert_eq!(values(done.value.1), ["b"]);

        // All that others have there, too: more than could be compared.
        let stm = Stm::new(&client).isolation(Isolation::ReadCommitted);
        let all = stm.run(|txn| async move {
            txn.put(gone, "f")?;
            ok([txn.get_range(everything, "\0").await?, txn.get_prefix("").await?])
        });
        for all in all.await.unwrap().value {
            assert!(all.windows(2).all(|two| two[0].0 < two[1].0));
            for own in [gone, new, over] {
                assert!(all.iter().any(|(key, _)| *key == own), "{own}");
            }
        }
    }

    async fn keys_go_or_stay_with_leases(backend: Backend) {
        let client = backend.client();
        let (a, b, missing) = (key(&backend, "a"), key(&backend, "b"), key(&backend, "m"));
        let session = Session::open(&client).await.unwrap();
        let (stm, lease) = (Stm::new(&client), session.lease());
        let leased = |txn: StmTxn| async move {
            txn.put_with_lease(a, "1", lease)?;
            ok(txn.put_with_lease(b, "1", lease)?)
        };
        stm.run(leased).await.unwrap();
        let again = |txn: StmTxn| async move {
            txn.put_keep_lease(a, "2")?;
            ok(txn.put(b, "2")?)
        };
        stm.run(again).await.unwrap();
        assert_eq!(read(&client, a).await.unwrap().lease, lease);
        assert_eq!(read(&client, b).await.unwrap().lease, 0);
        session.close().await.unwrap();
        assert_eq!((value(&client, a).await, value(&client, b).await), (None, Some("2".into())));

        let body = |txn: StmTxn| async move {
            txn.put(b, "3")?;
            ok(txn.put_keep_lease(missing, "3")?)
        };
        let error = stm.run(body).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        let body = |txn: StmTxn| async move {
            txn.put(b, "3")?;
            ok(txn.put_with_lease(a, "3", lease)?)
        };
        let error = stm.run(body).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::LeaseNotFound, Outcome::NotApplied));
        assert_eq!(value(&client, b).await, Some("2".into()));
    }

    async fn an_error_of_the_closure_writes_nothing_and_comes_back(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let mut runs = 0;
        let body = |txn: StmTxn| {
            runs += 1;
            async move {
                txn.put(a, "1")?;
                if txn.get_parsed::<u8>(a).await? < Some(2) {
                    return Err(Refused::NotEnough);
                }
                Ok(())
            }
        };
        let refused = Stm::new(&client).run(body).await.unwrap_err();
        assert!(matches!(refused, Refused::NotEnough), "{refused}");
        assert_eq!((runs, value(&client, a).await), (1, None));
        let body = |txn: StmTxn| async move { Ok::<_, Refused>(txn.put("", "1")?) };
        let refused = Stm::new(&client).run(body).await.unwrap_err();
        assert!(matches!(&refused, Refused::Etcd(error) if matches!(error.kind(), ErrorKind::InvalidInput { .. })));
    }

    async fn a_panic_unwinds_and_writes_nothing(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let stm = Stm::new(&client);
        let run = stm.clone();
        let ended = tokio::spawn(async move {
            run.run(|txn| async move {
                txn.put(a, "1")?;
                assert!(txn.get(a).await?.is_none(), "the closure panics");
                ok(())
            })
            .await
        });
        assert!(ended.await.unwrap_err().is_panic());
        assert_eq!(value(&client, a).await, None);
        stm.run(|txn| add(txn, a, 1)).await.unwrap();
    }

    /// Fetched ahead at the snapshot's revision; and what was not asked for is not compared.
    async fn what_is_fetched_ahead_is_of_the_snapshot(backend: Backend) {
        let (client, other) = (backend.client(), backend.client());
        let (a, b, c) = (key(&backend, "a"), key(&backend, "b"), key(&backend, "c"));
        put(&client, a, "old").await;
        let stm = Stm::new(&client).prefetch([a, b]).prefetch([c]);
        let other = &other;
        let done = stm
            .run(|txn| async move {
                put(other, a, "new").await;
                put(other, b, "new").await;
                txn.put(c, "1")?;
                // Not read: no conflict.
                ok(txn.get(c).await?)
            })
            .await
            .unwrap();
        assert_eq!((done.value, done.attempts), (some("1"), 1));
        put(&client, a, "old").await;
        delete(&client, b).await;
        let done = stm
            .run(|txn| async move {
                put(other, a, "new").await;
                put(other, b, "new").await;
                ok(txn.get_many([a, b]).await?)
            })
            .await
            .unwrap();
        assert_eq!((done.value, done.attempts), (vec![some("old"), None], 1));
    }

    async fn limits_end_a_run_that_meets_conflicts_alone(backend: Backend) {
        let (client, a, b) = (backend.client(), key(&backend, "a"), key(&backend, "b"));
        let other = &backend.client();
        let conflicting = |txn: StmTxn| async move {
            let seen = txn.get(a).await?;
            put(other, a, "theirs").await;
            txn.put(b, "ours")?;
            ok(seen)
        };
        let stm = Stm::new(&client);
        let error = stm.clone().max_attempts(3).run(conflicting).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Conflict { attempts: 3 });
        assert_eq!(error.outcome(), Outcome::NotApplied);
        let error = stm.clone().deadline(Duration::ZERO).run(conflicting).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Conflict { attempts: 1 });
        let error = stm.clone().deadline(Duration::from_millis(200)).run(conflicting).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Conflict { attempts: 2.. }), "{error}");
        let error = stm.clone().max_attempts(0).run(conflicting).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "max_attempts", .. }), "{error}");
        assert_eq!(value(&client, b).await, None);
        // Within them all is well.
        let stm = stm.max_attempts(1).deadline(Duration::from_secs(60));
        assert_eq!(stm.run(|txn| add(txn, b, 7)).await.unwrap().value, 7);
    }

    async fn too_much_for_one_transaction_is_told_by_number(backend: Backend) {
        let (client, prefix) = (backend.client(), key(&backend, ""));
        let stm = Stm::new(&client);
        let many = |txn: StmTxn| async move {
            for n in 0..13 {
                txn.get_many((0..10).map(|m| format!("{prefix}{n}{m}"))).await?;
            }
            txn.get_prefix(format!("{prefix}x")).await?;
            ok(txn.put(format!("{prefix}00"), "1")?)
        };
        let error = stm.run(many).await.unwrap_err();
        let expected = ErrorKind::TooManyOps { compares: 131, success: 1, failure: 131 };
        assert_eq!((error.kind(), error.outcome()), (&expected, Outcome::NotApplied));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "keys read: 130; ranges read: 1, with 0 keys more; keys written: 1");
        assert!(error.to_string().contains("131 compares, 1 operations if they hold"), "{error}");
        // Reading as much is no harm.
        let read = stm.run(|txn| async move { ok(txn.get_range(format!("{prefix}0"), "\0").await?.len()) });
        read.await.unwrap();
    }

    async fn a_handle_ends_with_its_attempt(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        let kept = Arc::new(Mutex::new(None));
        let body = |txn: StmTxn| {
            let kept = kept.clone();
            async move {
                txn.put(a, "1")?;
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(txn);
                ok(())
            }
        };
        Stm::new(&client).run(body).await.unwrap();
        let kept = kept.lock().unwrap().take().unwrap();
        let ended = [
            kept.get(a).await.unwrap_err(),
            kept.get_many([a]).await.unwrap_err(),
            kept.get_prefix(a).await.unwrap_err(),
            kept.rev(a).await.unwrap_err(),
            kept.put(a, "2").unwrap_err(),
            kept.del(a).unwrap_err(),
        ];
        assert!(ended.iter().all(|error| *error.kind() == ErrorKind::AttemptEnded), "{ended:?}");
        assert_eq!(value(&client, a).await, Some("1".into()));
    }

    async fn bad_input_is_refused_at_once(backend: Backend) {
        let (client, a) = (backend.client(), key(&backend, "a"));
        put(&client, a, "eleven").await;
        let stm = Stm::new(&client);
        let checked = stm
            .run(|txn| async move {
                let refused = [
                    txn.get("").await.unwrap_err(),
                    txn.get_many([a, ""]).await.unwrap_err(),
                    txn.get_range("", a).await.unwrap_err(),
                    txn.get_range(a, a).await.unwrap_err(),
                    txn.rev("").await.unwrap_err(),
                    txn.put("", "1").unwrap_err(),
                    txn.put_with_lease("", "1", 1).unwrap_err(),
                    txn.put_keep_lease("", "1").unwrap_err(),
                    txn.del("").unwrap_err(),
                ];
                assert!(refused.iter().all(|error| matches!(error.kind(), ErrorKind::InvalidInput { .. })));
                let error = txn.get_parsed::<u8>(a).await.unwrap_err();
                let ErrorKind::Unreadable { key, .. } = error.kind() else { panic!("{error}") };
                assert_eq!(key, a);
                txn.put(a, vec![0xff])?;
                let error = txn.get_parsed::<String>(a).await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Unreadable { .. }), "{error}");
                txn.put(a, "12")?;
                ok(txn.get_parsed::<u8>(a).await?)
            })
            .await
            .unwrap();
        assert_eq!(checked.value, Some(12));
        let error = stm.prefetch([""]).run(|txn| add(txn, a, 1)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { what: "key", .. }), "{error}");
    }

    /// Side by side, too, all reads are of one revision.
    async fn reads_side_by_side_are_of_one_snapshot(backend: Backend) {
        let client = backend.client();
        let (a, b, c) = (key(&backend, "a"), key(&backend, "b"), key(&backend, "c"));
        let writer = backend.client();
        let writing = tokio::spawn(async move {
            for n in 0.. {
                let body = |txn: StmTxn| async move {
                    for key in [a, b, c] {
                        txn.put(key, n.to_string())?;
                    }
                    ok(())
                };
                Stm::new(&writer).run(body).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..50 {
            let body = |txn: StmTxn| async move {
                let (a, all, c) = tokio::join!(txn.get(a), txn.get_many([b, c]), txn.get(c));
                let all = all?;
                assert_eq!((&all[0], &all[1]), (&a?, &c?));
                ok(all)
            };
            Stm::new(&client).run(body).await.unwrap();
        }
        writing.abort();
    }

    /// Ranges end, and markers stand, where the client's namespace does.
    async fn a_namespace_bounds_all(backend: Backend) {
        let (outside, other) = (backend.client(), &backend.client());
        let inside = Client::builder().service(backend.service()).namespace(backend.key("ns/"));
        let inside = inside.connect().await.unwrap();
        put(&outside, key(&backend, "ns0"), "outside").await;
        let session = Session::open(&inside).await.unwrap();
        let stm = Stm::new(&inside).exactly_once(&session);
        let (a, mut attempts) = (key(&backend, "ns/a"), 0);
        let body = |txn: StmTxn| {
            attempts += 1;
            async move {
                let all = txn.get_range("a", "\0").await?;
                if attempts == 1 {
                    put(other, a, "1").await;
                }
                txn.put("b", "2")?;
                ok(all)
            }
        };
        let done = stm.run(body).await.unwrap();
        assert_eq!((done.value, done.attempts), (vec![("a".into(), Bytes::from("1"))], 2));
        assert_eq!(value(&outside, key(&backend, "ns/b")).await.as_deref(), Some("2"));
        assert_eq!(queue(&outside, &backend.key("ns/__stm")).await, 1);
        drop(stm);
        let look = async || (queue(&outside, &backend.key("ns/__stm")).await == 0).then_some(());
        until("no marker", Duration::from_secs(20), look).await;
    }

    /// With nothing read and nothing written there is nothing to commit.
    async fn an_empty_run_does_nothing(backend: Backend) {
        let done = Stm::new(&backend.client()).run(|_| async { ok(7) }).await.unwrap();
        assert_eq!((done.value, done.revision, done.attempts), (7, 0, 1));
    }
}
