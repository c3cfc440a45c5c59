//! Several clients at once.
//!
//! The real server is free in the order in which it takes what comes at once. But it tells the order: each write
//! has a revision of its own, and each read says of which revision it is. So they are done on the fake one by one,
//! in that order, and have to be answered the same.

use etcd_concurrency::pb::etcdserverpb::TxnResponse;
use etcd_concurrency::pb::etcdserverpb::response_op::Response;

use super::op::{CLIENTS, Op};
use super::run::Difference;
use super::side::{Answer, Side};

pub(super) async fn race(fake: &Side, real: &Side, ops: &[Op]) -> Result<(), Difference> {
    let mut running = Vec::new();
    for (n, op) in ops.iter().cloned().enumerate() {
        let client = real.clients[n % CLIENTS].clone();
        running.push(tokio::spawn(async move { client.answer(&op).await }));
    }
    let mut done: Vec<(usize, Answer)> = Vec::new();
    for (n, running) in running.into_iter().enumerate() {
        done.push((n, running.await.expect("no panic")));
    }
    // A write comes before those who read what it wrote. What failed, fails at any time.
    done.sort_by_key(|(_, answer)| (answer.revision, !answer.wrote));
    for (n, answer) in done {
        Difference::between(&ops[n], &fake.answer(n % CLIENTS, &ops[n]).await, &answer)?;
    }
    Ok(())
}

/// Whether it made a revision.
pub(super) fn wrote(response: &TxnResponse) -> bool {
    response.responses.iter().any(|op| match &op.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(response)) => response.deleted > 0,
        Some(Response::ResponseTxn(response)) => wrote(response),
        Some(Response::ResponseRange(_)) | None => false,
    })
}
