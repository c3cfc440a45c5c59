//! What a guard's fence keeps from being applied.

use etcd_concurrency::{
    Client, DoubleBarrier, Election, ErrorKind, Fence, Membership, MultiLock, Mutex, Op, Outcome, Queue,
    RwLock, Semaphore, Txn,
};

use crate::support::backend::on_every_backend;
use crate::support::queue::session;

/// What a client finds below a key.
async fn found(client: &Client, key: &str) -> usize {
    let reply = client.txn(Txn::new().success(Op::get_prefix(key.to_owned()))).await.expect("a read");
    reply.kvs(0).expect("a range").len()
}

on_every_backend! {
    /// A holder's transaction had operations for when its compares fail, and, this time, no compare. The holder's key had
    /// been deleted by another client. The server found the fence's own compares to fail, applied the holder's operations
    /// for that case, and the holder was told that nothing was applied.
    async fn a_fallen_fence_lets_no_operation_through(backend: Backend) {
        let client = backend.client();
        let session = session(&client).await;
        let name = |of: &str| backend.key(of);
        let mutex = Mutex::new(&session, name("mutex")).unwrap().lock().await.unwrap();
        let reading = RwLock::new(&session, name("read")).unwrap().read().await.unwrap();
        let writing = RwLock::new(&session, name("write")).unwrap().write().await.unwrap();
        let permits = Semaphore::new(&session, name("permits"), 3).unwrap().acquire_many(2).await.unwrap();
        let both = MultiLock::new(&session, [name("one"), name("two")]).unwrap().lock().await.unwrap();
        let leading = Election::new(&session, name("election")).unwrap().campaign("me").await.unwrap();
        let member = Membership::new(&session, name("members")).unwrap().join("me").await.unwrap();
        let inside = DoubleBarrier::new(&session, name("rounds"), 1).unwrap().enter().await.unwrap();
        let queue = Queue::new(&session, name("queue")).unwrap();
        queue.enqueue("item").await.unwrap();
        let job = queue.take().await.unwrap();
        let fences: [(&str, &Fence); 9] = [
            ("mutex", &mutex),
            ("reader", &reading),
            ("writer", &writing),
            ("permits", &permits),
            ("several locks", &both.fences()[1]),
            ("leader", &leading),
            ("member", &member),
            ("participant", &inside),
            ("job", &job),
        ];
        let key = name("written");
        for (who, fence) in fences {
            let write = || {
                let txn = fence.txn().success(Op::put(name("fine"), who));
                txn.failure(Op::put(key.clone(), who)).failure(Op::delete(name("fine")))
            };
            assert!(write().commit().await.unwrap().succeeded, "{who}");
            client.txn(Txn::new().success(Op::delete(fence.key().clone()))).await.unwrap();
            let error = write().commit().await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Lost(_)), "{who}: {error}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{who}");
            assert_eq!(found(&client, &key).await, 0, "{who} wrote without its key");
            assert_eq!(found(&client, &name("fine")).await, 1, "{who} deleted without its key");
        }
    }
}
