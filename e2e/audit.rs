//! No record, no effect: what the API server saw has an audit record from before it, even when the pod is killed.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

use crate::cluster::{apply, client, kubectl, object};
use crate::server::Endpoint;
use crate::wire::Wire;

/// A Deployment that is paused from its first day: it can be scaled, and no Pod follows.
fn paused(name: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{paused: true, replicas: 0, selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: main, image: none}}]}}}}}}}}"
    )
}

/// Kills the server's process from its node, as the kernel would: no handler runs.
fn kill_nine(namespace: &str) {
    let pods = crate::cluster::objects(&["pods", "-n", namespace, "-l", "portcullis.dev/server=ops"]);
    let node = pods[0]["spec"]["nodeName"].as_str().expect("scheduled");
    let id = pods[0]["status"]["containerStatuses"][0]["containerID"].as_str().expect("runs");
    let id = id.rsplit('/').next().expect("an id");
    let script =
        format!("kill -9 $(crictl inspect --output go-template --template '{{{{.info.pid}}}}' {id})");
    let output =
        Command::new("docker").args(["exec", node, "sh", "-c", &script]).output().expect("docker runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_has_its_record_from_before_it_even_when_the_pod_is_killed() {
    let endpoint = Endpoint::start("kill", 1).await;
    let namespace = endpoint.namespace().to_owned();
    apply(&namespace, &paused("target"));

    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let deployments = Api::<Deployment>::namespaced(client().await, &namespace);
    let watching = tokio::spawn({
        let seen = seen.clone();
        async move {
            let config = watcher::Config::default().fields("metadata.name=target");
            let changes = watcher(deployments, config).applied_objects();
            let _ = changes
                .try_for_each(|deployment| {
                    let replicas = deployment.spec.and_then(|spec| spec.replicas).unwrap_or_default();
                    seen.lock().expect("not poisoned").insert(i64::from(replicas));
                    std::future::ready(Ok(()))
                })
                .await;
        }
    });

    let wire = Wire::new(&endpoint);
    let mut answered = 0;
    for replicas in 1..=200_i64 {
        if replicas == 100 {
            kill_nine(&namespace);
        }
        let arguments = json!({"namespace": namespace, "name": "target", "replicas": replicas});
        let call = wire.tool(&endpoint.admin, "deployments_scale", arguments);
        match tokio::time::timeout(Duration::from_secs(5), call).await {
            Ok(Ok(result)) if result["isError"] != true => answered += 1,
            // Refused connections while the pod is down are what the kill is for.
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    assert!(answered > 100, "only {answered} calls were answered: the pod did not come back");
    tokio::time::sleep(Duration::from_secs(1)).await;
    watching.abort();

    let events = endpoint.audit(&["--tool", "deployments_scale"]);
    let recorded: BTreeSet<i64> = events
        .iter()
        .filter(|event| event["result"] == "intent")
        .filter_map(|event| event["params"]["replicas"].as_i64())
        .collect();
    let seen = seen.lock().expect("not poisoned").clone();
    assert!(seen.len() > 50, "the watch saw {} changes", seen.len());
    let missing: Vec<_> =
        seen.iter().filter(|replicas| **replicas != 0 && !recorded.contains(replicas)).collect();
    assert!(missing.is_empty(), "changed without a record: {missing:?}");
    let restarts = object(&namespace, "deployment", "ops-mcp").map(|_| {
        kubectl(&[
            "get",
            "pods",
            "-n",
            &namespace,
            "-l",
            "portcullis.dev/server=ops",
            "-o",
            "jsonpath={.items[0].status.containerStatuses[0].restartCount}",
        ])
    });
    assert_eq!(restarts.as_deref(), Some("1"), "the kill hit the server");
    let verify =
        kubectl(&["exec", "-n", &namespace, "deploy/ops-mcp", "--", "/portcullis", "audit", "verify"]);
    assert!(!verify.is_empty());
}
