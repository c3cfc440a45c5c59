//! Following a group.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Peer, is_member};
use crate::error::Result;
use crate::session::Session;
use crate::steps::{Step, Steps, stream};
use crate::view::{Change, View};

/// What happened in a group.
///
/// ```
/// # use etcd_concurrency::{MemberChange, Peer};
/// # use std::collections::HashMap;
/// fn apply(here: &mut HashMap<bytes::Bytes, Peer>, change: MemberChange) {
///     match change {
///         MemberChange::Present(all) => here.extend(all.into_iter().map(|peer| (peer.key.clone(), peer))),
///         MemberChange::Joined(peer) | MemberChange::Updated(peer) => drop(here.insert(peer.key.clone(), peer)),
///         MemberChange::Left(peer) => drop(here.remove(&peer.key)),
///         _ => {}
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberChange {
    /// Who is here at the start, those who are here longest first.
    Present(Vec<Peer>),
    /// A member is here that was not.
    Joined(Peer),
    /// A member says something else.
    Updated(Peer),
    /// A member is gone; this is what it said last.
    Left(Peer),
}

/// A stream of what happens in a group: made by [`Membership::changes`](super::Membership::changes).
///
/// The first item is [`Present`](MemberChange::Present); then there is one for each change, in the order of the changes.
/// None is left out, and none told twice; but where the members had to be read anew, or an old server lost a departure, of
/// which [`gaps`](MemberChanges::gaps) tells, what is told is the difference: a member that came and went meanwhile is not
/// mentioned, and of several updates the last is. An error is the last item.
///
/// ```
/// # use etcd_concurrency::{MemberChange, MemberChanges, Membership, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let workers = Membership::new(&session, "workers")?;
/// let mut changes: MemberChanges = workers.changes();
/// assert_eq!(changes.next().await?, MemberChange::Present(vec![]));
/// let me = workers.join("10.0.0.7:4000").await?;
/// assert!(matches!(changes.next().await?, MemberChange::Joined(peer) if peer.metadata == "10.0.0.7:4000"));
/// me.leave().await?;
/// assert!(matches!(changes.next().await?, MemberChange::Left(_)));
/// # Ok(()) }
/// ```
#[must_use = "a stream does nothing unless it is read"]
pub struct MemberChanges {
    steps: Steps<Following>,
}

impl MemberChanges {
    pub(super) fn new(session: &Session, prefix: &Bytes) -> Self {
        let view = View::new(session.client(), prefix).only(is_member).lasting();
        let queue = VecDeque::new();
        let following = Following { session: session.clone(), view, told: false, queue, gaps: 0 };
        Self { steps: Steps::new(following) }
    }

    /// In how many places, up to the item that came last, changes may have been left out: just before it, if the number
    /// has grown. The picture is complete all the same.
    ///
    /// There are three reasons. The server has compacted what this client was yet to be told, while the connection was broken
    /// or the items were not asked for quickly enough. Or the members, whom the client counts every one to two minutes, were
    /// not as many as the watch had told of up to the count: the server lost a departure (before 3.4.36 and 3.5.18 it can),
    /// or what was missing had not come five seconds later, or no stream could be opened by then. Or a key came again whose
    /// departure the server had lost.
    pub fn gaps(&self) -> u64 {
        self.steps.gaps()
    }

    /// Waits for the next item.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) when the session is lost;
    /// [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied) and other refusals. After an error it has
    /// ended; a further call waits for ever.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what it would have returned is there for the next call.
    pub async fn next(&mut self) -> Result<MemberChange> {
        self.steps.next().await
    }
}

stream!(MemberChanges => MemberChange);

struct Following {
    session: Session,
    view: View,
    /// Who is here at the start was told.
    told: bool,
    /// Changes that are yet to be told, each with the gaps up to it.
    queue: VecDeque<(u64, MemberChange)>,
    gaps: u64,
}

impl Step for Following {
    type Item = MemberChange;

    fn gaps(&self) -> u64 {
        self.gaps
    }

    async fn step(&mut self) -> Result<MemberChange> {
        loop {
            self.session.check()?;
            if let Some((gaps, change)) = self.queue.pop_front() {
                self.gaps = gaps;
                return Ok(change);
            }
            let changes = self.session.unless_lost(self.view.changes()).await;
            let changes = self.session.lease_handle().learn_of_past(changes)?;
            if !self.told {
                self.told = true;
                let all = changes.into_iter().map(|change| match change {
                    Change::Came(kv) | Change::Written(kv) | Change::Went(kv) => Peer::from(kv),
                });
                return Ok(MemberChange::Present(all.collect()));
            }
            let gaps = self.view.gaps();
            self.queue.extend(changes.into_iter().map(|change| (gaps, change.into())));
        }
    }
}

impl From<Change> for MemberChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Came(kv) => Self::Joined(kv.into()),
            Change::Written(kv) => Self::Updated(kv.into()),
            Change::Went(kv) => Self::Left(kv.into()),
        }
    }
}
