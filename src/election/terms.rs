//! One term after another, over the loss of seats and sessions.

use std::sync::Arc;

use bytes::Bytes;

use super::{Election, Leadership};
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::transport::retry::{Backoff, may_pass};

/// The terms of one candidate.
pub(super) struct Terms {
    election: Election,
    value: Bytes,
    backoff: Backoff,
    /// The session is one that was opened here, and is closed here.
    own: bool,
}

impl Terms {
    pub(super) fn new(election: &Election, value: Bytes) -> Self {
        Self { election: election.clone(), value, backoff: Backoff::default(), own: false }
    }

    /// Waits until elected.
    pub(super) async fn next(&mut self) -> Result<Arc<Leadership>> {
        loop {
            match self.campaign().await {
                Ok(leadership) => {
                    self.backoff.reset();
                    return Ok(Arc::new(leadership));
                }
                Err(error) => self.go_on(error).await?,
            }
        }
    }

    /// After a term: what the work brought, or None where there is to be another term.
    pub(super) async fn after<T>(&mut self, term: Result<T>) -> Result<Option<T>> {
        match term {
            Ok(done) => {
                if self.own
                    && let Err(error) = self.election.session().close().await
                {
                    tracing::debug!(%error, "closing a session failed: the lease's TTL will end it");
                }
                Ok(Some(done))
            }
            Err(error) => self.go_on(error).await.map(|()| None),
        }
    }

    async fn campaign(&mut self) -> Result<Leadership> {
        match self.election.session().lease_handle().lost_reason() {
            None => {}
            Some(reason) if is_wanted(reason) => return Err(reason.into()),
            Some(_) => {
                let session = self.election.session().reopen().await?;
                self.election = self.election.with(&session)?;
                self.own = true;
            }
        }
        self.election.campaign(self.value.clone()).await
    }

    /// Waits a moment where another term may come, or gives the error back.
    async fn go_on(&mut self, error: Error) -> Result<()> {
        let ended = self.election.session().lease_handle().lost_reason();
        if let Some(reason) = ended.filter(|reason| is_wanted(*reason)) {
            return Err(Error::from(reason).because(error));
        }
        match error.kind() {
            ErrorKind::Lost(_) | ErrorKind::Fenced | ErrorKind::LeaseNotFound => {}
            kind if may_pass(kind) => {}
            _ => return Err(error),
        }
        tracing::debug!(%error, "no leadership for now; campaigning again");
        tokio::time::sleep(self.backoff.next()).await;
        Ok(())
    }
}

/// Whoever ended the session wanted it ended.
fn is_wanted(reason: LostReason) -> bool {
    matches!(reason, LostReason::Closed | LostReason::Orphaned)
}
