//! Turns within one process: tasks that share a lease and a name queue here, fairly, and only the first goes to the
//! server. Two of them would otherwise hold the same key.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::sleep;

use super::lock;

/// The queues of one lease, by name.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    queues: Arc<Mutex<BTreeMap<Bytes, Queue>>>,
    /// Tells that there is a name on which nobody is left.
    unwanted: Arc<Notify>,
}

/// What a user was given, and has the turn for as long as it is kept.
pub(crate) trait Held: Debug + Send + Sync {
    /// It is known to be lost.
    fn is_lost(&self) -> bool;
    /// Resolves once it is lost, which is asked of the server.
    fn lost(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

#[derive(Debug, Default)]
struct Queue {
    /// Those who wait stand here: the one that gets past it is the next, and looks at what is held.
    next: Arc<tokio::sync::Mutex<()>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What the user has that was given the turn. It gives way to another session that adopts the lease, and is passed over
    /// once it is lost.
    held: Option<Arc<dyn Held>>,
    /// Tells that `held` has changed.
    told: Arc<Notify>,
}

/// One's turn; the next in line gets it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    name: Bytes,
    /// None only while it is waited for, or dropped.
    turn: Option<OwnedMutexGuard<()>>,
    locals: Locals,
}

impl Locals {
    /// Waits for one's turn, in order of arrival. A guard whose key is lost, and that the user keeps, is not waited for.
    pub(crate) async fn turn(&self, name: &Bytes) -> Turn {
        match self.try_turn(name) {
            Some(turn) => turn,
            // Boxed, since most need not wait.
            None => Box::pin(self.wait(name)).await,
        }
    }

    async fn wait(&self, name: &Bytes) -> Turn {
        // Made before the wait: a future that is dropped while it waits takes the queue out again if it was the last.
        let mut turn = Turn { name: name.clone(), turn: None, locals: self.share() };
        let next = lock(&self.queues).entry(name.clone()).or_default().next.clone();
        let _next = next.lock_owned().await;
        loop {
            let told = lock(&self.queues).entry(name.clone()).or_default().told.clone();
            // Made before what is held is looked at: no change is missed.
            let told = told.notified();
            self.pass_over_lost(name);
            let (queue, held) = {
                let mut queues = lock(&self.queues);
                let queue = queues.entry(name.clone()).or_default();
                (queue.turn.clone(), queue.held.clone())
            };
            tokio::select! {
                biased;
                got = queue.lock_owned() => {
                    // Where what was held was passed over meanwhile, the turn is another, which a third task may have.
                    if self.is_turn(name, &got) {
                        turn.turn = Some(got);
                        return turn;
                    }
                }
                // The place in the queue is kept: there is no other before the turn.
                () = told => {}
                () = lost(held) => {}
            }
        }
    }

    /// One's turn if nobody has it.
    pub(crate) fn try_turn(&self, name: &Bytes) -> Option<Turn> {
        self.pass_over_lost(name);
        // In one step: one that fails while the holder leaves would keep the holder from taking the queue out.
        let mut queues = lock(&self.queues);
        let queue = queues.entry(name.clone()).or_default();
        // Not before those who wait.
        let next = queue.next.clone().try_lock_owned().ok()?;
        let turn = queue.turn.clone().try_lock_owned().ok()?;
        drop(next);
        drop(queues);
        Some(Turn { name: name.clone(), turn: Some(turn), locals: self.share() })
    }

    /// One's turn once nobody has it or waits for it: who takes it keeps no task waiting, but those that come after. A guard
    /// whose key is lost, and that the user keeps, is not waited for.
    pub(crate) async fn unwanted_turn(&self, name: &Bytes) -> Turn {
        // Kept over what wakes this up: other names' turns may end more often than a guard is found to be lost.
        let mut watched = Watched::of(None);
        loop {
            // Made before the queue is looked at: no change is missed.
            let unwanted = self.unwanted.notified();
            let told = lock(&self.queues).entry(name.clone()).or_default().told.clone();
            let told = told.notified();
            self.pass_over_lost(name);
            let (told, held) = {
                let mut queues = lock(&self.queues);
                let queue = queues.entry(name.clone()).or_default();
                // In one step: a queue that no task has a part of is free for as long as the map is held.
                if queue.is_unwanted()
                    && let Ok(turn) = queue.turn.clone().try_lock_owned()
                {
                    return Turn { name: name.clone(), turn: Some(turn), locals: self.share() };
                }
                (told, queue.held.clone())
            };
            if !watched.is_of(held.as_ref()) {
                watched = Watched::of(held);
            }
            tokio::select! {
                biased;
                () = unwanted => {}
                // A guard was handed out, or given up.
                () = told => {}
                () = &mut watched.lost => watched = Watched::of(None),
            }
        }
    }

    /// Another session has adopted the lease: what users were given before is its to take up.
    pub(super) fn give_way(&self) {
        let mut queues = lock(&self.queues);
        let (given, stay) = std::mem::take(&mut *queues)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, queue)| queue.held.is_some());
        *queues = stay;
        drop(queues);
        self.unwanted.notify_waiters();
        // Each may be the last handle of something that looks in here.
        drop(given);
    }

    /// Whether this is the turn of now.
    fn is_turn(&self, name: &Bytes, turn: &OwnedMutexGuard<()>) -> bool {
        let queues = lock(&self.queues);
        queues.get(name).is_some_and(|queue| Arc::ptr_eq(OwnedMutexGuard::mutex(turn), &queue.turn))
    }

    /// A turn that goes with a lost guard is none any more.
    fn pass_over_lost(&self, name: &Bytes) {
        let mut queues = lock(&self.queues);
        let Some(queue) = queues.get_mut(name) else { return };
        let lost = queue.held.take_if(|held| held.is_lost());
        if lost.is_some() {
            queue.turn = Arc::default();
            // The task that waits is to wait for this one.
            queue.told.notify_waiters();
        }
        drop(queues);
        // It may be the last handle of something that looks in here.
        drop(lost);
    }

    fn share(&self) -> Self {
        Self { queues: self.queues.clone(), unwanted: self.unwanted.clone() }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.queues).len()
    }
}

impl Queue {
    fn is_unwanted(&self) -> bool {
        // Who waits holds a part of it, too.
        Arc::strong_count(&self.turn) == 1 && Arc::strong_count(&self.next) == 1
    }
}

impl Turn {
    /// The queue that it is the turn in.
    pub(crate) fn name(&self) -> &Bytes {
        &self.name
    }

    /// A user is given this, and has the turn for as long as it is kept; or, with None, does not have it any more. False
    /// where the turn is another's by then.
    pub(crate) fn set_held(&self, held: Option<Arc<dyn Held>>) -> bool {
        let mut queues = lock(&self.locals.queues);
        let Some(turn) = &self.turn else { return false };
        let queue = queues.get_mut(&self.name);
        let Some(queue) = queue.filter(|queue| Arc::ptr_eq(OwnedMutexGuard::mutex(turn), &queue.turn)) else {
            return false;
        };
        let before = std::mem::replace(&mut queue.held, held);
        queue.told.notify_waiters();
        drop(queues);
        // It may be the last handle of something that looks in here.
        drop(before);
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.set_held(None);
        // Before the lock: it wakes the next in line.
        drop(self.turn.take());
        let mut queues = lock(&self.locals.queues);
        // Where no task wants it, its entry is garbage.
        if queues.get(&self.name).is_some_and(Queue::is_unwanted) {
            queues.remove(&self.name);
            drop(queues);
            self.locals.unwanted.notify_waiters();
        }
    }
}

/// What is held, and is watched for its loss; or nothing.
struct Watched {
    held: Option<Arc<dyn Held>>,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Watched {
    fn of(held: Option<Arc<dyn Held>>) -> Self {
        Self { lost: Box::pin(lost(held.clone())), held }
    }

    fn is_of(&self, held: Option<&Arc<dyn Held>>) -> bool {
        match (&self.held, held) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

/// Resolves once what is held is lost. Most is released soon, and need not be watched.
async fn lost(held: Option<Arc<dyn Held>>) {
    let Some(held) = held else { return std::future::pending().await };
    sleep(PATIENCE).await;
    held.lost().await;
}

/// How long a guard is waited for before its key is watched.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Guard(std::sync::atomic::AtomicBool);

    impl Held for Guard {
        fn is_lost(&self) -> bool {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }

        fn lost(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(std::future::pending())
        }
    }

    /// A task waited for the turn of a guard that was passed over by another task: when the guard was dropped, each had a turn.
    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_passed_over_is_given_to_none() {
        let locals = Arc::new(Locals::default());
        let (name, guard) = (Bytes::from_static(b"a/"), Arc::new(Guard::default()));
        let first = locals.turn(&name).await;
        assert!(first.set_held(Some(guard.clone())));
        let waiting = tokio::spawn({
            let (locals, name) = (locals.clone(), name.clone());
            async move { locals.turn(&name).await }
        });
        sleep(PATIENCE / 10).await;
        guard.0.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(locals.try_turn(&name).is_none(), "another waits");
        drop(first);
        let second = waiting.await.unwrap();
        assert!(locals.try_turn(&name).is_none(), "two have the turn");
        assert!(second.set_held(Some(guard)), "it is the turn of now");
        drop(second);
        assert_eq!(locals.len(), 0);
    }

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
