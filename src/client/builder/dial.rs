//! From the endpoints that were given to connections.

use tokio::runtime::Handle;

use super::super::endpoints::{Parsed, parse};
#[cfg(feature = "tls")]
use super::TlsOptions;
use super::{ClientBuilder, bounded};
use crate::error::{Error, Result};
use crate::transport::channel::{Dialer, Endpoints, Options};

impl ClientBuilder {
    pub(super) fn dial(&self, runtime: Handle) -> Result<Endpoints> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("endpoints", "none given"));
        }
        let options = Options {
            connect_timeout: bounded(self.connect_timeout),
            keep_alive_interval: bounded(self.keep_alive_interval),
            keep_alive_timeout: bounded(self.keep_alive_timeout),
        };
        let mut dialers: Vec<Dialer> = Vec::new();
        let (mut secured, mut in_the_clear) = (false, false);
        for given in &self.endpoints {
            let parsed = parse(given, self.has_tls())?;
            if parsed.in_the_clear && self.has_credentials() && !self.plaintext_credentials {
                let why = format!(
                    "{} would get the user's password or token in the clear; see \
                     ClientBuilder::allow_plaintext_credentials",
                    parsed.name
                );
                return Err(Error::invalid("endpoints", why));
            }
            secured |= parsed.https;
            in_the_clear |= parsed.in_the_clear;
            let endpoint = self.secure(&parsed, &options)?;
            if !dialers.iter().any(|dialer| dialer.name() == parsed.name) {
                dialers.push(Dialer::new(&parsed.name, endpoint, &options));
            }
        }
        if secured && in_the_clear {
            tracing::warn!(
                "some endpoints are https and others http: what goes to those can be read and changed"
            );
        }
        Ok(Endpoints::new(dialers, runtime))
    }

    fn has_credentials(&self) -> bool {
        self.user.is_some() || self.token.is_some()
    }

    #[cfg(feature = "tls")]
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    #[cfg(not(feature = "tls"))]
    pub(super) fn has_tls(&self) -> bool {
        false
    }

    #[cfg(feature = "tls")]
    fn secure(&self, parsed: &Parsed, options: &Options) -> Result<tonic::transport::Endpoint> {
        let endpoint = parsed.endpoint.clone();
        match &self.tls {
            _ if !parsed.https => Ok(endpoint),
            Some(tls) => tls.apply(endpoint, options.connect_timeout),
            None => TlsOptions::new().apply(endpoint, options.connect_timeout),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn secure(&self, parsed: &Parsed, _: &Options) -> Result<tonic::transport::Endpoint> {
        debug_assert!(!parsed.https, "refused where endpoints are read");
        Ok(parsed.endpoint.clone())
    }
}
