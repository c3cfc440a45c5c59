//! What all examples begin with.

use etcd_concurrency::Client;
use etcd_concurrency::fake::FakeEtcd;

/// A client of the etcd at `ETCD_ENDPOINTS`, or of a fake in this process.
pub(crate) async fn client() -> etcd_concurrency::Result<Client> {
    match std::env::var("ETCD_ENDPOINTS") {
        Ok(endpoints) => {
            println!("connecting to {endpoints}");
            Client::connect(endpoints.as_str()).await
        }
        Err(_) => {
            println!("starting a fake etcd in this process (set ETCD_ENDPOINTS for a real one)");
            Ok(FakeEtcd::start().client())
        }
    }
}
