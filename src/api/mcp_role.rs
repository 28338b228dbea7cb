//! `McpRole` and `ClusterMcpRole`: what may be done.

// The columns of a kind are repeated attributes by design of the derive.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Named permissions inside the role's own namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "McpRole",
    plural = "mcproles",
    shortname = "mcpr",
    category = "mcp",
    namespaced,
    status = "McpRoleStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Named permissions inside the role's own namespace. Roles only add; what no role grants is refused.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(name = "Permissions", type_ = "string", json_path = ".spec.permissions"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.permissions) && self.permissions.size() > 0 || has(self.inherits) && self.inherits.size() > 0").message("name at least one permission, or a role to inherit from"))]
pub struct McpRoleSpec {
    /// What the role is for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
    /// Permissions such as `k8s:pods:list` and `mcp:tools:access_whoami`; `k8s:pods:*` and `k8s:*` stand for all that
    /// follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 128)))]
    pub permissions: Vec<String>,
    /// Names of `McpRole`s of this namespace whose permissions this one has, too, and those that they inherit. Whoever
    /// writes it needs the verb `bind` on each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub inherits: Vec<String>,
    /// Who holds the role by proving who they are: users, groups and ServiceAccounts. An API key holds the roles that
    /// its own object names, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub subjects: Vec<Subject>,
    /// Names of the servers of this namespace that the role counts for; empty means every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub servers: Vec<String>,
}

/// Named permissions in namespaces chosen by name or pattern.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "ClusterMcpRole",
    plural = "clustermcproles",
    shortname = "cmcpr",
    category = "mcp",
    status = "McpRoleStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Named permissions in namespaces chosen by name or pattern, for servers in namespaces labelled portcullis.dev/servers=cluster.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(name = "Permissions", type_ = "string", json_path = ".spec.permissions"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.permissions) && self.permissions.size() > 0 || has(self.inherits) && self.inherits.size() > 0").message("name at least one permission, or a role to inherit from"))]
#[x_kube(validation = Rule::new("[has(self.namespaces) && self.namespaces.size() > 0, has(self.namespaceSelector), self.allNamespaces].filter(said, said).size() <= 1").message("namespaces, namespaceSelector and allNamespaces exclude each other"))]
pub struct ClusterMcpRoleSpec {
    /// What the role is for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
    /// Permissions such as `k8s:pods:list` and `mcp:tools:access_whoami`; `k8s:pods:*` and `k8s:*` stand for all that
    /// follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 128)))]
    pub permissions: Vec<String>,
    /// Names of `ClusterMcpRole`s whose permissions this one has, too, and those that they inherit: the permissions, not
    /// the namespaces. Whoever writes it needs the verb `bind` on each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub inherits: Vec<String>,
    /// Namespaces, by name or by pattern (`feature-*`). An empty list grants nothing. A pattern
    /// matches neither `kube-*` nor the operator's own namespace; their literal names do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// Namespaces by their labels, in place of a list. A selector matches neither `kube-*` nor the operator's own
    /// namespace, and must not be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Every namespace there is, and cluster-scoped resources.
    #[serde(default)]
    pub all_namespaces: bool,
    /// Who holds the role by proving who they are. Users and groups name their issuer here. An API key holds the roles
    /// that its own object names, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub subjects: Vec<Subject>,
    /// The servers that the role counts for.
    #[schemars(length(min = 1, max = 64))]
    pub servers: Vec<ServerReference>,
}

/// Somebody who may hold a role.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind == 'ServiceAccount' ? !has(self.issuer) : !has(self.namespace)").message("a ServiceAccount has a namespace and no issuer; a User or Group has an issuer and no namespace"))]
pub struct Subject {
    /// What the name stands for.
    pub kind: SubjectKind,
    /// The name.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Namespace of a ServiceAccount. Default: the role's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Who vouches for a user or group: the issuer of a token, or `basic`, `certificate`, `kubernetes` or `anonymous`.
    /// Default: anybody whom the server trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub issuer: Option<String>,
}

/// Kind of a subject.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectKind {
    /// A user.
    User,
    /// Every member of a group.
    Group,
    /// A ServiceAccount of the cluster.
    ServiceAccount,
}

/// One `McpServer`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServerReference {
    /// Namespace of the server.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the server.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// What the operator has seen of a role.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct McpRoleStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
