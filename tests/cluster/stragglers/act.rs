//! What is done through a member that stands still, and how it ends.

use std::time::Duration;

use etcd_concurrency::{
    Barrier, Client, DoubleBarrier, Election, Error, ErrorKind, Inside, Job, Leadership, Member, Membership,
    MultiLock, MultiLockGuard, Mutex, MutexGuard, Op, Outcome, Queue, Result, RwLock, RwLockReadGuard,
    RwLockWriteGuard, Semaphore, SemaphorePermit, Session, Stm, StmTxn, Txn,
};
use tokio::time::{sleep, timeout};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Lock,
    Election,
    Semaphore,
    Membership,
    Read,
    Write,
    MultiLock,
    DoubleBarrier,
    Barrier,
    Take,
    Dequeue,
    Enqueue,
    ExactlyOnce,
}

impl Kind {
    pub(crate) const ALL: [Kind; 13] = [
        Kind::Lock,
        Kind::Election,
        Kind::Semaphore,
        Kind::Membership,
        Kind::Read,
        Kind::Write,
        Kind::MultiLock,
        Kind::DoubleBarrier,
        Kind::Barrier,
        Kind::Take,
        Kind::Dequeue,
        Kind::Enqueue,
        Kind::ExactlyOnce,
    ];
}

/// How it ends, while the member stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// Released, left, resigned, acknowledged.
    Release,
    Drop,
    /// The future is dropped on its way.
    DropUnderWay,
    Close,
    CloseUnderWay,
    /// The session's handles are dropped, and with them all that was had through it.
    Gone,
    GoneUnderWay,
    /// What was had is dropped, and the session orphaned and adopted at once.
    Adopt,
    AdoptUnderWay,
}

impl Ending {
    pub(crate) const ALL: [Ending; 9] = [
        Ending::Release,
        Ending::Drop,
        Ending::DropUnderWay,
        Ending::Close,
        Ending::CloseUnderWay,
        Ending::Gone,
        Ending::GoneUnderWay,
        Ending::Adopt,
        Ending::AdoptUnderWay,
    ];

    /// Whether the session lives on, so that what others share it for can share it.
    pub(crate) fn spares_the_session(self) -> bool {
        matches!(self, Ending::Release | Ending::Drop | Ending::DropUnderWay)
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Got,
    /// Got, and its release is known to be done: of a job, acknowledged.
    Released,
    Failed(Outcome),
    Dropped,
}

/// What was had.
pub(crate) enum Held {
    Lock(MutexGuard),
    Election(Leadership),
    Semaphore(SemaphorePermit),
    Membership(Member),
    Read(RwLockReadGuard),
    Write(RwLockWriteGuard),
    MultiLock(MultiLockGuard),
    DoubleBarrier(Inside),
    Barrier(Barrier),
    Take(Job),
    /// Something was done that leaves nothing in hand.
    Nothing,
}

impl Held {
    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Held::Lock(guard) => guard.unlock().await,
            Held::Election(leadership) => leadership.resign().await,
            Held::Semaphore(permit) => permit.release().await,
            Held::Membership(member) => member.leave().await,
            Held::Read(guard) => guard.unlock().await,
            Held::Write(guard) => guard.unlock().await,
            Held::MultiLock(guard) => guard.unlock().await,
            Held::DoubleBarrier(inside) => inside.leave().await,
            Held::Barrier(barrier) => barrier.release().await,
            Held::Take(job) => job.ack().await,
            Held::Nothing => Ok(()),
        }
    }

    /// It does not go with its handle, nor with a session.
    fn outlives_all(&self) -> bool {
        matches!(self, Held::Barrier(_))
    }
}

/// The key that a run of the STM writes.
pub(crate) fn value(name: &str) -> String {
    format!("{name}/value")
}

pub(crate) fn marks(name: &str) -> String {
    format!("{name}/marks/")
}

/// Does it once.
async fn once(kind: Kind, session: Session, name: String) -> Result<Held> {
    let client = session.client().clone();
    Ok(match kind {
        Kind::Lock => Held::Lock(Mutex::new(&session, &name)?.lock().await?),
        Kind::Election => Held::Election(Election::new(&session, &name)?.campaign("").await?),
        Kind::Semaphore => Held::Semaphore(Semaphore::new(&session, &name, 1)?.acquire().await?),
        Kind::Membership => Held::Membership(Membership::new(&session, &name)?.join("").await?),
        Kind::Read => Held::Read(RwLock::new(&session, &name)?.read().await?),
        Kind::Write => Held::Write(RwLock::new(&session, &name)?.write().await?),
        Kind::MultiLock => {
            let names = ["a", "b"].map(|part| format!("{name}/{part}"));
            Held::MultiLock(MultiLock::new(&session, names)?.lock().await?)
        }
        Kind::DoubleBarrier => Held::DoubleBarrier(DoubleBarrier::new(&session, &name, 1)?.enter().await?),
        Kind::Barrier => {
            let barrier = Barrier::new(&session, &name)?;
            barrier.hold().await?;
            Held::Barrier(barrier)
        }
        Kind::Take => Held::Take(Queue::new(&session, &name)?.take().await?),
        Kind::Dequeue => Queue::new(&session, &name)?.dequeue().await.map(|_| Held::Nothing)?,
        Kind::Enqueue => Queue::new(&session, &name)?.enqueue("item").await.map(|()| Held::Nothing)?,
        Kind::ExactlyOnce => {
            let stm = Stm::new(&client).marker_prefix(marks(&name)).exactly_once(&session);
            let key = value(&name);
            stm.run(|txn: StmTxn| std::future::ready(txn.put(key.clone(), "run"))).await?;
            Held::Nothing
        }
    })
}

/// Does it, and ends it. Gives the session that has adopted the lease, where one has.
pub(crate) async fn act(
    kind: Kind,
    ending: Ending,
    session: Session,
    name: &str,
    under_way: Duration,
) -> (Fate, Option<Session>) {
    let doing = once(kind, session.clone(), name.to_owned());
    let lease = session.lease();
    let client = session.client().clone();
    match ending {
        Ending::Release => match doing.await {
            Ok(held) => match held.release().await {
                Ok(()) => (Fate::Released, None),
                Err(_) => (Fate::Got, None),
            },
            Err(error) => (failed(&error), None),
        },
        Ending::Drop => (end(doing.await).await, None),
        Ending::DropUnderWay => {
            let done = timeout(under_way, doing).await;
            drop(session);
            match done {
                Ok(done) => (end(done).await, None),
                Err(_) => (Fate::Dropped, None),
            }
        }
        Ending::Close => {
            let done = doing.await;
            // What fails goes on in the background, or ends with the TTL.
            let _ = session.close().await;
            (end(done).await, None)
        }
        Ending::CloseUnderWay => {
            let closing = async {
                sleep(under_way).await;
                session.close().await
            };
            let (done, _) = tokio::join!(doing, closing);
            (end(done).await, None)
        }
        Ending::Gone => {
            let fate = end(doing.await).await;
            drop(session);
            (fate, None)
        }
        Ending::GoneUnderWay => {
            let done = timeout(under_way, doing).await;
            drop(session);
            match done {
                Ok(done) => (end(done).await, None),
                Err(_) => (Fate::Dropped, None),
            }
        }
        Ending::Adopt => {
            let fate = end(doing.await).await;
            session.orphan();
            (fate, adopt(&client, lease).await)
        }
        Ending::AdoptUnderWay => {
            let fate = match timeout(under_way, doing).await {
                Ok(done) => end(done).await,
                Err(_) => Fate::Dropped,
            };
            session.orphan();
            (fate, adopt(&client, lease).await)
        }
    }
}

/// Drops what was had, and releases what does not go by being dropped.
async fn end(done: Result<Held>) -> Fate {
    match done {
        Ok(held) if held.outlives_all() => match held.release().await {
            Ok(()) => Fate::Released,
            Err(_) => Fate::Got,
        },
        Ok(held) => {
            drop(held);
            Fate::Got
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> Fate {
    Fate::Failed(error.outcome())
}

/// As long as it takes, while there is something to adopt.
async fn adopt(client: &Client, lease: i64) -> Option<Session> {
    loop {
        match Session::builder(client).lease(lease).open().await {
            Ok(session) => return Some(session),
            Err(error) if *error.kind() == ErrorKind::LeaseNotFound => return None,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What must be there before.
pub(crate) async fn prepare(kind: Kind, session: &Session, name: &str) {
    if matches!(kind, Kind::Take | Kind::Dequeue) {
        let queue = Queue::new(session, name).expect("a name");
        queue.enqueue("item").await.expect("put");
    }
}

/// What a third party does with what came of it, right after it. Gives what it found.
pub(crate) async fn meddle(kind: Kind, session: &Session, name: &str) -> usize {
    match kind {
        Kind::Enqueue => {
            let queue = Queue::new(session, name).expect("a name");
            loop {
                match queue.try_dequeue().await {
                    Ok(item) => return usize::from(item.is_some()),
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            }
        }
        Kind::ExactlyOnce => {
            let txn = Txn::new().success(Op::delete(value(name)));
            while session.client().txn(txn.clone()).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
            0
        }
        _ => 0,
    }
}
