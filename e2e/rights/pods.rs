//! Pods of the operator and of servers under the strictest of the cluster's own rules for pods.

use crate::cluster::{OPERATOR_NAMESPACE, kubectl, try_kubectl};
use crate::server::Endpoint;

/// What the API server says of the pods of a namespace under Pod Security `restricted`, without enforcing it.
fn violations(namespace: &str) -> String {
    let label = "pod-security.kubernetes.io/enforce=restricted";
    let answer =
        try_kubectl(&["label", "--dry-run=server", "--overwrite", "namespace", namespace, label], "");
    assert!(answer.status.success(), "kubectl label {namespace}");
    String::from_utf8_lossy(&answer.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_operator_and_servers_are_restricted() {
    let endpoint = Endpoint::start("restricted", 1).await;
    for (namespace, label) in [
        (OPERATOR_NAMESPACE, "app.kubernetes.io/component=operator"),
        (endpoint.namespace(), "portcullis.dev/server=ops"),
    ] {
        let pods = kubectl(&["get", "pods", "-n", namespace, "-l", label, "-o", "name"]);
        assert!(!pods.is_empty(), "no pods in {namespace}");
        assert_eq!(violations(namespace), "", "{namespace}");
    }
    assert!(violations("kube-system").contains("violate"), "the API server looks at pods");
}
