//! What the client trusts, and who it is.

use std::fmt;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::words;
use crate::error::{Error, Result};

/// TLS for [`ClientBuilder::tls`](super::ClientBuilder::tls).
///
/// The system's roots are trusted, unless there is a CA certificate here.
///
/// ```no_run
/// # use etcd_concurrency::{Client, TlsOptions};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = TlsOptions::new()
///     .ca_certificate(std::fs::read("ca.pem")?)
///     .identity(std::fs::read("client.pem")?, std::fs::read("client-key.pem")?);
/// let client = Client::builder().endpoints("etcd-1:2379, etcd-2:2379").tls(tls).connect().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub struct TlsOptions {
    authorities: Vec<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    domain: Option<String>,
    system_roots: bool,
}

impl TlsOptions {
    /// Trusts the system's roots, and shows no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts this CA: one certificate or more, in PEM. Can be called again for others.
    ///
    /// The system's roots are then no longer trusted; [`system_roots`](Self::system_roots) adds them again.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(pem.into());
        self
    }

    /// The client's own certificate, with its chain, and its key, both in PEM.
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the servers' certificates must be for. Default: the host of each endpoint.
    pub fn domain_name(mut self, name: impl Into<String>) -> Self {
        self.domain = Some(name.into());
        self
    }

    /// Trusts the system's roots beside the CAs given here.
    pub fn system_roots(mut self) -> Self {
        self.system_roots = true;
        self
    }

    pub(super) fn apply(&self, endpoint: Endpoint, handshake: Duration) -> Result<Endpoint> {
        let mut config = ClientTlsConfig::new().timeout(handshake);
        for pem in &self.authorities {
            // rustls takes a file without a certificate for an empty list, and then trusts nobody.
            if !contains(pem, b"-----BEGIN CERTIFICATE-----") {
                return Err(Error::invalid("tls", "the CA's PEM holds no certificate"));
            }
            config = config.ca_certificate(Certificate::from_pem(pem));
        }
        if self.authorities.is_empty() || self.system_roots {
            config = config.with_native_roots();
        }
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &self.domain {
            config = config.domain_name(domain);
        }
        endpoint.tls_config(config).map_err(|error| Error::invalid("tls", words(&error)).because(error))
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("authorities", &self.authorities.len())
            .field("identity", &self.identity.is_some())
            .field("domain", &self.domain)
            .field("system_roots", &self.system_roots)
            .finish()
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}
