//! Whether a server can work as it is written. Pure; what it refers to is an argument.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::conditions::{REASON_INVALID, REASON_NOT_FOUND};
use crate::api::replica::STATE_PATH;
use crate::api::{McpServer, McpServerSpec, TlsMode, TlsStatus, ToolsSpec, names};
use crate::authz::scope::wildcard;
use crate::pki::{self, Leaf};
use crate::tools::{Tool, registry};

use super::authentication::{self, Address};
use super::materials::Materials;

/// Paths on which an endpoint answers something else.
const OWN_PATHS: [&str; 3] = ["/auth/token", "/auth/whoami", STATE_PATH];
/// Beginning of the paths under which it describes itself.
const WELL_KNOWN: &str = "/.well-known";

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
    /// What works and should still be thought over, in words.
    pub(super) warnings: Vec<String>,
}

/// What the spec refers to.
#[derive(Default)]
pub(super) struct Referred {
    /// The Secret with the certificate of the endpoint, if the spec names one and it exists.
    pub(super) given_secret: Option<Secret>,
    /// What callers are proved with.
    pub(super) materials: Materials,
}

/// Why a server cannot work as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// Reason, from `api::conditions`.
    pub(super) reason: &'static str,
    /// The field at fault and what to do.
    pub(super) message: String,
}

/// A field that cannot work.
pub(super) fn invalid(message: String) -> Invalid {
    Invalid { reason: REASON_INVALID, message }
}

/// Checks a server, and what it refers to.
///
/// # Errors
/// [`Invalid`] names the field at fault.
pub(super) fn validate<'a>(
    server: &'a McpServer,
    referred: &Referred,
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
    tools(&spec.tools)?;
    let (tls_secret, given_leaf) = match spec.tls.mode {
        TlsMode::SelfSigned => (names::tls_secret(name), None),
        TlsMode::Secret => {
            let secret = spec.tls.secret_name.clone().ok_or_else(|| {
                invalid("spec.tls.secretName: required when spec.tls.mode is Secret".to_owned())
            })?;
            let leaf = given_leaf(name, &secret, referred.given_secret.as_ref())?;
            (secret, Some(leaf))
        }
    };
    let host_names = pki::endpoint_names(namespace, name, &hosts);
    let resource = resource_of(spec, namespace, name);
    let address = Address { resource: &resource, host_names: &host_names };
    let warnings = authentication::check(spec, &address, &referred.materials)?;
    Ok(ValidatedServer {
        namespace,
        name,
        uid: server.metadata.uid.as_deref().unwrap_or_default(),
        spec,
        host_names,
        tls_secret,
        given_leaf,
        warnings,
    })
}

/// URL by which clients know the endpoint.
fn resource_of(spec: &McpServerSpec, namespace: &str, name: &str) -> String {
    let own = || names::resource_url(namespace, name, &spec.transports.streamable_http.path);
    spec.authentication.resource.clone().unwrap_or_else(own)
}

/// A pattern that matches no tool does not do what its author thinks.
fn tools(spec: &ToolsSpec) -> Result<(), Invalid> {
    let allows = |pattern: &str, tool: &Tool| wildcard(pattern, tool.name);
    // A tool is denied by any name that it answers to.
    let denies = |pattern: &str, tool: &Tool| {
        allows(pattern, tool) || tool.aliases.iter().any(|alias| wildcard(pattern, alias))
    };
    let matched = |pattern: &str, matches: &dyn Fn(&str, &Tool) -> bool| {
        registry().iter().any(|tool| matches(pattern, tool))
    };
    let unmatched = |field: &str, index: usize, pattern: &str| {
        Err(invalid(format!("spec.tools.{field}[{index}]: {pattern:?} matches no tool")))
    };
    if let Some(index) = spec.allow.iter().position(|pattern| !matched(pattern, &allows)) {
        return unmatched("allow", index, &spec.allow[index]);
    }
    match spec.deny.iter().position(|pattern| !matched(pattern, &denies)) {
        Some(index) => unmatched("deny", index, &spec.deny[index]),
        None => Ok(()),
    }
}

/// Two transports cannot share a path, and none can have one on which the endpoint answers something else.
fn paths(spec: &McpServerSpec) -> Result<(), Invalid> {
    let sse = &spec.transports.sse;
    let mut seen = BTreeSet::new();
    let mut check = |field: &str, path: &str| {
        let is_taken = OWN_PATHS.contains(&path)
            || path.strip_prefix(WELL_KNOWN).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if is_taken || !seen.insert(path.to_owned()) {
            return Err(invalid(format!("spec.transports.{field}: {path:?} is the path of something else")));
        }
        Ok(())
    };
    check("streamableHttp.path", &spec.transports.streamable_http.path)?;
    if !sse.enabled {
        return Ok(());
    }
    check("sse.path", &sse.path)?;
    check("sse.messagesPath", &sse.messages_path)?;
    for (index, alias) in sse.aliases.iter().enumerate() {
        check(&format!("sse.aliases[{index}]"), alias)?;
    }
    Ok(())
}

/// The certificate of a Secret that somebody keeps. Those of other servers, and of the internal port, are not theirs to
/// give away: a server would pass for another.
fn given_leaf(server: &str, name: &str, secret: Option<&Secret>) -> Result<Leaf, Invalid> {
    let type_ = secret.and_then(|secret| secret.type_.as_deref()).unwrap_or_default();
    if name != names::tls_secret(server) && authentication::is_own(name, type_) {
        return Err(invalid(format!(
            "spec.tls.secretName: Secret {name:?} belongs to Portcullis itself; use another"
        )));
    }
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
        validate(&server, &Referred::default(), |name| name == "billing").map(|_| ())
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
    fn a_certificate_of_portcullis_itself_is_not_taken_for_another_server() {
        for secret in ["pay-mcp-tls", "pay-mcp-internal", "ops-mcp-internal", "bot-mcp-key"] {
            let error =
                check(&format!("{{tls: {{mode: Secret, secretName: {secret}}}}}")).expect_err("refused");
            assert_eq!(error.reason, "Invalid", "{}", error.message);
            assert!(error.message.starts_with("spec.tls.secretName"), "{}", error.message);
        }
        let own = check("{tls: {mode: Secret, secretName: ops-mcp-tls}}").expect_err("it is not there");
        assert_eq!(own.reason, "ReferenceNotFound", "its own may stay");
    }

    #[test]
    fn two_transports_cannot_share_a_path() {
        let error = check("{transports: {sse: {path: /mcp}}}").expect_err("refused");
        assert!(error.message.starts_with("spec.transports.sse.path"), "{}", error.message);
        assert!(check("{transports: {sse: {aliases: [/sse]}}}").is_err());
        assert!(check("{transports: {sse: {enabled: false, path: /mcp}}}").is_ok());
    }

    #[test]
    fn a_transport_cannot_have_a_path_of_the_endpoint_itself() {
        for path in ["/auth/token", "/auth/whoami", "/internal/state", "/.well-known", "/.well-known/x"] {
            let spec = format!("{{transports: {{streamableHttp: {{path: {path}}}}}}}");
            let error = check(&spec).expect_err("refused");
            assert!(error.message.starts_with("spec.transports.streamableHttp.path"), "{}", error.message);
            assert!(check(&format!("{{transports: {{sse: {{aliases: [{path}]}}}}}}")).is_err());
        }
        assert!(check("{transports: {streamableHttp: {path: /auth/tokens}}}").is_ok());
        assert!(check("{transports: {streamableHttp: {path: /.well-known-tools}}}").is_ok());
    }

    #[test]
    fn a_pattern_that_matches_no_tool_is_named() {
        assert_eq!(check("{tools: {allow: [pods_list, 'pods_*'], deny: [list_pods, '*_delete']}}"), Ok(()));
        let error = check("{tools: {allow: ['*_list', list_secrets]}}").expect_err("refused");
        assert_eq!(error.message, "spec.tools.allow[1]: \"list_secrets\" matches no tool");
        let error = check("{tools: {deny: ['*_exec']}}").expect_err("refused");
        assert_eq!(error.message, "spec.tools.deny[0]: \"*_exec\" matches no tool");
        assert!(check("{tools: {allow: [list_pods]}}").is_err(), "a tool is offered by its own name");
    }
}
