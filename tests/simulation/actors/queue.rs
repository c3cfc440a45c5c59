//! Sends jobs, takes them, acknowledges them; or takes them off at once.

use std::time::Duration;

use bytes::Bytes;
use etcd_concurrency::{DeadLetter, Error, Job, Op, PriorityQueue, Queue, Result, Session};

use super::Actor;
use crate::checks::held::{self, Mode};
use crate::checks::log::{GUARDED, text};
use crate::checks::orphans::InHand;
use crate::checks::told::Fate;
use crate::wide::{self, Wide};
use crate::world::{Phase, World};

/// A queue of either order.
enum Line {
    Plain(Queue),
    Urgent(PriorityQueue),
}

pub(super) async fn act(actor: &mut Actor) {
    while let Some(session) = actor.session().await {
        let line = if actor.rng.bool() { Line::plain(&session) } else { Line::urgent(&session) };
        let Ok(line) = line else { return };
        // One handle for a while, so that slips are used again.
        for _ in 0..actor.rng.usize(1..6) {
            match actor.rng.u8(0..5) {
                4 if wide::on(Wide::Letters) => Box::pin(letters(actor, &line, &session)).await,
                0 | 1 => Box::pin(send(actor, &line, &session)).await,
                2 => Box::pin(work(actor, &line, &session)).await,
                _ => Box::pin(take_off(actor, &line, &session)).await,
            }
            actor.a_while().await;
        }
    }
}

async fn send(actor: &mut Actor, line: &Line, session: &Session) {
    let value = format!("job-{}", actor.world.id());
    actor.world.told.borrow_mut().sent.insert(value.clone(), Fate::Unknown);
    let sending = line.enqueue(value.clone(), actor.rng.u32(0..3));
    let fate = match actor.world.wait("an enqueue", &mut actor.rng, Some(session), sending).await {
        Some(Ok(())) => Fate::Done(None),
        Some(Err(error)) => Fate::of(&error),
        None => Fate::Unknown,
    };
    actor.world.told.borrow_mut().sent.insert(value, fate);
}

async fn work(actor: &mut Actor, line: &Line, session: &Session) {
    let world = actor.world.clone();
    let taking = Box::pin(line.take(patience(actor)));
    let taken = world.wait("a job", &mut actor.rng, Some(session), taking).await.flatten();
    let Some(Ok(Some(job))) = taken else { return };
    let value = text(job.value());
    let holds = held::enter(&world, &format!("job {value}"), Mode::Alone, job.fence(), session);
    let in_hand = InHand::of(&world, job.fence());
    actor.a_while().await;
    let (id, put) = done(&job);
    held::leave(&world, holds);
    drop(in_hand);
    match actor.rng.u8(0..8) {
        0 => drop(job),
        1 => drop(job.nack().await),
        _ => {
            world.puts(&id);
            let ack = job.ack_with([put]);
            let done = world.wait("an acknowledgement", &mut actor.rng, Some(session), ack).await;
            let fate = match done {
                Some(Ok(())) => Fate::Done(None),
                Some(Err(error)) => Fate::of(&error),
                None => Fate::Unknown,
            };
            world.was_put(&id, fate);
        }
    }
}

async fn take_off(actor: &mut Actor, line: &Line, session: &Session) {
    let world = actor.world.clone();
    let taking = Box::pin(line.dequeue(patience(actor)));
    let mut told = match world.wait("a dequeue", &mut actor.rng, Some(session), taking).await.flatten() {
        Some(Ok(None)) => return,
        Some(Ok(Some(value))) => {
            world.count("taken off");
            return world.told.borrow_mut().taken_off.push(text(&value));
        }
        Some(Err(error)) if Fate::of(&error) == Fate::Refused => return,
        Some(Err(_)) | None => world.told.borrow_mut(),
    };
    told.not_taken_off.push(session.state());
}

/// Looks at what there is, and puts dead letters back or deletes them.
async fn letters(actor: &mut Actor, line: &Line, session: &Session) {
    let world = actor.world.clone();
    if let Some(Ok(Some(value))) = world.wait("a peek", &mut actor.rng, Some(session), line.peek()).await
        && !world.told.borrow().sent.contains_key(&text(&value))
    {
        world.violate(format!("{value:?} is in a queue, and was sent by nobody"));
    }
    let letters = world.wait("dead letters", &mut actor.rng, Some(session), line.letters()).await;
    let Some(Ok(letters)) = letters else { return };
    for letter in letters.into_iter().take(2) {
        let (value, key) = (text(&letter.value), (letter.key.to_vec(), letter.revision));
        let deletes = actor.rng.u8(0..4) == 0;
        let moving = async {
            match deletes {
                true => line.discard(&letter).await,
                false => line.requeue(&letter).await,
            }
        };
        let moved = world.wait("a dead letter", &mut actor.rng, Some(session), moving).await;
        let told = &mut *world.told.borrow_mut();
        match moved {
            Some(Ok(true)) => {
                let times = told.letters.entry(key).or_default();
                *times += 1;
                if *times > 1 {
                    world.violate(format!("the dead letter {value} was moved twice"));
                }
                if deletes {
                    told.taken_off.push(value);
                }
            }
            Some(Err(error)) if deletes && Fate::of(&error) == Fate::Unknown => {
                told.perhaps_discarded.push(value);
            }
            None if deletes => told.perhaps_discarded.push(value),
            _ => {}
        }
    }
}

/// How long to wait for a job, of which there may be none; None for not at all.
fn patience(actor: &mut Actor) -> Option<Duration> {
    let waits = actor.rng.bool() && actor.world.phase() == Phase::Rough;
    waits.then(|| Duration::from_millis(actor.rng.u64(0..6_000)))
}

impl Line {
    fn plain(session: &Session) -> Result<Self> {
        let queue = Queue::new(session, "queue")?;
        Ok(Self::Plain(if wide::on(Wide::Letters) { queue.max_deliveries(3)? } else { queue }))
    }

    fn urgent(session: &Session) -> Result<Self> {
        let queue = PriorityQueue::new(session, "urgent")?;
        Ok(Self::Urgent(if wide::on(Wide::Letters) { queue.max_deliveries(3)? } else { queue }))
    }

    async fn letters(&self) -> Result<Vec<DeadLetter>> {
        match self {
            Self::Plain(queue) => queue.dead_letters().await,
            Self::Urgent(queue) => queue.dead_letters().await,
        }
    }

    async fn requeue(&self, letter: &DeadLetter) -> Result<bool> {
        match self {
            Self::Plain(queue) => queue.requeue(letter).await,
            Self::Urgent(queue) => queue.requeue(letter).await,
        }
    }

    async fn discard(&self, letter: &DeadLetter) -> Result<bool> {
        match self {
            Self::Plain(queue) => queue.discard(letter).await,
            Self::Urgent(queue) => queue.discard(letter).await,
        }
    }

    async fn peek(&self) -> Result<Option<Bytes>> {
        match self {
            Self::Plain(queue) => queue.peek().await,
            Self::Urgent(queue) => queue.peek().await,
        }
    }

    async fn enqueue(&self, value: String, priority: u32) -> Result<()> {
        match self {
            Self::Plain(queue) => queue.enqueue(value).await,
            Self::Urgent(queue) => queue.enqueue(value, priority).await,
        }
    }

    /// None where that took too long.
    async fn take(&self, patience: Option<Duration>) -> Option<Result<Option<Job>>> {
        match self {
            Self::Plain(queue) => next(patience, queue.try_take(), queue.take()).await,
            Self::Urgent(queue) => next(patience, queue.try_take(), queue.take()).await,
        }
    }

    /// None where that took too long.
    async fn dequeue(&self, patience: Option<Duration>) -> Option<Result<Option<Bytes>>> {
        match self {
            Self::Plain(queue) => next(patience, queue.try_dequeue(), queue.dequeue()).await,
            Self::Urgent(queue) => next(patience, queue.try_dequeue(), queue.dequeue()).await,
        }
    }
}

/// One of both is done, by whether there is patience to wait.
async fn next<T>(
    patience: Option<Duration>,
    at_once: impl Future<Output = Result<Option<T>>>,
    waiting: impl Future<Output = Result<T>>,
) -> Option<Result<Option<T>>> {
    match patience {
        None => Some(at_once.await),
        Some(patience) => Some(tokio::time::timeout(patience, waiting).await.ok()?.map(Some)),
    }
}

/// What an acknowledgement leaves behind.
fn done(job: &Job) -> (String, Op) {
    let id = format!("{}/{}", text(job.value()), job.token());
    let value = format!("{id} {} {} 1", job.token(), text(job.fence().key()));
    (id, Op::put(format!("{GUARDED}job"), value))
}

/// Takes what is left, undisturbed.
pub(crate) async fn drain(world: &World) -> Result<(), Error> {
    let session = Session::open(&world.observer).await?;
    for line in [Line::plain(&session)?, Line::urgent(&session)?] {
        while let Some(job) = line.take(None).await.transpose()?.flatten() {
            let (id, put) = done(&job);
            job.ack_with([put]).await?;
            world.was_put(&id, Fate::Done(None));
        }
        // Nobody else is there.
        for letter in line.letters().await? {
            if !line.requeue(&letter).await? {
                world.violate(format!("{letter:?} is there, and is not"));
            }
            let Some(job) = line.take(None).await.transpose()?.flatten() else { continue };
            let (id, put) = done(&job);
            job.ack_with([put]).await?;
            world.was_put(&id, Fate::Done(None));
        }
    }
    session.close().await
}
