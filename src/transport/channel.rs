//! Connections: several endpoints, fail-over, pings.

/// Rides on a request and learns which endpoint it went to; whoever sent the request can then call that endpoint bad.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route;

/// The request never left this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}")]
pub(crate) struct NotSent {
    endpoint: String,
    source: super::BoxError,
}

impl NotSent {
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
