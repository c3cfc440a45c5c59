//! How a guard finds out that its key is gone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Fence;
use super::blind::Blind;
use crate::error::Result;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::transport::retry::second_look;
use crate::txn::revision;
use crate::watch::Watch;

impl Fence {
    /// Resolves once the server says that the key, of this create_revision, is gone.
    ///
    /// It goes on whatever happens to the watch: then the key is read, again and again, and watched from there.
    pub(super) async fn key_deleted(&self) {
        let mut blind = Blind::default();
        loop {
            let start = Instant::now();
            // What happened since the key is known to have stood: nothing can have been missed.
            let from = self.0.stood_at.load(Ordering::Relaxed) + 1;
            let Err(error) = self.watch_after(from).await else { return };
            if start.elapsed() >= LASTS {
                blind = Blind::default();
            }
            blind.pause(&error).await;
            self.look_later();
            match Box::pin(self.stands()).await {
                Ok(Some(revision)) => self.stood_at(revision),
                Ok(None) => return,
                Err(error) => blind.pause(&error).await,
            }
        }
    }

    /// Waits for the key's end by a watch, until that tells or ends.
    async fn watch_after(&self, revision: i64) -> Result<()> {
        let watch = Watch::key(self.0.key.clone()).from_revision(revision).no_put();
        let mut watcher = self.0.client.watch(watch);
        // How often the watch had been made again when the key was read beside it.
        let mut read_at = None;
        let mut look = Instant::now() + self.until_look();
        loop {
            if let Ok(events) = timeout_at(look, watcher.next()).await {
                if events?.events.iter().any(|event| self.is_end(event)) {
                    return Ok(());
                }
                continue;
            }
            // A watch that does not begin tells nothing, nor does one whose stream is not opened again: then the key is
            // read now and then. One that begins in the past, or was made again, may have lost the key's end: then it is
            // read once. So may every watch of a user who waits for the loss again and again, for moments: whichever of them is
            // there when it is time reads. One whose user does not wait for the answer has read all the same: the next comes later.
            look = Instant::now() + self.look_later();
            let (resumed, is_live) = (watcher.resumed(), watcher.is_live());
            if is_live {
                let of_the_past = resumed > 0 || watcher.created().await? >= revision;
                if !of_the_past || read_at == Some(resumed) {
                    continue;
                }
            }
            match Box::pin(self.stands()).await {
                Ok(None) => return Ok(()),
                // That it stood before the watch began, or was made again, says nothing of what was lost with that.
                Ok(Some(_)) => read_at = is_live.then_some(resumed),
                Err(_) => {}
            }
        }
    }

    /// How long until the key is to be read, for a watch that may have lost its end.
    fn until_look(&self) -> Duration {
        match self.0.look.load(Ordering::Relaxed) {
            0 => self.look_later(),
            look => Duration::from_secs(look.into()).saturating_sub(self.0.client.leases().time().now()),
        }
    }

    /// The key is read next in a minute or two, by whichever watch there is then.
    fn look_later(&self) -> Duration {
        let pause = second_look();
        let look = self.0.client.leases().time().now() + pause;
        self.0.look.store(u32::try_from(look.as_secs()).unwrap_or(u32::MAX), Ordering::Relaxed);
        pause
    }

    /// The revision at which the key was read and stood, if it did.
    async fn stands(&self) -> Result<Option<i64>> {
        let request = pb::RangeRequest { key: self.0.key.clone(), keys_only: true, ..Default::default() };
        let range = self.0.lease.learn_of_past(self.0.client.transport().range(request).await)?;
        let revision = revision(&range)?;
        Ok(range.kvs.first().is_some_and(|kv| self.is_this(kv)).then_some(revision))
    }

    fn is_end(&self, event: &Event) -> bool {
        event.r#type() == EventType::Delete
            && event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.key == self.0.key && kv.mod_revision > self.0.create_revision)
    }

    fn is_this(&self, kv: &KeyValue) -> bool {
        kv.key == self.0.key && kv.create_revision == self.0.create_revision
    }
}

/// A watch that has lasted so long was a good one.
const LASTS: Duration = Duration::from_secs(60);
