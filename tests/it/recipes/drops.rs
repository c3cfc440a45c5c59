//! Futures of the locks dropped at every await point leave nothing behind.

use std::future::Future;
use std::time::Duration;

use etcd_concurrency::fake::{Do, On, Rpc};
use etcd_concurrency::{Client, MultiLock, Mutex, Result, RwLock, Semaphore, Session};

use crate::drops::{MANY, at_most, nothing_left, take_time};
use crate::support::backend::{Backend, on_every_backend};
use crate::support::requests::puts;

/// Takes it with `take`, dropped after every number of polls: free, with a holder who leaves while it waits, and, on the
/// fake, both of these where the reply of its put is lost and it has to look what became of that.
async fn drop_everywhere<G, H, F, R>(
    backend: &Backend,
    names: &[String],
    hold: impl AsyncFn(Session) -> H,
    take: impl Fn(Session) -> F,
    release: impl Fn(G) -> R,
) where
    F: Future<Output = Result<G>>,
    R: Future<Output = Result<()>>,
{
    take_time(backend);
    let observer: Client = backend.client();
    let (a, b) = (Session::open(&observer).await.unwrap(), Session::open(&backend.client()).await.unwrap());
    let fake = backend.fake();
    let rounds = [(false, false), (true, false), (false, true), (true, true)];
    for (contended, lossy) in rounds.into_iter().filter(|(_, lossy)| !lossy || fake.is_some()) {
        let mut done = false;
        for polls in 0..MANY {
            let held = if contended { Some(hold(a.clone()).await) } else { None };
            let puts = || On::rpc(Rpc::Txn).matching(puts).once();
            let loss = fake.filter(|_| lossy).map(|fake| fake.fault(puts(), Do::lose_reply()));
            let taking = at_most(polls, take(b.clone()));
            let leaving = async {
                // Long enough for the other to stand in line; on the fake it takes no time.
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(held);
            };
            if let (Some(guard), ()) = tokio::join!(taking, leaving) {
                let released = at_most(polls, release(guard.unwrap())).await;
                done = released.is_some();
                released.transpose().unwrap();
            }
            if let Some(loss) = loss {
                assert!(!done || loss.hits() == 1, "no reply was lost");
                loss.remove();
            }
            for name in names {
                nothing_left(backend, &observer, name, polls).await;
            }
            if done {
                break;
            }
        }
        assert!(done, "never taken and released");
    }
}

on_every_backend! {
    async fn a_mutex(backend: Backend) {
        let name = backend.key("lock");
        let lock = |session: Session| Mutex::new(&session, &name).unwrap();
        let hold = async |session| lock(session).lock().await.unwrap();
        let take = |session| { let lock = lock(session); async move { lock.lock().await } };
        drop_everywhere(&backend, std::slice::from_ref(&name), hold, take, |guard| guard.unlock()).await;
    }

    async fn a_reader(backend: Backend) {
        let name = backend.key("lock");
        let lock = |session: Session| RwLock::new(&session, &name).unwrap();
        let hold = async |session| lock(session).write().await.unwrap();
        let take = |session| { let lock = lock(session); async move { lock.read().await } };
        drop_everywhere(&backend, std::slice::from_ref(&name), hold, take, |guard| guard.unlock()).await;
    }

    /// Who writes, lets readers in, and leaves.
    async fn a_writer(backend: Backend) {
        let name = backend.key("lock");
        let lock = |session: Session| RwLock::new(&session, &name).unwrap();
        let hold = async |session| lock(session).read().await.unwrap();
        let take = |session| { let lock = lock(session); async move { lock.write().await } };
        let release = async |guard: etcd_concurrency::RwLockWriteGuard| guard.downgrade().await?.unlock().await;
        drop_everywhere(&backend, std::slice::from_ref(&name), hold, take, release).await;
    }

    async fn permits(backend: Backend) {
        let name = backend.key("s");
        let semaphore = |session: Session| Semaphore::new(&session, &name, 3).unwrap();
        let hold = async |session| semaphore(session).acquire_many(2).await.unwrap();
        let take = |session| { let s = semaphore(session); async move { s.acquire_many(2).await } };
        let names = [format!("{name}/queue")];
        drop_everywhere(&backend, &names, hold, take, |permit| permit.release()).await;
    }

    async fn several_locks(backend: Backend) {
        let names = [backend.key("0"), backend.key("1"), backend.key("2")];
        let locks = |session: Session, of: &[String]| MultiLock::new(&session, of).unwrap();
        let hold = async |session| locks(session, &names[1..]).lock().await.unwrap();
        let take = |session| { let locks = locks(session, &names[..2]); async move { locks.lock().await } };
        drop_everywhere(&backend, &names, hold, take, |guard| guard.unlock()).await;
    }
}
