//! What the API server or the operator would refuse in a cluster, and what cannot work without them. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kube::ResourceExt;

use super::entries::Entries;
use crate::api::{AuthenticationSpec, ClientCertificateMode, McpApiKey, McpServer, names};
use crate::authn::{ANONYMOUS, BASIC, CERTIFICATE, KUBERNETES};

/// Words that name another method and so no issuer.
const RESERVED: [&str; 5] = [KUBERNETES, BASIC, CERTIFICATE, ANONYMOUS, "portcullis"];

/// Whether an issuer cannot have this name.
pub(super) fn is_reserved(issuer: &str) -> bool {
    RESERVED.contains(&issuer)
}

/// Checks what a server says of authentication, and that every entry it refers to is there.
///
/// # Errors
/// A text for people that begins with the field.
pub(super) fn server(server: &McpServer, entries: &Entries) -> Result<(), String> {
    let spec = &server.spec.authentication;
    rotation_by_annotation(server)?;
    if spec.resource.as_ref().is_some_and(|url| !is_https(url)) {
        return Err(
            "spec.authentication.resource: must begin with https:// and have neither query nor fragment"
                .to_owned(),
        );
    }
    issuers(spec)?;
    if spec.basic.enabled && spec.basic.users.is_none() {
        return Err(
            "spec.authentication.basic.users: is required when basic is enabled; MCP_AUTH_USERNAME names a user too"
                .to_owned(),
        );
    }
    let verified = spec.client_certificates.mode.verifies();
    if verified && spec.client_certificates.ca.is_none() {
        return Err("spec.authentication.clientCertificates.ca: is required when client certificates are \
                    verified"
            .to_owned());
    }
    for (field, reference) in spec.references() {
        entries.find(&reference).map_err(|error| format!("{field}: {error}"))?;
    }
    Ok(())
}

fn issuers(spec: &AuthenticationSpec) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (index, issuer) in spec.jwt.iter().enumerate() {
        let field = |text: &str| Err(format!("spec.authentication.jwt[{index}].{text}"));
        let sources = [issuer.jwks_url.is_some(), issuer.jwks.is_some(), issuer.hmac_secret.is_some()];
        if sources.iter().filter(|is_set| **is_set).count() > 1 {
            return field("jwks: at most one of jwksUrl, jwks and hmacSecret may be set");
        }
        if !sources.contains(&true) && !issuer.issuer.starts_with("https://") {
            return field("issuer: must be an https URL when its keys are discovered");
        }
        if issuer.jwks_url.as_ref().is_some_and(|url| !url.starts_with("https://")) {
            return field("jwksUrl: must begin with https://");
        }
        if is_reserved(&issuer.issuer) {
            return field(&format!("issuer: {:?} is the name of another method", issuer.issuer));
        }
        if !seen.insert(&issuer.issuer) {
            return field(&format!("issuer: {:?} is there twice", issuer.issuer));
        }
    }
    Ok(())
}

fn is_https(url: &str) -> bool {
    let rest = url.strip_prefix("https://").unwrap_or_default();
    !rest.is_empty() && !rest.contains(|c: char| c == '#' || c == '?' || c.is_whitespace())
}

/// Checks a key.
///
/// # Errors
/// A text for people that begins with the field.
pub(super) fn key(key: &McpApiKey) -> Result<(), String> {
    if key.spec.rotation.is_some() {
        return Err(
            "spec.rotation: keys are rotated by the operator in a cluster; here, delete the file of a \
                    generated key for a new one, or import another"
                .to_owned(),
        );
    }
    rotation_by_annotation(key)?;
    for (index, text) in key.spec.allowed_cidrs.iter().enumerate() {
        if text.parse::<IpNet>().is_err() {
            return Err(format!("spec.allowedCidrs[{index}]: {text:?} is not a network such as 10.0.0.0/8"));
        }
    }
    Ok(())
}

fn rotation_by_annotation(object: &impl ResourceExt) -> Result<(), String> {
    match object.annotations().contains_key(names::ROTATE_ANNOTATION) {
        true => Err(format!(
            "metadata.annotations.{}: rotation is the work of the operator in a cluster",
            names::ROTATE_ANNOTATION
        )),
        false => Ok(()),
    }
}

/// The methods by which callers can prove who they are, in words; empty if none can.
pub(super) fn methods<'a>(server: &McpServer, keys: impl IntoIterator<Item = &'a McpApiKey>) -> Vec<String> {
    let spec = &server.spec.authentication;
    let mut methods = Vec::new();
    let name = server.name_any();
    let open = |key: &&McpApiKey| key.spec.enabled && key.spec.servers.contains(&name);
    let count = keys.into_iter().filter(open).count();
    if spec.api_keys.enabled && count > 0 {
        methods.push(format!("API keys ({count})"));
    }
    methods.extend(spec.jwt.iter().map(|issuer| format!("tokens of {}", issuer.issuer)));
    if spec.service_accounts.enabled {
        methods.push("tokens of ServiceAccounts".to_owned());
    }
    if spec.basic.enabled {
        methods.push("user name and password".to_owned());
    }
    match spec.client_certificates.mode {
        ClientCertificateMode::VerifyIfGiven => methods.push("client certificates".to_owned()),
        ClientCertificateMode::RequireAndVerify => methods.push("client certificates (required)".to_owned()),
        ClientCertificateMode::None | ClientCertificateMode::Request | ClientCertificateMode::RequireAny => {}
    }
    // They are made for those who have proved themselves otherwise.
    if spec.tokens.enabled && !methods.is_empty() {
        methods.push("tokens of this endpoint".to_owned());
    }
    methods
}
