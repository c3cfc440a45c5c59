//! One body of a test on the fake and on every real version.
//!
//! ```ignore
//! on_every_backend! {
//!     /// What the test is about.
//!     async fn a_lock_excludes(backend: Backend) {
//!         let key = backend.key("lock");
//!         …
//!     }
//! }
//! ```
//!
//! makes the tests `a_lock_excludes::fake` (on a paused clock: virtual hours pass in no time) and
//! `a_lock_excludes::etcd_3_4` to `etcd_3_7` (ignored where no server is at hand).

use std::fmt::Write;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use etcd_concurrency::fake::FakeEtcd;
use etcd_concurrency::{Client, RawService};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tower::{Layer, ServiceExt};

use super::count::RpcCounter;
use super::etcd::{Etcd, Version};

/// A body that waits for something that never comes must end. On the fake's paused clock a day
/// passes at once where nothing is left to happen, and is still long for what a test lets happen.
const LIMIT_FAKE: Duration = Duration::from_secs(24 * 3600);
const LIMIT_REAL: Duration = Duration::from_secs(120);

/// What a test body runs on. Keys made by `key` are this test's alone.
pub(crate) struct Backend {
    pub(crate) server: Server,
    prefix: String,
}

pub(crate) enum Server {
    /// A fake of this test's own.
    Fake(FakeEtcd),
    /// The one server of this version that all tests of this process share.
    Real(&'static Etcd),
    Own(Etcd),
}

impl Server {
    fn real(&self) -> Option<&Etcd> {
        match self {
            Server::Fake(_) => None,
            Server::Real(etcd) => Some(etcd),
            Server::Own(etcd) => Some(etcd),
        }
    }
}

impl Backend {
    fn new(server: Server, test: &str) -> Backend {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut prefix = test.replace("::", "/");
        let _ = write!(prefix, "/{}/", NEXT.fetch_add(1, Ordering::Relaxed));
        Backend { server, prefix }
    }

    pub(crate) fn is_fake(&self) -> bool {
        matches!(self.server, Server::Fake(_))
    }

    /// A client of its own connection.
    pub(crate) fn client(&self) -> Client {
        Client::from_service(self.service())
    }

    /// A client whose calls are counted.
    pub(crate) fn client_with(&self, counter: RpcCounter) -> Client {
        Client::from_service(counter.layer(self.service()))
    }

    /// The same on a server that no other test talks to.
    pub(crate) async fn alone(self) -> Backend {
        let Server::Real(shared) = self.server else { return self };
        let own = Etcd::start(shared.version()).await;
        Backend { server: Server::Own(own), prefix: self.prefix }
    }

    /// How many watches the server has, where it tells.
    pub(crate) fn watchers(&self) -> Option<usize> {
        self.fake().map(FakeEtcd::watchers)
    }

    pub(crate) fn fake(&self) -> Option<&FakeEtcd> {
        match &self.server {
            Server::Fake(fake) => Some(fake),
            Server::Real(_) | Server::Own(_) => None,
        }
    }

    /// The version, of a real server.
    pub(crate) fn version(&self) -> Option<Version> {
        self.server.real().map(Etcd::version)
    }

    /// Where a real server listens.
    pub(crate) fn endpoint(&self) -> Option<&str> {
        self.server.real().map(Etcd::endpoint)
    }

    /// `name` under this test's own prefix.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Ends with `/`, is no other test's, and no prefix of another test's.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What carries gRPC to the server: for the generated clients, or under a user's layers.
    pub(crate) fn service(&self) -> RawService {
        match &self.server {
            Server::Fake(fake) => {
                RawService::new(fake.service().map_err(|error| tonic::Status::from_error(error.into())))
            }
            Server::Real(etcd) => over(etcd),
            Server::Own(etcd) => over(etcd),
        }
    }
}

fn over(etcd: &Etcd) -> RawService {
    RawService::new(etcd.channel().map_err(|error| tonic::Status::from_error(error.into())))
}

pub(crate) fn on_fake<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Backend) -> F) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(async {
        let backend = Backend::new(Server::Fake(FakeEtcd::start()), test);
        let end = timeout(LIMIT_FAKE, body(backend)).await;
        assert!(end.is_ok(), "not done within {LIMIT_FAKE:?} of virtual time");
    });
}

pub(crate) fn on_real<F: Future<Output = ()>>(version: Version, test: &str, body: impl FnOnce(Backend) -> F) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime can be built").block_on(async {
        let backend = Backend::new(Server::Real(Etcd::shared(version).await), test);
        let end = timeout(LIMIT_REAL, body(backend)).await;
        assert!(end.is_ok(), "not done within {LIMIT_REAL:?}");
    });
}

/// See [the module](self).
macro_rules! on_every_backend {
    ($($(#[$meta:meta])* async fn $name:ident($backend:ident: Backend) $body:block)+) => {$(
        $(#[$meta])*
        async fn $name($backend: $crate::support::backend::Backend) $body

        mod $name {
            use $crate::support::backend::{on_fake, on_real};
            use $crate::support::etcd::Version;

            #[test]
            fn fake() {
                on_fake(module_path!(), super::$name);
            }

            #[test]
            #[ignore = "needs a real etcd: `.ci/run servers` builds it"]
            fn etcd_3_4() {
                on_real(Version::V3_4, module_path!(), super::$name);
            }

            #[test]
            #[ignore = "needs a real etcd: `.ci/run servers` builds it"]
            fn etcd_3_5() {
                on_real(Version::V3_5, module_path!(), super::$name);
            }

            #[test]
            #[ignore = "needs a real etcd: `.ci/run servers` builds it"]
            fn etcd_3_6() {
                on_real(Version::V3_6, module_path!(), super::$name);
            }

            #[test]
            #[ignore = "needs a real etcd: `.ci/run servers` builds it"]
            fn etcd_3_7() {
                on_real(Version::V3_7, module_path!(), super::$name);
            }
        }
    )+};
}
pub(crate) use on_every_backend;
