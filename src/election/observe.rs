//! Following an election.

use bytes::Bytes;

use super::Candidate;
use crate::error::Result;
use crate::key::{contender, is_contender};
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::steps::{Step, Steps, stream};
use crate::view::View;

/// A stream of who leads: made by [`Election::observe`](super::Election::observe).
///
/// The first item is the present leader, or None; then there is one for every change of the leader or its value, and
/// None for every empty seat. None is told twice, and the latest is always told. None is left out either, but where the
/// candidates had to be read anew, or an old server lost a departure, of which [`gaps`](Observer::gaps) tells: what happened
/// meanwhile is not seen. An error is the last item.
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
        let view = View::new(session.client(), prefix).only(is_contender).lasting();
        let (session, prefix) = (session.clone(), prefix.clone());
        let following = Following { session, prefix, view, told: None, seen: 0, missed: false, gaps: 0 };
        Self { steps: Steps::new(following) }
    }

    /// In how many places, up to the item that came last, leaders or values may have been left out: between that item and
    /// the one before it, if the number has grown.
    ///
    /// There are three reasons. The server has compacted what this client was yet to be told, while the connection was broken
    /// or the items were not asked for quickly enough. Or the candidates, whom the client counts every one to two minutes,
    /// were not as many as the watch had told of up to the count: the server lost a deletion (before 3.4.36 and 3.5.18 it
    /// can), or what was missing had not come five seconds later, or no stream could be opened by then. Or a candidate came
    /// again whose departure the server had lost.
    ///
    /// ```
    /// # use etcd_concurrency::Observer;
    /// # fn audit(line: &str) {}
    /// # async fn follow(mut observer: Observer) -> etcd_concurrency::Result<()> {
    /// let mut gaps = 0;
    /// loop {
    ///     let leader = observer.next().await?;
    ///     if observer.gaps() > gaps {
    ///         gaps = observer.gaps();
    ///         audit("others may have led in between");
    ///     }
    ///     audit(&format!("{leader:?}"));
    /// }
    /// # }
    /// ```
    pub fn gaps(&self) -> u64 {
        self.steps.gaps()
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
    prefix: Bytes,
    view: View,
    /// What was told last: the leader's create_revision and mod_revision.
    told: Option<Option<(i64, i64)>>,
    /// How often the view had lost events when it was looked at last.
    seen: u64,
    /// Since what was told last, something may have been missed.
    missed: bool,
    gaps: u64,
}

impl Step for Following {
    type Item = Option<Candidate>;

    fn gaps(&self) -> u64 {
        self.gaps
    }

    async fn step(&mut self) -> Result<Option<Candidate>> {
        let Self { session, prefix, view, told, seen, missed, gaps } = self;
        view.until(session, |view| {
            let is_candidate = |kv: &&KeyValue| contender(prefix, &kv.key).holds(kv.lease);
            let leader = view.by_age().find(is_candidate);
            let now = leader.map(|kv| (kv.create_revision, kv.mod_revision));
            // One who led before and leads still, with the same value, has led all the time.
            *missed |=
                std::mem::replace(seen, view.gaps()) < view.gaps() && !(now.is_some() && *told == Some(now));
            if *told == Some(now) {
                return None;
            }
            *told = Some(now);
            *gaps += u64::from(std::mem::take(missed));
            Some(leader.cloned().map(Candidate::from))
        })
        .await
    }
}
