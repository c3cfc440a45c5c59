//! The recipes, each on the fake and on every real version, from the same bodies; and under drawn faults.

mod barrier;
mod barrier_closing;
mod contenders;
mod counter;
mod double_barrier;
mod drops;
mod ended_watches;
mod herd;
mod latch;
mod membership;
mod model;
mod multilock;
mod one_cursor;
mod queue;
mod rivals;
mod rwlock;
mod semaphore;
mod sleepers;
mod table;
mod waits;
mod world;

use std::future::Future;

use etcd_concurrency::Result;
use tokio::task::JoinHandle;

use crate::support::backend::Backend;
use crate::support::queue::until_queue;

/// Asks in a task, and returns once there are so many keys under the name.
async fn ask<T: Send + 'static>(
    backend: &Backend,
    name: &str,
    keys: usize,
    asking: impl Future<Output = Result<T>> + Send + 'static,
) -> JoinHandle<Result<T>> {
    let asking = tokio::spawn(asking);
    until_queue(&backend.client(), name, keys).await;
    asking
}
