//! Faults: what goes wrong, and when.
//!
//! A fault is a pair: [`On`] says which messages it strikes, [`Do`] what happens to them.
//! Every fault enters where production has its network, between the client and the server's first line:
//! the server itself never misbehaves, only the road to it does.

mod hold;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tonic::Status;

pub use self::hold::Hold;
pub(crate) use self::hold::Ticket;
use super::rpc::Rpc;

/// Which messages a fault strikes: by RPC, by client, by content, by count, by chance.
///
/// All conditions must hold. [`nth`](Self::nth) counts the messages for which all others but chance hold.
///
/// ```
/// use etcd_concurrency::fake::{Do, FakeEtcd, On, Rpc};
/// use etcd_concurrency::pb::etcdserverpb::TxnRequest;
///
/// let fake = FakeEtcd::start();
/// // The second transaction of client "a" that writes anything is applied, but "a" never hears of it.
/// let on = On::rpc(Rpc::Txn).client("a").matching(|txn: &TxnRequest| !txn.success.is_empty()).nth(2);
/// let fault = fake.fault(on, Do::lose_reply());
/// assert_eq!(fault.hits(), 0);
/// ```
#[derive(Clone)]
pub struct On {
    place: Place,
    rpc: Option<Rpc>,
    client: Option<Arc<str>>,
    predicate: Option<Predicate>,
    nth: Option<u64>,
    times: Option<u64>,
    probability: Option<f64>,
}

/// What happens to a message that a fault strikes.
///
/// | | a call, or the opening of a stream | a client's message on a stream | a server's message on a stream |
/// |---|---|---|---|
/// | [`fail`](Self::fail) | refused, nothing applied | not applied, the stream ends | lost, the stream ends |
/// | [`lose_reply`](Self::lose_reply) | applied, then a broken connection | applied, the stream ends | lost, the stream ends |
/// | [`lose_reply_by`](Self::lose_reply_by) [`Hang`](LoseReply::Hang) | applied, never answered | applied, the stream stalls | lost, the stream stalls |
/// | [`vanish`](Self::vanish) | not applied, never answered | not applied, the stream goes on | lost, the stream goes on |
/// | [`delay`](Self::delay) | arrives later, even if the caller has gone | arrives later, and all after it | arrives later, and all after it |
/// | [`hold`](Self::hold) | arrives when released, even if the caller has gone | arrives when released, and all after it | arrives when released, and all after it |
/// | [`delay_reply`](Self::delay_reply) | applied now, answered later | no effect | as `delay` |
/// | [`split`](Self::split) | no effect | no effect | a watch response comes in the smallest pieces allowed |
#[derive(Debug, Clone, Default)]
pub struct Do {
    delay: Duration,
    /// Drawn for each message, on top.
    delay_up_to: Duration,
    delay_reply: Duration,
    hold: Option<Hold>,
    alone: bool,
    end: Option<End>,
}

/// How a reply is lost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LoseReply {
    /// The connection breaks: `Unavailable`, with words that are not the server's.
    Error,
    /// Silence, until the caller gives up or [`FakeEtcd::cut`](super::FakeEtcd::cut) breaks the connection.
    Hang,
    /// This status, as a proxy or another client stack might report it.
    Status(Status),
}

/// A fault that was set; it stays until it is removed, also when this handle is dropped.
#[derive(Debug, Clone)]
pub struct Fault {
    counts: Arc<Counts>,
}

impl On {
    /// Calls of an RPC; for the streams `Watch` and `LeaseKeepAlive`, the messages that the client sends.
    pub fn rpc(rpc: Rpc) -> Self {
        Self::at(Place::Request, Some(rpc))
    }

    /// Calls of any RPC, and what clients send on any stream.
    pub fn any() -> Self {
        Self::at(Place::Request, None)
    }

    /// The opening of a stream.
    pub fn open(rpc: Rpc) -> Self {
        Self::at(Place::Open, Some(rpc))
    }

    /// What the server sends on a stream.
    pub fn response(rpc: Rpc) -> Self {
        Self::at(Place::Response, Some(rpc))
    }

    /// Only of this client: a name given to [`FakeEtcd::service_for`](super::FakeEtcd::service_for).
    pub fn client(self, name: &str) -> Self {
        Self { client: Some(name.into()), ..self }
    }

    /// Only messages of type `M` (`pb::etcdserverpb::PutRequest`, …) for which this holds.
    pub fn matching<M: 'static>(self, predicate: impl Fn(&M) -> bool + Send + Sync + 'static) -> Self {
        let predicate: Predicate =
            Arc::new(move |message| message.downcast_ref::<M>().is_some_and(&predicate));
        Self { predicate: Some(predicate), ..self }
    }

    /// Only the n-th of them, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        Self { nth: Some(n), ..self }
    }

    /// Once, then no more.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// So many times, then no more.
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// With this probability, from 0 to 1, drawn from the fake's seed.
    pub fn probability(self, probability: f64) -> Self {
        Self { probability: Some(probability), ..self }
    }

    fn at(place: Place, rpc: Option<Rpc>) -> Self {
        Self { place, rpc, client: None, predicate: None, nth: None, times: None, probability: None }
    }
}

impl Do {
    /// Fails it with this status before anything is applied.
    pub fn fail(status: Status) -> Self {
        Self::ending(End::Fail(status))
    }

    /// Applies it, then breaks the connection: the client cannot know whether it was applied.
    pub fn lose_reply() -> Self {
        Self::lose_reply_by(LoseReply::Error)
    }

    /// Applies it, then loses the reply in this way.
    pub fn lose_reply_by(how: LoseReply) -> Self {
        Self::ending(End::LoseReply(how))
    }

    /// Breaks the connection before anything is applied.
    pub fn cut() -> Self {
        Self::fail(broken())
    }

    /// The message is lost without a trace: not applied, not answered.
    pub fn vanish() -> Self {
        Self::ending(End::Vanish)
    }

    /// The message takes this long to arrive.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Each message takes another time to arrive, of less than this, drawn from the fake's seed: calls overtake each
    /// other.
    pub fn delay_up_to(longest: Duration) -> Self {
        Self { delay_up_to: longest, ..Self::default() }
    }

    /// The message does not arrive before it is released: as what lies in the socket of a member that stands still.
    ///
    /// ```
    /// use etcd_concurrency::fake::{Do, FakeEtcd, Hold, On, Rpc};
    /// use etcd_concurrency::{Op, Txn};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let fake = FakeEtcd::start();
    /// let stopped = Hold::new();
    /// fake.fault(On::rpc(Rpc::Txn).once(), Do::hold(&stopped));
    /// let put = Txn::new().success(Op::put("k", "v"));
    /// assert!(fake.client().txn(put).await.is_err(), "nothing was answered in time");
    ///
    /// tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    /// assert_eq!((stopped.held(), fake.revision()), (1, 1));
    /// stopped.release();
    /// fake.until(|fake| fake.revision() == 2).await;
    /// # }
    /// ```
    pub fn hold(hold: &Hold) -> Self {
        Self { hold: Some(hold.clone()), ..Self::default() }
    }

    /// Holds up one watch alone, where it delays or holds its responses: the other watches of the stream overtake it, as
    /// they do a watcher that was too slow for the server, and became a victim. Within a watch the order stays.
    ///
    /// Answers to the creation of a watch hold up what comes after them all the same.
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// The reply takes this long to arrive.
    pub fn delay_reply(delay: Duration) -> Self {
        Self { delay_reply: delay, ..Self::default() }
    }

    /// A watch response comes in the smallest pieces that the protocol allows: one revision each, and one
    /// event each for watchers that take fragments.
    pub fn split() -> Self {
        Self::ending(End::Split)
    }

    /// The same, and first this long on the way.
    pub fn after(self, delay: Duration) -> Self {
        Self { delay: self.delay + delay, ..self }
    }

    fn ending(end: End) -> Self {
        Self { end: Some(end), ..Self::default() }
    }
}

impl Fault {
    /// How many messages it has struck.
    pub fn hits(&self) -> u64 {
        self.counts.hits.load(Ordering::Relaxed)
    }

    /// How many messages met its conditions, struck or not.
    pub fn seen(&self) -> u64 {
        self.counts.seen.load(Ordering::Relaxed)
    }

    /// Takes it away.
    pub fn remove(&self) {
        self.counts.removed.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("On")
            .field("place", &self.place)
            .field("rpc", &self.rpc)
            .field("client", &self.client)
            .field("matching", &self.predicate.is_some())
            .field("nth", &self.nth)
            .field("times", &self.times)
            .field("probability", &self.probability)
            .finish()
    }
}

type Predicate = Arc<dyn Fn(&dyn Any) -> bool + Send + Sync>;

/// Where on its way a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Request,
    Open,
    Response,
}

#[derive(Debug, Clone)]
pub(crate) enum End {
    Fail(Status),
    LoseReply(LoseReply),
    Vanish,
    Split,
}

/// What is to happen to one message: all faults that strike it, together.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) delay_reply: Duration,
    /// Whoever holds it until it is released.
    pub(crate) held: Vec<Ticket>,
    /// Others may overtake it.
    pub(crate) alone: bool,
    pub(crate) end: Option<End>,
}

/// All faults set, in order.
#[derive(Debug)]
pub(crate) struct Faults {
    set: Vec<(On, Do, Arc<Counts>)>,
    random: fastrand::Rng,
}

#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    hits: AtomicU64,
    removed: AtomicBool,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { set: Vec::new(), random: fastrand::Rng::with_seed(seed) }
    }

    pub(crate) fn set(&mut self, on: On, does: Do) -> Fault {
        let counts = Arc::new(Counts::default());
        self.set.push((on, does, Arc::clone(&counts)));
        Fault { counts }
    }

    pub(crate) fn clear(&mut self) {
        self.set.clear();
    }

    /// Delays add up; of several ends, the first set counts.
    pub(crate) fn plan(&mut self, place: Place, rpc: Rpc, client: &str, message: &dyn Any) -> Option<Plan> {
        if self.set.is_empty() {
            return None;
        }
        self.set.retain(|(_, _, counts)| !counts.removed.load(Ordering::Relaxed));
        let mut plan = Plan { alone: true, ..Plan::default() };
        let mut struck = false;
        for (on, does, counts) in &self.set {
            if on.strikes(place, rpc, client, message, counts, &mut self.random) {
                struck = true;
                plan.delay += does.delay;
                if !does.delay_up_to.is_zero() {
                    plan.delay += does.delay_up_to.mul_f64(self.random.f64());
                }
                plan.delay_reply += does.delay_reply;
                plan.held.extend(does.hold.as_ref().map(Hold::take));
                plan.alone &= does.alone;
                plan.end = plan.end.or_else(|| does.end.clone());
            }
        }
        struck.then_some(plan)
    }
}

impl On {
    fn strikes(
        &self,
        place: Place,
        rpc: Rpc,
        client: &str,
        message: &dyn Any,
        counts: &Counts,
        random: &mut fastrand::Rng,
    ) -> bool {
        let meant = self.place == place
            && self.rpc.is_none_or(|wanted| wanted == rpc)
            && self.client.as_deref().is_none_or(|wanted| wanted == client)
            && self.predicate.as_ref().is_none_or(|holds| holds(message));
        if !meant {
            return false;
        }
        let seen = counts.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let strikes = self.nth.is_none_or(|nth| nth == seen)
            && self.times.is_none_or(|times| counts.hits.load(Ordering::Relaxed) < times)
            && self.probability.is_none_or(|probability| random.f64() < probability);
        if strikes {
            counts.hits.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }
}

/// What a client sees of a connection that broke.
pub(crate) fn broken() -> Status {
    Status::unavailable("connection broken")
}

#[cfg(test)]
mod tests;
