//! A counter that many add to.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::MutexGuard;
use tokio::time::{sleep, timeout};

use super::mismatch;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::drawn;
use crate::owned::Turns;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{KeyValue, event::EventType};
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{self, Compare, Op, Txn, TxnReply};
use crate::waitlist::checked;
use crate::watch::Watch;

/// A number on a name, that any number of clients add to, each addition exactly once.
///
/// The key is the name itself; its value is the number in decimal, a space, and a mark of the write that made it, by
/// which a write whose reply was lost is told from others. A number alone, as `etcdctl put` would write it, is read too.
/// A missing key is 0.
///
/// A write is guarded by the revision that was last seen, so it takes one RPC where nobody interferes; where somebody
/// did, the answer brings what there is now, and it is tried again, after a pause from the second time on. Tasks that
/// share a counter and its clones take turns without asking the server. Where many processes add to one number all the
/// time, give each one a counter of its own, and add them up when reading.
///
/// Any etcd from 3.4 on will do.
///
/// ```
/// # use etcd_concurrency::{Counter, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let orders = Counter::new(&client, "orders/last")?;
/// assert_eq!(orders.add(1).await?, 1);
/// assert_eq!(orders.add(41).await?, 42);
/// assert!(orders.compare_and_set(42, 7).await?);
/// assert!(!orders.compare_and_set(42, 8).await?);
/// assert_eq!(orders.get().await?, 7);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Counter {
    client: Client,
    key: Bytes,
    /// What was seen last. Whoever writes holds this.
    seen: Arc<Turns<Option<Seen>>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    value: i64,
    revision: i64,
}

impl Counter {
    /// The counter of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name.
    pub fn new(client: &Client, name: impl AsRef<[u8]>) -> Result<Self> {
        checked(name.as_ref())?;
        let key = Bytes::copy_from_slice(name.as_ref());
        Ok(Self { client: client.clone(), key, seen: Arc::default() })
    }

    /// The number now: one RPC.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] where the key holds no number. Whatever keeps the server from answering until the
    /// client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn get(&self) -> Result<i64> {
        Ok(self.read().await?.map_or(0, |seen| seen.value))
    }

    /// Adds, and returns the sum. One RPC where nobody else wrote since the last one; one more at first.
    ///
    /// An addition whose reply was lost is found in the key, or else in its history; where that is compacted, the error's
    /// outcome is [`Unknown`](Outcome::Unknown).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where the sum is out of range, and [`ErrorKind::Mismatch`] where the key holds no
    /// number: nothing was added. Whatever keeps the server from answering until the client's request timeout;
    /// [`Error::outcome`] says whether it was added.
    ///
    /// # Cancel safety
    /// Not safe: an addition whose future is dropped may have been made, or not. It is never made twice.
    pub async fn add(&self, delta: i64) -> Result<i64> {
        let (mut turn, mut alone) = (self.turn().await, None);
        let seen = turn.as_deref_mut().unwrap_or(&mut alone);
        let (mut cached, mut pauses) = (seen.is_some(), Pauses::default());
        loop {
            let now = match seen.take() {
                Some(now) => now,
                None => self.load().await?,
            };
            let Some(value) = now.value.checked_add(delta) else {
                // What was seen last may be long ago.
                if std::mem::take(&mut cached) {
                    continue;
                }
                *seen = Some(now);
                return Err(Error::invalid("delta", format!("{} and {delta} are out of range", now.value)));
            };
            let (written, then) = self.write(now, value).await?;
            *seen = then;
            if written {
                return Ok(value);
            }
            cached = false;
            pauses.pause().await;
        }
    }

    /// Sets the number if it is what is expected, and tells whether it was. Two RPCs, one where the expected number was
    /// seen last or is not there.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    ///
    /// # Cancel safety
    /// Not safe: what a dropped future was to set may have been set, or not.
    pub async fn compare_and_set(&self, expected: i64, value: i64) -> Result<bool> {
        let (mut turn, mut alone) = (self.turn().await, None);
        let seen = turn.as_deref_mut().unwrap_or(&mut alone);
        let mut now = seen.take().filter(|seen| seen.value == expected);
        let mut pauses = Pauses::default();
        loop {
            let known = match now {
                Some(known) => known,
                // A missing number is this one.
                None if expected == 0 => self.load().await?,
                None => match self.read().await? {
                    Some(known) => known,
                    None => return Ok(false),
                },
            };
            if known.value != expected {
                *seen = Some(known);
                return Ok(false);
            }
            let (written, then) = self.write(known, value).await?;
            if written {
                *seen = then;
                return Ok(true);
            }
            now = then;
            pauses.pause().await;
        }
    }

    /// One's turn among the tasks that share this, which saves them RPCs. None where a future that has it is kept and not
    /// polled: then one goes on without.
    async fn turn(&self) -> Option<MutexGuard<'_, Option<Seen>>> {
        self.seen.next(self.client.transport().limits().request_timeout).await
    }

    async fn read(&self) -> Result<Option<Seen>> {
        let request = pb::RangeRequest { key: self.key.clone(), ..Default::default() };
        let range = self.client.transport().range(request).await?;
        txn::revision(&range)?;
        range.kvs.first().map(Seen::try_from).transpose()
    }

    /// Reads the number, and makes it 0 where it is missing: a key that is missing is no ground to write on, since two
    /// times missing cannot be told from once.
    async fn load(&self) -> Result<Seen> {
        let txn = Txn::new()
            .compare(Compare::missing(self.key.clone()))
            .success(Op::put(self.key.clone(), "0"))
            .failure(Op::get(self.key.clone()));
        let answer = self.client.transport().txn(txn.into(), Repeat::Harmless).await;
        // A zero is as good as none: nothing was added.
        let answer = answer.map_err(|error| error.with_outcome(Outcome::NotApplied))?;
        let reply = TxnReply::try_from(answer.value)?;
        match reply.kvs(0).unwrap_or_default().first() {
            _ if reply.succeeded => Ok(Seen { value: 0, revision: reply.header.revision }),
            Some(kv) => Seen::try_from(kv),
            None => {
                Err(Error::protocol("a key is neither missing nor there", Outcome::NotApplied).at("KV/Txn"))
            }
        }
    }

    /// Writes where nothing was written since `seen`. Tells whether it was written, and what is there then.
    async fn write(&self, seen: Seen, value: i64) -> Result<(bool, Option<Seen>)> {
        let put = Bytes::from(format!("{value} {}", drawn()));
        let txn = Txn::new()
            .compare(Compare::mod_revision(self.key.clone()).is(seen.revision))
            .success(Op::put(self.key.clone(), put.clone()))
            .failure(Op::get(self.key.clone()));
        // Twice is once: after one of them is applied, the guard holds no more.
        let answer = self.client.transport().txn(txn.into(), Repeat::Harmless).await?;
        let reply = TxnReply::try_from(answer.value)?;
        if reply.succeeded {
            return Ok((true, Some(Seen { value, revision: reply.header.revision })));
        }
        let found = reply.kvs(0).unwrap_or_default().first();
        let written = match found {
            _ if !answer.ambiguous => false,
            Some(kv) if kv.value == put => true,
            _ => self.wrote_after(seen.revision, &put).await?,
        };
        match found.map(Seen::try_from).transpose() {
            Ok(then) => Ok((written, then)),
            // Somebody wrote something else since.
            Err(_) if written => Ok((true, None)),
            Err(error) => Err(error),
        }
    }

    /// Whether the first write after a revision was this one. If ours was applied, it was the first: its guard says so.
    async fn wrote_after(&self, revision: i64, put: &Bytes) -> Result<bool> {
        let watch = Watch::key(&self.key).from_revision(revision.saturating_add(1));
        let mut watcher = self.client.watch(watch);
        let first = async {
            loop {
                if let Some(event) = watcher.next().await?.events.into_iter().next() {
                    return Ok(event);
                }
            }
        };
        let first = match timeout(self.client.transport().limits().request_timeout, first).await {
            Ok(first) => first,
            Err(_) => Err(Error::new(ErrorKind::Timeout, Outcome::Unknown).at("Watch/Watch")),
        };
        let event = first.map_err(|error: Error| error.with_outcome(Outcome::Unknown))?;
        Ok(event.r#type() == EventType::Put && event.kv.is_some_and(|kv| kv.value == *put))
    }
}

impl TryFrom<&KeyValue> for Seen {
    type Error = Error;

    fn try_from(kv: &KeyValue) -> Result<Self> {
        let text = String::from_utf8_lossy(&kv.value);
        match text.split_ascii_whitespace().next().map(str::parse) {
            Some(Ok(value)) => Ok(Self { value, revision: kv.mod_revision }),
            _ => Err(mismatch("number", kv)),
        }
    }
}

/// Between attempts that others were quicker than: none after the first.
#[derive(Debug, Default)]
struct Pauses {
    backoff: Option<Backoff>,
}

impl Pauses {
    async fn pause(&mut self) {
        match &mut self.backoff {
            Some(backoff) => sleep(backoff.next()).await,
            None => self.backoff = Some(Backoff::default()),
        }
    }
}
