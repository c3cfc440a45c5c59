//! Leadership: a place that is held, with a value that the leader may change.

use std::future::Future;
use std::ops::Deref;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, LostReason, Outcome, Result};
use crate::fence::Fence;
use crate::pb::etcdserverpb::ResponseHeader;
use crate::session::Session;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::waitlist::Place;

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

    /// What is held: a handle that may be cloned and handed on.
    pub fn fence(&self) -> &Fence {
        self.place.fence()
    }

    /// The session that leads.
    pub fn session(&self) -> &Session {
        self.place.session()
    }

    /// The header of the answer that proved the election to be won. Go's `Header`, which a proclamation replaces: here
    /// [`proclaim`](Self::proclaim) returns its own.
    pub fn header(&self) -> &ResponseHeader {
        self.place.header()
    }

    /// Changes the leader's value, for all who observe. One RPC, which the server refuses once the leadership is gone.
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

    /// Runs work until it ends or the leadership is lost, whichever is first, then resigns. On a loss the work is
    /// dropped, wherever it waits: it must not have handed on what it does to other tasks.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] with the reason, if the leadership was lost before the work ended; or before the
    /// resignation, in which case the work had ended but may have outlived the leadership. A resignation that fails
    /// otherwise goes on in the background, and the work's value is returned.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and resigns in the background.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> Result<T> {
        self.place.run(work).await
    }

    /// Runs work that ends by itself when it is told: the token it is given is cancelled when the leadership is lost.
    /// The seat is given up after the work has ended.
    ///
    /// The work is not to write without a fence once the token is cancelled: another may lead by then.
    ///
    /// # Errors
    /// As [`run`](Self::run), but always after the work has ended.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_cooperative<T, F>(self, work: impl FnOnce(CancellationToken) -> F) -> Result<T>
    where
        F: Future<Output = T>,
    {
        self.place.run_cooperative(work).await
    }

    /// Gives the seat up: one RPC, guarded by the key's create_revision, so that it never deletes another's key.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the leadership was lost before. Any other error means that the resignation goes on in the
    /// background, until it is settled: there is no need to call again.
    ///
    /// # Cancel safety
    /// Dropping the future lets the resignation go on in the background.
    pub async fn resign(self) -> Result<()> {
        self.place.release().await
    }
}

/// A leadership is its fence, and the seat: [`token`](Fence::token), [`txn`](Fence::txn), [`lost`](Fence::lost) and the
/// rest are the fence's.
impl Deref for Leadership {
    type Target = Fence;

    fn deref(&self) -> &Fence {
        self.fence()
    }
}
