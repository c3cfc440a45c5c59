//! Going on over the loss of sessions.

use super::Session;
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::transport::retry::{Backoff, may_pass};

/// A session, and after its loss another with the same settings.
#[derive(Debug)]
pub(crate) struct Renewing {
    session: Session,
    backoff: Backoff,
    /// The session is one that was opened here, and is closed here.
    own: bool,
}

impl Renewing {
    pub(crate) fn new(session: &Session) -> Self {
        Self { session: session.clone(), backoff: Backoff::default(), own: false }
    }

    /// A session that is not known to be lost: the last one, or another.
    ///
    /// # Errors
    /// The loss, where whoever ended the session wanted it ended; what keeps another from being opened.
    pub(crate) async fn session(&mut self) -> Result<Session> {
        match self.session.lease_handle().lost_reason() {
            None => {}
            Some(reason) if is_wanted(reason) => return Err(reason.into()),
            Some(_) => {
                self.session = self.session.reopen().await?;
                self.own = true;
            }
        }
        Ok(self.session.clone())
    }

    /// It goes well: the next trouble begins with a short pause.
    pub(crate) fn well(&mut self) {
        self.backoff.reset();
    }

    /// Waits a moment where it may go better next time, or gives the error back.
    pub(crate) async fn after(&mut self, error: Error) -> Result<()> {
        let ended = self.session.lease_handle().lost_reason();
        if let Some(reason) = ended.filter(|reason| is_wanted(*reason)) {
            return Err(Error::from(reason).because(error));
        }
        match error.kind() {
            ErrorKind::Lost(_) | ErrorKind::Fenced | ErrorKind::LeaseNotFound => {}
            kind if may_pass(kind) => {}
            _ => return Err(error),
        }
        tracing::debug!(%error, "not for now; trying again");
        tokio::time::sleep(self.backoff.next()).await;
        Ok(())
    }

    /// Closes the session if it was opened here.
    pub(crate) async fn close(self) {
        if self.own
            && let Err(error) = self.session.close().await
        {
            tracing::debug!(%error, "closing a session failed: the lease's TTL will end it");
        }
    }
}

/// Whoever ended the session wanted it ended.
fn is_wanted(reason: LostReason) -> bool {
    matches!(reason, LostReason::Closed | LostReason::Orphaned)
}
