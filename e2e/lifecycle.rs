//! What becomes of an `McpServer`'s children: made, repaired, left alone when settled, and gone with it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Namespace, apply, condition, eventually, kubectl, object, objects, try_kubectl};
use crate::server::{Endpoint, wait_ready};

const KINDS: [&str; 6] =
    ["deployment", "service", "serviceaccount", "networkpolicy", "poddisruptionbudget", "rolebinding"];

fn bindings_of(namespace: &str) -> Vec<Value> {
    let label = format!("portcullis.dev/server-namespace={namespace}");
    let mut all = objects(&["rolebindings", "-A", "-l", &label]);
    all.extend(objects(&["clusterrolebindings", "-l", &label]));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_server_removes_everything_it_made() {
    let endpoint = Endpoint::start("delete", 1).await;
    let namespace = endpoint.namespace();
    assert!(!bindings_of(namespace).is_empty());
    kubectl(&["delete", "mcpserver", "-n", namespace, "ops", "--timeout=60s"]);
    assert_eq!(bindings_of(namespace), Vec::<Value>::new(), "bindings go before the object");
    eventually("the children are gone", Duration::from_secs(60), async || {
        let label = "portcullis.dev/server=ops";
        let left = KINDS
            .iter()
            .chain(&["secret", "pod"])
            .map(|kind| objects(&[kind, "-n", namespace, "-l", label]).len());
        (left.sum::<usize>() == 0).then_some(())
    })
    .await;
    kubectl(&["delete", "mcpapikey", "-n", namespace, "--all", "--timeout=60s"]);
    eventually("the operator leaves the namespace", Duration::from_secs(30), async || {
        object(namespace, "rolebinding", "portcullis:operator").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_child_is_back_within_five_seconds() {
    let endpoint = Endpoint::start("repair", 1).await;
    let namespace = endpoint.namespace();
    for kind in &KINDS[..5] {
        let before = object(namespace, kind, "ops-mcp").expect("the child")["metadata"]["uid"].clone();
        kubectl(&["delete", "-n", namespace, kind, "ops-mcp", "--wait=false"]);
        eventually(&format!("the {kind} is back"), Duration::from_secs(5), async || {
            let now = object(namespace, kind, "ops-mcp")?;
            (now["metadata"]["uid"] != before && now["metadata"]["deletionTimestamp"].is_null()).then_some(())
        })
        .await;
    }
    let binding = bindings_of(namespace)[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    kubectl(&["delete", "-n", namespace, "rolebinding", &binding]);
    eventually("the binding is back", Duration::from_secs(5), async || {
        object(namespace, "rolebinding", &binding)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_repaired_and_what_others_added_to_our_fields_is_removed() {
    let endpoint = Endpoint::start("drift", 1).await;
    let namespace = endpoint.namespace();
    kubectl(&["scale", "-n", namespace, "deployment/ops-mcp", "--replicas=3"]);
    eventually("the replicas are back at one", Duration::from_secs(5), async || {
        let deployment = object(namespace, "deployment", "ops-mcp")?;
        (deployment["spec"]["replicas"] == 1).then_some(())
    })
    .await;
    let patch = r#"[{"op":"add","path":"/subjects/-","value":{"kind":"User","name":"mallory","apiGroup":"rbac.authorization.k8s.io"}}]"#;
    let binding = format!("portcullis:{namespace}:ops:baseline");
    kubectl(&["patch", "-n", namespace, "rolebinding", &binding, "--type=json", "-p", patch]);
    eventually("the added subject is removed", Duration::from_secs(5), async || {
        let binding = object(namespace, "rolebinding", &binding)?;
        (binding["subjects"].as_array()?.len() == 1).then_some(())
    })
    .await;
}

fn versions(namespace: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for kind in KINDS.iter().chain(&["secret", "mcpserver", "mcpapikey", "mcprole"]) {
        for object in objects(&[kind, "-n", namespace]) {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            all.push((format!("{kind}/{}", text("name")), text("resourceVersion")));
        }
    }
    all.extend(bindings_of(namespace).iter().map(|binding| {
        let text = |field: &str| binding["metadata"][field].as_str().unwrap_or_default().to_owned();
        (text("name"), text("resourceVersion"))
    }));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_server_causes_no_write_in_a_minute() {
    let endpoint = Endpoint::start("settled", 2).await;
    // That its keys have just been used is written within a minute, and the test is of what nobody uses.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let before = versions(endpoint.namespace());
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(versions(endpoint.namespace()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_a_condition_and_never_taken_over() {
    let namespace = Namespace::opted_in("conflict");
    kubectl(&["create", "serviceaccount", "-n", namespace.name(), "ops-mcp"]);
    let before = object(namespace.name(), "serviceaccount", "ops-mcp");
    apply(
        namespace.name(),
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {}}",
    );
    let message = eventually("the conflict is said", Duration::from_secs(20), async || {
        let (status, reason, message) = condition(&object(namespace.name(), "mcpserver", "ops")?, "Ready")?;
        (status == "False" && reason == "NameConflict").then_some(message)
    })
    .await;
    assert!(message.contains("ServiceAccount") && message.contains("ops-mcp"), "{message}");
    assert_eq!(object(namespace.name(), "serviceaccount", "ops-mcp"), before);
    kubectl(&["delete", "serviceaccount", "-n", namespace.name(), "ops-mcp"]);
    wait_ready(namespace.name(), "mcpserver", "ops", Duration::from_secs(60)).await;
}

/// What a server of that name had before it, which garbage collection cannot reach.
fn leftover(namespace: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": format!("portcullis:{namespace}:ops:baseline"), "labels": {
            "app.kubernetes.io/managed-by": "portcullis", "portcullis.dev/server": "ops",
            "portcullis.dev/server-namespace": namespace}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "portcullis:server"},
        "subjects": [{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": namespace}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_somebody_else_keeps_no_binding_that_was_made_for_the_server() {
    let namespace = Namespace::opted_in("stranger");
    kubectl(&["create", "serviceaccount", "-n", namespace.name(), "ops-mcp"]);
    apply(
        namespace.name(),
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {}}",
    );
    eventually("the conflict is said", Duration::from_secs(20), async || {
        let (_, reason, _) = condition(&object(namespace.name(), "mcpserver", "ops")?, "Ready")?;
        (reason == "NameConflict").then_some(())
    })
    .await;
    // A server with this name exists, so this is no orphan: only whose the account is speaks against it.
    apply(namespace.name(), &leftover(namespace.name()).to_string());
    eventually("nothing is bound to the stranger", Duration::from_secs(20), async || {
        bindings_of(namespace.name()).is_empty().then_some(())
    })
    .await;
    kubectl(&["delete", "serviceaccount", "-n", namespace.name(), "ops-mcp"]);
    wait_ready(namespace.name(), "mcpserver", "ops", Duration::from_secs(60)).await;
    let names: Vec<Value> =
        bindings_of(namespace.name()).iter().map(|binding| binding["metadata"]["name"].clone()).collect();
    assert_eq!(names, vec![json!(format!("portcullis:{}:ops:baseline", namespace.name())); 2]);
}

/// Waits as long as that, and says whether it came: what was made must be undone either way.
async fn comes(within: Duration, mut seen: impl FnMut() -> bool) -> bool {
    let wait = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(within, wait).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_waits_to_be_deleted_gives_no_rights_and_says_what_it_waits_for() {
    let namespace = Namespace::opted_in("going");
    apply(
        namespace.name(),
        "{apiVersion: v1, kind: List, items: [
            {apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {}},
            {apiVersion: portcullis.dev/v1alpha1, kind: McpRole, spec: {permissions: ['k8s:pods:list']},
                metadata: {name: reader, finalizers: [e2e.portcullis.dev/hold]}}]}",
    );
    let binding = format!("portcullis:{}:ops:pods:list", namespace.name());
    let is_bound = || object(namespace.name(), "rolebinding", &binding).is_some();
    let accepted =
        || object(namespace.name(), "mcprole", "reader").and_then(|role| condition(&role, "Accepted"));
    let was_bound = comes(Duration::from_secs(60), is_bound).await;
    kubectl(&["delete", "mcprole", "-n", namespace.name(), "reader", "--wait=false"]);
    let is_said = comes(Duration::from_secs(20), || {
        accepted().is_some_and(|(status, reason, _)| (&*status, &*reason) == ("False", "Deleting"))
    })
    .await;
    let is_gone = comes(Duration::from_secs(20), || !is_bound()).await;
    let found = accepted();
    let patch = r#"{"metadata": {"finalizers": null}}"#;
    kubectl(&["patch", "mcprole", "-n", namespace.name(), "reader", "--type=merge", "-p", patch]);
    assert!(was_bound && is_said && is_gone, "bound: {was_bound}, gone: {is_gone}, said: {found:?}");
    let message = found.expect("it waited").2;
    assert!(message.contains("\"e2e.portcullis.dev/hold\""), "{message}");
    eventually("the role is gone", Duration::from_secs(20), async || {
        object(namespace.name(), "mcprole", "reader").is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_role_says_so_while_it_counts_for_none_of_its_servers() {
    let namespace = Namespace::opted_in("local-role");
    let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
        "metadata": {"name": namespace.name(), "ownerReferences": namespace.owner()},
        "spec": {"permissions": ["k8s:pods:list"], "namespaces": [namespace.name()],
            "servers": [{"namespace": namespace.name(), "name": "ops"}]}});
    apply(namespace.name(), &role.to_string());
    let says = async |what: &str, counts: bool| {
        eventually(what, Duration::from_secs(20), async || {
            let role = object("", "clustermcprole", namespace.name())?;
            let (status, _, message) = condition(&role, "Accepted")?;
            let warns = message.contains("counts for none of its servers");
            (status == "True" && warns != counts).then_some(())
        })
        .await;
    };
    says("it warns where the namespace is local", false).await;
    namespace.label("portcullis.dev/servers=cluster");
    says("it warns no more where it counts", true).await;
    namespace.label("portcullis.dev/servers=local");
    says("it warns again", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_the_label_runs_no_server_until_it_has_it() {
    let namespace = Namespace::plain("closed");
    apply(
        namespace.name(),
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {}}",
    );
    let message = eventually("the condition says why", Duration::from_secs(20), async || {
        let (status, reason, message) =
            condition(&object(namespace.name(), "mcpserver", "ops")?, "Accepted")?;
        (status == "False" && reason == "NamespaceNotOptedIn").then_some(message)
    })
    .await;
    assert!(message.contains("portcullis.dev/servers"), "{message}");
    assert!(object(namespace.name(), "rolebinding", "portcullis:operator").is_none());
    namespace.label("portcullis.dev/servers=local");
    wait_ready(namespace.name(), "mcpserver", "ops", Duration::from_secs(60)).await;
    namespace.label("portcullis.dev/servers-");
    eventually("the server is taken down again", Duration::from_secs(30), async || {
        let gone = object(namespace.name(), "deployment", "ops-mcp").is_none();
        (gone && bindings_of(namespace.name()).is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_object_gets_a_condition_or_an_answer_that_names_the_field() {
    let namespace = Namespace::opted_in("invalid");
    apply(
        namespace.name(),
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {name: reader}, spec: {permissions: ['k8s:pods:list', 'k8s:secrets:manage']}}",
    );
    let message = eventually("the role is refused", Duration::from_secs(20), async || {
        let (status, reason, message) =
            condition(&object(namespace.name(), "mcprole", "reader")?, "Accepted")?;
        (status == "False" && reason == "UnknownPermission").then_some(message)
    })
    .await;
    assert!(message.contains("spec.permissions[1]"), "{message}");
    apply(
        namespace.name(),
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {tls: {hosts: ['ops.other.svc']}}}",
    );
    let message = eventually("the host is refused", Duration::from_secs(20), async || {
        let (status, reason, message) =
            condition(&object(namespace.name(), "mcpserver", "ops")?, "Accepted")?;
        (status == "False" && reason == "Invalid").then_some(message)
    })
    .await;
    assert!(message.contains("spec.tls.hosts[0]"), "{message}");
    for (manifest, field) in [
        (
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: a}, spec: {replicas: 0}}",
            "spec.replicas",
        ),
        (
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: a}, spec: {tls: {mode: Secret}}}",
            "tls.secretName",
        ),
        (
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: a}, spec: {expose: {service: {nodePort: 30000}}}}",
            "nodePort",
        ),
        (
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {name: a}, spec: {identity: a, servers: []}}",
            "spec.servers",
        ),
        (
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: a}, spec: {image: evil}}",
            "spec.image",
        ),
    ] {
        let output = try_kubectl(&["apply", "-n", namespace.name(), "-f", "-"], manifest);
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && answer.contains(field), "{manifest}: {answer}");
    }
}
