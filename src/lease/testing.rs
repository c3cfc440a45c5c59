//! Handles of leases without a server.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::Lease;
use super::clock::LeaseClock;
use super::registry::Leases;
use super::time::Time;
use crate::transport::namespace::Namespace;
use crate::transport::{Limits, RawService, Transport};

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The leases of a client whose requests get no answer.
pub(super) fn leases() -> Leases {
    let service = tower::service_fn(|_: http::Request<tonic::body::Body>| {
        std::future::pending::<Result<http::Response<tonic::body::Body>, tonic::Status>>()
    });
    let limits = Limits { request_timeout: PATIENCE, answer: 32 << 20 };
    let transport = Transport::new(RawService::new(service), None, Namespace::new(""), limits);
    Leases::new(transport, Handle::current(), Time::system())
}

/// A handle of a lease of which nothing is known yet; none before it is believed.
pub(super) fn adopt(leases: &Leases) -> Arc<Lease> {
    let clock = LeaseClock::unproven(leases.time().now(), PATIENCE, None);
    let stay = leases.keep(7, clock).expect("no revoke was sent");
    let lease = stay.lease().clone();
    // Kept for the test's session.
    lease.enter();
    lease
}
