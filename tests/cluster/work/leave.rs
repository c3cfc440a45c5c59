//! One who takes a lock and gives it up in one of all ways, and often before it has it.
//!
//! `left`, then how. Its sessions last, so that a key which it leaves behind holds up all who come after it.

use std::time::Duration;

use etcd_concurrency::{Client, Mutex, Session};
use tokio::time::{sleep, timeout};

use super::tell;

/// Much longer than any of what is done here, and no longer than all is waited for in the end.
const TTL: Duration = Duration::from_secs(50);
const HOLD: Duration = Duration::from_millis(20);

pub(super) async fn work(client: Client) {
    let mut session = open(&client).await;
    loop {
        if !session.is_valid() {
            session = open(&client).await;
        }
        let mutex = Mutex::new(&session, "leave").expect("a name");
        let way = fastrand::u8(0..7);
        // Two of the ways do not wait until they have it.
        let patience = if way < 2 { Duration::from_micros(fastrand::u64(0..20_000)) } else { Duration::MAX };
        let held = match timeout(patience, mutex.lock()).await {
            Ok(Ok(guard)) => Some(guard),
            Ok(Err(error)) => {
                tell("trouble", &error.to_string());
                None
            }
            Err(_) => None,
        };
        if held.is_some() {
            sleep(HOLD).await;
        }
        let how = match (way, held) {
            (0 | 2, held) => {
                drop(held);
                "dropped"
            }
            (1 | 3, Some(guard)) => match guard.unlock().await {
                Ok(()) => "unlocked",
                Err(_) => "lost",
            },
            (1 | 4, held) => {
                let closed = session.close().await;
                drop(held);
                if closed.is_ok() { "closed" } else { "not closed" }
            }
            (5, held) => {
                drop((held, mutex));
                session = open(&client).await;
                "gone"
            }
            (_, held) => {
                drop((held, mutex));
                let lease = session.orphan();
                session = match Session::builder(&client).lease(lease).open().await {
                    Ok(session) => session,
                    Err(_) => open(&client).await,
                };
                "adopted"
            }
        };
        tell("left", how);
    }
}

async fn open(client: &Client) -> Session {
    super::open_for(client, TTL).await
}
