//! What happens in one schedule, all of it drawn from the seed up front: so that it repeats, and so that parts of it can
//! be left out.

use std::fmt;
use std::time::Duration;

use etcd_concurrency::fake::Trouble;
use fastrand::Rng;

use crate::env;
use crate::wide::{self, Wide};

pub(crate) const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];
const MS: fn(u64) -> Duration = Duration::from_millis;

/// One schedule.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    pub(crate) actors: Vec<Actor>,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// For how long things go wrong.
    pub(crate) length: Duration,
    pub(crate) ttl: Duration,
    pub(crate) request_timeout: Duration,
    /// What every message takes, there and back.
    pub(crate) latency: Duration,
    pub(crate) auth: bool,
    /// The order among watches is drawn, too.
    pub(crate) shuffled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Mutex,
    Election,
    RwLock,
    Semaphore,
    MultiLock,
    Stm,
    Counter,
    Queue,
    Rounds,
    Latch,
    Members,
    Adopter,
    Barrier,
}

impl Kind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Mutex,
        Self::Election,
        Self::RwLock,
        Self::Semaphore,
        Self::MultiLock,
        Self::Stm,
        Self::Counter,
        Self::Queue,
        Self::Rounds,
        Self::Latch,
        Self::Members,
        Self::Adopter,
        Self::Barrier,
    ];
}

#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) kind: Kind,
    pub(crate) client: usize,
    /// Which of its client's sessions it shares with others.
    pub(crate) slot: usize,
    pub(crate) seed: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) what: What,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Fake(Trouble),
    /// Some of a client's calls arrive late, even after it has given them up; others overtake them.
    Straggle {
        client: usize,
        share: f64,
        delay: Duration,
        lasts: Duration,
    },
    /// Some of a client's calls are applied and answered late.
    AnswerLate {
        client: usize,
        share: f64,
        delay: Duration,
        lasts: Duration,
    },
    /// The answers on a client's keep-alive streams are late.
    KeepAliveLate {
        client: usize,
        delay: Duration,
        lasts: Duration,
    },
    /// A client's keep-alives are answered late for a while, and then lost on streams that stay open.
    KeepAliveFades {
        client: usize,
        delay: Duration,
        late: Duration,
        lost: Duration,
    },
    /// Some of a client's calls are applied and never answered.
    Hang {
        client: usize,
        share: f64,
        lasts: Duration,
    },
    /// The server ends a lease; which of them, is counted round.
    EndLease {
        number: usize,
        revoke: bool,
    },
    /// Somebody deletes a key of those who hold or wait.
    BreakKey {
        number: usize,
    },
    /// A client's machine sleeps: its clock jumps.
    Suspend {
        client: usize,
        slept: Duration,
    },
    /// What a client's process does stands still, but for what the crate does in the background.
    Freeze {
        client: usize,
        lasts: Duration,
    },
    /// All processes stand still; the server does not.
    StopAll {
        lasts: Duration,
    },
    /// A session is closed under those who use it.
    Close {
        client: usize,
        slot: usize,
    },
    /// The member stands still that some of a client's calls go to; others go to another.
    Stop {
        client: usize,
        share: f64,
        lasts: Duration,
        goes_on: GoesOn,
    },
    /// Some of a client's calls each take another time to arrive, up to minutes.
    StraggleLong {
        client: usize,
        share: f64,
        longest: Duration,
        lasts: Duration,
    },
    /// The member that a client reads from lags.
    Lag {
        client: usize,
        lasts: Duration,
    },
    /// Some of a client's watches are told late while others are not.
    Victims {
        client: usize,
        share: f64,
        longest: Duration,
        lasts: Duration,
    },
    /// Some of a client's writes are applied and told of as an error.
    Applied {
        client: usize,
        share: f64,
        lasts: Duration,
    },
    /// Good tokens are refused so often.
    RefuseTokens {
        times: u64,
        outdated: bool,
    },
    /// Somebody deletes all keys of a name at once.
    BreakName {
        number: usize,
    },
    /// A session is orphaned under those who use it, and adopted by a client after a while; which only keeps the lease
    /// then, or uses it.
    Orphan {
        client: usize,
        slot: usize,
        by: usize,
        after: Duration,
        used: bool,
    },
}

/// When a member goes on that stood still.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GoesOn {
    After(Duration),
    /// When all who acted have ended, and their sessions live on.
    WhenAllIsQuiet,
    /// When all sessions have ended.
    WhenAllHaveGone,
}

impl Plan {
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let length = Duration::from_secs(rng.u64(15..30));
        let setup = Setup {
            length,
            ttl: Duration::from_secs(rng.u64(2..7)),
            request_timeout: rng.choice([MS(1_500), MS(3_000), MS(10_000)]).unwrap_or(MS(3_000)),
            latency: rng.choice([MS(0), MS(1), MS(5), MS(60)]).unwrap_or(MS(1)),
            auth: rng.u8(0..6) == 0,
            shuffled: rng.bool() && wide::on(Wide::Victims),
        };
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Barrier || wide::on(Wide::Barrier));
        let mut kinds = rng.choose_multiple(kinds, 2);
        if let Some(only) = env::<String>("SIM_KIND") {
            let named = Kind::ALL.into_iter().find(|kind| format!("{kind:?}") == only);
            kinds = vec![named.unwrap_or_else(|| panic!("no kind {only}"))];
        }
        let actors = (0..rng.usize(6..10)).map(|n| Actor {
            kind: kinds[n % kinds.len()],
            client: rng.usize(0..CLIENTS.len()),
            slot: rng.usize(0..2),
            seed: rng.u64(..),
        });
        let actors = actors.collect();
        let mut events = Vec::new();
        let mut at = Duration::ZERO;
        loop {
            at += length.mul_f64(rng.f64() / 6.0);
            if at >= length {
                return Self { seed, setup, actors, events };
            }
            let lasts = (length - at).min(length / 4).mul_f64(rng.f64());
            events.push(Event { at, what: What::drawn(&mut rng, lasts) });
        }
    }
}

impl What {
    fn drawn(rng: &mut Rng, lasts: Duration) -> Self {
        let client = rng.usize(0..CLIENTS.len());
        let name = CLIENTS[client].to_owned();
        let (share, up_to) = (rng.f64(), |rng: &mut Rng, most| MS(rng.u64(0..most)));
        if rng.u8(0..3) == 0
            && let Some(wide) = Self::wide(rng, client, lasts)
        {
            return wide;
        }
        match rng.u8(0..32) {
            0 => Self::Fake(Trouble::CutStreams(name)),
            1 => Self::Fake(Trouble::Cut(name)),
            2 | 3 => Self::Fake(Trouble::Stall(name, lasts)),
            4 | 5 => Self::Fake(Trouble::Partition(name, lasts)),
            6 => Self::Fake(Trouble::Slow(name, up_to(rng, 2_000), lasts)),
            7 | 8 => Self::Fake(Trouble::LoseReplies(name, share, lasts)),
            9 => Self::Fake(Trouble::LoseRequests(name, share, lasts)),
            10 => Self::Fake(Trouble::Split(name, lasts)),
            11 => Self::Fake(Trouble::LeaderLoss(lasts)),
            12 => Self::Fake(Trouble::Restart(lasts)),
            13 => Self::Fake(Trouble::Compact),
            14 => Self::Fake(Trouble::ExpireTokens),
            15..18 => Self::Straggle { client, share, delay: up_to(rng, 4_500), lasts },
            18 | 19 => Self::AnswerLate { client, share, delay: up_to(rng, 9_000), lasts },
            20 => Self::KeepAliveLate { client, delay: up_to(rng, 2_000), lasts },
            28..32 => Self::KeepAliveFades {
                client,
                delay: up_to(rng, 2_000),
                late: lasts,
                lost: up_to(rng, 8_000),
            },
            21 => Self::Hang { client, share, lasts },
            22 => Self::EndLease { number: rng.usize(..64), revoke: rng.bool() },
            23 => Self::BreakKey { number: rng.usize(..64) },
            24 => Self::Suspend { client, slept: up_to(rng, 8_000) },
            25 => Self::Freeze { client, lasts },
            26 => Self::StopAll { lasts },
            _ => Self::Close { client, slot: rng.usize(0..2) },
        }
    }

    /// What only a cluster does, and what third parties do; None for what is not asked for.
    fn wide(rng: &mut Rng, client: usize, lasts: Duration) -> Option<Self> {
        let share = rng.f64();
        let up_to = |rng: &mut Rng, most| MS(rng.u64(0..most));
        let (of, what) = match rng.u8(0..12) {
            0..3 => {
                let goes_on = match rng.u8(0..4) {
                    0 => GoesOn::After(up_to(rng, 20_000)),
                    1 => GoesOn::WhenAllHaveGone,
                    _ => GoesOn::WhenAllIsQuiet,
                };
                (Wide::Stragglers, Self::Stop { client, share, lasts, goes_on })
            }
            3 => {
                let longest = up_to(rng, 300_000);
                (Wide::Stragglers, Self::StraggleLong { client, share, longest, lasts })
            }
            4 => (Wide::Lag, Self::Lag { client, lasts }),
            5 | 6 => {
                let longest = up_to(rng, 8_000);
                (Wide::Victims, Self::Victims { client, share, longest, lasts })
            }
            7 => (Wide::Applied, Self::Applied { client, share, lasts }),
            8 => (Wide::Tokens, Self::RefuseTokens { times: rng.u64(1..6), outdated: rng.bool() }),
            9 | 10 => (Wide::Several, Self::BreakName { number: rng.usize(..64) }),
            _ => {
                let (slot, by, after) = (rng.usize(0..2), rng.usize(0..CLIENTS.len()), up_to(rng, 1_000));
                (Wide::Orphan, Self::Orphan { client, slot, by, after, used: rng.bool() })
            }
        };
        wide::on(of).then_some(what)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.setup)?;
        for actor in &self.actors {
            let Actor { kind, client, slot, seed } = actor;
            writeln!(f, "actor {kind:?} of {}{slot}, {seed:016x}", CLIENTS[*client])?;
        }
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Fake(trouble) => write!(f, "{:?}: {trouble}", self.at),
            what => write!(f, "{:?}: {what:?}", self.at),
        }
    }
}
