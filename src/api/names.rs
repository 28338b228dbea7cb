//! Names that the operator, the endpoint, the chart and the admission policies agree on.

use super::authentication::MaterialKind;

/// Field manager of every server-side apply, and value of `app.kubernetes.io/managed-by`.
pub const FIELD_MANAGER: &str = "portcullis";
/// Label of every child: the `McpServer` it belongs to.
pub const SERVER_LABEL: &str = "portcullis.dev/server";
/// Label of bindings outside the server's namespace: the namespace of the `McpServer` they belong to.
pub const SERVER_NAMESPACE_LABEL: &str = "portcullis.dev/server-namespace";
/// Label of a key's Secret: the `McpApiKey` it belongs to.
pub const KEY_LABEL: &str = "portcullis.dev/key";
/// Namespace label by which an administrator lets servers in: `local` or `cluster`.
pub const NAMESPACE_LABEL: &str = "portcullis.dev/servers";
/// Value of [`NAMESPACE_LABEL`]: servers may run here, with rights in this namespace.
pub const NAMESPACE_LOCAL: &str = "local";
/// Value of [`NAMESPACE_LABEL`]: as `local`, and `ClusterMcpRole`s count for servers here too.
pub const NAMESPACE_CLUSTER: &str = "cluster";
/// Namespace label by which an administrator gives a namespace to a tenant.
pub const TENANT_LABEL: &str = "portcullis.dev/tenant";
/// Finalizer of an `McpServer`: bindings that garbage collection cannot reach are removed first.
pub const FINALIZER: &str = "portcullis.dev/cleanup";
/// Type of the Secret that holds the plaintext of an API key.
pub const API_KEY_SECRET_TYPE: &str = "portcullis.dev/api-key";
/// Type of the Secret that holds a server's leaf for the internal port.
pub const INTERNAL_TLS_SECRET_TYPE: &str = "portcullis.dev/internal-tls";
/// Type of the Secret that holds the keys of a server's own tokens.
pub const SIGNING_SECRET_TYPE: &str = "portcullis.dev/signing-keys";
/// Type of the Secret that holds the salted hashes of a server's imported keys.
pub const IMPORTED_SECRET_TYPE: &str = "portcullis.dev/imported-keys";
/// Data key of the plaintext in an API key's Secret.
pub const API_KEY_DATA: &str = "api-key";
/// Data key of the plaintext that will take its place once every replica accepts it.
pub const NEXT_API_KEY_DATA: &str = "next-api-key";
/// Data key in the Secret of [`SIGNING_SECRET_TYPE`].
pub const SIGNING_DATA: &str = "keys.json";
/// Data key in the Secret of [`IMPORTED_SECRET_TYPE`].
pub const IMPORTED_DATA: &str = "imported.json";
/// Annotation of a key or a server: any new value asks for a rotation.
pub const ROTATE_ANNOTATION: &str = "portcullis.dev/rotate";
/// Annotation of a key or a server: any new value revokes every generation there is, at once.
pub const REVOKE_ANNOTATION: &str = "portcullis.dev/revoke";
/// Beginning of the user name of every ServiceAccount; its namespace and name follow, joined by a colon.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Directory in a pod under which the entries of Secrets and ConfigMaps are mounted.
pub const MATERIALS_DIRECTORY: &str = "/etc/portcullis/materials";

/// Environment variable of every process: what an administrator adds to the catalogue of permissions.
pub const CATALOGUE_VARIABLE: &str = "PORTCULLIS_CATALOGUE";

/// Port of the MCP endpoint (TLS) in the pod; the Service maps 443 to it.
pub const HTTPS_PORT: i32 = 8443;
/// Port that joins operator and replicas, by mutual TLS.
pub const INTERNAL_PORT: i32 = 8444;
/// Port of `/livez`, `/readyz` and `/metrics`.
pub const ADMIN_PORT: i32 = 9090;
/// Port on which the Service offers the endpoint.
pub const SERVICE_PORT: i32 = 443;

/// Prefix of every ClusterRole of the chart's catalogue.
pub const CATALOGUE_PREFIX: &str = "portcullis:catalogue:";
/// ClusterRole with the baseline of a server inside its own namespace.
pub const BASELINE_ROLE: &str = "portcullis:server";
/// ClusterRole with the baseline of a server on cluster-scoped objects.
pub const CLUSTER_BASELINE_ROLE: &str = "portcullis:server-cluster";
/// ClusterRole that the operator binds to itself inside namespaces it works in.
pub const OPERATOR_NAMESPACE_ROLE: &str = "portcullis:operator-namespace";
/// Name of the RoleBinding by which the operator works in a namespace.
pub const OPERATOR_BINDING: &str = "portcullis:operator";
/// ClusterRole that the operator binds to itself inside namespaces whose servers may have rights elsewhere.
pub const OPERATOR_REACH_ROLE: &str = "portcullis:operator-reach";
/// Name of the RoleBinding by which the operator may give servers of a namespace rights elsewhere.
pub const OPERATOR_REACH_BINDING: &str = "portcullis:operator-reach";

/// Name of the Deployment, Service, ServiceAccount, NetworkPolicy and PodDisruptionBudget of a server.
pub fn workload(server: &str) -> String {
    format!("{server}-mcp")
}

/// Name of the Secret with the certificate of the endpoint.
pub fn tls_secret(server: &str) -> String {
    format!("{server}-mcp-tls")
}

/// Name of the Secret with the leaf for the internal port.
pub fn internal_secret(server: &str) -> String {
    format!("{server}-mcp-internal")
}

/// Name of the Secret that holds the plaintext of an API key.
pub fn key_secret(key: &str) -> String {
    format!("{key}-mcp-key")
}

/// Name of the Secret with the keys of a server's own tokens.
pub fn signing_secret(server: &str) -> String {
    format!("{server}-mcp-signing")
}

/// Name of the Secret with the salted hashes of the keys that were imported for a server.
pub fn imported_secret(server: &str) -> String {
    format!("{server}-mcp-imported")
}

/// Path of an entry of a Secret or ConfigMap below [`MATERIALS_DIRECTORY`].
pub fn material_path(kind: MaterialKind, name: &str, key: &str) -> String {
    let folder = match kind {
        MaterialKind::ConfigMap => "configmap",
        MaterialKind::Secret => "secret",
    };
    format!("{folder}/{name}/{key}")
}

/// URL by which clients inside the cluster know an endpoint.
pub fn resource_url(namespace: &str, server: &str, path: &str) -> String {
    format!("https://{}.{namespace}.svc{path}", workload(server))
}

/// ClusterRole of the catalogue behind a permission such as `k8s:pods:list`.
pub fn catalogue_role(resource: &str, verb: &str) -> String {
    format!("{CATALOGUE_PREFIX}{resource}:{verb}")
}

/// Name of a server's binding, wherever it stands: `portcullis:<namespace>:<server>:<what>`.
///
/// The prefix keeps servers of the same name in different namespaces apart.
pub fn binding(namespace: &str, server: &str, what: &str) -> String {
    format!("portcullis:{namespace}:{server}:{what}")
}

/// DNS name in the leaf of the internal port. It resolves nowhere: peers connect by pod address.
pub fn internal_host(namespace: &str, server: &str) -> String {
    format!("{server}.{namespace}.internal.portcullis.dev")
}

/// URI in the leaf of the internal port by which a server's replicas know each other.
pub fn internal_uri(namespace: &str, server: &str) -> String {
    format!("portcullis://server/{namespace}/{server}")
}

/// URI in the operator's client leaf for the internal port.
pub const OPERATOR_URI: &str = "portcullis://operator";
