//! The catalogue of permissions, extended by the chart's values: a CRD of the tests' own, read by the generic tools.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Namespace, apply, eventually, kubectl, try_kubectl};
use crate::server::{self, Endpoint, Wishes};
use crate::wire::Wire;

const DEFINITIONS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.e2e.portcullis.dev}
spec:
  group: e2e.portcullis.dev
  names: {kind: Widget, plural: widgets, singular: widget}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.e2e.portcullis.dev}
spec:
  group: e2e.portcullis.dev
  names: {kind: Fleet, plural: fleets, singular: fleet}
  scope: Cluster
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";

const ROLE: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: widgets}
spec: {permissions: ['k8s:resources:*', 'k8s:pods:list']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: widgets}
spec: {identity: widgets, servers: [ops], roles: [{kind: McpRole, name: widgets}]}
";

fn widget(size: u32) -> String {
    json!({"apiVersion": "e2e.portcullis.dev/v1", "kind": "Widget",
        "metadata": {"name": "one", "annotations": {"note": "unseen"}}, "spec": {"size": size}})
    .to_string()
}

/// The text of a tool's answer, and whether it is an error.
async fn tool(wire: &Wire, key: &str, name: &str, arguments: Value) -> (bool, String) {
    let answer = wire.tool(key, name, arguments).await.expect("an answer");
    let text = answer["content"][0]["text"].as_str().expect("a text").to_owned();
    (answer["isError"] == true, text)
}

/// Whether the API server lets the server's ServiceAccount do it.
fn may(namespace: &Namespace, verb: &str, resource: &str, place: &[&str]) -> bool {
    let account = format!("--as=system:serviceaccount:{}:ops-mcp", namespace.name());
    let line = [&["auth", "can-i", verb, resource, &account][..], place].concat();
    try_kubectl(&line, "").status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_the_values_add_is_granted_bound_and_read_as_roles_say_and_no_further() {
    let applied = try_kubectl(&["apply", "-f", "-"], DEFINITIONS);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/widgets.e2e.portcullis.dev",
        "crd/fleets.e2e.portcullis.dev",
    ]);
    let endpoint = Endpoint::start_with("catalogue", Wishes { manifests: ROLE, ..Wishes::default() }).await;
    let other = Namespace::plain("catalogue-other");
    apply(endpoint.namespace(), &widget(7));
    apply(other.name(), &widget(9));
    let (wire, key) = (Wire::new(&endpoint), server::key(endpoint.namespace(), "widgets").await);
    let one =
        json!({"resource": "widgets.e2e.portcullis.dev", "namespace": endpoint.namespace(), "name": "one"});
    let text = eventually("the server may read what its role names", Duration::from_secs(20), async || {
        let (is_error, text) = tool(&wire, &key, "resources_get", one.clone()).await;
        (!is_error).then_some(text)
    })
    .await;
    assert!(
        text.contains("size: 7") && !text.contains("unseen") && !text.contains("managedFields"),
        "{text}"
    );
    let (is_error, text) =
        tool(&wire, &key, "resources_list", json!({"resource": "widgets.e2e.portcullis.dev"})).await;
    assert!(!is_error && text.contains("one") && !text.contains(other.name()), "{text}");
    // Elsewhere neither the endpoint nor, if it did, the API server lets them.
    let elsewhere =
        json!({"resource": "widgets.e2e.portcullis.dev", "namespace": other.name(), "name": "one"});
    let (is_error, text) = tool(&wire, &key, "resources_get", elsewhere).await;
    assert!(is_error && text.starts_with("permission denied: k8s:widgets.e2e.portcullis.dev:get"), "{text}");
    let (here, there) = (["-n", endpoint.namespace()], ["-n", other.name()]);
    let resource = "widgets.e2e.portcullis.dev";
    assert!(
        may(&endpoint.namespace, "get", resource, &here) && may(&endpoint.namespace, "list", resource, &here)
    );
    assert!(
        !may(&endpoint.namespace, "get", resource, &there)
            && !may(&endpoint.namespace, "list", resource, &["-A"])
    );
    assert!(
        !may(&endpoint.namespace, "create", resource, &here)
            && !may(&endpoint.namespace, "get", "secrets", &here)
    );
    // Objects without a namespace are not for a role of one, and nobody is told what there is.
    assert!(!may(&endpoint.namespace, "list", "fleets.e2e.portcullis.dev", &[]));
    let unknown = tool(&wire, &key, "resources_list", json!({"resource": "nothing.example.com"})).await;
    assert!(unknown.0, "{}", unknown.1);
    for (key, resource) in [
        (&key, "fleets.e2e.portcullis.dev"),
        (&key, "secrets"),
        (&endpoint.viewer, "widgets.e2e.portcullis.dev"),
    ] {
        assert_eq!(
            tool(&wire, key, "resources_list", json!({"resource": resource})).await,
            unknown,
            "{resource}"
        );
    }
}

#[tokio::test]
async fn who_grants_a_resource_that_the_values_add_must_hold_it() {
    let namespace = Namespace::plain("catalogue-author");
    let (name, user) = (namespace.name(), format!("{}-author", namespace.name()));
    let bind = |role: &str| {
        kubectl(&[
            "create",
            "rolebinding",
            &role.replace(':', "-"),
            "-n",
            name,
            "--clusterrole",
            role,
            "--user",
            &user,
        ]);
    };
    bind("portcullis:edit");
    let write = |permission: &str| {
        let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
            "metadata": {"name": "widgets", "namespace": name}, "spec": {"permissions": [permission]}});
        let output = try_kubectl(&["apply", "--server-side", "--as", &user, "-f", "-"], &role.to_string());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(error) }
    };
    eventually("the author may write roles", Duration::from_secs(10), async || {
        write("k8s:namespaces:list").ok()
    })
    .await;
    for permission in ["k8s:widgets.e2e.portcullis.dev:get", "k8s:resources:get", "k8s:*:get"] {
        let error = write(permission).expect_err(permission);
        assert!(error.contains("ValidatingAdmissionPolicy 'portcullis-role-author"), "{permission}: {error}");
    }
    bind("portcullis:catalogue:widgets.e2e.portcullis.dev:get");
    eventually("who holds it grants it", Duration::from_secs(10), async || {
        write("k8s:widgets.e2e.portcullis.dev:get").ok()
    })
    .await;
    assert!(write("k8s:widgets.e2e.portcullis.dev:list").is_err());
}

/// Renders the chart with values.
fn render(values: &Value) -> Result<Vec<Value>, String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), values.to_string()).expect("it is written");
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/portcullis");
    let output = Command::new("helm")
        .args([
            "template",
            "portcullis",
            "--namespace",
            "portcullis-system",
            "--kube-version",
            "1.33.0",
            "-f",
        ])
        .args([file.path(), &chart])
        .output()
        .expect("helm runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("text");
    Ok(serde_saphyr::from_multiple(&text).expect("YAML"))
}

fn extra(resource: &str, verbs: &[&str]) -> Value {
    json!({"group": "example.com", "resource": resource, "kind": "Widget", "version": "v1", "scope": "Namespaced",
        "verbs": verbs})
}

#[test]
fn the_chart_makes_roles_rights_to_bind_and_checks_of_authors_from_the_values() {
    let many: Vec<Value> =
        (0..20).map(|number| extra(&format!("widgets-{number}"), &["get", "list"])).collect();
    let objects =
        render(&json!({"catalogue": {"extra": many, "secrets": {"manage": true}}})).expect("renders");
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let added: Vec<&Value> = of_kind("ClusterRole")
        .filter(|role| {
            let name = role["metadata"]["name"].as_str().expect("a name");
            name.contains(".example.com:") || name.contains(":secrets:")
        })
        .collect();
    assert_eq!(added.len(), 41);
    let operator = of_kind("ClusterRole").find(|role| role["metadata"]["name"] == "portcullis:operator");
    let rules = operator.expect("it is there")["rules"].as_array().expect("rules");
    let bound = rules.iter().find(|rule| rule["verbs"] == json!(["bind"])).expect("the right to bind");
    let bound = bound["resourceNames"].as_array().expect("names");
    assert!(added.iter().all(|role| bound.contains(&role["metadata"]["name"])));
    // Every way to write them is known to the check on what is not in the catalogue.
    let unknown = of_kind("ValidatingAdmissionPolicy")
        .find(|policy| policy["metadata"]["name"] == "portcullis-role-author-unknown");
    let variables = unknown.expect("it is there")["spec"]["variables"].as_array().expect("a list");
    let known = variables.iter().find(|variable| variable["name"] == "added").expect("the table");
    let known: Value = serde_json::from_str(known["expression"].as_str().expect("a text")).expect("JSON");
    assert_eq!(known["secrets"], json!(["*", "manage"]));
    for resource in ["resources", "widgets-0.example.com", "widgets-19.example.com"] {
        assert_eq!(known[resource], json!(["*", "get", "list"]), "{resource}");
    }
    assert_eq!(
        (&known["*"], known.as_object().map(serde_json::Map::len)),
        (&json!(["*", "get", "list", "manage"]), Some(23))
    );
    // 40 rights and the three behind secrets:manage, at most 26 in a policy, for both kinds of role.
    for kind in ["role", "cluster-role"] {
        let sizes: Vec<usize> = ["", "-2"]
            .map(|number| {
                let name = format!("portcullis-{kind}-author-extension{number}");
                let mut policies = of_kind("ValidatingAdmissionPolicy");
                let policy = policies.find(|policy| policy["metadata"]["name"] == name.as_str());
                policy.expect(&name)["spec"]["validations"].as_array().expect("a list").len()
            })
            .to_vec();
        assert_eq!(sizes, [26, 17]);
    }
}

#[test]
fn values_that_cannot_extend_the_catalogue_stop_helm() {
    let core = |resource: &str| json!({"resource": resource, "kind": "Any", "version": "v1", "scope": "Namespaced", "verbs": ["get"]});
    let with_kind = |kind: &str, mut extra: Value| {
        extra["kind"] = json!(kind);
        extra
    };
    for (extra, error) in [
        (json!([core("secrets")]), "permissions on Secrets are added by catalogue.secrets"),
        (json!([with_kind("Pod", core("pods"))]), "k8s:pods:get is in the catalogue already"),
        (json!([core("resources")]), "stands for every resource"),
        // It is in the catalogue without a ClusterRole of its own.
        (
            json!([{"resource": "namespaces", "kind": "Namespace", "version": "v1", "scope": "Cluster", "verbs": ["get", "list"]}]),
            "k8s:namespaces:list is in the catalogue already",
        ),
        (
            json!([{"resource": "pods", "kind": "Pot", "version": "v1", "scope": "Namespaced", "verbs": ["create"]}]),
            "pods is Pod of version v1 with scope Namespaced",
        ),
        (
            json!([extra("widgets", &["get"]), {"group": "example.com", "resource": "widgets", "kind": "Widget", "version": "v1",
                "scope": "Cluster", "verbs": ["list"]}]),
            "widgets.example.com is Widget of version v1 with scope Namespaced",
        ),
        (
            json!([{"group": format!("{0}.{0}", "a".repeat(49)), "resource": "w".repeat(40), "kind": "Widget", "version": "v1",
            "scope": "Namespaced", "verbs": ["get"]}]),
            "is too long for a permission",
        ),
        (json!([extra("widgets", &["get"]), extra("widgets", &["get"])]), "is in the catalogue already"),
        (json!([extra("widgets", &["*"])]), "verbs"),
        (json!([extra("pods/exec", &["get"])]), "resource"),
    ] {
        let found = render(&json!({"catalogue": {"extra": extra}})).expect_err(error);
        assert!(found.contains(error), "{found}");
    }
}
