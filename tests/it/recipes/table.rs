//! Everything that one can wait for with a recipe, in one form, so that what holds for all is said once.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;

use etcd_concurrency::{
    Barrier, Client, CountDownLatch, DoubleBarrier, Membership, MultiLock, PriorityQueue, Queue, Result,
    RwLock, Semaphore, Session,
};
use tokio::task::JoinHandle;

use super::world::keys;
use crate::support::count::RpcCounter;
use crate::support::poll::until;
use crate::support::queue::{LONG, quiet};

/// Whatever one got by waiting. Dropped, it is given up.
pub(super) type Got = Box<dyn Any + Send>;
/// What was begun, or will be when it is polled first.
pub(super) type Doing = Pin<Box<dyn Future<Output = Result<Got>> + Send>>;

/// A kind of wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wait {
    Reader,
    Writer,
    Permit,
    Several,
    Gate,
    Round,
    Latch,
    Item,
    Urgent,
    Change,
}

use Wait::*;

impl Wait {
    pub(super) const ALL: [Wait; 10] =
        [Reader, Writer, Permit, Several, Gate, Round, Latch, Item, Urgent, Change];
    /// Where what is waited for is in somebody's hand.
    pub(super) const LOCKS: [Wait; 4] = [Reader, Writer, Permit, Several];

    /// Makes that so many others have to wait, and gives what ends that.
    pub(super) async fn hold(self, session: &Session, name: &str, waiters: u32) -> Result<Doing> {
        Ok(match self {
            Reader | Writer => {
                let guard = RwLock::new(session, name)?.write().await?;
                nothing(guard.unlock())
            }
            Permit => {
                let permit = Semaphore::new(session, name, 1)?.acquire().await?;
                nothing(permit.release())
            }
            Several => {
                let guard = MultiLock::new(session, several(name, ["a", "b"]))?.lock().await?;
                nothing(guard.unlock())
            }
            Gate => {
                let gate = Barrier::new(session, name)?;
                gate.hold().await?;
                nothing(async move { gate.release().await })
            }
            Round => {
                let round = DoubleBarrier::new(session, name, waiters + 1)?;
                got(async move { round.enter().await })
            }
            Latch => {
                let latch = CountDownLatch::new(session, name, 1)?;
                nothing(async move { latch.count_down().await.map(drop) })
            }
            Item => {
                let queue = Queue::new(session, name)?;
                nothing(async move { queue.enqueue("item").await })
            }
            Urgent => {
                let queue = PriorityQueue::new(session, name)?;
                nothing(async move { queue.enqueue("item", 7).await })
            }
            Change => {
                let group = Membership::new(session, name)?;
                got(async move { group.join("here").await })
            }
        })
    }

    /// Waits, as one of so many.
    pub(super) fn wait(self, session: &Session, name: &str, waiters: u32) -> Doing {
        let (session, name) = (session.clone(), name.to_owned());
        match self {
            Reader => got(async move { RwLock::new(&session, name)?.read().await }),
            Writer => got(async move { RwLock::new(&session, name)?.write().await }),
            Permit => got(async move { Semaphore::new(&session, name, 1)?.acquire().await }),
            Several => got(async move { MultiLock::new(&session, several(&name, ["b", "c"]))?.lock().await }),
            Gate => got(async move { Barrier::new(&session, name)?.wait().await }),
            Round => got(async move { DoubleBarrier::new(&session, name, waiters + 1)?.enter().await }),
            Latch => got(async move { CountDownLatch::new(&session, name, 1)?.wait().await }),
            Item => got(async move { Queue::new(&session, name)?.dequeue().await }),
            Urgent => got(async move { PriorityQueue::new(&session, name)?.dequeue().await }),
            Change => got(async move {
                let mut changes = Membership::new(&session, name)?.changes();
                // The first tells who is here.
                changes.next().await?;
                changes.next().await
            }),
        }
    }

    /// Waits in a task, and returns once it stands as the last of so many.
    pub(super) async fn stand(
        self,
        session: &Session,
        counter: &RpcCounter,
        observer: &Client,
        name: &str,
        (place, waiters): (u32, u32),
    ) -> JoinHandle<Result<Got>> {
        let waiting = tokio::spawn(self.wait(session, name, waiters));
        self.until_stand(observer, name, place).await;
        quiet(counter).await;
        waiting
    }

    /// Returns once so many stand where others can see them.
    pub(super) async fn until_stand(self, observer: &Client, name: &str, waiters: u32) {
        let holders = u32::from(Wait::LOCKS.contains(&self));
        self.until_line(observer, name, holders + waiters).await;
    }

    /// Returns once there are so many in the line, where there is one.
    pub(super) async fn until_line(self, observer: &Client, name: &str, all: u32) {
        let line = match self {
            Reader | Writer => format!("{name}/"),
            Permit => format!("{name}/queue/"),
            Several => format!("{name}.b/"),
            Round => format!("{name}/waiters/"),
            Item | Urgent => format!("{name}/waiting/"),
            Gate | Latch | Change => return,
        };
        until(&format!("{all} keys of {line}"), LONG, async || {
            (keys(observer, &line).await == all as usize).then_some(())
        })
        .await;
    }

    /// Whether one who makes way makes way for all.
    pub(super) fn is_for_all(self) -> bool {
        matches!(self, Reader | Gate | Round | Latch | Change)
    }

    /// How many keys stay when nobody is there any more.
    pub(super) fn leaves(self) -> usize {
        match self {
            // The number of permits; the count, and what was counted.
            Permit => 1,
            Latch => 2,
            _ => 0,
        }
    }
}

fn several(name: &str, which: [&str; 2]) -> [String; 2] {
    which.map(|which| format!("{name}.{which}"))
}

fn got<T: Send + 'static>(doing: impl Future<Output = Result<T>> + Send + 'static) -> Doing {
    Box::pin(async move { Ok(Box::new(doing.await?) as Got) })
}

fn nothing(doing: impl Future<Output = Result<()>> + Send + 'static) -> Doing {
    got(doing)
}
