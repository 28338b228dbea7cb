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
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "Last used", type_ = "date", json_path = ".status.lastUsedAt"),
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
    /// Addresses from which the key is accepted, as CIDRs. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 49)))]
    pub allowed_cidrs: Vec<String>,
    /// Tenant of the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub tenant: Option<String>,
    /// How often the key may be used. Default: without a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSpec>,
    /// A key that exists already, instead of a generated one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportSpec>,
    /// When the key is replaced by itself. Default: only when the annotation `portcullis.dev/rotate` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationSpec>,
}

/// How often a key may be used, over all replicas together.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitSpec {
    /// Requests in a minute.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_minute: i32,
    /// Requests that may come at once. Default: a tenth of the requests in a minute, at least one for each replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i32>,
}

/// A key that exists already. It needs 16 characters of three kinds, and one that could be guessed or was published is
/// refused: let the operator generate keys where you can.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImportSpec {
    /// The Secret of this namespace that holds it.
    pub secret_ref: ImportReference,
}

/// The Secret that holds a key to be imported.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImportReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), pattern("^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Entry of the Secret.
    #[serde(default = "api_key_entry")]
    #[schemars(length(min = 1, max = 253), pattern("^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn api_key_entry() -> String {
    "api-key".to_owned()
}

/// When a key is replaced by itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.maxAgeHours >= self.intervalHours").message("maxAgeHours must not be less than intervalHours"),
    validation = Rule::new("self.overlapMinutes <= self.intervalHours * 60").message("overlapMinutes must not be more than intervalHours")
)]
pub struct RotationSpec {
    /// Age in hours at which a new key is made.
    #[serde(default = "week")]
    #[schemars(range(min = 1, max = 8760))]
    pub interval_hours: i32,
    /// Time in minutes for which the old key still works.
    #[serde(default = "day")]
    #[schemars(range(min = 0, max = 525_600))]
    pub overlap_minutes: i32,
    /// Age in hours at which a key ends, even if it could not be replaced.
    #[serde(default = "thirty_days")]
    #[schemars(range(min = 1, max = 17_520))]
    pub max_age_hours: i32,
    /// Whether id, fingerprint and dates of ended keys stay in the status.
    #[serde(default = "yes")]
    pub keep_expired: bool,
}

impl Default for RotationSpec {
    fn default() -> Self {
        Self {
            interval_hours: week(),
            overlap_minutes: day(),
            max_age_hours: thirty_days(),
            keep_expired: true,
        }
    }
}

fn week() -> i32 {
    168
}

fn day() -> i32 {
    1440
}

fn thirty_days() -> i32 {
    720
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
    /// When the key was last replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rotated_at: Option<Time>,
    /// When it will be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation_at: Option<Time>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// Value of the annotation `portcullis.dev/rotate` that was last carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_rotate: Option<String>,
    /// Value of the annotation `portcullis.dev/revoke` that was last carried out. Until it is, no generation is
    /// accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_revoke: Option<String>,
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
    /// `sha256:` and the digest of the whole key, in hexadecimal. Of an imported key `argon2id:` and the SHA-256 of its
    /// salted hash, which tells generations apart and says nothing about the key.
    pub digest: String,
    /// When it was generated or imported.
    pub created_at: Time,
    /// When it ends, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// Whether it is accepted.
    pub state: KeyState,
}

/// Life of one generation of a key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Servers learn to accept it before anybody can read it.
    Pending,
    /// Accepted: the one that the Secret holds.
    Active,
    /// Accepted until its `notAfter`; another generation has taken its place.
    Retiring,
    /// Its time is over.
    Expired,
    /// It was revoked, or its Secret was deleted or changed by somebody else.
    Revoked,
}

/// A Secret of the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret.
    pub name: String,
}
