//! Leadership: a place that is held, with a value that the leader may change.

use bytes::Bytes;

use crate::error::Result;
#[cfg(doc)]
use crate::error::{Error, ErrorKind};
use crate::owned::{Owned, guard};
use crate::pb::etcdserverpb::ResponseHeader;

/// An election that is won. Owned and `'static`: it may move to another task.
///
/// Dropping it resigns in the background; [`resign`](Self::resign) waits for that and tells of failure. The
/// resignation is repeated in the background until it is settled or the session is lost.
///
/// ```
/// # use etcd_concurrency::{Election, LostReason, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let leadership = Election::new(&session, "scheduler")?.campaign("node-1").await?;
/// session.close().await?;
/// assert_eq!(leadership.lost().await, LostReason::Closed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the leadership resigns"]
pub struct Leadership {
    owned: Owned,
}

impl Leadership {
    pub(super) fn new(owned: Owned) -> Self {
        Self { owned: owned.handed_out() }
    }

    pub(super) fn owned(&self) -> &Owned {
        &self.owned
    }

    /// Changes the leader's value, for all who observe. One RPC, which the server refuses once the leadership is gone. The
    /// answer's header is what Go's `Header` gives after it.
    ///
    /// Each proclamation is guarded by the revision of the one before it, so one that is late never covers a newer one,
    /// and one whose reply was lost is settled by reading it back. Where that shows that the key was written several times
    /// since, by transactions of your own, it cannot be told whether this was one of them: an error of the outcome
    /// [`Unknown`](crate::Outcome::Unknown) says so.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when the server says that the leadership is gone, [`ErrorKind::Lost`] when that is known
    /// already; in both cases nothing was changed. [`ErrorKind::Timeout`] where a proclamation that was begun before has not
    /// ended, since its future is kept and not polled: nothing was changed. For everything else [`Error::outcome`] says whether it
    /// was applied.
    ///
    /// # Cancel safety
    /// A proclamation whose future is dropped may have been made, or not; the next one is made after it.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<ResponseHeader> {
        self.owned.write(value.into()).await
    }
}

guard!(Leadership, resign);
