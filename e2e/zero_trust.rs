//! Anomalies on a running endpoint: a key that is well known and comes from another network.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::local::Local;
use crate::wire::Wire;

/// An address of this machine in another network than the one that clients have by default.
const ABROAD: Ipv4Addr = Ipv4Addr::new(127, 0, 99, 1);

fn policy(namespace: &str, mode: &str, cidrs: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {{name: ops, namespace: {namespace}}}\n\
         spec: {{monitoring: {{anomalyDetection: {{mode: {mode}, sensitivity: High}}}}}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: McpRole\nmetadata: {{name: viewer, namespace: {namespace}}}\n\
         spec: {{permissions: ['k8s:pods:list']}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {{name: ci, namespace: {namespace}}}\n\
         spec: {{identity: ci-bot, servers: [ops], roles: [{{name: viewer}}]{cidrs}}}\n"
    )
}

/// Serves it and lets a key become known by calls from one network.
async fn known(mode: &str) -> (Local, String) {
    let local = Local::start("zero-trust", |namespace| policy(namespace, mode, "")).await;
    let key = eventually("a key was generated", Duration::from_secs(20), async || {
        std::fs::read_to_string(local.directory().join(".portcullis/keys/ci")).ok()
    })
    .await;
    let key = key.trim().to_owned();
    for _ in 0..50 {
        let listed = list(&local, &local.wire, &key).await;
        assert_ne!(listed["isError"], true, "{listed}");
    }
    (local, key)
}

async fn list(local: &Local, wire: &Wire, key: &str) -> Value {
    let here = json!({"namespace": local.namespace.name()});
    wire.tool(key, "pods_list", here).await.expect("a result")
}

/// The audit lines of violations with this result.
fn violations(local: &Local, result: &str) -> Vec<Value> {
    let log = local.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_one = |line: &Value| {
        let text = line.to_string();
        text.contains("security_violation") && text.contains(&format!("\"{result}\""))
    };
    lines.filter(is_one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_turns_up_in_another_network_is_refused_there_until_its_networks_are_named() {
    let (local, key) = known("Enforce").await;
    let abroad = local.wire.from(ABROAD);
    for _ in 0..3 {
        let refused = list(&local, &abroad, &key).await;
        assert_eq!(refused["isError"], true, "{refused}");
        assert_eq!(refused["content"][0]["text"], "permission denied");
    }
    let home = list(&local, &local.wire, &key).await;
    assert_ne!(home["isError"], true, "its owner goes on: {home}");
    eventually("it is on record", Duration::from_secs(10), async || {
        let found = violations(&local, "denied");
        let first = found.first()?.to_string();
        (found.len() == 3 && first.contains("anomalous_request") && first.contains("127.0.99.0/24"))
            .then_some(())
    })
    .await;
    let named = policy(local.namespace.name(), "Enforce", ", allowedCidrs: ['127.0.0.0/8']");
    std::fs::write(local.directory().join("policy.yaml"), named).expect("written");
    eventually("the named network is accepted", Duration::from_secs(10), async || {
        let listed = list(&local, &abroad, &key).await;
        (listed["isError"] != true).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_anomalies_are_observed_the_key_is_answered_from_everywhere_and_somebody_can_know() {
    let (local, key) = known("Observe").await;
    let abroad = local.wire.from(ABROAD);
    for _ in 0..3 {
        let listed = list(&local, &abroad, &key).await;
        assert_ne!(listed["isError"], true, "{listed}");
    }
    eventually("it is on record", Duration::from_secs(10), async || {
        (violations(&local, "observed").len() == 1).then_some(())
    })
    .await;
    assert!(violations(&local, "denied").is_empty());
}
