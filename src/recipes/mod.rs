//! What else people coordinate with, one file each. None has an idea of its own of waiting, cleaning up or repeating.

mod multilock;
mod rwlock;
mod semaphore;

pub use multilock::{MultiLock, MultiLockGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{Semaphore, SemaphorePermit};
