//! What is measured.

use serde::{Deserialize, Serialize};

/// One piece of work, that all clients do alike.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    /// As it is called in the results.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) task: Task,
    pub(crate) peers: &'static [&'static str],
}

/// What a client is told to do. The names of the fields are the options of both client programs.
#[derive(Debug, Clone, Serialize, Deserialize, clap::Args)]
pub(crate) struct Task {
    /// What kind of work.
    pub(crate) kind: String,
    /// How many workers, waiters, sessions or observers.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
    /// Of an STM's transfers.
    #[arg(long, default_value_t = 1000)]
    pub(crate) accounts: usize,
    /// How long a lock is held, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub(crate) hold: u64,
    /// All workers share one client.
    #[arg(long)]
    pub(crate) shared: bool,
    /// How long, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
}

impl Task {
    fn new(kind: &str, workers: usize) -> Self {
        Self { kind: kind.into(), workers, accounts: 1000, hold: 0, shared: false, seconds: 0.0 }
    }

    fn accounts(self, accounts: usize) -> Self {
        Self { accounts, ..self }
    }

    fn hold(self, hold: u64) -> Self {
        Self { hold, ..self }
    }

    fn shared(self) -> Self {
        Self { shared: true, ..self }
    }
}

pub(crate) const BARE: &str = "bare";
/// The bare stubs with this crate's messages.
pub(crate) const BARE_SAME: &str = "bare-same";
pub(crate) const OURS: &str = "ours";
pub(crate) const GO: &str = "go";
pub(crate) const GO_PREFETCH: &str = "go-prefetch";
pub(crate) const ETCD_CLIENT: &str = "etcd-client";

const LOCK: &[&str] = &[BARE, BARE_SAME, OURS, GO, ETCD_CLIENT];
const ALL: &[&str] = &[BARE, OURS, GO, ETCD_CLIENT];
const NO_STM: &[&str] = &[BARE, OURS, GO];
const STM: &[&str] = &[BARE, OURS, GO, GO_PREFETCH];

/// All works, in the order of the tables. `scale` divides the large numbers.
pub(crate) fn all(scale: usize) -> Vec<Work> {
    let many = 10_000 / scale;
    let thousand = 1000 / scale;
    let work = |name, title, task, peers| Work { name, title, task, peers };
    vec![
        work("lock", "lock cycle, uncontended", Task::new("lock", 1), LOCK),
        work("locks-16", "16 distinct locks in parallel", Task::new("lock", 16), LOCK),
        work("locks-64", "64 distinct locks in parallel", Task::new("lock", 64), LOCK),
        work("try", "try_lock that fails", Task::new("try", 1), NO_STM),
        work("handover-2", "hand-over among 2, a client each", Task::new("handover", 2), ALL),
        work("handover-8", "hand-over among 8, a client each", Task::new("handover", 8), ALL),
        work("handover-16", "hand-over among 16, a client each", Task::new("handover", 16), ALL),
        work("handover-64", "hand-over among 64, a client each", Task::new("handover", 64), ALL),
        work("handover-128", "hand-over among 128, a client each", Task::new("handover", 128), ALL),
        work("shared-2", "hand-over among 2, one client", Task::new("handover", 2).shared(), ALL),
        work("shared-16", "hand-over among 16, one client", Task::new("handover", 16).shared(), ALL),
        work("shared-128", "hand-over among 128, one client", Task::new("handover", 128).shared(), ALL),
        work("held-8", "hand-over among 8, held for 150 ms", Task::new("handover", 8).hold(150), ALL),
        work("held-2", "hand-over among 2, held for 150 ms", Task::new("handover", 2).hold(150), ALL),
        work("stm", "STM transfer, uncontended", Task::new("stm", 1), STM),
        work("stm-8-10", "STM, 8 workers on 10 accounts", Task::new("stm", 8).accounts(10), STM),
        work("stm-16-5", "STM, 16 workers on 5 accounts", Task::new("stm", 16).accounts(5), STM),
        work("stm-16-1000", "STM, 16 workers on 1,000 accounts", Task::new("stm", 16), STM),
        work("stm-read", "STM, read-only, two keys", Task::new("stm-read", 1), STM),
        work("campaign", "campaign and resign", Task::new("campaign", 1), ALL),
        work("failover-close", "fail-over of an election after a close", Task::new("failover-close", 1), ALL),
        work(
            "failover-expiry",
            "fail-over after an expiry, past the TTL",
            Task::new("failover-expiry", 1),
            ALL,
        ),
        work("proclaim", "proclaim to observer", Task::new("proclaim", 1), ALL),
        work("observers", "proclaim to 1,000 observers", Task::new("proclaim", thousand), NO_STM),
        work("tasks", "1,000 tasks of one process on one lock", Task::new("tasks", thousand), &[OURS, GO]),
        work("sessions", "10,000 sessions on one client, idle", Task::new("sessions", many), ALL),
        work("waiters", "10,000 waiters on one lock", Task::new("waiters", many), NO_STM),
    ]
}
