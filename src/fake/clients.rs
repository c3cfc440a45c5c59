//! This crate's own client on the fake.

use super::FakeEtcd;
use crate::client::Client;

impl FakeEtcd {
    /// A client of this crate, in process, as the client `default`.
    ///
    /// For one with options, give [`service`](Self::service) to
    /// [`ClientBuilder::service`](crate::ClientBuilder::service).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn client(&self) -> Client {
        Client::from_service(self.service())
    }

    /// The same as the client of this name, so that faults can strike it alone.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn client_for(&self, name: &str) -> Client {
        Client::from_service(self.service_for(name))
    }
}
