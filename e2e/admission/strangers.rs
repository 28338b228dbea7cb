//! The admission policies and those whom they do not concern: the operator's fence is for the operator, and who has no
//! rights gets none from a policy.

use serde_json::json;

use super::rules::STATUS;
use super::{
    acting_as, allowed, change_status, create, given, grant, portcullis, refused, role_binding,
    server_deployment, soon_allowed, with,
};
use crate::cluster;

#[tokio::test]
async fn the_fence_of_the_operator_holds_nobody_else() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-others").await;
    let ns = namespace.name();
    grant(&admin, ns, "owner", "admin").await;
    let owner = acting_as("owner").await;
    let core = |kind: &str, spec: serde_json::Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "web", "namespace": ns}, "spec": spec});
    let service = core("Service", json!({"type": "ExternalName", "externalName": "example.com"}));
    soon_allowed("a Service", &owner, &service).await;
    let mut secret = with(&core("Secret", json!({})), "/type", json!("Opaque"));
    secret.as_object_mut().expect("an object").remove("spec");
    let account =
        with(&with(&secret, "/kind", json!("ServiceAccount")), "/secrets", json!([{"name": "web"}]));
    let mut account = account;
    account.as_object_mut().expect("an object").remove("type");
    let web = with(&server_deployment(ns, "example.com/web:1"), "/metadata/name", json!("web"));
    let user = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}]);
    for (what, object) in [
        ("a Secret", secret),
        ("an account with a Secret", account),
        ("a Deployment", web),
        ("a binding", role_binding(ns, "web", "view", user)),
        ("an object of ours", portcullis("McpServer", ns, "ops", json!({}))),
    ] {
        allowed(what, create(&owner, &object).await);
    }
}

#[tokio::test]
async fn a_stranger_writes_nothing_of_ours_and_a_right_on_status_is_not_enough() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-stranger").await;
    let ns = namespace.name();
    let key = portcullis("McpApiKey", ns, "bot", json!({"identity": "bot", "servers": ["ops"]}));
    given(&admin, &key).await;
    let stranger = acting_as(&format!("{ns}-stranger")).await;
    let forbidden = |what: &str, result: Result<(), String>| {
        let message = result.expect_err(what);
        assert!(message.contains("cannot"), "{what} must be refused by RBAC: {message}");
    };
    for object in [
        key.clone(),
        portcullis("McpServer", ns, "ops", json!({})),
        portcullis("McpRole", ns, "viewer", json!({"permissions": ["k8s:namespaces:list"]})),
    ] {
        forbidden("an object of ours", create(&stranger, &object).await);
    }
    let status = json!({"status": {"keys": []}});
    forbidden("a status", change_status(&stranger, &key, status.clone()).await);

    let rules =
        json!([{"apiGroups": ["portcullis.dev"], "resources": ["mcpapikeys/status"], "verbs": ["patch"]}]);
    given(
        &admin,
        &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules,
        "metadata": {"name": "status", "namespace": ns}}),
    )
    .await;
    let writer = format!("{ns}-writer");
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": writer}]);
    given(&admin, &with(&role_binding(ns, "status", "status", subjects), "/roleRef/kind", json!("Role")))
        .await;
    let writer = acting_as(&writer).await;
    let refusal = cluster::eventually("the right arrives", std::time::Duration::from_secs(10), async || {
        let message = change_status(&writer, &key, status.clone()).await.expect_err("a status by somebody");
        (!message.contains("cannot")).then_some(message)
    })
    .await;
    refused("a status by somebody with the right", STATUS, Err(refusal));
}
