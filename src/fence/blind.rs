//! How a key is looked after that cannot be watched.

use tokio::time::sleep;

use crate::error::{Error, ErrorKind};
use crate::transport::retry::{Backoff, may_pass, second_look};

/// A key that cannot be watched for now.
#[derive(Default)]
pub(super) struct Blind {
    backoff: Backoff,
    /// How often it was for reasons that do not pass by themselves.
    lasting: u32,
}

impl Blind {
    /// Waits before it is looked at again: for moments, but where the server goes on refusing, for a minute or two.
    pub(super) async fn pause(&mut self, error: &Error) {
        let passes = matches!(error.kind(), ErrorKind::Compacted { .. }) || may_pass(error.kind());
        self.lasting += u32::from(!passes);
        let pause = if !passes && self.lasting > FEW { second_look() } else { self.backoff.next() };
        if !passes && self.lasting == FEW + 1 {
            tracing::warn!(%error, "a guard's key cannot be watched: that it is gone may be told late");
        } else {
            tracing::debug!(%error, "a guard's key is not watched for now");
        }
        sleep(pause).await;
    }
}

/// How many refusals may be those of a server in the midst of a change.
const FEW: u32 = 5;
