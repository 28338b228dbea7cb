//! One bounded GET of what an issuer publishes, by https only.
//!
//! The address is in a spec that a tenant wrote: names are resolved once, an address inside the network is refused unless
//! the spec allows it, and the address that was judged is the one that is connected to. Redirects are not followed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Time for everything from the name to the last byte.
const TIME: Duration = Duration::from_secs(5);
/// Time in which one of several addresses must answer.
const CONNECT: Duration = Duration::from_secs(2);
/// Most addresses of one name that are tried.
const ADDRESSES: usize = 4;
/// Most bytes of a document.
pub(super) const LIMIT: usize = 512 << 10;

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fetch {
    /// The address is not an https URL with a host.
    #[error("not an https URL with a host and without a user")]
    Url,
    /// The name of the host is not known.
    #[error("resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Every address of the host is inside some network.
    #[error("{host} is at a private, loopback or link-local address; allowPrivateAddresses permits that")]
    Private {
        /// The name.
        host: String,
    },
    /// No connection, or one without trust.
    #[error("connect to {host}")]
    Connect {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation failed.
    #[error("read the answer")]
    Http(#[source] hyper::Error),
    /// The body broke off.
    #[error("read the document")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another place was named.
    #[error("redirects are not followed: name the address itself")]
    Redirect,
    /// Not the document.
    #[error("the answer has status {0}")]
    Status(StatusCode),
    /// The document is too large.
    #[error("the document is larger than {LIMIT} bytes")]
    TooLarge,
    /// It took too long.
    #[error("no whole document in {} s", TIME.as_secs())]
    Time,
}

/// How an issuer's server is trusted, and where it may be.
#[derive(Clone)]
pub(super) struct Trust {
    tls: Arc<ClientConfig>,
    allow_private: bool,
}

/// Why trust cannot be made of a PEM file.
#[derive(Debug, thiserror::Error)]
#[error("the certificate authorities hold no usable PEM")]
pub(super) struct InvalidAuthorities;

impl Trust {
    /// Trust in these authorities in PEM, or in those that browsers trust.
    ///
    /// # Errors
    /// [`InvalidAuthorities`] when the PEM holds none that can be used.
    pub(super) fn new(authorities: Option<&[u8]>, allow_private: bool) -> Result<Self, InvalidAuthorities> {
        let mut roots = RootCertStore::empty();
        match authorities {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|_| InvalidAuthorities)?;
                    roots.add(certificate).map_err(|_| InvalidAuthorities)?;
                }
            }
        }
        if roots.is_empty() {
            return Err(InvalidAuthorities);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the ciphers of both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), allow_private })
    }

    /// The document at a URL.
    ///
    /// # Errors
    /// [`Fetch`] says why there is none.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, Fetch> {
        tokio::time::timeout(TIME, self.fetch(url)).await.unwrap_or(Err(Fetch::Time))
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, Fetch> {
        let place = Place::read(url)?;
        let stream = self.connect(&place).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Fetch::Http)?;
        let document = async {
            let response = sender.send_request(place.request()?).await.map_err(Fetch::Http)?;
            if response.status().is_redirection() {
                return Err(Fetch::Redirect);
            }
            if response.status() != StatusCode::OK {
                return Err(Fetch::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), LIMIT).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
                true => Fetch::TooLarge,
                false => Fetch::Body(error),
            })
        };
        // The connection lives as long as this future and not longer.
        let mut connection = std::pin::pin!(connection);
        let mut document = std::pin::pin!(document);
        tokio::select! {
            biased;
            found = &mut document => found,
            ended = &mut connection => {
                ended.map_err(Fetch::Http)?;
                document.await
            }
        }
    }

    async fn connect(&self, place: &Place) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Fetch> {
        let host = || place.host.clone();
        let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await;
        let found = found.map_err(|source| Fetch::Resolve { host: host(), source })?;
        let allowed = found.filter(|address| self.allow_private || is_public(address.ip()));
        let addresses: Vec<SocketAddr> = allowed.take(ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(Fetch::Private { host: host() });
        }
        let failed = |source| Fetch::Connect { host: host(), source };
        let mut stream = Err(failed(io::ErrorKind::AddrNotAvailable.into()));
        for address in addresses {
            let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
            stream = connected.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map_err(failed);
            if stream.is_ok() {
                break;
            }
        }
        let connector = TlsConnector::from(self.tls.clone());
        connector.connect(place.name.clone(), stream?).await.map_err(failed)
    }
}

/// Where a document is.
struct Place {
    host: String,
    port: u16,
    name: ServerName<'static>,
    authority: String,
    path: String,
}

impl Place {
    fn read(url: &str) -> Result<Self, Fetch> {
        let uri: Uri = url.parse().map_err(|_| Fetch::Url)?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or(Fetch::Url)?;
        if authority.as_str().contains('@') {
            return Err(Fetch::Url);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| Fetch::Url)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self { host, port, name, authority: authority.to_string(), path })
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, Fetch> {
        let host = HeaderValue::from_str(&self.authority).map_err(|_| Fetch::Url)?;
        Request::get(&self.path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(|_| Fetch::Url)
    }
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = a == 192 && b == 0 && c == 0;
    let relays = a == 192 && b == 88 && c == 99;
    let benchmarks = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || shared
        || protocols
        || relays
        || benchmarks)
}

/// Only 2000::/3 is handed out, and inside it some blocks stand for other networks.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Clusters without IPv4 reach it by such addresses (RFC 6052): the address inside counts.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let assigned = segments[0] & 0xe000 == 0x2000;
    let protocols = segments[0] == 0x2001 && segments[1] < 0x200;
    let documentation = (segments[0] == 0x2001 && segments[1] == 0xdb8) || segments[0] == 0x3fff;
    let tunnels = segments[0] == 0x2002;
    assigned && !protocols && !documentation && !tunnels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_a_network_are_told_from_those_of_the_internet() {
        let inside = [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "100::1",
            "3fff::1",
        ];
        for text in inside {
            assert!(!is_public(text.parse().expect("an address")), "{text}");
        }
        let outside = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::8.8.8.8",
        ];
        for text in outside {
            assert!(is_public(text.parse().expect("an address")), "{text}");
        }
    }

    #[test]
    fn only_https_urls_with_a_host_and_without_a_user_are_asked() {
        for url in
            ["http://a.example", "https://", "https://user:word@a.example/", "ftp://a.example", "a", "/x"]
        {
            assert!(matches!(Place::read(url), Err(Fetch::Url)), "{url}");
        }
        let place = Place::read("https://[2606:4700::1111]:8443/keys?a=b").expect("a URL");
        assert_eq!(
            (place.host.as_str(), place.port, place.path.as_str()),
            ("2606:4700::1111", 8443, "/keys?a=b")
        );
        let place = Place::read("https://a.example").expect("a URL");
        assert_eq!((place.port, place.path.as_str(), place.authority.as_str()), (443, "/", "a.example"));
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        assert!(Trust::new(Some(b"no PEM"), false).is_err());
        assert!(
            Trust::new(Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), false)
                .is_err()
        );
        assert!(Trust::new(None, false).is_ok());
    }
}
