//! The first contact with a cluster.

use std::error::Error as StdError;
use std::fmt;

use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::transport::Transport;
use crate::transport::auth::Tokens;
use crate::transport::channel::Route;
use crate::transport::classify;

/// Asks one endpoint after another until one answers as etcd does.
///
/// `endpoints` is empty where the user gave a service instead.
pub(super) async fn reach(transport: &Transport, endpoints: &[String], deadline: Instant) -> Result<()> {
    let mut failed = Vec::new();
    let mut route = Route::default();
    for left in (1..=endpoints.len().max(1)).rev() {
        // An endpoint that says nothing leaves time for the others.
        let now = Instant::now();
        let share = (deadline - now) / left.try_into().unwrap_or(u32::MAX);
        match transport.status(route.clone(), now + share).await {
            Ok(_) => return Ok(()),
            Err(error) if speaks_etcd(error.kind()) => return Ok(()),
            Err(error) => failed.push(Failed { endpoint: route.endpoint(), error }),
        }
        route = route.next();
    }
    Err(unreachable(failed))
}

/// Fetches the token that the first call would fetch.
pub(super) async fn authenticate(tokens: &Tokens, endpoints: &[String], deadline: Instant) -> Result<()> {
    match timeout_at(deadline, tokens.get()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(no_token)) => Err(Error::new(no_token.kind().clone(), Outcome::NotApplied)
            .at("Auth/Authenticate")
            .because(no_token)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, Outcome::NotApplied)
            .at("Auth/Authenticate")
            .because(format!("{} did not answer", endpoints.join(", ")))),
    }
}

/// True for what only a member says: that it refuses a request without a token, or cannot serve it now.
fn speaks_etcd(kind: &ErrorKind) -> bool {
    match kind {
        // A balancer without a member to pass the request on to has the same code.
        ErrorKind::Unavailable { message } => classify::is_etcds(message),
        ErrorKind::Connect { .. }
        | ErrorKind::Disconnected
        | ErrorKind::Timeout
        | ErrorKind::Protocol { .. }
        | ErrorKind::Unsupported { .. }
        | ErrorKind::Other { .. } => false,
        _ => true,
    }
}

/// Why one endpoint is not the one.
#[derive(Debug)]
struct Failed {
    endpoint: Option<String>,
    error: Error,
}

/// What became of each endpoint.
#[derive(Debug)]
struct Attempts(Vec<Failed>);

fn unreachable(mut failed: Vec<Failed>) -> Error {
    let names: Vec<_> = failed.iter().filter_map(|failed| failed.endpoint.as_deref()).collect();
    let endpoint = names.join(", ");
    // A peer that speaks something else is worth another word than one that is not there.
    let other = failed.iter().find_map(|failed| match failed.error.kind() {
        ErrorKind::Protocol { detail } => Some(detail.clone()),
        ErrorKind::Unavailable { message }
        | ErrorKind::Unsupported { message }
        | ErrorKind::Other { message, .. } => Some(message.clone()),
        _ => None,
    });
    let kind = match other {
        Some(detail) if failed.len() == 1 => {
            let peer = if names.is_empty() { "the service" } else { &endpoint };
            ErrorKind::Protocol { detail: format!("{peer} does not speak etcd's protocol: {detail}") }
        }
        _ if names.is_empty() => ErrorKind::Connect { endpoint: "the service".into() },
        _ => ErrorKind::Connect { endpoint },
    };
    let error = Error::new(kind, Outcome::NotApplied).at("Maintenance/Status");
    match failed.pop() {
        Some(only) if failed.is_empty() => error.because(only.error),
        last => error.because(Attempts(failed.into_iter().chain(last).collect())),
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Failed { endpoint, error }) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            write!(f, "{}: {}", endpoint.as_deref().unwrap_or("the service"), error.kind())?;
        }
        Ok(())
    }
}

impl StdError for Attempts {
    /// The last one's, for the whole story of one at least.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.last().map(|failed| &failed.error as _)
    }
}
