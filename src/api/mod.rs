//! The kinds that people write: types, documentation, defaults and CEL rules. No logic, no I/O.
//!
//! Doc comments of fields are user documentation: they become `kubectl explain`.

// The derive of the kinds makes public types in private modules.
#![allow(unreachable_pub)]

mod authentication;
mod authorization;
pub mod conditions;
mod mcp_api_key;
mod mcp_role;
mod mcp_server;
pub mod names;
#[cfg(test)]
mod references;
pub mod replica;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use authentication::{
    AnonymousSpec, ApiKeysSpec, AuthenticationSpec, AuthenticationStatus, BasicSpec, BlockedKind,
    BlockedSubject, CertificateIdentity, CertificateTenant, ClaimsSpec, ClientCertificateMode,
    ClientCertificatesSpec, JwtAlgorithm, JwtIssuerSpec, MaterialKind, MaterialReference, ScopesMode,
    SecretKeyReference, ServiceAccountsSpec, SigningKeyState, SigningKeyStatus, TokensSpec,
};
pub use authorization::{
    AnomalyDetectionSpec, AnomalyMode, AnomalySensitivity, AuthorizationSpec, MonitoringSpec, Tenancy,
};
pub use mcp_api_key::{
    ImportReference, ImportSpec, KeyGeneration, KeyState, McpApiKey, McpApiKeySpec, McpApiKeyStatus,
    RateLimitSpec, RoleKind, RoleReference, RotationSpec, SecretReference,
};
pub use mcp_role::{
    ClusterMcpRole, ClusterMcpRoleSpec, McpRole, McpRoleSpec, McpRoleStatus, ServerReference, Subject,
    SubjectKind,
};
pub use mcp_server::{
    ExposeSpec, McpServer, McpServerSpec, McpServerStatus, NetworkSpec, ServerInfo, ServiceSpec, ServiceType,
    SseSpec, StreamableHttpSpec, TlsMode, TlsSpec, TlsStatus, ToolsSpec, TransportsSpec,
};

/// API group of every kind.
pub const GROUP: &str = "portcullis.dev";
/// Version that is served and stored.
pub const VERSION: &str = "v1alpha1";

/// The definitions of all kinds, in the order in which they are documented.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![McpServer::crd(), McpRole::crd(), ClusterMcpRole::crd(), McpApiKey::crd()]
}
