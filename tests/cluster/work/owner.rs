//! One who takes a lock, asks whether it holds it, writes behind its fence, and gives it up, some at once, and tells each call:
//! see `record.rs`.

use std::time::Duration;

use etcd_concurrency::{Client, Mutex, MutexGuard, Op};
use tokio::time::{sleep, timeout};

use super::record::{Recorder, Round};
use super::{now, open};

const ROUND: Duration = Duration::from_secs(20);
/// Between two questions of a holder, on average half of it.
const PAUSE_MS: u64 = 10;

pub(super) async fn calls(client: Client, mut record: Recorder) {
    let mut random = fastrand::Rng::new();
    loop {
        let session = open(&client).await;
        while session.is_valid() {
            let name = Round::of(ROUND).name("owner");
            let mutex = Mutex::new(&session, &name).expect("a name");
            // One in ten does not wait long enough to get it every time.
            let patience = if random.u8(..10) == 0 {
                Duration::from_micros(random.u64(..50_000))
            } else {
                Duration::MAX
            };
            let asked = now();
            let call = record.call_since(asked, &name, "lock", &[]);
            match timeout(patience, mutex.lock()).await {
                Ok(Ok(guard)) => {
                    call.ok(&[guard.token()]);
                    own(guard, asked, &name, &mut record, &mut random).await;
                }
                Ok(Err(error)) => _ = call.failed(&error),
                Err(_) => call.given_up(),
            }
            // Others come between, also those of this process.
            sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
            if random.u8(..50) == 0 {
                break;
            }
        }
    }
}

async fn own(guard: MutexGuard, asked: u128, name: &str, record: &mut Recorder, random: &mut fastrand::Rng) {
    let token = guard.token();
    // Up to when it was told that it holds the lock: the server may have given it to another at any time since. One who
    // never was told may have lost it as soon as it had it.
    let mut held_until = asked;
    for writes in (0..random.u8(1..4)).rev() {
        let began = now();
        if !guard.is_valid() {
            break;
        }
        held_until = now();
        record.call_since(began, name, "valid", &[token]).ok(&[]);
        if writes == 0 {
            break;
        }
        let call = record.call(name, "write", &[token]);
        match guard.txn().success(Op::put(format!("written/{name}"), token.to_string())).commit().await {
            Ok(_) => call.ok(&[]),
            Err(error) => _ = call.failed(&error),
        }
        sleep(Duration::from_millis(random.u64(..PAUSE_MS))).await;
    }
    let call = record.call_since(held_until, name, "unlock", &[token]);
    if random.u8(..5) == 0 {
        drop(guard);
        return call.given_up();
    }
    match guard.unlock().await {
        Ok(()) => call.ok(&[]),
        Err(error) => _ = call.failed(&error),
    }
}
