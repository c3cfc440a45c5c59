//! Leadership: a place that is held, with a value that the leader may change.

use bytes::Bytes;
use tokio::sync::Mutex;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::pb::etcdserverpb::ResponseHeader;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::waitlist::{Place, guard};

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
    place: Place,
    /// One proclamation at a time: each knows what the one before it left.
    last: Mutex<i64>,
}

impl Leadership {
    pub(super) fn new(place: Place) -> Self {
        let last = Mutex::new(place.fence().token());
        Self { place, last }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Changes the leader's value, for all who observe. One RPC, which the server refuses once the leadership is gone. The
    /// answer's header is what Go's `Header` gives after it.
    ///
    /// Each proclamation is guarded by the revision of the one before it, so one that is late never covers a newer one,
    /// and one whose reply was lost is settled by reading it back.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] when the server says that the leadership is gone, [`ErrorKind::Lost`] when that is known
    /// already; in both cases nothing was changed. For everything else [`Error::outcome`] says whether it was
    /// applied.
    ///
    /// # Cancel safety
    /// A proclamation whose future is dropped may have been made, or not; the next one is made after it.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<ResponseHeader> {
        let value = value.into();
        let fence = self.fence();
        let mut last = self.last.lock().await;
        // Two rounds, unless somebody else writes our key all the time.
        loop {
            fence.check()?;
            let txn = Txn::new()
                .compare(Compare::mod_revision(fence.key().clone()).is(*last))
                .success(Op::put_with_lease(fence.key().clone(), value.clone(), self.session().lease()))
                .failure(Op::get(fence.key().clone()));
            let answer = self.session().client().transport().txn(txn.into(), Repeat::Harmless).await;
            let answer = self.session().lease_handle().learn(answer)?;
            let reply = TxnReply::try_from(answer.value)?;
            if reply.succeeded {
                *last = reply.header.revision;
                return Ok(reply.header);
            }
            let outcome = if answer.ambiguous { Outcome::Unknown } else { Outcome::NotApplied };
            let found = reply.kvs(0).unwrap_or_default().first();
            let Some(kv) = found.filter(|kv| kv.create_revision == fence.token()) else {
                fence.fall(LostReason::KeyDeleted);
                return Err(Error::new(ErrorKind::Fenced, outcome).at("KV/Txn"));
            };
            if kv.mod_revision <= *last {
                let detail = "a compare failed that holds for what was read";
                return Err(Error::protocol(detail, outcome).at("KV/Txn"));
            }
            *last = kv.mod_revision;
            if answer.ambiguous && kv.value == value {
                return Ok(ResponseHeader { revision: kv.mod_revision, ..reply.header });
            }
        }
    }
}

guard!(Leadership, resign);
