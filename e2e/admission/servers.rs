//! The admission policies that fence servers: what one may do with the right to restart.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{acting_as, allowed, api, change, given, grant, refused, role_binding, server_deployment, with};
use crate::cluster;

#[tokio::test]
async fn a_server_that_may_restart_deployments_changes_nothing_else_of_them() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-restart").await;
    let ns = namespace.name();
    let account = |name: &str| json!([{"kind": "ServiceAccount", "name": name, "namespace": ns}]);
    let restart = "portcullis:catalogue:deployments:restart";
    given(&admin, &role_binding(ns, "baseline", "portcullis:server", account("ops-mcp"))).await;
    given(&admin, &role_binding(ns, "restart", restart, account("ops-mcp"))).await;
    given(&admin, &role_binding(ns, "other", restart, account("other-mcp"))).await;
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
    for (what, patch) in [
        ("another image", pod(json!({"containers": containers}))),
        ("another account", pod(json!({"serviceAccountName": "default"}))),
        ("another Secret", pod(json!({"volumes": volumes}))),
        ("one more annotation", annotate(json!({"sidecar": "yes"}))),
        ("another annotation", annotate(json!({"team": "b"}))),
        ("an annotation less", annotate(json!({"team": null}))),
        ("no annotations", annotate(Value::Null)),
        ("labels of pods", json!({"spec": {"template": {"metadata": {"labels": {"app": "b"}}}}})),
        ("replicas", json!({"spec": {"replicas": 3}})),
        ("the strategy", json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}})),
        ("a pause", json!({"spec": {"paused": true}})),
        ("the wait for a pod", json!({"spec": {"minReadySeconds": 9}})),
        ("labels", json!({"metadata": {"labels": {"app": "b"}}})),
        ("annotations", json!({"metadata": {"annotations": {"app": "b"}}})),
    ] {
        refused(what, "portcullis-server-restart", change(&server, &web, patch).await);
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
