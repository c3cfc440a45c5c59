//! Going on over the loss of sessions.

use std::time::Duration;

use tokio::time::Instant;

use super::Session;
use crate::error::{Error, ErrorKind, LostReason, Result};
use crate::transport::retry::Backoff;

/// A session, and after its loss another with the same settings.
#[derive(Debug)]
pub(crate) struct Renewing {
    session: Session,
    backoff: Backoff,
    /// Since when it goes well.
    well: Option<Instant>,
    /// The session is one that was opened here, and is closed here.
    own: bool,
}

impl Renewing {
    pub(crate) fn new(session: &Session) -> Self {
        Self { session: session.clone(), backoff: Backoff::default(), well: None, own: false }
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

    /// How long a request of its client may take.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.session.client().transport().limits().request_timeout
    }

    /// It goes well. When it has for a while, the next trouble begins with a short pause again.
    pub(crate) fn well(&mut self) {
        self.well.get_or_insert_with(Instant::now);
    }

    /// Waits a moment, since it may go better next time; what no time mends is given back.
    pub(crate) async fn after(&mut self, error: Error) -> Result<()> {
        let ended = self.session.lease_handle().lost_reason();
        if let Some(reason) = ended.filter(|reason| is_wanted(*reason)) {
            return Err(Error::from(reason).because(error));
        }
        // Another session is not to be had: the parent is cancelled, or the client's runtime has ended.
        if error.lost_reason().is_some_and(is_wanted) {
            return Err(error);
        }
        // What is lost with a session, or a lease, another one mends.
        let mended = matches!(error.kind(), ErrorKind::Lost(_) | ErrorKind::LeaseNotFound);
        if !mended && self.session.client().transport().is_final(error.kind()) {
            return Err(error);
        }
        if self.well.take().is_some_and(|since| since.elapsed() >= A_WHILE) {
            self.backoff.reset();
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

/// What is lost sooner than this is not to be had again at once, over and over.
const A_WHILE: Duration = Duration::from_secs(5);

/// Whoever ended the session wanted it ended.
fn is_wanted(reason: LostReason) -> bool {
    matches!(reason, LostReason::Closed | LostReason::Orphaned)
}
