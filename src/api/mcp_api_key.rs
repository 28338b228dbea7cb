//! `McpApiKey`: who may do it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A key by which one caller proves who it is.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "McpApiKey",
    plural = "mcpapikeys",
    shortname = "mcpk",
    category = "mcp",
    namespaced,
    status = "McpApiKeyStatus",
    derive = "PartialEq",
    doc = "A key by which one caller proves who it is. The operator generates it into a Secret; everything else holds digests only.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name must have at most 63 characters: the Secret and its label are named after it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.identity"),
    printcolumn(name = "Expires", type_ = "date", json_path = ".spec.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct McpApiKeySpec {
    /// The name under which the caller appears in decisions and in the audit.
    #[schemars(length(min = 1, max = 253), pattern("^[A-Za-z0-9]([A-Za-z0-9._@:/-]*[A-Za-z0-9])?$"))]
    pub identity: String,
    /// Names of the servers of this namespace that accept the key. An empty list opens none.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 63)))]
    pub servers: Vec<String>,
    /// Roles of the caller: `McpRole`s of this namespace, or `ClusterMcpRole`s.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub roles: Vec<RoleReference>,
    /// Whether the key is accepted. Switching it off takes effect at once on every replica.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// When the key ends. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

fn yes() -> bool {
    true
}

/// A role by kind and name.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct RoleReference {
    /// Kind of the role.
    #[serde(default)]
    pub kind: RoleKind,
    /// Name of the role.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kind of a role.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
pub enum RoleKind {
    /// A role of the key's own namespace.
    #[default]
    McpRole,
    /// A cluster-scoped role.
    ClusterMcpRole,
}

/// What the operator has seen and made of an `McpApiKey`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct McpApiKeyStatus {
    /// Every generation of the key, never its value.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub keys: Vec<KeyGeneration>,
    /// The Secret that holds the plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted` and `Ready`.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One generation of a key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KeyGeneration {
    /// Public part of the key by which its record is found.
    pub id: String,
    /// `sha256:` and the digest of the whole key, in hexadecimal.
    pub digest: String,
    /// When it was generated.
    pub created_at: Time,
    /// Whether it is accepted.
    pub state: KeyState,
}

/// Life of one generation of a key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Accepted.
    Active,
    /// Its Secret was deleted or changed by somebody else; another generation took its place.
    Revoked,
}

/// A Secret of the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    pub name: String,
}
