//! Whether a server can work as it is written. Pure; what it refers to is an argument.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::conditions::{REASON_INVALID, REASON_NOT_FOUND};
use crate::api::{McpServer, McpServerSpec, TlsMode, TlsStatus, names};
use crate::pki::{self, Leaf};

/// A server whose spec, and what it refers to, are valid.
#[derive(Debug)]
pub(super) struct ValidatedServer<'a> {
    /// Its namespace.
    pub(super) namespace: &'a str,
    /// Its name.
    pub(super) name: &'a str,
    /// Its uid: children belong to this very object, not to its name.
    pub(super) uid: &'a str,
    /// What was written.
    pub(super) spec: &'a McpServerSpec,
    /// Names for which the certificate of the endpoint is valid.
    pub(super) host_names: Vec<String>,
    /// Secret with the certificate of the endpoint.
    pub(super) tls_secret: String,
    /// The certificate, where somebody else keeps it.
    pub(super) given_leaf: Option<Leaf>,
}

/// Why a server cannot work as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// Reason, from `api::conditions`.
    pub(super) reason: &'static str,
    /// The field at fault and what to do.
    pub(super) message: String,
}

fn invalid(message: String) -> Invalid {
    Invalid { reason: REASON_INVALID, message }
}

/// Checks a server. `given` is the Secret that the spec names, if it names one and it exists.
///
/// # Errors
/// [`Invalid`] names the field at fault.
pub(super) fn validate<'a>(
    server: &'a McpServer,
    given: Option<&Secret>,
    is_namespace: impl Fn(&str) -> bool,
) -> Result<ValidatedServer<'a>, Invalid> {
    let namespace = server.metadata.namespace.as_deref().unwrap_or_default();
    let name = server.metadata.name.as_deref().unwrap_or_default();
    let spec = &server.spec;
    let own = pki::endpoint_names(namespace, name, &[]);
    let mut hosts = Vec::new();
    for (index, host) in spec.tls.hosts.iter().enumerate() {
        let host = pki::host_name(host, &own, &is_namespace)
            .map_err(|error| invalid(format!("spec.tls.hosts[{index}]: {host:?} {error}")))?;
        hosts.push(host);
    }
    paths(spec)?;
    let (tls_secret, given_leaf) = match spec.tls.mode {
        TlsMode::SelfSigned => (names::tls_secret(name), None),
        TlsMode::Secret => {
            let secret = spec.tls.secret_name.clone().ok_or_else(|| {
                invalid("spec.tls.secretName: required when spec.tls.mode is Secret".to_owned())
            })?;
            let leaf = given_leaf(&secret, given)?;
            (secret, Some(leaf))
        }
    };
    Ok(ValidatedServer {
        namespace,
        name,
        uid: server.metadata.uid.as_deref().unwrap_or_default(),
        spec,
        host_names: pki::endpoint_names(namespace, name, &hosts),
        tls_secret,
        given_leaf,
    })
}

/// Two transports cannot share a path.
fn paths(spec: &McpServerSpec) -> Result<(), Invalid> {
    let sse = &spec.transports.sse;
    let mut seen = BTreeSet::from([spec.transports.streamable_http.path.as_str()]);
    let check = |field: String, path: &str, taken: bool| {
        if taken {
            return Err(invalid(format!(
                "spec.transports.sse.{field}: {path:?} is the path of something else"
            )));
        }
        Ok(())
    };
    if !sse.enabled {
        return Ok(());
    }
    check("path".to_owned(), &sse.path, !seen.insert(&sse.path))?;
    check("messagesPath".to_owned(), &sse.messages_path, !seen.insert(&sse.messages_path))?;
    for (index, alias) in sse.aliases.iter().enumerate() {
        check(format!("aliases[{index}]"), alias, !seen.insert(alias))?;
    }
    Ok(())
}

fn given_leaf(name: &str, secret: Option<&Secret>) -> Result<Leaf, Invalid> {
    let Some(secret) = secret else {
        return Err(Invalid {
            reason: REASON_NOT_FOUND,
            message: format!("spec.tls.secretName: Secret {name:?} does not exist"),
        });
    };
    let part = |key: &str| {
        secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |bytes| bytes.0.as_slice())
    };
    pki::read_leaf(part("tls.crt"), part("tls.key")).ok_or_else(|| {
        invalid(format!(
            "spec.tls.secretName: Secret {name:?} must hold a certificate in tls.crt and its key in tls.key"
        ))
    })
}

/// What the status says of a certificate.
pub(super) fn tls_status(leaf: &Leaf) -> TlsStatus {
    TlsStatus { not_after: Time(leaf.not_after), fingerprint: leaf.fingerprint.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str) -> Result<(), Invalid> {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {{name: ops, namespace: agents, uid: u}}, spec: {spec}}}"
        );
        let server: McpServer = serde_saphyr::from_str(&text).expect("a server");
        validate(&server, None, |name| name == "billing").map(|_| ())
    }

    #[test]
    fn the_shortest_server_is_valid() {
        assert_eq!(check("{}"), Ok(()));
    }

    #[test]
    fn a_host_of_another_server_is_refused_with_its_place() {
        let error = check("{tls: {hosts: [mcp.example.com, pay-mcp.billing.svc]}}").expect_err("refused");
        assert_eq!(error.reason, "Invalid");
        assert!(error.message.starts_with("spec.tls.hosts[1]: \"pay-mcp.billing.svc\""), "{}", error.message);
        assert!(check("{tls: {hosts: [pay-mcp.billing]}}").is_err());
        assert!(check("{tls: {hosts: [x.portcullis.dev]}}").is_err());
        assert!(check("{tls: {hosts: [ops-mcp.agents.svc]}}").is_ok());
    }

    #[test]
    fn a_secret_that_does_not_exist_is_named() {
        let error = check("{tls: {mode: Secret, secretName: web}}").expect_err("refused");
        assert_eq!(error.reason, "ReferenceNotFound");
        assert!(error.message.contains("\"web\""), "{}", error.message);
    }

    #[test]
    fn two_transports_cannot_share_a_path() {
        let error = check("{transports: {sse: {path: /mcp}}}").expect_err("refused");
        assert!(error.message.starts_with("spec.transports.sse.path"), "{}", error.message);
        assert!(check("{transports: {sse: {aliases: [/sse]}}}").is_err());
        assert!(check("{transports: {sse: {enabled: false, path: /mcp}}}").is_ok());
    }
}
