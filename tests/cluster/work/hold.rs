//! One who holds a lock, or leads, again and again, and writes behind its fence.
//!
//! `entered`; and afterwards `held`, then: the token, from when to when it believed to hold, and how many of its writes
//! were acknowledged.

use etcd_concurrency::{Client, Election, ErrorKind, Fence, Mutex, Op};
use tokio::time::{Instant, sleep, sleep_until};

use super::{HOLD, LOOK, now, open, tell};

pub(super) async fn lock(client: Client) {
    loop {
        let session = open(&client).await;
        let mutex = Mutex::new(&session, "lock").expect("a name");
        while session.is_valid() {
            match mutex.lock().await {
                Ok(guard) => {
                    hold(&guard, "lock").await;
                    note(guard.unlock().await);
                }
                Err(error) => tell("trouble", &error.to_string()),
            }
        }
    }
}

pub(super) async fn lead(client: Client, number: usize) {
    loop {
        let session = open(&client).await;
        let election = Election::new(&session, "election").expect("a name");
        while session.is_valid() {
            match election.campaign(number.to_string()).await {
                Ok(leadership) => {
                    hold(&leadership, "election").await;
                    note(leadership.resign().await);
                }
                Err(error) => tell("trouble", &error.to_string()),
            }
        }
    }
}

/// Its own word is taken at moments: a moment before it says that it holds counts, whatever happens right after.
async fn hold(fence: &Fence, what: &str) {
    let (entered, end) = (now(), Instant::now() + HOLD);
    if !fence.is_valid() {
        return;
    }
    tell("entered", "");
    let (mut last, mut writes) = (entered, 0);
    loop {
        let moment = now();
        if !fence.is_valid() {
            break;
        }
        last = moment;
        // One who stood still in the middle is asked once more, too.
        if Instant::now() >= end {
            break;
        }
        let key = format!("{what}-log/{}/{writes}", fence.token());
        match fence.txn().success(Op::put(key, "")).commit().await {
            Ok(_) => writes += 1,
            Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Lost(_)) => break,
            Err(_) => {}
        }
        sleep(LOOK).await;
    }
    tell("held", &format!("{} {entered} {last} {writes}", fence.token()));
    sleep_until(end).await;
}

fn note(done: etcd_concurrency::Result<()>) {
    if let Err(error) = done {
        tell("trouble", &error.to_string());
    }
}
