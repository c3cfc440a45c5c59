//! What is explored.

pub(crate) mod barrier;
pub(crate) mod lock;
pub(crate) mod queue;
pub(crate) mod rwlock;
pub(crate) mod semaphore;
pub(crate) mod stm;
