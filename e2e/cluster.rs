//! The cluster as people use it: kubectl, namespaces that go away again, and waiting with a deadline.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Namespace of the operator.
pub(crate) const OPERATOR_NAMESPACE: &str = "portcullis-system";

/// A client with the rights of the kubeconfig.
pub(crate) async fn client() -> kube::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    kube::Client::try_default().await.expect("KUBECONFIG names a cluster: run the tests by `just e2e`")
}

/// Runs kubectl with a manifest or other input and returns what it did.
pub(crate) fn try_kubectl(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("kubectl reads its input");
    drop(stdin);
    child.wait_with_output().expect("kubectl ends")
}

/// Runs kubectl and returns its output.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    let output = try_kubectl(arguments, "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Applies manifests to a namespace.
pub(crate) fn apply(namespace: &str, manifests: &str) {
    let output = try_kubectl(&["apply", "-n", namespace, "-f", "-"], manifests);
    assert!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
}

/// An object as JSON, or none where there is none.
pub(crate) fn object(namespace: &str, kind: &str, name: &str) -> Option<Value> {
    let output = try_kubectl(&["get", "-n", namespace, kind, name, "-o", "json", "--ignore-not-found"], "");
    assert!(output.status.success(), "kubectl get: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).ok()
}

/// Objects of a kind as JSON.
pub(crate) fn objects(arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["get", "-o", "json"];
    all.extend(arguments);
    let list: Value = serde_json::from_str(&kubectl(&all)).expect("a list");
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Status and reason of a condition of an object.
pub(crate) fn condition(object: &Value, type_: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == type_)?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Tries until there is a value, and says what it waited for when the time is over.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A namespace that is deleted with everything in it when the test ends.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace in which servers may run.
    pub(crate) fn opted_in(prefix: &str) -> Self {
        let namespace = Self::plain(prefix);
        namespace.label("portcullis.dev/servers=local");
        namespace
    }

    /// Makes a namespace.
    pub(crate) fn plain(prefix: &str) -> Self {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos();
        let name = format!("e2e-{prefix}-{:x}", nanos & 0xff_ffff_ffff);
        kubectl(&["create", "namespace", &name]);
        Self { name }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As the owner of what has no namespace and is to go away with this one.
    pub(crate) fn owner(&self) -> Value {
        let namespace = object("", "namespace", &self.name).expect("it was made");
        let uid = &namespace["metadata"]["uid"];
        serde_json::json!([{"apiVersion": "v1", "kind": "Namespace", "name": self.name, "uid": uid}])
    }

    /// Sets or removes a label.
    pub(crate) fn label(&self, label: &str) {
        kubectl(&["label", "--overwrite", "namespace", &self.name, label]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report(&self.name);
        }
        let _ = try_kubectl(&["delete", "namespace", &self.name, "--wait=false"], "");
    }
}

/// Prints what somebody needs to understand a failure.
fn report(namespace: &str) {
    for arguments in [
        &["get", "mcp,deploy,pods,svc,rolebindings", "-n", namespace, "-o", "wide"][..],
        &["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"],
        &["logs", "-n", namespace, "-l", "portcullis.dev/server", "--tail=30", "--prefix"],
        &["logs", "-n", OPERATOR_NAMESPACE, "deploy/portcullis-operator", "--tail=12"],
    ] {
        let output = try_kubectl(arguments, "");
        eprintln!("--- kubectl {}\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stdout));
    }
}

/// As [`Namespace::plain`], for tests that speak to the API server by a client.
pub(crate) async fn temp_namespace(_client: &kube::Client, prefix: &str) -> Namespace {
    Namespace::plain(prefix)
}

/// Address of a node under which its NodePorts are reachable.
pub(crate) fn node_address() -> String {
    let nodes = objects(&["nodes"]);
    let addresses = nodes[0]["status"]["addresses"].as_array().expect("a node has addresses");
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    internal.expect("an internal address")["address"].as_str().expect("text").to_owned()
}
