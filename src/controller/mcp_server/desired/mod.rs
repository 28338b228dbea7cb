//! The children of a server as they should be. Pure; one file per child.
//!
//! Every child has the same labels and, inside the server's namespace, the server as its owner.

mod bindings;
mod deployment;
mod disruption_budget;
mod network_policy;
mod secrets;
mod service;
mod service_account;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::api::{GROUP, VERSION, names};
use crate::controller::OperatorConfig;

use super::validate::ValidatedServer;

pub(super) use bindings::{Binding, bindings};
pub(super) use deployment::keep_restart;
pub(super) use secrets::signing;
pub(super) use service_account::keep_secrets;

/// Everything of a server but its bindings, which do not depend on its spec.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    /// The identity that its tools act with.
    pub(super) service_account: ServiceAccount,
    /// How it is reached.
    pub(super) service: Service,
    /// What it may be reached by, and what it may reach.
    pub(super) network_policy: NetworkPolicy,
    /// How many pods a drain may take at once.
    pub(super) disruption_budget: PodDisruptionBudget,
    /// The pods.
    pub(super) deployment: Deployment,
    /// The certificate of the endpoint, where the operator keeps it.
    pub(super) endpoint_secret: Option<Secret>,
    /// The leaf for the internal port.
    pub(super) internal_secret: Secret,
}

/// Data of the two Secrets.
pub(super) struct Certificates {
    /// Of the endpoint; none where somebody else keeps it.
    pub(super) endpoint: Option<BTreeMap<String, ByteString>>,
    /// Of the internal port.
    pub(super) internal: BTreeMap<String, ByteString>,
}

/// Every child of a valid server.
pub(super) fn desired(
    server: &ValidatedServer<'_>,
    config: &OperatorConfig,
    certificates: Certificates,
) -> Desired {
    Desired {
        service_account: service_account::service_account(server),
        service: service::service(server),
        network_policy: network_policy::network_policy(server, &config.namespace),
        disruption_budget: disruption_budget::disruption_budget(server),
        deployment: deployment::deployment(server, config),
        endpoint_secret: certificates.endpoint.map(|data| secrets::endpoint(server, data)),
        internal_secret: secrets::internal(server, certificates.internal),
    }
}

/// Labels of every child.
fn labels(server: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "portcullis-server",
        "app.kubernetes.io/instance": server,
        "app.kubernetes.io/component": "endpoint",
        "app.kubernetes.io/part-of": "portcullis",
        "app.kubernetes.io/managed-by": names::FIELD_MANAGER,
        names::SERVER_LABEL: server,
    })
}

/// Labels by which the pods of a server are found. They can never change: a Deployment's selector is immutable.
fn selector(server: &str) -> Value {
    json!({"app.kubernetes.io/name": "portcullis-server", names::SERVER_LABEL: server})
}

/// The server as owner of a child in its namespace.
pub(super) fn owner(server: &ValidatedServer<'_>) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "McpServer".to_owned(),
        name: server.name.to_owned(),
        uid: server.uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// Metadata of a child in the server's namespace.
fn metadata(server: &ValidatedServer<'_>, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": server.namespace,
        "labels": labels(server.name),
        "ownerReferences": [owner(server)],
    })
}

#[cfg(test)]
mod tests;
