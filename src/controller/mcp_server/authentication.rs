//! Whether the ways in which callers prove themselves can work as they are written. Pure; what entries hold is an
//! argument, and no message shows any of it.

use std::collections::BTreeSet;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::api::conditions::REASON_NOT_FOUND;
use crate::api::{
    AuthenticationSpec, ClientCertificateMode, JwtAlgorithm, JwtIssuerSpec, MaterialKind, MaterialReference,
    McpServerSpec,
};
use crate::authn;
use crate::authn::jwks::KeySet;
use crate::authn::jwt::IssuerRules;
use crate::authn::users::Users;

use super::materials::Materials;
use super::validate::{Invalid, invalid};

/// Words that stand for methods where an issuer is named.
const RESERVED_ISSUERS: [&str; 5] =
    [authn::KUBERNETES, authn::BASIC, authn::CERTIFICATE, authn::ANONYMOUS, "portcullis"];
/// Beginning of the types of Secrets that Portcullis makes.
const OWN_TYPES: &str = "portcullis.dev/";
/// Ends of the names of Secrets that Portcullis makes.
const OWN_NAMES: [&str; 5] = ["-mcp-key", "-mcp-tls", "-mcp-internal", "-mcp-signing", "-mcp-imported"];

/// The URL by which clients know an endpoint, and the names under which it may be known.
pub(super) struct Address<'a> {
    /// The audience of tokens.
    pub(super) resource: &'a str,
    /// Names for which the certificate of the endpoint is valid.
    pub(super) host_names: &'a [String],
}

/// Checks every method. Gives what is valid and should still be thought over, in words.
///
/// # Errors
/// [`Invalid`] names the field at fault.
pub(super) fn check(
    spec: &McpServerSpec,
    address: &Address<'_>,
    materials: &Materials,
) -> Result<Vec<String>, Invalid> {
    let authentication = &spec.authentication;
    resource(spec, address)?;
    let mut issuers = BTreeSet::new();
    for (index, issuer) in authentication.jwt.iter().enumerate() {
        let field = format!("spec.authentication.jwt[{index}]");
        let name = &issuer.issuer;
        if !issuers.insert(name) {
            return Err(invalid(format!("{field}.issuer: {name:?} is there already")));
        }
        if RESERVED_ISSUERS.contains(&name.as_str()) {
            return Err(invalid(format!("{field}.issuer: {name:?} is the name of another method")));
        }
        if name == address.resource {
            return Err(invalid(format!(
                "{field}.issuer: {name:?} is the endpoint itself; its own tokens are switched on by spec.authentication.tokens"
            )));
        }
        algorithms(&field, issuer)?;
    }
    for (field, reference) in authentication.references() {
        existing(&field, &reference, materials)?;
    }
    contents(authentication, materials)?;
    Ok(warnings(authentication))
}

/// The resource is an https URL that leads to this endpoint.
fn resource(spec: &McpServerSpec, address: &Address<'_>) -> Result<(), Invalid> {
    let Some(text) = &spec.authentication.resource else { return Ok(()) };
    let refused = |what: &str| Err(invalid(format!("spec.authentication.resource: {text:?} {what}")));
    let Ok(url) = text.parse::<http::Uri>() else { return refused("is not a URL") };
    let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return refused("must be an https URL");
    };
    if url.query().is_some() || text.contains(['#', '?']) {
        return refused("must have neither a query nor a fragment");
    }
    if authority.as_str().contains('@') {
        return refused("must not name a user");
    }
    let host = authority.host().trim_matches(['[', ']']);
    let is_host = |name: &String| name.eq_ignore_ascii_case(host);
    let is_allowed = |entry: &String| {
        let entry = entry.as_str();
        entry.eq_ignore_ascii_case(authority.as_str())
            || entry.trim_matches(['[', ']']).eq_ignore_ascii_case(host)
    };
    if address.host_names.iter().any(is_host) || spec.network.allowed_hosts.iter().any(is_allowed) {
        return Ok(());
    }
    refused(
        "must name a host of this endpoint: a name of its Service, or one in spec.tls.hosts or spec.network.allowedHosts",
    )
}

/// A shared secret proves by HS256 and by nothing else, and HS256 needs one: a public key must never be taken for one.
fn algorithms(field: &str, issuer: &JwtIssuerSpec) -> Result<(), Invalid> {
    let is_shared = |algorithm: &JwtAlgorithm| *algorithm == JwtAlgorithm::HS256;
    let wrong = |index: usize, what: &str| Err(invalid(format!("{field}.algorithms[{index}]: {what}")));
    let position =
        |wanted: bool| issuer.algorithms.iter().position(|algorithm| is_shared(algorithm) == wanted);
    match &issuer.hmac_secret {
        Some(_) => position(false).map_or(Ok(()), |index| wrong(index, "hmacSecret works with HS256 only")),
        None => position(true).map_or(Ok(()), |index| wrong(index, "HS256 works with hmacSecret only")),
    }
}

/// Whether a Secret is one that Portcullis makes, by its name or its type. Those are for one purpose each.
pub(super) fn is_own(name: &str, type_: &str) -> bool {
    OWN_NAMES.iter().any(|end| name.ends_with(end)) || type_.starts_with(OWN_TYPES)
}

/// The entry exists, and is not one of ours.
fn existing(field: &str, reference: &MaterialReference, materials: &Materials) -> Result<(), Invalid> {
    let MaterialReference { kind, name, key } = reference;
    let own = |what: &str| {
        Err(invalid(format!("{field}: Secret {name:?} {what} belongs to Portcullis itself; use another")))
    };
    let is_secret = *kind == MaterialKind::Secret;
    if is_secret && OWN_NAMES.iter().any(|end| name.ends_with(end)) {
        return own("with such a name");
    }
    let missing =
        |what: String| Err(Invalid { reason: REASON_NOT_FOUND, message: format!("{field}: {what}") });
    match materials.find(reference) {
        None => missing(format!("{kind:?} {name:?} does not exist")),
        Some(found) if is_secret && found.type_.starts_with(OWN_TYPES) => own("of such a type"),
        Some(found) if !found.entries.contains_key(key) => {
            missing(format!("{kind:?} {name:?} has no entry {key:?}"))
        }
        Some(_) => Ok(()),
    }
}

/// What the entries hold is what they are for.
fn contents(spec: &AuthenticationSpec, materials: &Materials) -> Result<(), Invalid> {
    for (index, issuer) in spec.jwt.iter().enumerate() {
        let field = |name: &str| format!("spec.authentication.jwt[{index}].{name}");
        let shared = issuer.hmac_secret.clone().map(MaterialReference::from);
        content(&field("hmacSecret"), shared.as_ref(), materials, |bytes| {
            KeySet::from_hmac(bytes).map(|_| ()).map_err(|error| error.to_string())
        })?;
        let rules = IssuerRules::from_spec(issuer, "");
        content(&field("jwks"), issuer.jwks.as_ref(), materials, |bytes| {
            KeySet::from_json(bytes, &rules.algorithms).map(|_| ()).map_err(|error| error.to_string())
        })?;
        content(&field("ca"), issuer.ca.as_ref(), materials, authorities)?;
    }
    let ca = spec.client_certificates.ca.as_ref();
    content("spec.authentication.clientCertificates.ca", ca, materials, authorities)?;
    let users = spec.basic.users.clone().filter(|_| spec.basic.enabled).map(MaterialReference::from);
    content("spec.authentication.basic.users", users.as_ref(), materials, |bytes| {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
        Users::parse(text).map(|_| ()).map_err(|error| error.to_string())
    })
}

/// Judges the entry behind a field, if the field is set. What is wrong follows the name of the entry.
fn content(
    field: &str,
    reference: Option<&MaterialReference>,
    materials: &Materials,
    judge: impl FnOnce(&[u8]) -> Result<(), String>,
) -> Result<(), Invalid> {
    let Some(reference @ MaterialReference { kind, name, key }) = reference else { return Ok(()) };
    judge(materials.entry(reference).unwrap_or_default())
        .map_err(|wrong| invalid(format!("{field}: entry {key:?} of {kind:?} {name:?}: {wrong}")))
}

/// A text in PEM holds certificates, at least one, that can be authorities, and nothing else.
fn authorities(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    let added = CertificateDer::pem_slice_iter(pem)
        .all(|certificate| certificate.is_ok_and(|certificate| roots.add(certificate).is_ok()));
    if added && !roots.is_empty() { Ok(()) } else { Err("must hold certificates in PEM".to_owned()) }
}

/// What works as it is written and still proves less than it may seem to.
fn warnings(spec: &AuthenticationSpec) -> Vec<String> {
    let mut found = Vec::new();
    for (index, issuer) in spec.jwt.iter().enumerate().filter(|(_, issuer)| issuer.hmac_secret.is_some()) {
        found.push(format!(
            "spec.authentication.jwt[{index}].hmacSecret: whoever holds it can make tokens of {:?} for anybody; prefer an issuer with public keys",
            issuer.issuer
        ));
    }
    if spec.anonymous.unsafe_enabled {
        found.push(
            "spec.authentication.anonymous.unsafeEnabled: whoever reaches the endpoint is let in without proof"
                .to_owned(),
        );
    }
    let mode = spec.client_certificates.mode;
    if matches!(mode, ClientCertificateMode::Request | ClientCertificateMode::RequireAny) {
        found.push(format!(
            "spec.authentication.clientCertificates.mode: {mode:?} verifies no certificate, so it proves nothing"
        ));
    }
    found
}

#[cfg(test)]
mod tests;
