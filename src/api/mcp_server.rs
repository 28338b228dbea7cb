//! `McpServer`: what to run.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::authentication::{AuthenticationSpec, AuthenticationStatus};
use super::authorization::{AuthorizationSpec, MonitoringSpec};

/// An MCP endpoint whose tools act on Kubernetes with the rights of the roles that select it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "McpServer",
    plural = "mcpservers",
    shortname = "mcps",
    category = "mcp",
    namespaced,
    status = "McpServerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "An MCP endpoint: a Deployment of Portcullis with TLS, its own ServiceAccount, and exactly the rights of the roles that select it.",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 40").message("metadata.name must be a DNS label of at most 40 characters that starts with a letter: children are named after it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.readyReplicas"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct McpServerSpec {
    /// Number of pods that serve the endpoint. Any of them answers any request.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 20))]
    pub replicas: i32,

    /// The ways in which clients may speak to the endpoint.
    #[serde(default)]
    pub transports: TransportsSpec,

    /// Which tools the endpoint has at all, before any role is asked.
    #[serde(default)]
    pub tools: ToolsSpec,

    /// Every way in which callers may prove who they are.
    #[serde(default)]
    pub authentication: AuthenticationSpec,

    /// What is asked of a proved caller beside its roles.
    #[serde(default)]
    pub authorization: AuthorizationSpec,

    /// What is watched while the endpoint runs.
    #[serde(default)]
    pub monitoring: MonitoringSpec,

    /// The certificate of the endpoint.
    #[serde(default)]
    pub tls: TlsSpec,

    /// Which hosts and web origins may speak to the endpoint.
    #[serde(default)]
    pub network: NetworkSpec,

    /// How the endpoint is reachable.
    #[serde(default)]
    pub expose: ExposeSpec,

    /// Compute resources of each pod. Default: requests of 10m CPU and 32Mi memory, limit of 256Mi memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Labels that a node must carry to run the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

fn one() -> i32 {
    1
}

/// The ways in which clients may speak to the endpoint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TransportsSpec {
    /// Streamable HTTP, the current transport of MCP. It is always on.
    #[serde(default)]
    pub streamable_http: StreamableHttpSpec,
    /// The HTTP+SSE transport of 2024-11-05, for older clients.
    #[serde(default)]
    pub sse: SseSpec,
}

/// Streamable HTTP.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StreamableHttpSpec {
    /// Path of the endpoint.
    #[serde(default = "mcp_path")]
    #[schemars(length(min = 2, max = 128), pattern("^(/[A-Za-z0-9_.~-]+)+$"))]
    pub path: String,
}

impl Default for StreamableHttpSpec {
    fn default() -> Self {
        Self { path: mcp_path() }
    }
}

fn mcp_path() -> String {
    "/mcp".to_owned()
}

/// The HTTP+SSE transport of 2024-11-05.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SseSpec {
    /// Whether the transport is offered. It is deprecated by MCP; switch it off where no client needs it.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Path of the event stream.
    #[serde(default = "sse_path")]
    #[schemars(length(min = 2, max = 128), pattern("^(/[A-Za-z0-9_.~-]+)+$"))]
    pub path: String,
    /// Path to which clients post their messages; the stream tells it to them.
    #[serde(default = "messages_path")]
    #[schemars(length(min = 2, max = 128), pattern("^(/[A-Za-z0-9_.~-]+)+$"))]
    pub messages_path: String,
    /// Further paths of the event stream.
    #[serde(default = "sse_aliases")]
    #[schemars(length(max = 8), inner(length(min = 2, max = 128), pattern("^(/[A-Za-z0-9_.~-]+)+$")))]
    pub aliases: Vec<String>,
}

impl Default for SseSpec {
    fn default() -> Self {
        Self { enabled: true, path: sse_path(), messages_path: messages_path(), aliases: sse_aliases() }
    }
}

fn yes() -> bool {
    true
}

fn sse_path() -> String {
    "/sse".to_owned()
}

fn messages_path() -> String {
    "/messages".to_owned()
}

fn sse_aliases() -> Vec<String> {
    vec!["/api/aggregate/sse".to_owned()]
}

/// Which tools the endpoint has at all.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ToolsSpec {
    /// Names of tools to offer; empty means all. `*` matches any part of a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub allow: Vec<String>,
    /// Names of tools not to offer, whatever `allow` says. `*` matches any part of a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    pub deny: Vec<String>,
    /// Offer only tools that cannot change anything.
    #[serde(default)]
    pub read_only: bool,
}

/// The certificate of the endpoint. There is no endpoint without TLS.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Secret' || has(self.secretName)").message("tls.secretName is required when tls.mode is Secret"),
    validation = Rule::new("self.mode == 'Secret' || !has(self.secretName)").message("tls.secretName is only used when tls.mode is Secret")
)]
pub struct TlsSpec {
    /// Where the certificate comes from.
    #[serde(default)]
    pub mode: TlsMode,
    /// Name of a Secret of type `kubernetes.io/tls` in this namespace. Only with mode `Secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), pattern("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub secret_name: Option<String>,
    /// Further host names or IP addresses for which the certificate is valid and which clients may name
    /// in the Host header. The names of the Service are always among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    pub hosts: Vec<String>,
}

/// Where the certificate of the endpoint comes from.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// The operator's own CA issues it and renews it; `ca.crt` in the Secret `<name>-mcp-tls` is for clients.
    #[default]
    SelfSigned,
    /// It is in a Secret that somebody else keeps.
    Secret,
}

/// Which hosts and web origins may speak to the endpoint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSpec {
    /// Values of the Host header that are accepted besides the names in the certificate
    /// (for an ingress that rewrites it). Without a port, any port is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    pub allowed_hosts: Vec<String>,
    /// Web origins (`https://console.example.com`) whose pages may call the endpoint. Requests
    /// without an Origin header do not come from a web page and are not affected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    pub allowed_origins: Vec<String>,
}

/// How the endpoint is reachable.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExposeSpec {
    /// The Service in front of the pods.
    #[serde(default)]
    pub service: ServiceSpec,
}

/// The Service in front of the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.nodePort) || self.type != 'ClusterIP'").message("expose.service.nodePort needs expose.service.type NodePort or LoadBalancer"))]
pub struct ServiceSpec {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Port on every node, for types `NodePort` and `LoadBalancer`. Default: the cluster chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
}

/// Type of the Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Reachable inside the cluster.
    #[default]
    ClusterIP,
    /// Reachable on a port of every node.
    NodePort,
    /// Reachable through the load balancer of the cloud.
    LoadBalancer,
}

/// What the operator has seen of an `McpServer`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct McpServerStatus {
    /// Address of the endpoint inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What the endpoint said of itself in an MCP handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<ServerInfo>,
    /// Number of pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Number of pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// The certificate that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// Keys of the endpoint's own tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationStatus>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`, `Available` and `Ready`; `SigningKeys` where the endpoint has tokens of its own.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What the endpoint said of itself in an MCP handshake.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServerInfo {
    /// Version of Portcullis.
    pub version: String,
    /// Revisions of MCP that it speaks.
    pub protocol_versions: Vec<String>,
    /// Number of tools.
    pub tools: i32,
    /// SHA-256 over the tools' names and schemas, to notice when they change.
    pub tools_digest: String,
}

/// The certificate that is served.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TlsStatus {
    /// When it ends.
    pub not_after: Time,
    /// SHA-256 of the leaf, in hexadecimal.
    pub fingerprint: String,
}
