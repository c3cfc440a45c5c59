//! One term after another, over the loss of seats and sessions.

use std::sync::Arc;

use bytes::Bytes;

use super::{Election, Leadership};
use crate::error::Result;
use crate::session::renew::Renewing;

/// One term. When it is over, the seat is given up, whatever the user still holds of the leadership: the next campaign
/// waits for the turn that goes with it.
pub(super) struct Term(Arc<Leadership>);

/// The terms of one candidate.
pub(super) struct Terms {
    election: Election,
    sessions: Renewing,
    value: Bytes,
}

impl Term {
    pub(super) fn leadership(&self) -> &Arc<Leadership> {
        &self.0
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.0.owned().let_go();
    }
}

impl Terms {
    pub(super) fn new(election: &Election, value: Bytes) -> Self {
        Self { election: election.clone(), sessions: Renewing::new(election.session()), value }
    }

    /// Waits until elected.
    pub(super) async fn next(&mut self) -> Result<Term> {
        loop {
            match self.campaign().await {
                Ok(leadership) => {
                    self.sessions.well();
                    return Ok(Term(Arc::new(leadership)));
                }
                Err(error) => self.sessions.after(error).await?,
            }
        }
    }

    /// After a term that was lost: there may be another.
    pub(super) async fn lost(&mut self, term: Term, error: crate::Error) -> Result<()> {
        drop(term);
        self.sessions.after(error).await
    }

    /// There will be no other.
    pub(super) async fn end(self) {
        self.sessions.close().await;
    }

    async fn campaign(&mut self) -> Result<Leadership> {
        let session = self.sessions.session().await?;
        if session.lease() != self.election.session().lease() {
            self.election = self.election.with(&session)?;
        }
        self.election.campaign(self.value.clone()).await
    }
}
