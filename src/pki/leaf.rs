//! Leaves as they are read back, the names they may carry, and when they are renewed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, PublicKeyData};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::names;

/// What a decision needs to know of a certificate in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Beginning of its life.
    pub(crate) not_before: Timestamp,
    /// End of its life.
    pub(crate) not_after: Timestamp,
    /// Host names, IP addresses and URIs, sorted.
    pub(crate) names: Vec<String>,
    /// Key id of the authority that signed it; empty when it says none.
    pub(crate) authority_key_id: Vec<u8>,
    /// SHA-256 of the certificate, in hexadecimal.
    pub(crate) fingerprint: String,
}

impl Leaf {
    /// When it is renewed: at two thirds of its life, earlier by up to a twelfth of it.
    pub(crate) fn renewal(&self, seed: &str) -> Timestamp {
        let life = self.not_after.as_second() - self.not_before.as_second();
        let hash = digest::digest(&digest::SHA256, seed.as_bytes());
        let fraction = i64::from(hash.as_ref()[0]);
        let seconds = life * 2 / 3 - life / 12 * fraction / 256;
        self.not_before.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(self.not_after)
    }
}

/// Reads the first certificate of a PEM file. `None`: it is none, or the key is not its key.
pub(crate) fn read_leaf(certificate_pem: &[u8], key_pem: &[u8]) -> Option<Leaf> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate_pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    let key = KeyPair::from_pem(std::str::from_utf8(key_pem).ok()?).ok()?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return None;
    }
    let mut names: Vec<String> = certificate
        .subject_alternative_name()
        .ok()?
        .map(|extension| extension.value.general_names.iter().filter_map(general_name).collect())
        .unwrap_or_default();
    names.sort();
    let fingerprint = digest::digest(&digest::SHA256, &pem.contents);
    Some(Leaf {
        not_before: timestamp(certificate.validity().not_before.timestamp()),
        not_after: timestamp(certificate.validity().not_after.timestamp()),
        names,
        authority_key_id: authority_key_id(&certificate).unwrap_or_default(),
        fingerprint: HEXLOWER.encode(fingerprint.as_ref()),
    })
}

fn general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| Ipv4Addr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// A time of a certificate.
pub(super) fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// Id of the key of a certificate.
pub(super) fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

/// The names of an endpoint: those of its Service, those of the machine itself, and what the spec adds.
pub(crate) fn endpoint_names(namespace: &str, server: &str, hosts: &[String]) -> Vec<String> {
    let service = names::workload(server);
    let mut all = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service,
        "localhost".to_owned(),
        Ipv4Addr::LOCALHOST.to_string(),
        Ipv6Addr::LOCALHOST.to_string(),
    ];
    for host in hosts {
        if !all.contains(host) {
            all.push(host.clone());
        }
    }
    all
}

/// Why a further host name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidHost {
    /// Neither a host name nor an IP address.
    #[error("must be a host name or an IP address")]
    Malformed,
    /// A name inside the cluster, which may be another server's.
    #[error(
        "is a name inside the cluster and may be another server's; the Service's own names are always in the certificate"
    )]
    InsideCluster,
    /// A name that the project itself uses.
    #[error("ends in portcullis.dev, which is reserved")]
    Reserved,
}

/// Reads a further host name, so that a tenant never gets a certificate for another server.
///
/// Names without a dot and names that end in the name of a namespace (`ops-mcp.agents`) are resolved by pods through
/// their search path to Services, so they are refused as those that end in `.svc` are.
///
/// # Errors
/// [`InvalidHost`] says what is wrong with it.
pub(crate) fn host_name(
    text: &str,
    own: &[String],
    is_namespace: impl Fn(&str) -> bool,
) -> Result<String, InvalidHost> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let host = text.to_ascii_lowercase();
    let labels: Vec<&str> = host.split('.').collect();
    if host.len() > 253 || !labels.iter().all(|label| is_label(label)) {
        return Err(InvalidHost::Malformed);
    }
    if own.contains(&host) {
        return Ok(host);
    }
    if host == "portcullis.dev" || host.ends_with(".portcullis.dev") {
        return Err(InvalidHost::Reserved);
    }
    let last = labels.last().copied().unwrap_or_default();
    // A top-level domain of digits only would be read as an address.
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidHost::Malformed);
    }
    let inside = labels.len() == 1
        || last == "svc"
        || host.ends_with(".cluster.local")
        || labels.contains(&"svc")
        || is_namespace(last);
    if inside { Err(InvalidHost::InsideCluster) } else { Ok(host) }
}

fn is_label(label: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(plain)
        && !label.starts_with('-')
        && !label.ends_with('-')
}
