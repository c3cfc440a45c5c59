//! Sends jobs, takes them, acknowledges them.

use etcd_concurrency::{Error, Job, Op, Queue, Session};

use super::Actor;
use crate::checks::held::{self, Mode};
use crate::checks::log::{GUARDED, text};
use crate::checks::told::Fate;
use crate::world::World;

pub(super) async fn act(actor: &mut Actor) {
    while let Some(session) = actor.session().await {
        let Ok(queue) = Queue::new(&session, "queue") else { return };
        // One handle for a while, so that slips are used again.
        for _ in 0..actor.rng.usize(1..6) {
            if actor.rng.bool() {
                send(actor, &queue, &session).await;
            } else {
                work(actor, &queue, &session).await;
            }
            actor.a_while().await;
        }
    }
}

async fn send(actor: &mut Actor, queue: &Queue, session: &Session) {
    let value = format!("job-{}", actor.world.id());
    actor.world.told.borrow_mut().sent.insert(value.clone(), Fate::Unknown);
    let sending = queue.enqueue(value.clone());
    let fate = match actor.world.wait("an enqueue", &mut actor.rng, Some(session), sending).await {
        Some(Ok(())) => Fate::Done(None),
        Some(Err(error)) => Fate::of(&error),
        None => Fate::Unknown,
    };
    actor.world.told.borrow_mut().sent.insert(value, fate);
}

async fn work(actor: &mut Actor, queue: &Queue, session: &Session) {
    let world = actor.world.clone();
    // There may be no job to wait for.
    let taken = match world.goes_on() && actor.rng.bool() && world.phase() == crate::world::Phase::Rough {
        true => {
            let patience = std::time::Duration::from_millis(actor.rng.u64(0..6_000));
            let taking = tokio::time::timeout(patience, queue.take());
            world
                .wait("a job", &mut actor.rng, Some(session), taking)
                .await
                .and_then(Result::ok)
                .map(|job| job.map(Some))
        }
        false => world.wait("a job", &mut actor.rng, Some(session), queue.try_take()).await,
    };
    let Some(Ok(Some(job))) = taken else { return };
    let value = text(job.value());
    let holds = held::enter(&world, &format!("job {value}"), Mode::Alone, job.fence(), session);
    actor.a_while().await;
    let (id, put) = done(&job);
    held::leave(&world, holds);
    match actor.rng.u8(0..8) {
        0 => drop(job),
        1 => drop(job.nack().await),
        _ => {
            world.puts(&id);
            let ack = job.ack_with([put]);
            let done = world.wait("an acknowledgement", &mut actor.rng, Some(session), ack).await;
            let fate = match done {
                Some(Ok(())) => Fate::Done(None),
                // Any other error means that it goes on in the background.
                Some(Err(error)) if error.lost_reason().is_some() => Fate::of(&error),
                _ => Fate::Unknown,
            };
            world.was_put(&id, fate);
        }
    }
}

/// What an acknowledgement leaves behind.
fn done(job: &Job) -> (String, Op) {
    let id = format!("{}/{}", text(job.value()), job.token());
    let value = format!("{id} {} {}", job.token(), text(job.fence().key()));
    (id, Op::put(format!("{GUARDED}job"), value))
}

/// Takes what is left, undisturbed.
pub(crate) async fn drain(world: &World) -> Result<(), Error> {
    let session = Session::open(&world.observer).await?;
    let queue = Queue::new(&session, "queue")?;
    while let Some(job) = queue.try_take().await? {
        let (id, put) = done(&job);
        job.ack_with([put]).await?;
        world.was_put(&id, Fate::Done(None));
    }
    drop(queue);
    session.close().await
}
