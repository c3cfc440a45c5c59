//! What a server is started with.

use std::time::Duration;

use super::FakeEtcd;
use super::core::Config;
use super::shared::Shared;

/// Settings of a [`FakeEtcd`]; the defaults are etcd's own.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    config: Config,
}

impl Builder {
    pub(super) fn new() -> Self {
        let config = Config {
            seed: 0,
            min_lease_ttl: 2,
            max_txn_ops: 128,
            max_request_bytes: 3 << 19,
            progress_interval: Duration::from_secs(600),
            version: "3.7.3".into(),
            history_limit: 100_000,
            token_ttl: Duration::from_secs(300),
            jwt_tokens: false,
            shuffled_watches: false,
            loses_deletions: false,
        };
        Self { config }
    }

    /// Starts the server.
    pub fn start(self) -> FakeEtcd {
        FakeEtcd { shared: Shared::new(self.config) }
    }

    /// The seed of everything that is left to chance: faults with a probability, times that are drawn, the order of
    /// [`shuffled_watches`](Self::shuffled_watches). Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// The shortest TTL that a lease is granted, in seconds. Default 2.
    pub fn min_lease_ttl(mut self, seconds: i64) -> Self {
        self.config.min_lease_ttl = seconds;
        self
    }

    /// The most operations that a transaction may have in one list. Default 128.
    pub fn max_txn_ops(mut self, operations: usize) -> Self {
        self.config.max_txn_ops = operations;
        self
    }

    /// The largest write request. Default 1.5 MiB.
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.config.max_request_bytes = bytes;
        self
    }

    /// How often watchers that ask for it are told of progress. Default 10 minutes; at least 100 ms.
    pub fn progress_interval(mut self, interval: Duration) -> Self {
        self.config.progress_interval = interval.max(Duration::from_millis(100));
        self
    }

    /// How long a token lives unused. Default 5 minutes.
    pub fn token_ttl(mut self, ttl: Duration) -> Self {
        self.config.token_ttl = ttl;
        self
    }

    /// Tokens that behave as etcd's JSON web tokens instead of its simple ones: use does not prolong them, a
    /// restart does not end them, and any change of users or roles makes all older ones fail with
    /// `etcdserver: revision of auth store is old`.
    pub fn jwt_tokens(mut self) -> Self {
        self.config.jwt_tokens = true;
        self
    }

    /// How many operations [`FakeEtcd::history`] remembers. Default 100,000.
    pub fn history_limit(mut self, operations: usize) -> Self {
        self.config.history_limit = operations;
        self
    }

    /// The version that the server says it has. Its behaviour stays that of the default, 3.7.3.
    pub fn version(mut self, version: &str) -> Self {
        self.config.version = version.into();
        self
    }

    /// Draws from the seed what a real server leaves to chance between watches: which watcher is told first of a
    /// revision, and which of those that start in the past or were too slow catches up next, each by itself. By
    /// default they are served in the order of their streams and ids.
    pub fn shuffled_watches(mut self) -> Self {
        self.config.shuffled_watches = true;
        self
    }

    /// Loses deletions as etcd before 3.4.36 and 3.5.18 does (etcd#18089): a compaction takes the deletions of its own
    /// revision along, so a watch that starts at that very revision is never told of them, and does not end either.
    pub fn loses_deletions(mut self) -> Self {
        self.config.loses_deletions = true;
        self
    }
}
