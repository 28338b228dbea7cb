//! Tenants on a cluster: whose a namespace is says its label, and whoever is of another tenant does not come in.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::cluster::{Namespace, eventually};
use crate::issuer::Issuer;
use crate::local::Local;

/// An endpoint with a role of everything everywhere, which keys of two tenants and a user of an issuer hold.
async fn start() -> (Local, Issuer) {
    let resource = "https://mcp.example.test/tenants/mcp";
    let issuer = Issuer::start("ES256", resource);
    let url = issuer.url.clone();
    let server = issuer.server(resource, "claims: {tenant: organization}");
    let policy = move |namespace: &str| {
        format!(
            r"{}
---
apiVersion: portcullis.dev/v1alpha1
kind: ClusterMcpRole
metadata: {{name: everything}}
spec:
  permissions: ['*']
  allNamespaces: true
  servers: [{{namespace: {namespace}, name: ops}}]
  subjects: [{{kind: User, name: robot, issuer: '{url}'}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {{name: red, namespace: {namespace}}}
spec: {{identity: red-bot, tenant: {namespace}-red, servers: [ops], roles: [{{kind: ClusterMcpRole, name: everything}}]}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {{name: blue, namespace: {namespace}}}
spec: {{identity: blue-bot, tenant: {namespace}-blue, servers: [ops], roles: [{{kind: ClusterMcpRole, name: everything}}]}}
",
            server(namespace)
        )
    };
    (Local::start("tenants", policy).await, issuer)
}

/// Calls a tool with a key or a token.
async fn call(local: &Local, credential: &str, tool: &str, arguments: Value) -> Value {
    let mut request = local.wire.modern("-", "tools/call", json!({"name": tool, "arguments": arguments}));
    request.headers_mut().remove("x-api-key");
    let value = format!("Bearer {credential}").parse().expect("a header");
    request.headers_mut().insert(http::header::AUTHORIZATION, value);
    let answer = local.wire.send(request).await.expect("an answer");
    serde_json::from_slice(answer.body()).expect("JSON")
}

/// The namespaces that a caller sees, once they are these.
async fn sees(local: &Local, credential: &str, expected: &[&str]) {
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    eventually(&format!("{expected:?} are seen"), Duration::from_secs(10), async || {
        let answer = call(local, credential, "namespaces_list", json!({})).await;
        let items = answer["result"]["structuredContent"]["items"].as_array().cloned().unwrap_or_default();
        (items.iter().map(|item| item["name"].as_str().unwrap_or_default()).collect::<Vec<_>>() == expected)
            .then_some(())
    })
    .await;
}

/// Waits until the audit has a violation of this caller in this namespace.
async fn recorded(local: &Local, user: &str, namespace: &str) {
    eventually(&format!("{user} in {namespace} is on record"), Duration::from_secs(5), async || {
        let log = local.log();
        let mut lines = log.lines().filter(|line| line.contains("security_violation"));
        let words = ["tenant_isolation_violation", user, namespace];
        lines.any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_two_tenants_meet_nowhere_and_a_namespace_changes_hands_by_its_label() {
    let (local, mut issuer) = start().await;
    let of = |color: &str| format!("{}-{color}", local.namespace.name());
    let label = |namespace: &Namespace, color: &str| {
        namespace.label(&format!("portcullis.dev/tenant={}", of(color)));
    };
    let (ours, theirs) = (Namespace::plain("red"), Namespace::plain("blue"));
    label(&ours, "red");
    label(&theirs, "blue");
    let (red, blue) = (local.key("red"), local.key("blue"));
    let mut claims = issuer.claims();
    claims["organization"] = json!(of("red"));
    let token = issuer.sign(&claims);
    for credential in [&red, &token] {
        sees(&local, credential, &[ours.name()]).await;
    }
    sees(&local, &blue, &[theirs.name()]).await;

    for (credential, user) in [(&red, "red-bot"), (&token, "robot")] {
        let here = call(&local, credential, "pods_list", json!({"namespace": ours.name()})).await;
        assert_ne!(here["result"]["isError"], true, "{here}");
        for namespace in [theirs.name(), "kube-system"] {
            let there = call(&local, credential, "pods_list", json!({"namespace": namespace})).await;
            let text = format!("permission denied: k8s:pods:list in namespace {namespace:?}");
            assert_eq!(there["result"]["content"][0]["text"], text, "{there}");
            recorded(&local, user, namespace).await;
        }
        let everywhere = call(&local, credential, "pods_list", json!({})).await;
        assert_eq!(everywhere["result"]["structuredContent"]["items"], json!([]), "not one of the cluster's");
    }

    label(&ours, "blue");
    sees(&local, &blue, &[ours.name(), theirs.name()]).await;
    sees(&local, &red, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_the_claim_of_the_tenant_proves_nobody() {
    let (local, mut issuer) = start().await;
    let token = issuer.sign(&issuer.claims());
    let bearer = format!("Bearer {token}");
    let answer = local.wire.list_as(&[("authorization", &bearer)]).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}
