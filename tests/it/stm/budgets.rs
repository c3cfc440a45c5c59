//! How many RPCs a run takes: on the fake and on every real version, from the same bodies.

use etcd_concurrency::{Isolation, Mutex, Session, Stm, StmTxn};

use super::{add, key, ok, put};
use crate::support::backend::on_every_backend;
use crate::support::count::RpcCounter;

on_every_backend! {
    async fn a_read_and_a_write_are_two_rpcs(backend: Backend) {
        let (counter, a, b) = (RpcCounter::new(), key(&backend, "a"), key(&backend, "b"));
        let stm = Stm::new(&backend.client_with(counter.clone()));
        stm.run(|txn| add(txn, a, 1)).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range, 1 Txn");
        counter.reset();
        // Writing alone is one; and so is every sort of read, however often.
        stm.run(|txn| async move { ok(txn.put(b, "1")?) }).await.unwrap();
        assert_eq!(counter.to_string(), "1 Txn");
        counter.reset();
        let reads = |txn: StmTxn| async move {
            for _ in 0..3 {
                txn.get(a).await?;
                txn.rev(a).await?;
                txn.get_parsed::<i64>(a).await?;
            }
            ok(())
        };
        stm.run(reads).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range", "and the commit of a run that only reads is none");
    }

    async fn several_keys_are_read_with_one_rpc(backend: Backend) {
        let (counter, prefix) = (RpcCounter::new(), key(&backend, "r/"));
        let (a, b) = (key(&backend, "r/a"), key(&backend, "r/b"));
        let stm = Stm::new(&backend.client_with(counter.clone()));
        let reads = |txn: StmTxn| async move {
            txn.get_many([a, b, a]).await?;
            txn.get_many([b, a]).await?;
            txn.get(a).await?;
            ok(())
        };
        stm.run(reads).await.unwrap();
        assert_eq!(counter.to_string(), "1 Txn");
        counter.reset();
        let range = |txn: StmTxn| async move {
            txn.get_prefix(prefix).await?;
            txn.get_range(a, b).await?;
            txn.get_many([a, b]).await?;
            ok(txn.put(a, "1")?)
        };
        stm.run(range).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range, 1 Txn", "what lies within a range is known with it");
    }

    async fn fetching_ahead_is_one_rpc(backend: Backend) {
        let (counter, a, b) = (RpcCounter::new(), key(&backend, "a"), key(&backend, "b"));
        let stm = Stm::new(&backend.client_with(counter.clone())).prefetch([a, b]);
        let both = |txn: StmTxn| async move { ok((txn.get(a).await?, txn.get(b).await?)) };
        stm.run(both).await.unwrap();
        assert_eq!(counter.unary_total(), 1, "{counter}");
        counter.reset();
        let writes = |txn: StmTxn| async move {
            txn.get(a).await?;
            add(txn, b, 1).await
        };
        stm.run(writes).await.unwrap();
        assert_eq!(counter.unary_total(), 2, "{counter}");
    }

    /// What the failed commit brought back is at hand. After a pause it is old, and read anew.
    async fn the_first_retry_is_one_rpc_and_later_ones_are_two(backend: Backend) {
        let (counter, other) = (RpcCounter::new(), backend.client());
        let (a, b, c) = (key(&backend, "a"), key(&backend, "b"), key(&backend, "c"));
        let (prefix, inside) = (key(&backend, "r/"), key(&backend, "r/1"));
        let client = backend.client_with(counter.clone());
        for isolation in [Isolation::SerializableSnapshot, Isolation::Serializable, Isolation::RepeatableReads] {
            counter.reset();
            let (other, mut attempts) = (&other, 0);
            let body = |txn: StmTxn| {
                attempts += 1;
                async move {
                    txn.get_many([a, b]).await?;
                    txn.get_prefix(prefix).await?;
                    if attempts < 4 {
                        put(other, [a, b, inside][attempts - 1], "theirs").await;
                    }
                    ok(txn.put(c, "ours")?)
                }
            };
            let done = Stm::new(&client).isolation(isolation).run(body).await.unwrap();
            assert_eq!(done.attempts, 4);
            assert_eq!(counter.to_string(), "1 Range, 7 Txn", "two reads, a commit; and then one, two, two");
        }
    }

    async fn repeatable_reads_are_committed_with_one_rpc(backend: Backend) {
        let (counter, a) = (RpcCounter::new(), key(&backend, "a"));
        let stm = Stm::new(&backend.client_with(counter.clone()));
        let stm = stm.isolation(Isolation::RepeatableReads);
        stm.run(|txn| async move { ok(txn.get(a).await?) }).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range, 1 Txn");
        counter.reset();
        let stm = stm.isolation(Isolation::ReadCommitted);
        stm.run(|txn| async move { ok(txn.get(a).await?) }).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range");
    }

    /// The fence and the marker ride along.
    async fn fences_and_markers_cost_no_rpc(backend: Backend) {
        let (counter, a) = (RpcCounter::new(), key(&backend, "a"));
        let client = backend.client_with(counter.clone());
        let session = Session::open(&client).await.unwrap();
        let guard = Mutex::new(&session, key(&backend, "lock")).unwrap().lock().await.unwrap();
        let stm = Stm::new(&client).fenced(&guard).exactly_once(&session);
        for _ in 0..3 {
            counter.reset();
            stm.run(|txn| add(txn, a, 1)).await.unwrap();
            assert_eq!(counter.to_string(), "1 Range, 1 Txn");
        }
        counter.reset();
        // Whether the fence stands is asked of the server.
        stm.run(|txn| async move { ok(txn.get(a).await?) }).await.unwrap();
        assert_eq!(counter.to_string(), "1 Range, 1 Txn");
    }
}
