//! Following an election.

use bytes::Bytes;

use super::Candidate;
use crate::error::Result;
use crate::session::Session;
use crate::steps::{Step, Steps, stream};
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
    steps: Steps<Following>,
}

impl Observer {
    pub(super) fn new(session: &Session, prefix: &Bytes) -> Self {
        let view = View::new(session.client(), prefix);
        Self { steps: Steps::new(Following { session: session.clone(), view, told: None }) }
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
        self.steps.next().await
    }
}

stream!(Observer => Option<Candidate>);

struct Following {
    session: Session,
    view: View,
    /// What was told last: the leader's create_revision and mod_revision.
    told: Option<Option<(i64, i64)>>,
}

impl Step for Following {
    type Item = Option<Candidate>;

    async fn step(&mut self) -> Result<Option<Candidate>> {
        let Self { session, view, told } = self;
        view.until(session, |view| {
            let leader = view.oldest();
            let seen = leader.map(|kv| (kv.create_revision, kv.mod_revision));
            if *told == Some(seen) {
                return None;
            }
            *told = Some(seen);
            Some(leader.cloned().map(Candidate::from))
        })
        .await
    }
}
