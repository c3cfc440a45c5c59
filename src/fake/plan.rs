//! Plans: what goes wrong, and when, written down or drawn from a seed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::{Do, FakeEtcd, Fault, On, Rpc};

/// A plan of what goes wrong, and when; [`FakeEtcd::run`] carries it out. Prints as one line for each trouble.
///
/// ```
/// use std::time::Duration;
/// use etcd_concurrency::fake::{FaultPlan, Trouble};
///
/// let plan = FaultPlan::new()
///     .at(Duration::from_secs(1), Trouble::LeaderLoss(Duration::from_secs(3)))
///     .at(Duration::from_secs(9), Trouble::CutStreams("worker".into()));
/// assert_eq!(plan.to_string(), "1s: no leader for 3s\n9s: cut the streams of worker\n");
/// // Or leave it to chance, and print the seed of a test that failed.
/// assert_eq!(
///     FaultPlan::drawn(7, &["a", "b"], Duration::from_secs(60)),
///     FaultPlan::drawn(7, &["a", "b"], Duration::from_secs(60)),
/// );
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultPlan {
    /// In order of time.
    troubles: Vec<(Duration, Trouble)>,
}

/// Something that goes wrong. Where it is said for how long, it is mended then.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// A client's streams break.
    CutStreams(String),
    /// A client's streams and unanswered calls break.
    Cut(String),
    /// A client's streams are silent for so long, then break.
    Stall(String, Duration),
    /// A client is cut off for so long.
    Partition(String, Duration),
    /// What a client says takes the first of these longer to arrive, for the second.
    Slow(String, Duration, Duration),
    /// A client's calls are applied and each answer lost with this probability, for so long.
    LoseReplies(String, f64, Duration),
    /// A client's calls break before they are applied with this probability, for so long.
    LoseRequests(String, f64, Duration),
    /// A client's watch responses come in the smallest pieces, for so long.
    Split(String, Duration),
    /// There is no leader for so long.
    LeaderLoss(Duration),
    /// The server is stopped for so long.
    Restart(Duration),
    /// The history up to now is compacted.
    Compact,
    /// All tokens are invalid.
    ExpireTokens,
    /// A lease ends: of those that there are, in order of their ids, the one that the number falls on.
    EndLease(usize),
}

impl FaultPlan {
    /// A plan in which nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// This too, so long after the plan's beginning.
    pub fn at(mut self, when: Duration, trouble: Trouble) -> Self {
        let place = self.troubles.partition_point(|(earlier, _)| *earlier <= when);
        self.troubles.insert(place, (when, trouble));
        self
    }

    /// About sixteen troubles for these clients, and for all, by chance; when `length` is over, all is mended.
    ///
    /// No message is lost that a client could not know of: a stream that swallows something ends. Leases end and
    /// tokens expire, too.
    pub fn drawn(seed: u64, clients: &[&str], length: Duration) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut plan = Self::new();
        let mut now = Duration::ZERO;
        loop {
            now += length.mul_f64(random.f64() / 8.0);
            if now >= length {
                return plan;
            }
            let left = (length - now).min(length / 6);
            let lasts = left.mul_f64(random.f64());
            plan = plan.at(now, Trouble::drawn(&mut random, clients, lasts));
        }
    }

    /// What goes wrong, in order.
    pub fn troubles(&self) -> impl Iterator<Item = (Duration, &Trouble)> {
        self.troubles.iter().map(|(when, trouble)| (*when, trouble))
    }
}

impl Trouble {
    fn drawn(random: &mut fastrand::Rng, clients: &[&str], lasts: Duration) -> Self {
        let Some(client) = random.choice(clients).map(|client| (*client).to_owned()) else {
            return Self::LeaderLoss(lasts);
        };
        let probability = random.f64();
        match random.u8(0..16) {
            0 | 1 => Self::CutStreams(client),
            2 => Self::Cut(client),
            3 => Self::Stall(client, lasts),
            4 | 5 => Self::Partition(client, lasts),
            6 | 7 => Self::Slow(client, Duration::from_millis(random.u64(1..2_000)), lasts),
            8 | 9 => Self::LoseReplies(client, probability, lasts),
            10 => Self::LoseRequests(client, probability, lasts),
            11 => Self::Split(client, lasts),
            12 => Self::LeaderLoss(lasts),
            13 => Self::Restart(lasts),
            14 => Self::Compact,
            _ if random.bool() => Self::ExpireTokens,
            _ => Self::EndLease(random.usize(0..64)),
        }
    }

    /// When it is mended, counted from its beginning.
    fn lasts(&self) -> Option<Duration> {
        match self {
            Self::Stall(_, lasts)
            | Self::Partition(_, lasts)
            | Self::Slow(_, _, lasts)
            | Self::LoseReplies(_, _, lasts)
            | Self::LoseRequests(_, _, lasts)
            | Self::Split(_, lasts)
            | Self::Restart(lasts) => Some(*lasts),
            // The leader comes back by itself.
            Self::LeaderLoss(_)
            | Self::CutStreams(_)
            | Self::Cut(_)
            | Self::Compact
            | Self::ExpireTokens
            | Self::EndLease(_) => None,
        }
    }
}

impl FakeEtcd {
    /// Lets a plan happen, from now to its end. Dropped before, it leaves things as they are.
    ///
    /// # Errors
    /// When a stopped server cannot listen at its address again.
    pub async fn run(&self, plan: &FaultPlan) -> io::Result<()> {
        let start = Instant::now();
        let mut acts: Vec<(Duration, usize, bool)> = Vec::new();
        for (index, (when, trouble)) in plan.troubles.iter().enumerate() {
            acts.push((*when, index, true));
            acts.extend(trouble.lasts().map(|lasts| (*when + lasts, index, false)));
        }
        acts.sort_by_key(|(when, ..)| *when);
        let mut faults = HashMap::new();
        for (when, index, begins) in acts {
            tokio::time::sleep_until(start + when).await;
            let (_, trouble) = &plan.troubles[index];
            if begins {
                faults.insert(index, self.begin(trouble).await);
            } else {
                self.end(trouble).await?;
                faults.remove(&index).into_iter().flatten().for_each(|fault: Fault| fault.remove());
            }
        }
        Ok(())
    }

    async fn begin(&self, trouble: &Trouble) -> Vec<Fault> {
        match trouble {
            Trouble::CutStreams(client) => self.cut_streams(client),
            Trouble::Cut(client) => self.cut(client),
            Trouble::Stall(client, _) => self.stall_streams(client),
            Trouble::Partition(client, _) => self.partition(client),
            Trouble::Slow(client, delay, _) => {
                return vec![self.fault(On::any().client(client), Do::delay(*delay))];
            }
            Trouble::LoseReplies(client, probability, _) => {
                let on = On::any().client(client).probability(*probability);
                return vec![self.fault(on, Do::lose_reply())];
            }
            Trouble::LoseRequests(client, probability, _) => {
                let on = On::any().client(client).probability(*probability);
                return vec![self.fault(on, Do::cut())];
            }
            Trouble::Split(client, _) => {
                return vec![self.fault(On::response(Rpc::Watch).client(client), Do::split())];
            }
            Trouble::LeaderLoss(duration) => self.leader_loss(*duration),
            Trouble::Restart(_) => self.stop().await,
            Trouble::Compact => {
                if let Err(already) = self.compact(self.revision()) {
                    tracing::debug!(%already, "nothing to compact");
                }
            }
            Trouble::ExpireTokens => self.expire_tokens(),
            Trouble::EndLease(number) => {
                let mut leases: Vec<i64> = self.snapshot().leases.iter().map(|lease| lease.id).collect();
                leases.sort_unstable();
                if let Some(place) = number.checked_rem(leases.len()) {
                    self.expire_lease(leases[place]);
                }
            }
        }
        Vec::new()
    }

    async fn end(&self, trouble: &Trouble) -> io::Result<()> {
        match trouble {
            Trouble::Stall(client, _) => self.cut_streams(client),
            Trouble::Partition(client, _) => self.heal(client),
            Trouble::Restart(_) => self.restart().await?,
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.troubles.iter().try_for_each(|(when, trouble)| writeln!(f, "{when:?}: {trouble}"))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutStreams(client) => write!(f, "cut the streams of {client}"),
            Self::Cut(client) => write!(f, "cut {client}"),
            Self::Stall(client, lasts) => write!(f, "stall the streams of {client} for {lasts:?}"),
            Self::Partition(client, lasts) => write!(f, "partition {client} for {lasts:?}"),
            Self::Slow(client, delay, lasts) => write!(f, "slow {client} down by {delay:?} for {lasts:?}"),
            Self::LoseReplies(client, probability, lasts) => {
                write!(f, "lose {:.0}% of the replies to {client} for {lasts:?}", probability * 100.0)
            }
            Self::LoseRequests(client, probability, lasts) => {
                write!(f, "lose {:.0}% of the requests of {client} for {lasts:?}", probability * 100.0)
            }
            Self::Split(client, lasts) => write!(f, "split the watch responses of {client} for {lasts:?}"),
            Self::LeaderLoss(lasts) => write!(f, "no leader for {lasts:?}"),
            Self::Restart(lasts) => write!(f, "no server for {lasts:?}"),
            Self::Compact => f.write_str("compact"),
            Self::ExpireTokens => f.write_str("expire all tokens"),
            Self::EndLease(number) => write!(f, "end lease {number}, counted round"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_draws_one_plan_that_ends_in_time() {
        let draw = |seed| FaultPlan::drawn(seed, &["a", "b"], MINUTE);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let plan = draw(seed);
            assert!((4..64).contains(&plan.troubles().count()), "{plan}");
            for (when, trouble) in plan.troubles() {
                assert!(when + trouble.lasts().unwrap_or_default() <= MINUTE, "{plan}");
                kinds.insert(format!("{trouble:?}").split(['(', ' ']).next().map(str::to_owned));
            }
        }
        assert_eq!(kinds.len(), 13, "every kind of trouble is drawn: {kinds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_happens_when_it_says_and_is_mended() {
        let fake = FakeEtcd::start();
        let second = Duration::from_secs(1);
        let plan = FaultPlan::new()
            .at(3 * second, Trouble::Restart(second))
            .at(second, Trouble::Partition("a".into(), second))
            .at(second, Trouble::Compact);
        fake.run(&plan).await.expect("nothing listens");
        let told: Vec<_> =
            fake.history().iter().map(|done| (done.at.as_secs(), done.request.clone())).collect();
        let told: Vec<_> = told.iter().map(|(at, what)| (*at, what.as_str())).collect();
        assert_eq!(
            told,
            [
                (1, "a is partitioned"),
                (1, "compacted up to 1"),
                (2, "a is healed"),
                (3, "the server stops"),
                (4, "the server starts again"),
            ]
        );
    }
}
