//! A barrier that one holds and many wait at.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::key::drawn;
use crate::lease::suspects::Suspect;
use crate::session::Session;
use crate::session::cleanup::Debt;
use crate::transport::retry::Repeat;
use crate::txn::{Compare, Op, Txn, TxnReply};
use crate::view::View;
use crate::waitlist::checked;

/// A gate on a name: while somebody holds it, all who come wait; once it is released, all go on. Go's recipe `Barrier`.
///
/// The key is the name itself, as in Go's, so Go's clients and this crate wait for each other on one name. It has no
/// lease: **a barrier outlives whoever held it**, until anybody releases it. Where it is to open when its holder dies,
/// use a [`Mutex`](crate::Mutex) or an [`Election`](crate::Election).
///
/// Any etcd from 3.4 on will do.
///
/// ```
/// # use etcd_concurrency::{Barrier, Session, fake::FakeEtcd};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> etcd_concurrency::Result<()> {
/// # let client = FakeEtcd::start().client();
/// let session = Session::open(&client).await?;
/// let barrier = Barrier::new(&session, "maintenance")?;
/// barrier.hold().await?;
/// let waiting = barrier.clone();
/// let waiting = tokio::spawn(async move { waiting.wait().await });
/// barrier.release().await?;
/// waiting.await.expect("no panic")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Barrier {
    session: Session,
    key: Bytes,
    /// The create_revision of the last hold that this barrier or a clone of it knows of, or 0.
    seen: Arc<Mutex<i64>>,
}

impl Barrier {
    /// The barrier of this name. Nothing is sent.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name.
    pub fn new(session: &Session, name: impl AsRef<[u8]>) -> Result<Self> {
        checked(name.as_ref())?;
        let key = Bytes::copy_from_slice(name.as_ref());
        Ok(Self { session: session.clone(), key, seen: Arc::default() })
    }

    /// The session that bounds the waits.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Holds the barrier: from here on, all who come wait. It stays held when the session ends.
    ///
    /// Two RPCs: the hold is put with the session's lease first, and then made to last without it. So the server refuses
    /// a hold that was given up, and arrives after any time, once the session has ended; until then it is watched for. One
    /// that was given up before the second request is not made to last.
    ///
    /// A hold whose reply was lost is settled by reading it back. Where that cannot be done, the error's outcome is
    /// [`Unknown`](Outcome::Unknown), and the hold is taken back in the background.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it is held already; the error's source says since which revision.
    /// [`ErrorKind::Lost`] when the session is lost; with the outcome [`Unknown`](Outcome::Unknown) while the hold was under
    /// way, which may then stand until the server can be reached. Whatever keeps the server from answering until the
    /// client's request timeout.
    ///
    /// # Cancel safety
    /// A hold whose future is dropped is taken back in the background; closing the session waits for that, and fails where it
    /// is not done in time, since the session's end would leave the hold. So it does for one whose future is kept and not polled.
    pub async fn hold(&self) -> Result<()> {
        self.session.check()?;
        let releases = self.session.cleanup().releases();
        let before = releases.before_holds_of(&self.key);
        let holding = async {
            let (mut hold, mark) = self.session.cleanup().finish(self.clone().put()).await?;
            // Never in the background: what is taken back only after it was made to last stays where that fails.
            hold.stay(mark).await?;
            Ok(hold)
        };
        // Under way it may have been put, and seen, before it is taken back.
        let held = tokio::select! {
            biased;
            reason = self.session.lost() => Err(Error::from(reason).with_outcome(Outcome::Unknown)),
            held = holding => held,
        };
        self.saw(held?.keep());
        // It was free in between.
        releases.are_settled(&before);
        Ok(())
    }

    /// Releases the barrier, whoever holds it: all who wait go on. Releasing one that nobody holds is no error. One RPC
    /// where nobody holds it, or this barrier or a clone of it does; two otherwise.
    ///
    /// Only a hold that was there in the meantime is released: a late request never releases a later hold.
    ///
    /// # Errors
    /// Whatever keeps the server from answering until the client's request timeout; [`Error::outcome`] says whether it
    /// was released. [`ErrorKind::Locked`] of the outcome [`Unknown`](Outcome::Unknown) where an attempt was not answered
    /// and the next found another hold: whether that came before or after the release cannot be told. Released once more,
    /// it is this one that goes. The session's loss is no error.
    ///
    /// # Cancel safety
    /// Dropping the future lets the release go on in the background. Of a hold that this barrier or a clone of it knows of,
    /// or that the release has found, it goes on until the server takes it, or refuses it for good; closing the session
    /// waits for that, and fails where it is not done in time, or where the release would have told that another hold was
    /// found and no later release of the session has settled that. So it does for a release whose future is kept and not polled.
    pub async fn release(&self) -> Result<()> {
        let (told, caller) = oneshot::channel();
        let releasing = self.session.cleanup().finish(self.clone().release_for(told));
        // The caller goes first where both are dropped.
        let mut both = (caller, releasing);
        (&mut both.1).await
    }

    /// Releases for a caller; where that has gone, and it fails, until it is done.
    async fn release_for(self, caller: oneshot::Sender<()>) -> Result<()> {
        let releases = self.session.cleanup().releases();
        // Before it is sent: the answer may never be looked at. And only what ended before is settled by this one.
        let (owed, before) = (self.session.cleanup().release(), releases.before_holds_of(&self.key));
        let mut sent = Sent { hold: 0, was_found: false };
        let released = self.clone().delete(&mut sent).await;
        let is_told = !caller.is_closed();
        match released.as_ref().map_err(Error::kind) {
            // Whether another hold came before or after the release is not known, and the caller was not told so.
            Err(ErrorKind::Locked) if !is_told => owed.is_held(&self.key),
            Ok(()) | Err(ErrorKind::Locked) => {
                owed.saved();
                releases.are_settled(&before);
            }
            Err(why) if !is_told && sent.hold != 0 => {
                owed.failed(why);
                let (key, releases) = (self.key.clone(), releases.clone());
                let answered = move |reply: TxnReply, owed: Option<Debt>| {
                    // One that was found stood meanwhile, and is gone: whatever is there is later.
                    let is_held = other_hold(&reply).is_some() && !sent.was_found;
                    if !is_held {
                        releases.are_settled(&before);
                    }
                    owed.iter().for_each(|owed| if is_held { owed.is_held(&key) } else { owed.saved() });
                };
                self.delete_for_good(sent.hold, Some(owed), answered);
            }
            // Known to its caller; or of none that was there is anything known that would tell it from a later one.
            Err(_) => owed.saved(),
        }
        released
    }

    /// Deletes the hold of this create_revision in the background, for as long as it takes.
    fn delete_for_good(
        &self,
        hold: i64,
        owed: Option<Debt>,
        answered: impl FnOnce(TxnReply, Option<Debt>) + Send + 'static,
    ) {
        self.session.settler().settle_for_good("a barrier's hold", owed, self.deletes(hold), answered);
    }

    /// Waits until no client holds the barrier; returns at once if none does. One that finds a later hold than the one that it
    /// waits for goes on, too: the barrier was open in between.
    ///
    /// One RPC, beside a watch of the key; none when it is released. Every one to two minutes one more looks after
    /// releases that old servers lose.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] as soon as the session is lost. Whatever keeps the server from answering the read until the
    /// client's request timeout, for which it is asked within two minutes where no watch can be opened; and refusals of the
    /// watch. It never returns early with success.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn wait(&self) -> Result<()> {
        let mut view = View::keys(self.session.client(), [&self.key]);
        let mut first = None;
        let open = |view: &View| match view.get(&self.key).map(|kv| kv.create_revision) {
            None => Some(()),
            // A later hold: the one that was waited for was released, if that was not told.
            Some(hold) => (*first.get_or_insert(hold) != hold).then_some(()),
        };
        view.until(&self.session, open).await
    }

    /// Puts the hold with the session's lease. Gives its mark, too.
    async fn put(self) -> Result<(Hold, Bytes)> {
        let mark = Bytes::from(drawn());
        let put = Txn::new()
            .compare(Compare::missing(self.key.clone()))
            .success(Op::put_with_lease(self.key.clone(), mark.clone(), self.session.lease()))
            .failure(Op::get(self.key.clone()));
        // Twice is not once: between the two, another may have released the first.
        let put = self.session.transact(put, Repeat::Never).await.map(|answer| answer.value);
        let held_since = match put {
            Ok(reply) if reply.succeeded => reply.header.revision,
            Ok(reply) => return Err(self.held(&reply)),
            Err(error) if error.outcome() == Outcome::NotApplied => return Err(error),
            Err(error) => self.read_back(mark.clone()).await.ok_or(error)?,
        };
        Ok((Hold { barrier: self, held_since, owed: None, kept: false }, mark))
    }

    /// Since when there is a hold of this mark, that may have been put. Where there is none, it is looked out for.
    async fn read_back(&self, mark: Bytes) -> Option<i64> {
        let reply = self.session.read(Txn::new().success(Op::get(self.key.clone()))).await.ok();
        let found = reply.as_ref().and_then(|reply| reply.first(0)).filter(|kv| kv.value == mark);
        if let Some(kv) = found {
            return Some(kv.create_revision);
        }
        let suspect = Suspect { key: self.key.clone(), turn: None, mark: Some(mark), owned: 0, requests: 1 };
        self.session.settler().look_out_for(suspect, reply.map_or(0, |reply| reply.header.revision));
        None
    }

    /// Releases what is known of, or what is found instead. Tells which hold the last request was for.
    async fn delete(self, sent: &mut Sent) -> Result<()> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        sent.hold = seen;
        // Of a hold that is not known of, 0 asks whether there is one.
        let found = match self.delete_hold(seen).await? {
            (None, _) => return Ok(()),
            // An attempt of unknown fate may have released what was asked for, and this be a later hold; or what was asked
            // for was gone before, and this is what keeps the others waiting.
            (Some(found), true) if seen != 0 => {
                self.saw(found);
                let error = Error::new(ErrorKind::Locked, Outcome::Unknown).at("KV/Txn");
                let why = format!("the barrier {:?} is held since revision {found}", self.key);
                return Err(error.because(why));
            }
            (Some(found), _) => found,
        };
        *sent = Sent { hold: found, was_found: true };
        // If it is gone by then, it was released in the meantime, and what is there is a later hold again.
        self.delete_hold(found).await.map(drop)
    }

    /// Deletes the hold of this create_revision. Gives that of another that is there instead, and whether an attempt is
    /// of unknown fate.
    async fn delete_hold(&self, hold: i64) -> Result<(Option<i64>, bool)> {
        let answer = self.session.transact(self.deletes(hold), Repeat::Harmless).await?;
        Ok((other_hold(&answer.value), answer.ambiguous))
    }

    /// Deletes the hold of this create_revision, or reads which there is instead.
    fn deletes(&self, hold: i64) -> Txn {
        Txn::new()
            .compare(Compare::create_revision(self.key.clone()).is(hold))
            .success(Op::delete(self.key.clone()))
            .failure(Op::get(self.key.clone()))
    }

    /// The error for a barrier that is held already.
    fn held(&self, reply: &TxnReply) -> Error {
        let since = reply.first(0).map_or(0, |kv| kv.create_revision);
        self.saw(since);
        let error = Error::new(ErrorKind::Locked, Outcome::NotApplied).at("KV/Txn");
        error.because(format!("the barrier {:?} is held since revision {since}", self.key))
    }

    fn saw(&self, hold: i64) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = hold;
    }
}

/// Which hold a release was sent for.
#[derive(Clone, Copy)]
struct Sent {
    /// Its create_revision; 0 asks whether there is one.
    hold: i64,
    /// It was seen to stand by this release.
    was_found: bool,
}

/// A hold on its way to the caller: dropped before it is there, it is taken back.
struct Hold {
    barrier: Barrier,
    /// Its create_revision.
    held_since: i64,
    /// Once it may outlast the lease.
    owed: Option<Debt>,
    kept: bool,
}

impl Hold {
    /// Makes it last without the session's lease.
    async fn stay(&mut self, mark: Bytes) -> Result<()> {
        let Barrier { session, key, .. } = &self.barrier;
        // The same value under the same guard: twice is once, and late it is refused.
        let txn = Txn::new()
            .compare(Compare::create_revision(key.clone()).is(self.held_since))
            .success(Op::put(key.clone(), mark));
        let unknown = |error: Error| error.with_outcome(Outcome::Unknown);
        // Before it is sent: the answer may never be looked at.
        self.owed = Some(session.cleanup().hold());
        let stays = session.transact(txn, Repeat::Harmless).await;
        let is_on_the_lease = stays.as_ref().is_err_and(|error| error.outcome() == Outcome::NotApplied);
        let is_gone = stays.as_ref().is_ok_and(|answer| !answer.value.succeeded);
        if is_on_the_lease || is_gone {
            settled(&mut self.owed);
        }
        if stays.map_err(unknown)?.value.succeeded {
            return Ok(());
        }
        // Another has released it since, or it went with the lease.
        match session.lease_handle().ask().await.map_err(unknown)? {
            None => Ok(()),
            Some(reason) => Err(unknown(reason.into())),
        }
    }

    fn keep(mut self) -> i64 {
        self.kept = true;
        settled(&mut self.owed);
        self.held_since
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Where there is another, this one is gone.
        let answered = |_, mut owed| settled(&mut owed);
        self.barrier.delete_for_good(self.held_since, self.owed.take(), answered);
    }
}

/// Which hold there is, by its create_revision, instead of the one that was to be deleted.
fn other_hold(reply: &TxnReply) -> Option<i64> {
    reply.first(0).filter(|_| !reply.succeeded).map(|kv| kv.create_revision)
}

/// It does not outlast the lease, or is its caller's.
fn settled(owed: &mut Option<Debt>) {
    if let Some(debt) = owed.take() {
        debt.saved();
    }
}
