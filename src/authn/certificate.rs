//! Who a client's certificate names. That the handshake has verified it is the caller's business.
//!
//! A certificate with two common names, or with a name that is empty or not plain text, names nobody. Where a tenant is
//! asked for, neither does one that names none or several.

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{CERTIFICATE, Identity, Method, Reason};
use crate::api::{CertificateIdentity, CertificateTenant};

/// Bytes of the longest name that is taken.
const MAX_NAME: usize = 512;

/// Reads the identity out of a verified certificate.
///
/// # Errors
/// [`Reason::CertificateName`] when it does not name anybody in the way that the server asks for, and
/// [`Reason::CertificateTenant`] when it does not name the one tenant that is asked for.
pub(crate) fn identify(
    der: &[u8],
    which: CertificateIdentity,
    tenant: Option<CertificateTenant>,
) -> Result<Identity, Reason> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Reason::CertificateName)?;
    if !rest.is_empty() {
        return Err(Reason::CertificateName);
    }
    let tenant = tenant.map(|part| one_tenant(&certificate, part)).transpose()?;
    let (subject, groups) = match which {
        CertificateIdentity::CommonName => (common_name(&certificate)?, organizations(&certificate)?),
        _ => (alternative_name(&certificate, which)?, Vec::new()),
    };
    let end = Timestamp::from_second(certificate.validity().not_after.timestamp());
    Ok(Identity {
        issuer: Some(CERTIFICATE.to_owned()),
        groups,
        tenant,
        expires_at: Some(end.map_err(|_| Reason::CertificateName)?),
        ..Identity::new(Method::ClientCertificate, subject, fingerprint(der))
    })
}

/// The id of a certificate: the first half of its SHA-256 in hexadecimal digits.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, der);
    HEXLOWER.encode(&digest.as_ref()[..16])
}

fn common_name(certificate: &X509Certificate<'_>) -> Result<String, Reason> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => plain(name.as_str().map_err(|_| Reason::CertificateName)?),
        _ => Err(Reason::CertificateName),
    }
}

fn organizations(certificate: &X509Certificate<'_>) -> Result<Vec<String>, Reason> {
    let names = certificate.subject().iter_organization();
    names.map(|name| plain(name.as_str().map_err(|_| Reason::CertificateName)?)).collect()
}

fn one_tenant(certificate: &X509Certificate<'_>, part: CertificateTenant) -> Result<String, Reason> {
    let mut names: Box<dyn Iterator<Item = _>> = match part {
        CertificateTenant::Organization => Box::new(certificate.subject().iter_organization()),
        CertificateTenant::OrganizationalUnit => Box::new(certificate.subject().iter_organizational_unit()),
    };
    let (Some(name), None) = (names.next(), names.next()) else { return Err(Reason::CertificateTenant) };
    let name = name.as_str().map_err(|_| Reason::CertificateTenant)?;
    plain(name).map_err(|_| Reason::CertificateTenant)
}

fn alternative_name(certificate: &X509Certificate<'_>, which: CertificateIdentity) -> Result<String, Reason> {
    let names = certificate.subject_alternative_name().map_err(|_| Reason::CertificateName)?;
    let names = names.ok_or(Reason::CertificateName)?;
    let fitting = |name: &GeneralName<'_>| match (which, name) {
        // A pattern stands for many, so it names nobody.
        (CertificateIdentity::DnsName, GeneralName::DNSName(name)) if !name.contains('*') => {
            Some((*name).to_owned())
        }
        (CertificateIdentity::Uri, GeneralName::URI(name))
        | (CertificateIdentity::Email, GeneralName::RFC822Name(name)) => Some((*name).to_owned()),
        _ => None,
    };
    let name = names.value.general_names.iter().find_map(fitting).ok_or(Reason::CertificateName)?;
    plain(&name)
}

fn plain(name: &str) -> Result<String, Reason> {
    let wrong = name.is_empty()
        || name.len() > MAX_NAME
        || name.trim() != name
        || name.chars().any(|c| c.is_control() || c == '\u{fffd}');
    if wrong { Err(Reason::CertificateName) } else { Ok(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn certificate(subject: &[(DnType, &str)], alternatives: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (part, text) in subject {
            params.distinguished_name.push(part.clone(), *text);
        }
        params.subject_alt_names = alternatives;
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }

    fn alternatives() -> Vec<SanType> {
        vec![
            SanType::IpAddress("10.0.0.7".parse().expect("an address")),
            SanType::Rfc822Name("ann@example.org".try_into().expect("ASCII")),
            SanType::DnsName("*.example.org".try_into().expect("ASCII")),
            SanType::DnsName("bot.example.org".try_into().expect("ASCII")),
            SanType::URI("spiffe://example.org/ns/agents/sa/bot".try_into().expect("ASCII")),
        ]
    }

    #[test]
    fn the_subject_names_the_caller_and_its_groups_as_in_kubernetes() {
        let der = certificate(&[(DnType::CommonName, "ann"), (DnType::OrganizationName, "ops")], vec![]);
        let identity = identify(&der, CertificateIdentity::CommonName, None).expect("it names somebody");
        assert_eq!((identity.subject.as_str(), identity.groups), ("ann", vec!["ops".to_owned()]));
        assert_eq!(
            (identity.method, identity.issuer.as_deref()),
            (Method::ClientCertificate, Some("certificate"))
        );
        assert_eq!(identity.expires_at, Some("2030-01-02T00:00:00Z".parse().expect("a time")));
        assert_eq!(identity.credential_id.len(), 32);
        assert_eq!(identity.credential_id, fingerprint(&der));
    }

    #[test]
    fn an_alternative_name_of_the_chosen_kind_names_the_caller() {
        let der =
            certificate(&[(DnType::CommonName, "ann"), (DnType::OrganizationName, "ops")], alternatives());
        for (which, expected) in [
            (CertificateIdentity::DnsName, "bot.example.org"),
            (CertificateIdentity::Uri, "spiffe://example.org/ns/agents/sa/bot"),
            (CertificateIdentity::Email, "ann@example.org"),
        ] {
            let identity = identify(&der, which, None).expect("it names somebody");
            assert_eq!((identity.subject.as_str(), identity.groups.len()), (expected, 0));
        }
    }

    #[test]
    fn a_certificate_without_the_name_that_is_asked_for_names_nobody() {
        let refused = |der: &[u8], which| identify(der, which, None).err();
        let all = [
            CertificateIdentity::CommonName,
            CertificateIdentity::DnsName,
            CertificateIdentity::Uri,
            CertificateIdentity::Email,
        ];
        for which in all {
            assert_eq!(refused(&certificate(&[], vec![]), which), Some(Reason::CertificateName));
            assert_eq!(refused(b"no certificate", which), Some(Reason::CertificateName));
        }
        for name in ["", " ann", "a\nn"] {
            let der = certificate(&[(DnType::CommonName, name)], vec![]);
            assert_eq!(
                refused(&der, CertificateIdentity::CommonName),
                Some(Reason::CertificateName),
                "{name:?}"
            );
        }
        let only_pattern = vec![SanType::DnsName("*.example.org".try_into().expect("ASCII"))];
        let der = certificate(&[], only_pattern);
        assert_eq!(refused(&der, CertificateIdentity::DnsName), Some(Reason::CertificateName));
        let mut longer = certificate(&[(DnType::CommonName, "ann")], vec![]);
        longer.push(0);
        assert_eq!(refused(&longer, CertificateIdentity::CommonName), Some(Reason::CertificateName));
    }

    #[test]
    fn a_certificate_belongs_to_the_one_tenant_that_its_subject_names() {
        let of = |subject: &[(DnType, &str)], part| {
            let subject = [&[(DnType::CommonName, "ann")], subject].concat();
            identify(&certificate(&subject, vec![]), CertificateIdentity::CommonName, part)
                .map(|identity| identity.tenant)
        };
        let (o, ou) = (DnType::OrganizationName, DnType::OrganizationalUnitName);
        let both = [(o.clone(), "red"), (ou.clone(), "blue")];
        assert_eq!(of(&both, None), Ok(None), "a tenant is taken only where it is asked for");
        assert_eq!(of(&both, Some(CertificateTenant::Organization)), Ok(Some("red".to_owned())));
        assert_eq!(of(&both, Some(CertificateTenant::OrganizationalUnit)), Ok(Some("blue".to_owned())));
        for (part, name) in
            [(CertificateTenant::Organization, o), (CertificateTenant::OrganizationalUnit, ou)]
        {
            assert_eq!(of(&[], Some(part)), Err(Reason::CertificateTenant), "{part:?} is missing");
            for wrong in ["", " red", "re\nd"] {
                let refused = of(&[(name.clone(), wrong)], Some(part));
                assert_eq!(refused, Err(Reason::CertificateTenant), "{part:?} {wrong:?}");
            }
        }
    }

    #[test]
    fn a_certificate_of_two_tenants_belongs_to_nobody() {
        let der = two_organizations();
        let as_groups = identify(&der, CertificateIdentity::CommonName, None).expect("it names somebody");
        assert_eq!(as_groups.groups, ["red", "blue"]);
        let refused = identify(&der, CertificateIdentity::CommonName, Some(CertificateTenant::Organization));
        assert_eq!(refused, Err(Reason::CertificateTenant));
    }

    /// A certificate of `openssl req -x509 -subj '/CN=ann/O=red/O=blue'`: the library of the others makes one of a kind.
    fn two_organizations() -> Vec<u8> {
        let pem = include_str!("testdata/two-organizations.crt");
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec()
    }
}
