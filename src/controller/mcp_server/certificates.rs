//! The certificates of a server: kept while they are good, issued anew when they are not.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rcgen::KeyPair;

use crate::api::TlsStatus;
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::pki::{self, Authority, Leaf, Purpose};

use super::desired::Certificates;
use super::observe::Observed;
use super::validate::{ValidatedServer, tls_status};

/// Data of a Secret with a certificate, and what the certificate says.
type Kept = (BTreeMap<String, ByteString>, Leaf);

/// Certificates for both ports, and what the status says of the endpoint's.
///
/// # Errors
/// [`Transient`] when a certificate cannot be made.
pub(super) fn keep_or_issue(
    context: &Context,
    server: &ValidatedServer<'_>,
    observed: &Observed,
) -> Result<(Certificates, TlsStatus), Transient> {
    let now = Timestamp::now();
    let seed = format!("{}/{}", server.namespace, server.name);
    let missing = || Transient::apply("the authority is not loaded yet");
    let internal_authority = context.authorities.internal().ok_or_else(missing)?;
    let purpose =
        Purpose::Internal { namespace: server.namespace.to_owned(), server: server.name.to_owned() };
    let (internal, _) = one(&internal_authority, observed.internal_secret.as_ref(), &purpose, &seed, now)?;
    if let Some(leaf) = &server.given_leaf {
        return Ok((Certificates { endpoint: None, internal }, tls_status(leaf)));
    }
    let authority = context.authorities.endpoint().ok_or_else(missing)?;
    let purpose = Purpose::Endpoint { names: server.host_names.clone() };
    let (endpoint, leaf) = one(&authority, observed.endpoint_secret.as_ref(), &purpose, &seed, now)?;
    Ok((Certificates { endpoint: Some(endpoint), internal }, tls_status(&leaf)))
}

fn one(
    authority: &Authority,
    live: Option<&Secret>,
    purpose: &Purpose,
    seed: &str,
    now: Timestamp,
) -> Result<Kept, Transient> {
    if let Some(kept) = live.and_then(|live| keep(authority, live, purpose, seed, now)) {
        return Ok(kept);
    }
    let failed = |error: pki::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Transient::apply(format!("{error}{cause}"))
    };
    let key = KeyPair::generate().map_err(|error| failed(pki::Error::Make(error)))?;
    let issued = authority.issue(purpose, &key, now).map_err(failed)?;
    let leaf = pki::read_leaf(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())
        .ok_or_else(|| Transient::apply("a new certificate cannot be read back"))?;
    tracing::info!(names = ?leaf.names, not_after = %leaf.not_after, "Certificate issued");
    Ok((data(authority, issued.certificate_pem.into_bytes(), issued.key_pem.into_bytes()), leaf))
}

/// What stands in a Secret, if it is good. The authority's certificate is always the current one.
fn keep(authority: &Authority, live: &Secret, purpose: &Purpose, seed: &str, now: Timestamp) -> Option<Kept> {
    let part = |key: &str| live.data.as_ref()?.get(key).map(|bytes| bytes.0.clone());
    let (certificate, key) = (part("tls.crt")?, part("tls.key")?);
    let leaf = pki::read_leaf(&certificate, &key)?;
    (!authority.must_replace(&leaf, purpose, seed, now)).then(|| (data(authority, certificate, key), leaf))
}

fn data(authority: &Authority, certificate: Vec<u8>, key: Vec<u8>) -> BTreeMap<String, ByteString> {
    BTreeMap::from([
        ("tls.crt".to_owned(), ByteString(certificate)),
        ("tls.key".to_owned(), ByteString(key)),
        ("ca.crt".to_owned(), ByteString(authority.certificate_pem().as_bytes().to_vec())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_certificate_is_kept_and_a_broken_one_is_not() {
        let now = Timestamp::now();
        let key = || KeyPair::generate().expect("a key");
        let (authority, _) = Authority::generate("test", key(), now).expect("an authority");
        let purpose = Purpose::Internal { namespace: "a".into(), server: "b".into() };
        let (first, _) = one(&authority, None, &purpose, "a/b", now).expect("issued");
        let secret = Secret { data: Some(first.clone()), ..Secret::default() };
        let (second, _) = one(&authority, Some(&secret), &purpose, "a/b", now).expect("kept");
        assert!(first == second);
        let mut broken = first.clone();
        broken.remove("tls.key");
        let secret = Secret { data: Some(broken), ..Secret::default() };
        let (third, _) = one(&authority, Some(&secret), &purpose, "a/b", now).expect("issued");
        assert!(first != third && third.len() == 3);
    }
}
