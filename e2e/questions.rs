//! The questions that people ask of a cluster: who can do what, may they, and what would the roles of a file be.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Namespace, apply, eventually, kubectl, try_kubectl};
use crate::server::{Endpoint, Wishes, key};
use crate::service_accounts::token;
use crate::wire::Wire;

const POLICY: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops}
spec: {}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer}
spec: {permissions: ['k8s:pods:list']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: ci}
spec: {identity: ci-bot, servers: [ops], roles: [{name: viewer}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: auditor}
";

/// What somebody needs who reviews access, and no more.
const RIGHTS: &str = "
rules:
- {apiGroups: [portcullis.dev], resources: [mcpservers, mcproles, clustermcproles, mcpapikeys], verbs: [get, list]}
- {apiGroups: [''], resources: [namespaces], verbs: [get, list]}
";

const FILE: &str = "
roles:
- {name: e2e-looker, permissions: ['k8s:pods:list', 'k8s:pods:logs'], namespaces: [default, 'feature-*']}
- {name: e2e-everything, permissions: ['k8s:*']}
";

/// Runs the binary: its exit code and what it wrote on standard output.
fn run(arguments: &[&str], kubeconfig: Option<&Path>, input: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(path) = kubeconfig {
        command.env("KUBECONFIG", path);
    }
    let mut child = command.spawn().expect("the binary runs");
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    (output.status.code().expect("a code"), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A kubeconfig that acts as an auditor, whose rights go away with it.
struct Auditor {
    kubeconfig: tempfile::NamedTempFile,
    name: String,
}

impl Drop for Auditor {
    fn drop(&mut self) {
        let _ = try_kubectl(&["delete", "clusterrole,clusterrolebinding", &self.name], "");
    }
}

/// An auditor of the namespace, with the rights to read our kinds.
fn auditor(namespace: &str) -> Auditor {
    let name = format!("{namespace}-auditor");
    let metadata = format!("metadata: {{name: {name}}}");
    let manifest = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n{metadata}\n{RIGHTS}---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\n{metadata}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}\n\
         subjects: [{{kind: ServiceAccount, name: auditor, namespace: {namespace}}}]\n"
    );
    let applied = try_kubectl(&["apply", "-f", "-"], &manifest);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let view = kubectl(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&view).expect("JSON");
    config["users"][0]["user"]["as"] = json!(format!("system:serviceaccount:{namespace}:auditor"));
    let kubeconfig = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(kubeconfig.path(), config.to_string()).expect("it is written");
    Auditor { kubeconfig, name }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_with_rights_to_read_sees_who_can_do_what_and_when_it_ends() {
    let namespace = Namespace::opted_in("questions");
    let name = namespace.name();
    apply(name, POLICY);
    let auditor = auditor(name);
    let kubeconfig = Some(auditor.kubeconfig.path());
    let review = || {
        let (code, text) = run(&["access-review", "-n", name, "-o", "json"], kubeconfig, "");
        assert_eq!(code, 0);
        serde_json::from_str::<Vec<Value>>(&text).expect("JSON")
    };
    let server = format!("{name}/ops");
    let can = |permission: &str| {
        let line = ["can-i", permission, "--as-key", "ci", "-n", name, "--server", &server];
        run(&line, kubeconfig, "").0
    };
    let row = eventually("the key is made", Duration::from_secs(60), async || {
        review().into_iter().find(|row| row["state"] == "active")
    })
    .await;
    assert_eq!(
        (&row["subject"], &row["permission"], &row["namespaces"], &row["tools"]),
        (&json!("ci-bot"), &json!("k8s:pods:list"), &json!([name]), &json!(["pods_list", "resources_list"]))
    );
    assert_eq!((can("k8s:pods:list"), can("k8s:pods:delete"), can("k8s:pods:lost")), (0, 1, 2));
    kubectl(&["patch", "mcpk", "ci", "-n", name, "--type=merge", "-p", r#"{"spec":{"enabled":false}}"#]);
    let rows = review();
    assert_eq!(
        (rows.len(), &rows[0]["state"], &rows[0]["permission"]),
        (1, &json!("disabled"), &Value::Null)
    );
    assert_eq!(can("k8s:pods:list"), 1);
}

/// A server that accepts ServiceAccounts and denies a tool, and a role over the namespaces of two tenants, which a
/// ServiceAccount and a key of the first one hold.
async fn fleet(red: &Namespace, blue: &Namespace) -> Endpoint {
    let spec = "authentication: {serviceAccounts: {enabled: true}}\n  tools: {deny: [pods_delete]}";
    let endpoint = Endpoint::start_with("asked", Wishes { spec, ..Wishes::default() }).await;
    let home = endpoint.namespace();
    endpoint.namespace.label("portcullis.dev/servers=cluster");
    for namespace in [red, blue] {
        namespace.label(&format!("portcullis.dev/tenant={}", namespace.name()));
        namespace.label(&format!("portcullis-e2e/fleet={home}"));
    }
    let bot = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
    apply(red.name(), &bot.to_string());
    let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
        "metadata": {"name": home, "ownerReferences": endpoint.namespace.owner()},
        "spec": {"permissions": ["k8s:pods:list", "k8s:pods:delete"],
            "namespaceSelector": {"matchLabels": {"portcullis-e2e/fleet": home}},
            "servers": [{"namespace": home, "name": "ops"}],
            "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": red.name()}]}});
    apply(home, &role.to_string());
    let key = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey", "metadata": {"name": "red"},
        "spec": {"identity": "red-bot", "tenant": red.name(), "servers": ["ops"],
            "roles": [{"kind": "ClusterMcpRole", "name": home}]}});
    apply(home, &key.to_string());
    endpoint
}

/// Calls a tool with a key or a token.
async fn call(wire: &Wire, credential: &str, tool: &str, arguments: Value) -> Value {
    let mut request = wire.modern("-", "tools/call", json!({"name": tool, "arguments": arguments}));
    request.headers_mut().remove("x-api-key");
    let value = format!("Bearer {credential}").parse().expect("a header");
    request.headers_mut().insert(http::header::AUTHORIZATION, value);
    let answer = wire.send(request).await.expect("an answer");
    serde_json::from_slice(answer.body()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_fleet_of_tenants_the_answers_are_what_the_endpoint_does() {
    let (red, blue) = (Namespace::plain("red"), Namespace::plain("blue"));
    let endpoint = fleet(&red, &blue).await;
    let (wire, home) = (Wire::new(&endpoint), endpoint.namespace());
    let auditor = auditor(home);
    let kubeconfig = Some(auditor.kubeconfig.path());
    let server = format!("{home}/ops");
    let can = |permission: &str, caller: [&str; 2], namespace: &str| {
        let line = ["can-i", permission, caller[0], caller[1], "-n", namespace, "--server", &server];
        run(&line, kubeconfig, "").0
    };
    let pod = format!("system:serviceaccount:{}:bot", red.name());
    let token = token(red.name(), "bot", Some(&endpoint.resource())).await;
    let callers = [(["--as", &pod], token), (["--as-key", "red"], key(home, "red").await)];
    for (caller, credential) in &callers {
        let lists = async |namespace: &str| {
            let answer = call(&wire, credential, "pods_list", json!({"namespace": namespace})).await;
            answer["result"].is_object() && answer["result"]["isError"] != true
        };
        eventually("the role and the tenants are known", Duration::from_secs(60), async || {
            lists(red.name()).await.then_some(())
        })
        .await;
        for (namespace, code) in [(red.name(), 0), (blue.name(), 1), (home, 1), ("kube-system", 1)] {
            assert_eq!(lists(namespace).await, code == 0, "{caller:?} in {namespace}");
            assert_eq!(can("k8s:pods:list", *caller, namespace), code, "{caller:?} in {namespace}");
        }
        let arguments = json!({"namespace": red.name(), "name": "web"});
        let denied = call(&wire, credential, "pods_delete", arguments).await;
        assert!(denied["error"].is_object(), "there is no such tool: {denied}");
        assert_eq!(can("k8s:pods:delete", *caller, red.name()), 1, "{caller:?}");
    }

    let (code, text) = run(&["access-review", "-n", home, "-o", "json"], kubeconfig, "");
    let rows: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    for subject in [pod.as_str(), "red-bot"] {
        let rows: Vec<_> = rows.iter().filter(|row| row["subject"] == subject).collect();
        let seen = |field: &str| rows.iter().map(|row| row[field].clone()).collect::<Vec<_>>();
        assert_eq!(seen("tenant"), [json!(red.name()), json!(red.name())], "{rows:?}");
        assert_eq!(seen("namespaces"), [json!([red.name()]), json!([red.name()])], "{rows:?}");
        let state = |permission: &str| {
            let row = rows.iter().find(|row| row["permission"] == permission);
            row.map(|row| row["state"].clone())
        };
        assert_eq!(state("k8s:pods:list"), Some(json!("active")), "{rows:?}");
        assert_eq!(state("k8s:pods:delete"), Some(json!("not_offered")), "{rows:?}");
    }
    assert_eq!(code, 0);

    let fewer = r#"[{"op": "replace", "path": "/rules/1/verbs", "value": ["get"]}]"#;
    kubectl(&["patch", "clusterrole", &auditor.name, "--type=json", "-p", fewer]);
    eventually("it cannot be told without the namespaces", Duration::from_secs(20), async || {
        (can("k8s:pods:list", ["--as", &pod], red.name()) == 2).then_some(())
    })
    .await;
}

#[test]
fn kubectl_takes_the_roles_of_a_file() {
    let (code, yaml) = run(&["import-policy", "-", "--server", "agents/ops"], None, FILE);
    assert_eq!(code, 0);
    let applied = try_kubectl(&["apply", "--dry-run=server", "-f", "-"], &yaml);
    let said = String::from_utf8_lossy(&[applied.stdout, applied.stderr].concat()).into_owned();
    assert!(applied.status.success() && said.lines().count() == 2, "{said}");
}
