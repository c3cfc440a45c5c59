//! Who is here: a live set of members, each with something to say.

mod changes;
mod resident;

use std::fmt;

use bytes::Bytes;

use crate::error::quote::Payload;
use crate::error::{Error, Result};
use crate::key::{is_drawn, name_prefix};
use crate::owned::{Owned, Plan, holder};
use crate::pb::mvccpb::KeyValue;
use crate::session::Session;
use crate::txn::{self, by_age};
pub use changes::{MemberChange, MemberChanges};
pub use resident::Resident;

/// A group that processes join and leave, and that all can see: a service registry, a set of workers.
///
/// Each member has a key, `{group}/m-{lease in hex}-{16 random hex digits}`, put with its session's lease: a member whose
/// session is lost is gone, however it was lost. One session may join as often as it likes. Keys of other shapes under the
/// group's name are no members. The key's value is the
/// member's metadata: an address, a version, whatever fits etcd's limit of 1.5 MiB for a request.
///
/// | I want to | use |
/// |---|---|
/// | be seen while my session lasts | [`join`](Self::join) |
/// | be seen for as long as I live, over session losses | [`remain`](Self::remain) |
/// | know who is here | [`list`](Self::list), or [`changes`](Self::changes) to be told |
///
/// Any etcd from 3.4 on will do.
///
/// ```
/// # use etcd_concurrency::{MemberChange, Membership, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let workers = Membership::new(&session, "workers")?;
/// let mut changes = workers.changes();
/// assert!(matches!(changes.next().await?, MemberChange::Present(nobody) if nobody.is_empty()));
///
/// let member = workers.join("10.0.0.7:7000").await?;
/// assert_eq!(workers.list().await?[0].metadata, "10.0.0.7:7000");
/// assert!(matches!(changes.next().await?, MemberChange::Joined(peer) if peer.key == member.key()));
/// member.leave().await?;
/// assert!(matches!(changes.next().await?, MemberChange::Left(_)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Membership {
    session: Session,
    prefix: Bytes,
}

/// A member, as others see it.
///
/// ```
/// # use etcd_concurrency::{Membership, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// # let session = Session::open(&client).await?;
/// let workers = Membership::new(&session, "workers")?;
/// let member = workers.join("idle").await?;
/// member.update("busy").await?;
/// let seen = workers.list().await?.remove(0);
/// assert_eq!((seen.metadata, seen.token), ("busy".into(), member.token()));
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its key, which no other member has, nor the same one after it was gone.
    pub key: Bytes,
    /// What it says of itself.
    pub metadata: Bytes,
    /// The revision at which it joined: who is here longest has the smallest.
    pub token: i64,
    /// The revision at which it last said something.
    pub mod_revision: i64,
    /// The lease of its session.
    pub lease: i64,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Peer");
        shown.field("key", &Payload(&self.key)).field("metadata", &Payload(&self.metadata));
        shown.field("token", &self.token).field("mod_revision", &self.mod_revision);
        shown.field("lease", &self.lease).finish()
    }
}

impl Membership {
    /// The group of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an empty name.
    pub fn new(session: &Session, group: impl AsRef<[u8]>) -> Result<Self> {
        if group.as_ref().is_empty() {
            return Err(Error::invalid("group", "it is empty"));
        }
        Ok(Self { session: session.clone(), prefix: name_prefix(group.as_ref()) })
    }

    /// The session that members join with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Joins the group, until the member leaves or the session is lost: one RPC. A repeated request joins once.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) as soon as the session is lost. Whatever keeps the server from
    /// answering until the client's request timeout; what became of the request is settled in the background then, and
    /// leaves no member.
    ///
    /// # Cancel safety
    /// Dropping the future at any point leaves no member behind.
    pub async fn join(&self, metadata: impl Into<Bytes>) -> Result<Member> {
        Member::join(&self.session, &self.prefix, metadata.into()).await
    }

    /// Joins the group for good: whenever the member is lost, it joins again by itself, where need be with another
    /// session of the same settings. Until it is left or dropped.
    ///
    /// One RPC for the first time, which is waited for; then two after each loss of the session. Between attempts there
    /// is a pause, which grows from 25 ms to 1 s while nothing lasts.
    ///
    /// # Errors
    /// As [`join`](Self::join), of the first time alone; [`Resident::ended`] tells of later ones.
    ///
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn remain(&self, metadata: impl Into<Bytes>) -> Result<Resident> {
        let metadata = metadata.into();
        let member = self.join(metadata.clone()).await?;
        Ok(Resident::new(member, self.prefix.clone(), metadata))
    }

    /// Who is here, those who are here longest first. One RPC.
    ///
    /// # Errors
    /// Whatever keeps the server from answering until the client's request timeout.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn list(&self) -> Result<Vec<Peer>> {
        let range = self.session.client().transport().range(by_age(&self.prefix, 0)).await;
        let range = self.session.lease_handle().learn_of_past(range)?;
        txn::revision(&range)?;
        let members = range.kvs.into_iter().filter(|kv| is_member(&self.prefix, &kv.key));
        Ok(members.map(Peer::from).collect())
    }

    /// Follows the group: who is here now, then everybody who joins, says something else, or leaves.
    ///
    /// One RPC at the start, none per change; reconnects and compactions are outlived. Every one to two minutes one
    /// more counts the members, after departures that old servers lose. Nothing is sent before the first item is asked
    /// for. It ends with an error when the session is lost, or watching is refused.
    pub fn changes(&self) -> MemberChanges {
        MemberChanges::new(&self.session, &self.prefix)
    }
}

/// A member of a group. Owned and `'static`: it may move to another task.
///
/// Dropping it leaves the group in the background; [`leave`](Self::leave) waits for that and tells of failure.
///
/// ```
/// # use etcd_concurrency::{LostReason, Membership, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let member = Membership::new(&session, "workers")?.join("10.0.0.7:7000").await?;
/// session.close().await?;
/// assert_eq!(member.lost().await, LostReason::Closed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the member leaves the group"]
pub struct Member {
    owned: Owned,
}

impl Member {
    async fn join(session: &Session, prefix: &Bytes, metadata: Bytes) -> Result<Self> {
        let planned = Plan::drawn(session, &[prefix, MEMBER].concat(), metadata).put().await?;
        let taken = || Error::invalid("group", "another member has the key that was drawn");
        Ok(Self { owned: planned.owned.ok_or_else(taken)?.handed_out() })
    }

    /// Says something else of itself: one RPC, which the server refuses once the member is gone.
    ///
    /// Each update is guarded by the revision of the one before it, so one that is late never covers a newer one, and
    /// one whose reply was lost is settled by reading it back.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) when the server says that the member is gone,
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) when that is known already.
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) where an update that was begun before has not ended, since its future is
    /// kept and not polled: nothing was changed. For everything else [`Error::outcome`] says whether it was applied.
    ///
    /// # Cancel safety
    /// An update whose future is dropped may have been made, or not; the next one is made after it.
    pub async fn update(&self, metadata: impl Into<Bytes>) -> Result<()> {
        self.owned.write(metadata.into()).await.map(drop)
    }

    /// Leaves the group: one RPC.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the member was lost before;
    /// [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) as at [`MutexGuard::unlock`](crate::MutexGuard::unlock). Any
    /// other error means that it goes on in the background, until it is settled.
    ///
    /// # Cancel safety
    /// Dropping the future lets it go on in the background.
    pub async fn leave(self) -> Result<()> {
        self.owned.release().await
    }
}

holder!(Member, owned);

/// Other keys under the group's name count for nothing.
fn is_member(prefix: &[u8], key: &[u8]) -> bool {
    key.strip_prefix(prefix).and_then(|own| own.strip_prefix(MEMBER)).is_some_and(is_drawn)
}

/// What a member's key has before what is drawn: without it, members would stand in the line of a lock of the same name.
const MEMBER: &[u8] = b"m-";

impl From<KeyValue> for Peer {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, lease, .. } = kv;
        Self { key, metadata: value, token: create_revision, mod_revision, lease }
    }
}
