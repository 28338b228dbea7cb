//! A running endpoint in a namespace of its own, as most tests want it: two roles, two keys, something to act on.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::cluster::{Namespace, apply, condition, eventually, kubectl, node_address, object, objects};
use crate::wire::{Failure, Wire};

/// An endpoint that is Ready, and how to reach it from outside the cluster.
pub(crate) struct Endpoint {
    /// Where it runs.
    pub(crate) namespace: Namespace,
    /// `https://<node>:<port>`.
    pub(crate) url: String,
    /// File with the CA's certificate.
    pub(crate) ca: PathBuf,
    /// Key of the role `viewer`.
    pub(crate) viewer: String,
    /// Key of the role `admin`.
    pub(crate) admin: String,
    _directory: tempfile::TempDir,
}

const ROLES_AND_KEYS: &str = r"
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer}
spec: {permissions: ['k8s:namespaces:list', 'k8s:pods:list', 'k8s:pods:logs', 'k8s:deployments:list']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: admin}
spec: {permissions: ['k8s:*']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: viewer}
spec: {identity: viewer, servers: [ops], roles: [{kind: McpRole, name: viewer}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: admin}
spec: {identity: admin, servers: [ops], roles: [{kind: McpRole, name: admin}]}
";

/// What a test wants beside the usual.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wishes<'a> {
    /// Replicas of the server; one where there are none.
    pub(crate) replicas: u32,
    /// More fields of its spec, in YAML on one line: `authentication: {tokens: {enabled: true}}`.
    pub(crate) spec: &'a str,
    /// More manifests, applied first.
    pub(crate) manifests: &'a str,
}

impl Endpoint {
    /// Brings up the server `ops` with the given number of replicas and waits until it is Ready.
    pub(crate) async fn start(prefix: &str, replicas: u32) -> Self {
        Self::start_with(prefix, Wishes { replicas, ..Wishes::default() }).await
    }

    /// Brings up the server `ops` as a test wants it and waits until it is Ready.
    pub(crate) async fn start_with(prefix: &str, wishes: Wishes<'_>) -> Self {
        let namespace = Namespace::opted_in(prefix);
        let node = node_address();
        let (replicas, spec) = (wishes.replicas.max(1), wishes.spec);
        if !wishes.manifests.is_empty() {
            apply(namespace.name(), wishes.manifests);
        }
        let manifests = format!(
            r"
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {{name: ops}}
spec:
  replicas: {replicas}
  tls: {{hosts: ['{node}']}}
  expose: {{service: {{type: NodePort}}}}
  {spec}
{ROLES_AND_KEYS}"
        );
        apply(namespace.name(), &manifests);
        wait_ready(namespace.name(), "mcpserver", "ops", Duration::from_secs(90)).await;
        let viewer = key(namespace.name(), "viewer").await;
        let admin = key(namespace.name(), "admin").await;
        let service = object(namespace.name(), "service", "ops-mcp").expect("the Service");
        let port = service["spec"]["ports"][0]["nodePort"].as_i64().expect("a NodePort");
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("ca.crt");
        std::fs::write(&ca, secret(namespace.name(), "ops-mcp-tls", "ca.crt").expect("the CA"))
            .expect("written");
        let endpoint = Self {
            url: format!("https://{node}:{port}"),
            ca,
            viewer,
            admin,
            namespace,
            _directory: directory,
        };
        endpoint.answers().await;
        endpoint
    }

    /// A NodePort answers about a second after its pods are ready, and keys take a watch to arrive.
    async fn answers(&self) {
        for key in [&self.viewer, &self.admin] {
            eventually("the endpoint answers", Duration::from_secs(20), async || {
                Wire::new(self).call_raw(key, "tools/list", json!({})).await.ok()
            })
            .await;
        }
    }

    /// A way to each replica by itself: a Service of its own, and a label by which that finds it.
    pub(crate) async fn replicas(&self) -> Vec<Wire> {
        let pods = objects(&["pods", "-n", self.namespace(), "-l", "portcullis.dev/server=ops"]);
        let running = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let (ca, host) =
            (std::fs::read(&self.ca).expect("the CA's file"), self.url.rsplit_once(':').expect("a port").0);
        let mut wires = Vec::new();
        for pod in running {
            let pod = pod["metadata"]["name"].as_str().expect("a name");
            kubectl(&[
                "label",
                "-n",
                self.namespace(),
                "--overwrite",
                "pod",
                pod,
                &format!("e2e/replica={pod}"),
            ]);
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": pod},
                "spec": {"type": "NodePort", "selector": {"e2e/replica": pod},
                    "ports": [{"port": 443, "targetPort": 8443}]}});
            apply(self.namespace(), &service.to_string());
            let service = object(self.namespace(), "service", pod).expect("the Service");
            let port = service["spec"]["ports"][0]["nodePort"].as_i64().expect("a NodePort");
            let wire = Wire::to(&format!("{host}:{port}"), &ca);
            eventually("the replica answers", Duration::from_secs(20), async || {
                wire.call_raw(&self.viewer, "tools/list", json!({})).await.ok()
            })
            .await;
            wires.push(wire);
        }
        wires
    }

    /// Exchanges an API key for a token of the endpoint's own.
    pub(crate) async fn token(&self, key: &str) -> Result<String, Failure> {
        let wire = Wire::new(self);
        let request = wire.request("POST", "/auth/token").header("x-api-key", key);
        let answer = wire.send(request.body(Full::default())?).await?;
        let body: Value = serde_json::from_slice(answer.body())?;
        let token = body["access_token"].as_str();
        token.map(str::to_owned).ok_or_else(|| format!("{}: {body}", answer.status()).into())
    }

    /// The URL that tokens are made for unless the server says otherwise.
    pub(crate) fn resource(&self) -> String {
        format!("https://ops-mcp.{}.svc/mcp", self.namespace())
    }

    /// Name of the namespace.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// The audit of every replica, oldest first, filtered by further arguments of `portcullis audit query`.
    pub(crate) fn audit(&self, arguments: &[&str]) -> Vec<Value> {
        let pods = kubectl(&[
            "get",
            "pods",
            "-n",
            self.namespace(),
            "-l",
            "portcullis.dev/server=ops",
            "-o",
            "name",
        ]);
        let mut events = Vec::new();
        for pod in pods.lines() {
            let mut command =
                vec!["exec", "-n", self.namespace(), pod, "--", "/portcullis", "audit", "query"];
            command.extend(["--output", "json", "--limit", "10000"]);
            command.extend(arguments);
            let text = kubectl(&command);
            events.extend(text.lines().map(|line| -> Value {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            }));
        }
        events.sort_by_key(|event| event["timestamp"].as_str().unwrap_or_default().to_owned());
        events
    }

    /// Brings up a Deployment whose pods write to their log and that can be scaled.
    pub(crate) async fn workload(&self, name: &str, replicas: u32) {
        apply(self.namespace(), &workload(name, replicas));
        kubectl(&[
            "rollout",
            "status",
            "-n",
            self.namespace(),
            &format!("deployment/{name}"),
            "--timeout=60s",
        ]);
    }
}

/// A Deployment whose pods write lines to their log and run on: CoreDNS, because every cluster has its image.
fn workload(name: &str, replicas: u32) -> String {
    let image = kubectl(&[
        "get",
        "deployment",
        "-n",
        "kube-system",
        "coredns",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ]);
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {image}
        imagePullPolicy: IfNotPresent
        args: ['-dns.port=1053']
"
    )
}

/// Waits until the object's condition `Ready` is True.
pub(crate) async fn wait_ready(namespace: &str, kind: &str, name: &str, within: Duration) {
    let what = format!("{kind} {namespace}/{name} is Ready");
    eventually(&what, within, async || {
        let object = object(namespace, kind, name)?;
        let generation = object["metadata"]["generation"].as_i64();
        let seen = object["status"]["observedGeneration"].as_i64();
        (condition(&object, "Ready")?.0 == "True" && seen == generation).then_some(())
    })
    .await;
}

/// The plaintext of a key, from its Secret.
pub(crate) async fn key(namespace: &str, name: &str) -> String {
    wait_ready(namespace, "mcpapikey", name, Duration::from_secs(30)).await;
    secret(namespace, &format!("{name}-mcp-key"), "api-key").expect("a Ready key has its Secret")
}

/// One value of a Secret.
pub(crate) fn secret(namespace: &str, name: &str, data: &str) -> Option<String> {
    let secret = object(namespace, "secret", name)?;
    let text = secret["data"][data].as_str()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
    Some(String::from_utf8(bytes).expect("text"))
}
