//! From what a person writes, and the objects beside it, to what is refused or warned of.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rcgen::KeyPair;

use super::*;
use crate::api::McpServer;
use crate::authn::password;
use crate::controller::mcp_server::materials::Material;
use crate::controller::mcp_server::validate::{Referred, validate};
use crate::pki::Authority;

/// A server whose `spec.authentication` is this.
fn server(authentication: &str, more: &str) -> McpServer {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {{name: ops, namespace: agents, uid: u}}, spec: {{authentication: {authentication}{more}}}}}"
    ))
    .expect("a server")
}

fn secret(type_: &str, key: &str, value: &[u8]) -> Material {
    Material { type_: type_.to_owned(), entries: BTreeMap::from([(key.to_owned(), value.to_vec())]) }
}

fn ca() -> String {
    let key = KeyPair::generate().expect("a key");
    Authority::generate("people", key, Timestamp::now()).expect("an authority").1.certificate_pem
}

/// Secrets and ConfigMaps of the namespace.
fn materials() -> Materials {
    let mut found = Materials::default();
    let mut add = |kind, name: &str, material| found.insert(kind, name, material);
    let bytes: Vec<u8> = (0..32).collect();
    add(MaterialKind::Secret, "hmac", secret("Opaque", "key", &bytes));
    add(MaterialKind::Secret, "short", secret("Opaque", "key", &bytes[..31]));
    add(MaterialKind::Secret, "repeated", secret("Opaque", "key", &[7; 32]));
    add(MaterialKind::Secret, "foreign", secret("portcullis.dev/api-key", "key", &bytes));
    let hash = password::hash(b"correct horse", [1; 16]).expect("a hash");
    add(MaterialKind::Secret, "people", secret("Opaque", "users", format!("ann:{hash}:ops\n").as_bytes()));
    add(MaterialKind::Secret, "plain", secret("Opaque", "users", b"# people\nann:hunter2\n"));
    add(MaterialKind::Secret, "binary", secret("Opaque", "users", &[0xff, 0xfe]));
    let key = |more: &str| {
        format!(
            "{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"{more}}}]}}"
        )
    };
    add(MaterialKind::ConfigMap, "keys", secret("", "jwks.json", key("").as_bytes()));
    add(MaterialKind::ConfigMap, "private", secret("", "jwks.json", key(",\"d\":\"c2VjcmV0\"").as_bytes()));
    add(MaterialKind::ConfigMap, "no-keys", secret("", "jwks.json", b"{\"keys\":[]}"));
    add(MaterialKind::ConfigMap, "ca", secret("", "ca.crt", ca().as_bytes()));
    add(MaterialKind::ConfigMap, "broken-ca", secret("", "ca.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n"));
    add(MaterialKind::ConfigMap, "empty-ca", secret("", "ca.crt", b"no certificate at all"));
    found
}

fn look(authentication: &str, more: &str) -> Result<Vec<String>, Invalid> {
    let referred = Referred { given_secret: None, materials: materials() };
    validate(&server(authentication, more), &referred, |_| false).map(|valid| valid.warnings)
}

fn refused(authentication: &str) -> String {
    let error = look(authentication, "").expect_err("refused");
    format!("{} {}", error.reason, error.message)
}

fn assert_refused(authentication: &str, beginning: &str) {
    let refusal = refused(authentication);
    assert!(refusal.starts_with(beginning), "{authentication}: {refusal}");
}

#[test]
fn what_is_written_well_is_valid_and_needs_no_warning() {
    for authentication in [
        "{}",
        "{jwt: [{issuer: 'https://a.example.com'}, {issuer: 'https://b.example.com', ca: {name: ca, key: ca.crt}}]}",
        "{clientCertificates: {mode: RequireAndVerify, ca: {name: ca, key: ca.crt}}}",
        "{tokens: {enabled: true}, serviceAccounts: {enabled: true}}",
        "{resource: 'https://ops-mcp.agents.svc/mcp'}",
    ] {
        assert_eq!(look(authentication, ""), Ok(Vec::new()), "{authentication}");
    }
}

#[test]
fn an_entry_that_does_not_exist_is_named_with_its_field() {
    assert_refused(
        "{jwt: [{issuer: a, hmacSecret: {name: absent, key: key}}]}",
        "ReferenceNotFound spec.authentication.jwt[0].hmacSecret: Secret \"absent\" does not exist",
    );
    assert_refused(
        "{clientCertificates: {mode: VerifyIfGiven, ca: {name: ca, key: other}}}",
        "ReferenceNotFound spec.authentication.clientCertificates.ca: ConfigMap \"ca\" has no entry \"other\"",
    );
    // A Secret is not a ConfigMap of the same name.
    assert_refused(
        "{clientCertificates: {mode: VerifyIfGiven, ca: {kind: Secret, name: ca, key: ca.crt}}}",
        "ReferenceNotFound spec.authentication.clientCertificates.ca: Secret \"ca\" does not exist",
    );
}

#[test]
fn a_secret_that_portcullis_makes_is_refused_by_its_name_and_by_its_type() {
    for name in
        ["ci-mcp-key", "ops-mcp-tls", "ops-mcp-internal", "ops-mcp-signing", "ops-mcp-imported", "foreign"]
    {
        assert_refused(
            &format!("{{jwt: [{{issuer: a, hmacSecret: {{name: {name}, key: key}}}}]}}"),
            &format!("Invalid spec.authentication.jwt[0].hmacSecret: Secret {name:?} "),
        );
    }
}

#[test]
fn a_short_shared_secret_is_refused_and_a_long_one_is_warned_of() {
    let with = |name: &str| format!("{{jwt: [{{issuer: a, hmacSecret: {{name: {name}, key: key}}}}]}}");
    assert_eq!(
        refused(&with("short")),
        "Invalid spec.authentication.jwt[0].hmacSecret: entry \"key\" of Secret \"short\": is shorter than 32 bytes"
    );
    assert!(refused(&with("repeated")).ends_with("is not a random key"));
    let warnings = look(&with("hmac"), "").expect("valid");
    assert!(
        warnings[0].starts_with("spec.authentication.jwt[0].hmacSecret: whoever holds it"),
        "{warnings:?}"
    );
}

#[test]
fn what_proves_nothing_is_warned_of() {
    let warnings = look("{anonymous: {unsafeEnabled: true}, clientCertificates: {mode: RequireAny}}", "");
    let warnings = warnings.expect("valid");
    assert!(warnings[0].starts_with("spec.authentication.anonymous.unsafeEnabled"), "{warnings:?}");
    assert!(
        warnings[1].starts_with("spec.authentication.clientCertificates.mode: RequireAny"),
        "{warnings:?}"
    );
    assert_eq!(look("{clientCertificates: {mode: Request}}", "").expect("valid").len(), 1);
}

#[test]
fn users_need_a_hash_each_and_the_line_without_one_is_named() {
    let with = |name: &str| format!("{{basic: {{enabled: true, users: {{name: {name}, key: users}}}}}}");
    assert_eq!(look(&with("people"), ""), Ok(Vec::new()));
    let refusal = refused(&with("plain"));
    assert!(
        refusal.starts_with(
            "Invalid spec.authentication.basic.users: entry \"users\" of Secret \"plain\": line 2"
        ),
        "{refusal}"
    );
    assert!(!refusal.contains("hunter2"), "{refusal}");
    assert!(refused(&with("binary")).ends_with("is not UTF-8"));
    let off = "{basic: {enabled: false, users: {name: absent, key: users}}}";
    assert_eq!(look(off, ""), Ok(Vec::new()), "what is switched off is not looked for");
}

#[test]
fn a_key_set_holds_public_keys_of_an_allowed_algorithm() {
    let with = |name: &str, more: &str| {
        format!("{{jwt: [{{issuer: a, jwks: {{name: {name}, key: jwks.json}}{more}}}]}}")
    };
    assert_eq!(look(&with("keys", ""), ""), Ok(Vec::new()));
    let field = "Invalid spec.authentication.jwt[0].jwks: entry \"jwks.json\" of ConfigMap";
    assert_refused(&with("private", ""), field);
    assert_refused(&with("no-keys", ""), field);
    assert_refused(&with("keys", ", algorithms: [RS256]"), field);
}

#[test]
fn authorities_must_be_certificates() {
    for name in ["broken-ca", "empty-ca"] {
        assert_refused(
            &format!("{{clientCertificates: {{mode: VerifyIfGiven, ca: {{name: {name}, key: ca.crt}}}}}}"),
            "Invalid spec.authentication.clientCertificates.ca: entry \"ca.crt\" of ConfigMap",
        );
        assert_refused(
            &format!("{{jwt: [{{issuer: 'https://a.example.com', ca: {{name: {name}, key: ca.crt}}}}]}}"),
            "Invalid spec.authentication.jwt[0].ca: entry \"ca.crt\" of ConfigMap",
        );
    }
}

#[test]
fn an_issuer_is_named_once_and_is_neither_a_method_nor_the_endpoint() {
    assert_refused(
        "{jwt: [{issuer: 'https://a.example.com'}, {issuer: 'https://a.example.com'}]}",
        "Invalid spec.authentication.jwt[1].issuer: \"https://a.example.com\" is there already",
    );
    for name in ["kubernetes", "basic", "certificate", "anonymous", "portcullis"] {
        assert_refused(
            &format!("{{jwt: [{{issuer: {name}, hmacSecret: {{name: hmac, key: key}}}}]}}"),
            "Invalid spec.authentication.jwt[0].issuer: ",
        );
    }
    assert_refused(
        "{jwt: [{issuer: 'https://ops-mcp.agents.svc/mcp'}]}",
        "Invalid spec.authentication.jwt[0].issuer: \"https://ops-mcp.agents.svc/mcp\" is the endpoint itself",
    );
}

#[test]
fn a_shared_secret_and_hs256_belong_together() {
    let with = |more: &str| format!("{{jwt: [{{issuer: 'https://a.example.com', {more}}}]}}");
    assert_refused(
        &with("algorithms: [RS256, HS256]"),
        "Invalid spec.authentication.jwt[0].algorithms[1]: HS256 works with hmacSecret only",
    );
    assert_refused(
        &with("hmacSecret: {name: hmac, key: key}, algorithms: [RS256]"),
        "Invalid spec.authentication.jwt[0].algorithms[0]: hmacSecret works with HS256 only",
    );
    assert!(look(&with("hmacSecret: {name: hmac, key: key}, algorithms: [HS256]"), "").is_ok());
    assert!(look(&with("algorithms: [ES256, EdDSA]"), "").is_ok());
}

#[test]
fn the_resource_is_an_address_of_this_endpoint() {
    let with = |resource: &str| {
        let more = ", tls: {hosts: [mcp.example.com]}, network: {allowedHosts: ['proxy.example.com:8443', edge.example.com]}";
        look(&format!("{{resource: '{resource}'}}"), more)
    };
    for good in [
        "https://ops-mcp.agents.svc/mcp",
        "https://ops-mcp.agents.svc:443/mcp",
        "https://MCP.example.com",
        "https://proxy.example.com:8443/a/mcp",
        "https://edge.example.com:1/mcp",
    ] {
        assert_eq!(with(good), Ok(Vec::new()), "{good}");
    }
    for bad in [
        "http://mcp.example.com/mcp",
        "https://evil.example.com/mcp",
        "https://proxy.example.com/mcp",
        "https://other-mcp.agents.svc/mcp",
        "https://mcp.example.com/mcp?a=b",
        "https://mcp.example.com/mcp?",
        "https://mcp.example.com/mcp#a",
        "https://user@mcp.example.com/mcp",
        "mcp.example.com",
        "https:///mcp",
    ] {
        let error = with(bad).expect_err(bad);
        assert!(error.message.starts_with("spec.authentication.resource: "), "{}", error.message);
    }
    let error = with("https://evil.example.com/mcp").expect_err("refused");
    assert!(error.message.contains("spec.tls.hosts or spec.network.allowedHosts"), "{}", error.message);
}

#[test]
fn no_refusal_shows_what_an_entry_holds() {
    let mut materials = Materials::default();
    materials.insert(MaterialKind::Secret, "hmac", secret("Opaque", "key", b"hunter2"));
    let referred = Referred { given_secret: None, materials };
    let server = server("{jwt: [{issuer: a, hmacSecret: {name: hmac, key: key}}]}", "");
    let error = validate(&server, &referred, |_| false).expect_err("refused");
    assert!(!format!("{error:?}").contains("hunter2"));
}
