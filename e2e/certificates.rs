//! Certificates of clients: what each mode lets in, who they name, and a CA that changes under open connections.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::cluster::{apply, eventually, kubectl};
use crate::server::{Endpoint, Wishes};
use crate::wire::{Wire, exchange};

const ROLES: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: ann}
spec: {permissions: ['k8s:pods:list'], subjects: [{kind: User, name: ann, issuer: certificate}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: operators}
spec: {permissions: ['k8s:services:list'], subjects: [{kind: Group, name: operators, issuer: certificate}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: workload}
spec: {permissions: ['k8s:deployments:list'], subjects: [{kind: User, name: 'spiffe://example.test/ann'}]}
";

/// An authority that vouches for clients.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name = rcgen::DistinguishedName::new();
        authority.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = authority.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: rcgen::Issuer::new(authority, key) }
    }

    /// A certificate for clients and its key.
    fn client(&self, name: &str, organization: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut leaf = rcgen::CertificateParams::default();
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, name);
        leaf.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let uri = format!("spiffe://example.test/{name}").try_into().expect("a URI");
        leaf.subject_alt_names.push(rcgen::SanType::URI(uri));
        leaf.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        (leaf.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

fn config_map(authorities: &[&Authority]) -> String {
    let pem: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clients"}, "data": {"ca.crt": pem}})
        .to_string()
}

fn spec(mode: &str) -> String {
    let ca = "ca: {kind: ConfigMap, name: clients, key: ca.crt}";
    format!("authentication: {{clientCertificates: {{mode: {mode}, {ca}}}}}")
}

/// A way to the endpoint that shows a certificate.
fn showing(endpoint: &Endpoint, (certificate, key): &(String, String)) -> Wire {
    let ca = std::fs::read(&endpoint.ca).expect("the CA's file");
    Wire::with_certificate(&endpoint.url, &ca, certificate, key)
}

async fn tools(wire: &Wire) -> Option<Vec<String>> {
    let answer = wire.list_as(&[]).await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
    let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
    let tools = body["result"]["tools"].as_array()?.iter();
    Some(tools.map(|tool| tool["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Status of `tools/list`, or none where the handshake fails.
async fn status(wire: &Wire, key: Option<&str>) -> Option<StatusCode> {
    let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
    wire.list_as(&headers).await.ok().map(|answer| answer.status())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_certificate_names_the_caller_and_another_ones_ends_the_handshake() {
    let (ours, foreign) = (Authority::new("clients"), Authority::new("clients"));
    let manifests = format!("{ROLES}\n---\n{}", config_map(&[&ours]));
    let (given, wishes) = (spec("VerifyIfGiven"), Wishes { manifests: &manifests, ..Wishes::default() });
    let endpoint = Endpoint::start_with("certs", Wishes { spec: &given, ..wishes }).await;
    let (plain, ann) = (Wire::new(&endpoint), showing(&endpoint, &ours.client("ann", "operators")));
    let listed = eventually("ann is let in", Duration::from_secs(30), async || tools(&ann).await).await;
    assert_eq!(listed, ["pods_list", "resources_list", "services_list"], "by common name and organization");
    assert_eq!(status(&plain, None).await, Some(StatusCode::UNAUTHORIZED));
    assert_eq!(status(&plain, Some(&endpoint.viewer)).await, Some(StatusCode::OK), "a key needs none");
    assert_eq!(status(&ann, Some("hello")).await, Some(StatusCode::UNAUTHORIZED), "a wrong key stays wrong");
    let stranger = showing(&endpoint, &foreign.client("ann", "operators"));
    assert_eq!(status(&stranger, None).await, None, "another authority of the same name");
    assert_eq!(status(&stranger, Some(&endpoint.viewer)).await, None);

    let set = |fields: Value| {
        let patch = json!({"spec": {"authentication": {"clientCertificates": fields}}}).to_string();
        kubectl(&["patch", "-n", endpoint.namespace(), "mcpserver", "ops", "--type=merge", "-p", &patch]);
    };
    let within = Duration::from_secs(120);
    set(json!({"mode": "RequireAndVerify"}));
    eventually("a certificate is needed", within, async || {
        let (without, with) = (status(&plain, Some(&endpoint.viewer)).await, status(&ann, None).await);
        (without.is_none() && with == Some(StatusCode::OK)).then_some(())
    })
    .await;
    assert_eq!(status(&ann, Some(&endpoint.viewer)).await, Some(StatusCode::OK));
    set(json!({"identity": "Uri"}));
    eventually("the URI names the caller", within, async || {
        (tools(&ann).await? == ["deployments_list", "resources_list"]).then_some(())
    })
    .await;
    set(json!({"mode": "RequireAny"}));
    eventually("any certificate will do for the handshake", within, async || {
        let (without, with) = (status(&plain, Some(&endpoint.viewer)).await, status(&stranger, None).await);
        (without.is_none() && with == Some(StatusCode::UNAUTHORIZED)).then_some(())
    })
    .await;
    assert_eq!(status(&stranger, Some(&endpoint.viewer)).await, Some(StatusCode::OK));
    set(json!({"mode": "Request"}));
    eventually("none is needed", within, async || {
        (status(&plain, Some(&endpoint.viewer)).await == Some(StatusCode::OK)).then_some(())
    })
    .await;
    assert_eq!(status(&ann, None).await, Some(StatusCode::UNAUTHORIZED), "not verified, it proves nothing");
    let events = endpoint.audit(&[]);
    let known = events.iter().any(|event| event["user"] == "ann" && event["auth_type"] == "certificate");
    assert!(known, "the audit names the caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_rolled_without_dropping_a_connection() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let manifests = format!("{ROLES}\n---\n{}", config_map(&[&old]));
    let given = spec("VerifyIfGiven");
    let wishes = Wishes { spec: &given, manifests: &manifests, ..Wishes::default() };
    let endpoint = Endpoint::start_with("roll", wishes).await;
    let before = showing(&endpoint, &old.client("ann", "operators"));
    let after = showing(&endpoint, &new.client("ann", "operators"));
    eventually("ann is let in", Duration::from_secs(30), async || tools(&before).await).await;
    let mut connection = before.connect().await.expect("a connection");
    let mut ask = async || exchange(&mut connection, before.list(&[], false)).await.map(|a| a.status());
    assert_eq!(ask().await.expect("an answer"), StatusCode::OK);

    apply(endpoint.namespace(), &config_map(&[&old, &new]));
    eventually("both are trusted", Duration::from_secs(120), async || {
        assert_eq!(ask().await.expect("the connection is open"), StatusCode::OK);
        tools(&after).await
    })
    .await;
    assert_eq!(status(&before, None).await, Some(StatusCode::OK));
    apply(endpoint.namespace(), &config_map(&[&new]));
    eventually("the old one is trusted no more", Duration::from_secs(120), async || {
        ask().await.expect("the connection is open");
        status(&before, None).await.is_none().then_some(())
    })
    .await;
    assert_eq!(status(&after, None).await, Some(StatusCode::OK));
    ask().await.expect("the connection that was open before is not dropped");
}
