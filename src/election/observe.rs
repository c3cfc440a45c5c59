//! Following an election.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio_stream::Stream;
use tokio_util::sync::ReusableBoxFuture;

use super::Candidate;
use crate::error::Result;
use crate::session::Session;
use crate::view::View;

/// A stream of who leads: made by [`Election::observe`](super::Election::observe).
///
/// The first item is the present leader, or None; then there is one for every change of the leader or its value, and
/// None for every empty seat. None of them is left out, and none told twice. An error is the last item.
///
/// ```
/// # use etcd_concurrency::{Election, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let election = Election::new(&session, "scheduler")?;
/// let mut observer = election.observe();
/// assert_eq!(observer.next().await?, None);
/// let leadership = election.campaign("node-1").await?;
/// assert_eq!(observer.next().await?.expect("a leader").value, "node-1");
/// leadership.resign().await?;
/// assert_eq!(observer.next().await?, None);
/// # Ok(()) }
/// ```
#[must_use = "a stream does nothing unless it is read"]
pub struct Observer {
    step: ReusableBoxFuture<'static, (Following, Result<Option<Candidate>>)>,
    /// An error was told.
    done: bool,
}

impl Observer {
    pub(super) fn new(session: &Session, prefix: &Bytes) -> Self {
        let following =
            Following { session: session.clone(), view: View::new(session.client(), prefix), told: None };
        Self { step: ReusableBoxFuture::new(following.next()), done: false }
    }

    /// Waits for the next item.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) when the election's session is lost;
    /// [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied) and other refusals. After an error the
    /// observation has ended; a further call waits for ever.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what it would have returned is there for the next call.
    pub async fn next(&mut self) -> Result<Option<Candidate>> {
        std::future::poll_fn(|context| match self.poll(context) {
            Poll::Ready(Some(item)) => Poll::Ready(item),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Option<Candidate>>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let (following, item) = ready!(self.step.poll(context));
        self.done = item.is_err();
        if !self.done {
            self.step.set(following.next());
        }
        Poll::Ready(Some(item))
    }
}

impl Stream for Observer {
    type Item = Result<Option<Candidate>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("done", &self.done).finish_non_exhaustive()
    }
}

struct Following {
    session: Session,
    view: View,
    /// What was told last: the leader's create_revision and mod_revision.
    told: Option<Option<(i64, i64)>>,
}

impl Following {
    async fn next(mut self) -> (Self, Result<Option<Candidate>>) {
        let item = self.item().await;
        (self, item)
    }

    async fn item(&mut self) -> Result<Option<Candidate>> {
        loop {
            tokio::select! {
                biased;
                reason = self.session.lost() => return Err(reason.into()),
                changed = self.view.changed() => changed?,
            }
            let leader = self.view.oldest();
            let seen = leader.map(|kv| (kv.create_revision, kv.mod_revision));
            if self.told != Some(seen) {
                self.told = Some(seen);
                return Ok(leader.cloned().map(Candidate::from));
            }
        }
    }
}
