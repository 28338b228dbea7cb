//! The admission policies that fence servers: what one may do with the right to restart, and who lets them in.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::rules::*;
use super::{
    acting_as, allowed, api, change, change_status, given, grant, refused, role_binding, server_deployment,
    with,
};
use crate::cluster;

#[tokio::test]
async fn a_server_that_may_restart_deployments_changes_nothing_else_of_them() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-restart").await;
    let ns = namespace.name();
    let account = |name: &str| json!([{"kind": "ServiceAccount", "name": name, "namespace": ns}]);
    let restart = "portcullis:catalogue:deployments:restart";
    // The baseline is not there: it may go first, and the fence must not go with it.
    given(&admin, &role_binding(ns, "restart", restart, account("ops-mcp"))).await;
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}]);
    let patcher = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules,
        "metadata": {"name": "patcher", "namespace": ns}});
    given(&admin, &patcher).await;
    let other = role_binding(ns, "other", "patcher", account("other-mcp"));
    given(&admin, &with(&other, "/roleRef/kind", json!("Role"))).await;
    let mut web = with(&server_deployment(ns, "example.com/web:1"), "/metadata/name", json!("web"));
    web["spec"]["replicas"] = json!(0);
    web["spec"]["template"]["metadata"]["annotations"] = json!({"team": "a"});
    given(&admin, &web).await;
    let server = acting_as(&format!("system:serviceaccount:{ns}:ops-mcp")).await;
    let annotate =
        |annotations: Value| json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    let now = annotate(json!({"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"}));
    let pod = |pod: Value| json!({"spec": {"template": {"spec": pod}}});

    cluster::eventually("a restart is allowed", Duration::from_secs(10), async || {
        change(&server, &web, now.clone()).await.ok()
    })
    .await;
    let containers = json!([{"name": "serve", "image": "example.com/miner:1"}]);
    let volumes = json!([{"name": "tls", "secret": {"secretName": "database"}}]);
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "b"}]);
    for (what, rule, patch) in [
        ("another image", RESTART_PODS, pod(json!({"containers": containers}))),
        ("another account", RESTART_PODS, pod(json!({"serviceAccountName": "default"}))),
        ("another Secret", RESTART_PODS, pod(json!({"volumes": volumes}))),
        ("one more annotation", RESTART_PODS, annotate(json!({"sidecar": "yes"}))),
        ("another annotation", RESTART_PODS, annotate(json!({"team": "b"}))),
        ("an annotation less", RESTART_PODS, annotate(json!({"team": null}))),
        ("no annotations", RESTART_PODS, annotate(Value::Null)),
        (
            "labels of pods",
            RESTART_PODS,
            json!({"spec": {"template": {"metadata": {"labels": {"app": "b"}}}}}),
        ),
        ("replicas", RESTART_SPEC, json!({"spec": {"replicas": 3}})),
        (
            "the strategy",
            RESTART_SPEC,
            json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
        ),
        ("a pause", RESTART_SPEC, json!({"spec": {"paused": true}})),
        ("the wait for a pod", RESTART_SPEC, json!({"spec": {"minReadySeconds": 9}})),
        ("the history", RESTART_SPEC, json!({"spec": {"revisionHistoryLimit": 1}})),
        ("the deadline", RESTART_SPEC, json!({"spec": {"progressDeadlineSeconds": 9}})),
        ("finalizers", RESTART_METADATA, json!({"metadata": {"finalizers": ["example.com/hold"]}})),
        ("an owner", RESTART_METADATA, json!({"metadata": {"ownerReferences": owner}})),
        ("labels", RESTART_METADATA, json!({"metadata": {"labels": {"app": "b"}}})),
        ("annotations", RESTART_METADATA, json!({"metadata": {"annotations": {"app": "b"}}})),
    ] {
        refused(what, rule, change(&server, &web, patch).await);
    }
    let other = acting_as(&format!("system:serviceaccount:{ns}:other-mcp")).await;
    cluster::eventually(
        "an account that is no server changes what it may",
        Duration::from_secs(10),
        async || change(&other, &web, json!({"spec": {"paused": true}})).await.ok(),
    )
    .await;
    let bare = annotate(Value::Null);
    let real = api(&admin, &web).patch("web", &PatchParams::default(), &Patch::Merge(bare)).await;
    real.expect("an administrator may");
    allowed("the first annotation of all", change(&server, &web, now).await);
}

#[tokio::test]
async fn who_lets_servers_into_a_namespace_needs_the_verb_admit() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-admit").await;
    let ns = namespace.name();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
    let label = |value: Value| json!({"metadata": {"labels": {"portcullis.dev/servers": value}}});
    grant(&admin, ns, "owner", "admin").await;
    let rules = json!([{"apiGroups": [""], "resources": ["namespaces", "namespaces/status"],
        "verbs": ["get", "patch"]}]);
    given(
        &admin,
        &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules,
        "metadata": {"name": "owner", "namespace": ns}}),
    )
    .await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "owner"}]);
    let binding = with(&role_binding(ns, "owner", "owner", subjects), "/roleRef/kind", json!("Role"));
    given(&admin, &binding).await;
    let owner = acting_as("owner").await;

    cluster::eventually("other labels are allowed", Duration::from_secs(10), async || {
        change(&owner, &object, json!({"metadata": {"labels": {"team": "a"}}})).await.ok()
    })
    .await;
    refused("setting the label", NAMESPACE_LABEL, change(&owner, &object, label(json!("local"))).await);
    let status = change_status(&owner, &object, label(json!("local"))).await;
    refused("setting it beside the status", NAMESPACE_LABEL, status);
    allowed("setting it as administrator", change(&admin, &object, label(json!("local"))).await);
    namespace.label("portcullis.dev/servers=local");
    refused("changing the label", NAMESPACE_LABEL, change(&owner, &object, label(json!("cluster"))).await);
    let team = json!({"metadata": {"labels": {"team": "a"}}});
    allowed("other labels of an admitted namespace", change(&owner, &object, team).await);
    allowed("removing the label", change(&owner, &object, label(Value::Null)).await);
}
