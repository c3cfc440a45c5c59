//! Putting an item again that went with its session's lease: once, however often that is sent.
//!
//! The put is made together with a slip of a lease of its own: no attempt is applied after another, as that finds the slip, nor
//! after the lease has ended. The lease is renewed for as long as the put is refused. Where it is gone all the same, since the
//! process stood still, say, and an attempt may have been applied before, the events of the item's key tell whether one was.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::back::Tries;
use super::core::Item;
use super::fate::was_put;
use super::settle::Settler;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::ids;
use crate::key::unique_key;
use crate::transport::retry::{Backoff, Repeat};
use crate::txn::{Compare, Op, Txn};

impl Settler {
    /// Puts an item again, at the end of the queue.
    pub(super) async fn save(&self, item: &Item, tries: &mut Tries) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let (id, granted_at) = self.grant(tries).await?;
            tries.in_doubt = false;
            let sent = self.put(item, id, tries).await;
            if let Err(error) = self.client().transport().lease_revoke(id).await {
                tracing::debug!(%error, "a lease that saved an item is left to its TTL");
            }
            match sent {
                Err(error) if *error.kind() == ErrorKind::LeaseNotFound => {
                    if error.outcome() != Outcome::NotApplied
                        && self.was_saved(item, granted_at, tries).await?
                    {
                        return Ok(());
                    }
                }
                sent => return sent,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Puts an item with a slip of this lease, unless an attempt before this one has.
    async fn put(&self, item: &Item, lease: i64, tries: &mut Tries) -> Result<()> {
        let (key, slip) = (self.keys.item(&item.place), unique_key(&self.keys.senders, lease));
        let txn = Txn::new()
            .compare(Compare::missing(slip.clone()))
            .compare(Compare::missing(key.clone()))
            .success(Op::put(key, item.kv.value.clone()))
            .success(Op::put_with_lease(slip, Bytes::new(), lease));
        let mut renewed = Instant::now();
        while let Err(error) = self.send(&txn, Repeat::Harmless).await {
            self.again(tries, error).await?;
            if renewed.elapsed() > RENEWAL {
                renewed = Instant::now();
                // Where it is gone, the put is told so.
                if let Err(error) = self.client().transport().lease_keep_alive(lease).await {
                    tracing::debug!(%error, "the lease of a put was not renewed");
                }
            }
        }
        tries.answered();
        Ok(())
    }

    /// Whether an attempt was applied before the lease ended that it was made with. None will be.
    async fn was_saved(&self, item: &Item, granted_at: i64, tries: &mut Tries) -> Result<bool> {
        let key = self.keys.item(&item.place);
        loop {
            match was_put(self.client(), &key, granted_at).await {
                Err(error) if !matches!(error.kind(), ErrorKind::Compacted { .. }) => {
                    self.again(tries, error).await?;
                }
                told => return told,
            }
        }
    }

    /// A lease that fences a put, and a revision before all that is put with it.
    async fn grant(&self, tries: &mut Tries) -> Result<(i64, i64)> {
        loop {
            let id = ids::lease();
            match self.client().transport().lease_grant(id, TTL).await {
                Ok(answer) if answer.value.id == id => {
                    tries.answered();
                    return Ok((id, answer.value.header.map_or(0, |header| header.revision)));
                }
                Ok(_) => {
                    let error = Error::protocol("another lease was granted", Outcome::Unknown);
                    self.again(tries, error).await?;
                }
                // One of an attempt before, or of another process: nothing can tell. It is not used.
                Err(error) if *error.kind() == ErrorKind::LeaseExists => tries.pause().await,
                Err(error) => self.again(tries, error).await?,
            }
        }
    }
}

/// In seconds: for so long a process may stand still, or a server be away, and the put goes on with its lease.
const TTL: i64 = 600;
/// How often the lease is renewed, as far as the pauses between the attempts allow that.
const RENEWAL: Duration = Duration::from_secs(60);
