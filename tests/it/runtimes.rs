//! Clients whose runtime is short of threads, or has ended.

use std::sync::mpsc;
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{LostReason, Session, SessionState};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const S: fn(u64) -> Duration = Duration::from_secs;

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A session was to be adopted, and another closed, while all threads that the runtime has for blocking work were taken:
/// the adoption was never told of the answer to its keep-alive, and the closing waited for ever.
#[test]
fn sessions_need_none_of_the_runtimes_blocking_threads() {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        let mut mine = Builder::new_multi_thread();
        let mine = mine.worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap();
        let (go, gone) = mpsc::channel::<()>();
        mine.block_on(async {
            let fake = FakeEtcd::start();
            let client = fake.client();
            let first = Session::open(&client).await.unwrap();
            let long = tokio::task::spawn_blocking(move || gone.recv().is_err());
            let lease = first.orphan();
            let adopted = Session::builder(&client).lease(lease).open();
            let adopted = timeout(S(5), adopted).await.expect("it is adopted").unwrap();
            let state = adopted.state();
            timeout(S(5), adopted.close()).await.expect("it is closed").unwrap();
            assert_eq!(*state.borrow(), SessionState::Lost(LostReason::Closed));

            // And with a borrow of the state.
            let session = Session::open(&client).await.unwrap();
            let state = session.state();
            let borrowed = state.borrow();
            timeout(S(5), session.close()).await.expect("it is closed").unwrap();
            drop(borrowed);
            drop(go);
            assert!(long.await.unwrap());
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(S(60)).expect("it hangs, or has failed");
}

/// The client's runtime had ended, and its session was let go of under a borrow of its state: the thread waited for itself.
#[test]
fn a_session_may_be_ended_under_a_borrow_when_its_runtime_has_ended() {
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        for close in [true, false] {
            let (mine, fake) = (current_thread(), FakeEtcd::start());
            let session = mine.block_on(async { Session::open(&fake.client()).await.unwrap() });
            let state = session.state();
            let borrowed = state.borrow();
            drop(mine);
            if close {
                current_thread().block_on(async { drop(session.close().await) });
            }
            drop(session);
            drop(borrowed);
        }
        done.send(()).unwrap();
    });
    is_done.recv_timeout(S(60)).expect("it hangs, or has failed");
}
