//! Turns within one process: tasks that share a lease and a name queue here, fairly, and only the first goes to the
//! server. Two of them would otherwise hold the same key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedMutexGuard};

/// The queues of one lease, by name.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    queues: Arc<Mutex<BTreeMap<Bytes, Queue>>>,
    /// Tells that there is a name on which nobody is left.
    unwanted: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    queue: Arc<tokio::sync::Mutex<()>>,
    /// Who has the turn gives it up when another session adopts the lease.
    gives_way: bool,
}

/// One's turn; the next in line gets it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    name: Bytes,
    /// None only while it is being dropped.
    turn: Option<OwnedMutexGuard<()>>,
    locals: Locals,
}

impl Locals {
    /// Waits for one's turn, in order of arrival.
    pub(crate) async fn turn(&self, name: &Bytes) -> Turn {
        // Made before the wait: a future that is dropped while it waits takes the queue out again if it was the last.
        let mut turn = Turn { name: name.clone(), turn: None, locals: self.share() };
        let queue = self.queue(name);
        turn.turn = Some(queue.lock_owned().await);
        turn
    }

    /// One's turn if nobody has it.
    pub(crate) fn try_turn(&self, name: &Bytes) -> Option<Turn> {
        // In one step: one that fails while the holder leaves would keep the holder from taking the queue out.
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(name.clone()).or_default().queue.clone();
        let turn = queue.try_lock_owned().ok()?;
        drop(queues);
        Some(Turn { name: name.clone(), turn: Some(turn), locals: self.share() })
    }

    /// One's turn once nobody has it or waits for it: who takes it keeps no task waiting, but those that come after.
    pub(crate) async fn unwanted_turn(&self, name: &Bytes) -> Turn {
        loop {
            let mut told = std::pin::pin!(self.unwanted.notified());
            told.as_mut().enable();
            {
                let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
                // In one step: a queue that is new in the map is free for as long as the map is held.
                if !queues.contains_key(name)
                    && let Ok(turn) = queues.entry(name.clone()).or_default().queue.clone().try_lock_owned()
                {
                    return Turn { name: name.clone(), turn: Some(turn), locals: self.share() };
                }
            }
            told.await;
        }
    }

    fn queue(&self, name: &Bytes) -> Arc<tokio::sync::Mutex<()>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.entry(name.clone()).or_default().queue.clone()
    }

    /// Another session has adopted the lease: what users were given before is its to take up.
    pub(super) fn give_way(&self) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| !queue.gives_way);
        drop(queues);
        self.unwanted.notify_waiters();
    }

    fn share(&self) -> Self {
        Self { queues: self.queues.clone(), unwanted: self.unwanted.clone() }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Turn {
    /// The queue that it is the turn in.
    pub(crate) fn name(&self) -> &Bytes {
        &self.name
    }

    /// Whether who adopts the lease gets the turn all the same.
    pub(crate) fn gives_way(&self, gives_way: bool) {
        let mut queues = self.locals.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(turn), Some(queue)) = (&self.turn, queues.get_mut(&self.name))
            && Arc::ptr_eq(OwnedMutexGuard::mutex(turn), &queue.queue)
        {
            queue.gives_way = gives_way;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.gives_way(false);
        // Before the lock: it wakes the next in line.
        drop(self.turn.take());
        let mut queues = self.locals.queues.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits holds the queue too; with nobody left, its entry is garbage.
        if queues.get(&self.name).is_some_and(|queue| Arc::strong_count(&queue.queue) == 1) {
            queues.remove(&self.name);
            drop(queues);
            self.locals.unwanted.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_in_order_and_leave_nothing() {
        let locals = Arc::new(Locals::default());
        let name = Bytes::from_static(b"a/");
        let first = locals.turn(&name).await;
        assert!(locals.try_turn(&name).is_none());
        assert!(locals.try_turn(&Bytes::from_static(b"b/")).is_some());

        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for i in 0..8 {
            let (locals, name, order) = (locals.clone(), name.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = locals.turn(&name).await;
                order.lock().unwrap().push(i);
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(locals.len(), 0);
    }

    /// What looks for a key that came late waits for the turn, and must not be the reason for which others do not get it.
    #[tokio::test]
    async fn who_takes_an_unwanted_turn_stands_behind_all() {
        let locals = Arc::new(Locals::default());
        let name = Bytes::from_static(b"a/");
        let first = locals.turn(&name).await;
        let last = tokio::spawn({
            let (locals, name) = (locals.clone(), name.clone());
            async move { drop(locals.unwanted_turn(&name).await) }
        });
        tokio::task::yield_now().await;
        drop(first);
        let second = locals.try_turn(&name).expect("nobody has it");
        tokio::task::yield_now().await;
        assert!(!last.is_finished());
        drop(second);
        last.await.unwrap();
        assert_eq!(locals.len(), 0);
    }

    /// One that failed had the queue in its hands while the holder left, who took it for one that waits.
    #[test]
    fn a_try_that_fails_as_the_holder_leaves_keeps_nothing() {
        let locals = Locals::default();
        let name = Bytes::from_static(b"a/");
        for _ in 0..20_000 {
            std::thread::scope(|scope| {
                let held = locals.try_turn(&name);
                scope.spawn(|| drop(locals.try_turn(&name)));
                drop(held);
            });
            assert_eq!(locals.len(), 0);
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_leaves_nothing() {
        let locals = Locals::default();
        let name = Bytes::from_static(b"a/");
        let first = locals.turn(&name).await;
        {
            let waiting = locals.turn(&name);
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("two have the turn"),
                () = std::future::ready(()) => {}
            }
        }
        drop(first);
        assert_eq!(locals.len(), 0);
        drop(locals.turn(&name).await);
        assert_eq!(locals.len(), 0);
    }
}
