//! Addresses of a cluster's members.

use std::net::IpAddr;

use http::Uri;
use tonic::transport::Endpoint;

use crate::error::{Error, Result};

/// One endpoint or several: a string, or an array, a slice or a `Vec` of strings.
///
/// An endpoint is `host:port`, `http://host:port`, `https://host:port` or `unix:/path`. Without a scheme it is
/// `https` where the client has TLS options, and `http` otherwise. One string may hold several, separated by commas.
pub trait IntoEndpoints {
    /// The endpoints, one a string.
    fn into_endpoints(self) -> Vec<String>;
}

impl IntoEndpoints for &str {
    fn into_endpoints(self) -> Vec<String> {
        split(&[self])
    }
}

impl IntoEndpoints for String {
    fn into_endpoints(self) -> Vec<String> {
        split(&[self])
    }
}

impl IntoEndpoints for &String {
    fn into_endpoints(self) -> Vec<String> {
        split(&[self])
    }
}

impl<T: AsRef<str>> IntoEndpoints for &[T] {
    fn into_endpoints(self) -> Vec<String> {
        split(self)
    }
}

impl<T: AsRef<str>, const N: usize> IntoEndpoints for [T; N] {
    fn into_endpoints(self) -> Vec<String> {
        split(&self)
    }
}

impl<T: AsRef<str>, const N: usize> IntoEndpoints for &[T; N] {
    fn into_endpoints(self) -> Vec<String> {
        split(self)
    }
}

impl<T: AsRef<str>> IntoEndpoints for Vec<T> {
    fn into_endpoints(self) -> Vec<String> {
        split(&self)
    }
}

impl<T: AsRef<str>> IntoEndpoints for &Vec<T> {
    fn into_endpoints(self) -> Vec<String> {
        split(self)
    }
}

fn split(lists: &[impl AsRef<str>]) -> Vec<String> {
    lists.iter().flat_map(|list| list.as_ref().split(',')).map(|one| one.trim().to_owned()).collect()
}

/// An endpoint that was understood.
#[derive(Debug)]
pub(super) struct Parsed {
    /// With its scheme: what errors call it.
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) https: bool,
    /// What is sent there passes others who can read it: neither TLS, nor this host alone.
    pub(super) in_the_clear: bool,
}

/// Reads one endpoint. `tls` says that the client has TLS options.
pub(super) fn parse(given: &str, tls: bool) -> Result<Parsed> {
    let invalid = |why: &str| Err(Error::invalid("endpoints", format!("{given:?}: {why}")));
    if given.is_empty() {
        return Err(Error::invalid("endpoints", "an empty endpoint"));
    }
    if given.starts_with("unix:") {
        return match Endpoint::from_shared(given.to_owned()) {
            Ok(_) if tls => invalid("TLS over a Unix socket is not supported"),
            Ok(endpoint) => {
                Ok(Parsed { name: given.to_owned(), endpoint, https: false, in_the_clear: false })
            }
            Err(_) => invalid("not a path"),
        };
    }
    if given.contains('@') {
        // It may hold a password, which belongs in no message.
        return Err(Error::invalid("endpoints", "an endpoint with a user in it; see ClientBuilder::user"));
    }
    let bare = !given.contains("://");
    let name = match bare {
        true if tls => format!("https://{given}"),
        true => format!("http://{given}"),
        false => given.trim_end_matches('/').to_owned(),
    };
    let Ok(uri) = name.parse::<Uri>() else { return invalid("not an address") };
    if uri.host().is_none_or(str::is_empty) {
        return invalid("no host");
    }
    // The parser takes a port that is no number, or none after its colon, for no port at all.
    let after_host = uri.authority().map(|all| all.as_str().rsplit(']').next().unwrap_or_default());
    if uri.port().is_none() && after_host.is_some_and(|rest| rest.contains(':')) {
        return invalid("a port that is no number from 0 to 65535");
    }
    if uri.path_and_query().is_some_and(|rest| rest != "/") {
        return invalid("a path or query");
    }
    if bare && uri.port().is_none() {
        return invalid("no port; etcd's is 2379");
    }
    let https = match uri.scheme_str() {
        Some("http") if tls => return invalid("plain http, although the client has TLS options"),
        Some("http") => false,
        Some("https") if cfg!(feature = "tls") => true,
        Some("https") => return invalid("https needs the feature `tls` of etcd-concurrency"),
        _ => return invalid("the scheme is neither http nor https"),
    };
    let in_the_clear = !https && !uri.host().is_some_and(is_loopback);
    Ok(Parsed { endpoint: uri.into(), name, https, in_the_clear })
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    ip || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn one_string_or_many() {
        let both = ["a:1", "b:2"];
        assert_eq!("a:1, b:2".into_endpoints(), both);
        assert_eq!("a:1,b:2".to_owned().into_endpoints(), both);
        assert_eq!(both.into_endpoints(), both);
        assert_eq!((&both).into_endpoints(), both);
        assert_eq!(both[..].into_endpoints(), both);
        assert_eq!(both.map(str::to_owned).to_vec().into_endpoints(), both);
        assert_eq!((&both.to_vec()).into_endpoints(), both);
    }

    #[test]
    fn a_scheme_is_supplied() {
        assert_eq!(parse("localhost:2379", false).expect("good").name, "http://localhost:2379");
        assert_eq!(parse("[::1]:2379", false).expect("good").name, "http://[::1]:2379");
        assert_eq!(parse("http://a:1/", false).expect("good").name, "http://a:1");
        assert_eq!(parse("unix:/run/etcd.sock", false).expect("good").name, "unix:/run/etcd.sock");
        if cfg!(feature = "tls") {
            let parsed = parse("a:1", true).expect("good");
            assert_eq!((parsed.name.as_str(), parsed.https), ("https://a:1", true));
        }
    }

    #[test]
    fn what_is_no_endpoint_is_named() {
        for bad in
            ["", "a b:1", "localhost", "http://", "http://a:1/x", "http://a:1/?x", "ftp://a:1", ":2379"]
                .into_iter()
                // A port that is none was dialled as the scheme's own, 80 or 443: another service got the password.
                .chain(["http://a:99999", "http://a:", "http://a:2379x", "a:", "a:x", "http://[::1]:"])
        {
            let error = parse(bad, false).expect_err(bad);
            let ErrorKind::InvalidInput { what: "endpoints", why } = error.kind() else { panic!("{error}") };
            assert!(bad.is_empty() || why.contains(bad), "{why}");
        }
        parse("http://a:1", true).expect_err("a password would go over the wire in the clear");
    }

    #[test]
    fn what_leaves_this_host_without_tls_goes_in_the_clear() {
        for safe in
            ["localhost:1", "http://LOCALHOST:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/run/etcd"]
        {
            assert!(!parse(safe, false).expect(safe).in_the_clear, "{safe}");
        }
        for open in [
            "etcd:1",
            "http://10.0.0.1:1",
            "[::2]:1",
            "0.0.0.0:1",
            "localhost.example:1",
            "127.0.0.1.example:1",
        ] {
            assert!(parse(open, false).expect(open).in_the_clear, "{open}");
        }
        if cfg!(feature = "tls") {
            assert!(!parse("https://etcd:1", false).expect("good").in_the_clear);
        }
    }

    #[test]
    fn a_password_in_an_endpoint_is_not_repeated() {
        let error = parse("http://root:secret@a:1", false).expect_err("not here");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn https_needs_the_feature() {
        let error = parse("https://a:1", false).expect_err("no TLS in this build");
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
