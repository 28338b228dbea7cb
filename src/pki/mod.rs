//! Certificates: the authority, its leaves, and when they are renewed. Pure: time and keys are arguments.
//!
//! There are two authorities that know nothing of each other: one signs what clients see, the other what joins
//! operator and replicas. A leaf is never valid longer than its authority, and never signs anything itself.

mod leaf;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use leaf::{Leaf, endpoint_names, host_name, read_leaf};

use crate::api::names;

/// Life of an authority: ten years.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// Life of a leaf: 90 days.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Certificates begin this much before now, because clocks differ.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// What signs leaves. Its `Debug` shows no key.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_id: Vec<u8>,
    not_after: Timestamp,
}

/// A certificate with its key, as PEM. Not `Debug`: it holds a key.
pub(crate) struct Issued {
    /// The certificate.
    pub(crate) certificate_pem: String,
    /// Its private key.
    pub(crate) key_pem: String,
}

/// What a leaf is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The endpoint that clients see, under these names.
    Endpoint {
        /// Host names and IP addresses.
        names: Vec<String>,
    },
    /// The internal port of one server's replicas, which are each other's clients too.
    Internal {
        /// Namespace of the server.
        namespace: String,
        /// Name of the server.
        server: String,
    },
    /// The operator as a client of internal ports.
    Operator,
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The certificate of an authority is not one.
    #[error("failed to read the certificate of the authority")]
    ReadAuthority(#[source] rcgen::Error),
    /// The certificate of an authority cannot sign, or does not belong to its key.
    #[error("the certificate of the authority cannot be used: {0}")]
    UnusableAuthority(&'static str),
    /// Making a certificate failed.
    #[error("failed to make a certificate")]
    Make(#[source] rcgen::Error),
    /// A time is outside what certificates can say.
    #[error("failed to write a time into a certificate")]
    WriteTime(#[source] time::error::ComponentRange),
}

impl Authority {
    /// Makes an authority from a new key.
    ///
    /// # Errors
    /// [`Error`] when the certificate cannot be made.
    pub(crate) fn generate(common_name: &str, key: KeyPair, now: Timestamp) -> Result<(Self, Issued), Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(now - BACKDATED)?;
        params.not_after = date(now + AUTHORITY_LIFE)?;
        let key_pem = key.serialize_pem();
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(Error::Make)?;
        let issued = Issued { certificate_pem: issuer.pem(), key_pem };
        Ok((Self::from_pem(&issued.certificate_pem, &issued.key_pem)?, issued))
    }

    /// Reads an authority back.
    ///
    /// # Errors
    /// [`Error`] says whether the certificate or its key is at fault; the key is never part of the text.
    pub(crate) fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem).map_err(|_| Error::UnusableAuthority("its key is not one"))?;
        let unreadable = || Error::ReadAuthority(rcgen::Error::CouldNotParseCertificate);
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| unreadable())?;
        let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|_| unreadable())?;
        if !certificate.is_ca() {
            return Err(Error::UnusableAuthority("it may not sign"));
        }
        if certificate.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(Error::UnusableAuthority("its key belongs to another certificate"));
        }
        let key_id =
            leaf::subject_key_id(&certificate).ok_or(Error::UnusableAuthority("it has no key id"))?;
        let not_after = leaf::timestamp(certificate.validity().not_after.timestamp());
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(Error::ReadAuthority)?;
        Ok(Self { issuer, certificate_pem: certificate_pem.to_owned(), key_id, not_after })
    }

    /// The certificate, which is public.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a leaf for a new key.
    ///
    /// # Errors
    /// [`Error::Make`] when a name cannot stand in a certificate.
    pub(crate) fn issue(&self, purpose: &Purpose, key: &KeyPair, now: Timestamp) -> Result<Issued, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&purpose.common_name());
        params.subject_alt_names = purpose.alternative_names()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purpose.usages();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(now - BACKDATED)?;
        params.not_after = date((now + LEAF_LIFE).min(self.not_after))?;
        let certificate = params.signed_by(key, &self.issuer).map_err(Error::Make)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Whether a leaf in use must be replaced: it is another purpose's or another authority's, or it is time.
    ///
    /// `seed` spreads renewals: leaves that were issued together are not renewed together.
    pub(crate) fn must_replace(&self, leaf: &Leaf, purpose: &Purpose, seed: &str, now: Timestamp) -> bool {
        leaf.authority_key_id != self.key_id
            || leaf.names != purpose.sorted_names()
            || now >= leaf.renewal(seed)
    }
}

impl Purpose {
    fn common_name(&self) -> String {
        match self {
            // The names stand in the alternative names; this one is for people and may be any of them.
            Purpose::Endpoint { names } => names.first().map_or("portcullis", String::as_str).to_owned(),
            Purpose::Internal { namespace, server } => format!("{namespace}/{server}"),
            Purpose::Operator => "portcullis operator".to_owned(),
        }
        .chars()
        .take(64)
        .collect()
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, Error> {
        let uri = |text: String| text.try_into().map(SanType::URI).map_err(Error::Make);
        let dns = |text: String| text.try_into().map(SanType::DnsName).map_err(Error::Make);
        match self {
            Purpose::Endpoint { names } => names
                .iter()
                .map(|name| match name.parse() {
                    Ok(address) => Ok(SanType::IpAddress(address)),
                    Err(_) => dns(name.clone()),
                })
                .collect(),
            Purpose::Internal { namespace, server } => Ok(vec![
                dns(names::internal_host(namespace, server))?,
                uri(names::internal_uri(namespace, server))?,
            ]),
            Purpose::Operator => Ok(vec![uri(names::OPERATOR_URI.to_owned())?]),
        }
    }

    fn usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Purpose::Endpoint { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Internal { .. } => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Purpose::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    /// Every alternative name as text, sorted, as [`Leaf::names`] has them.
    fn sorted_names(&self) -> Vec<String> {
        let mut sorted = match self {
            Purpose::Endpoint { names } => names.clone(),
            Purpose::Internal { namespace, server } => {
                vec![names::internal_host(namespace, server), names::internal_uri(namespace, server)]
            }
            Purpose::Operator => vec![names::OPERATOR_URI.to_owned()],
        };
        sorted.sort();
        sorted.dedup();
        sorted
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Portcullis");
    name.push(DnType::CommonName, common_name);
    name
}

fn date(time: Timestamp) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(time.as_second()).map_err(Error::WriteTime)
}

#[cfg(test)]
mod tests;
