//! What else people coordinate with, one file each. None has an idea of its own of waiting, cleaning up or repeating.

mod barrier;
mod counter;
mod double_barrier;
mod latch;
mod membership;
mod multilock;
mod queue;
mod rwlock;
mod semaphore;

pub use barrier::Barrier;
pub use counter::Counter;
pub use double_barrier::{DoubleBarrier, Inside};
pub use latch::CountDownLatch;
pub use membership::{Member, MemberChange, MemberChanges, Membership, Peer, Resident};
pub use multilock::{MultiLock, MultiLockGuard};
pub use queue::{DeadLetter, Job, PriorityQueue, Queue};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Semaphore, SemaphorePermit};
