//! What there is of a server: its Deployment and its Secrets. Secrets are read by name, never listed or watched.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource, ResourceExt};

use crate::api::{McpServer, TlsMode, names};
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::controller::namespaces::Children;
use crate::k8s::apply::text;
use crate::k8s::watch::find;

use super::materials;
use super::validate::Referred;

/// What there is of a server.
pub(super) struct Observed {
    /// Copies of the children in its namespace.
    pub(super) children: Arc<Children>,
    /// Its Deployment.
    pub(super) deployment: Option<Deployment>,
    /// The certificate that the operator keeps for the endpoint.
    pub(super) endpoint_secret: Option<Secret>,
    /// The leaf for the internal port.
    pub(super) internal_secret: Option<Secret>,
    /// The keys of its own tokens.
    pub(super) signing_secret: Option<Secret>,
    /// What the spec refers to.
    pub(super) referred: Referred,
}

impl Observed {
    /// Whether the `ServiceAccount` that the server's pods would run as is there and belongs to somebody else.
    pub(super) fn account_is_foreign(&self, server: &McpServer) -> bool {
        let (namespace, name) = (server.namespace().unwrap_or_default(), names::workload(&server.name_any()));
        find(&self.children.service_accounts, &namespace, &name).is_some_and(|account| {
            !account.owner_references().iter().any(|owner| Some(&owner.uid) == server.uid().as_ref())
        })
    }
}

/// Looks at what there is.
///
/// # Errors
/// [`Transient`] when a Secret cannot be read.
pub(super) async fn observe(
    context: &Context,
    server: &McpServer,
    children: Arc<Children>,
) -> Result<Observed, Transient> {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let given = server.spec.tls.secret_name.as_deref().filter(|_| server.spec.tls.mode == TlsMode::Secret);
    let (endpoint_secret, internal_secret, signing_secret, given_secret, materials) = tokio::try_join!(
        secret(context, &namespace, Some(names::tls_secret(&name))),
        secret(context, &namespace, Some(names::internal_secret(&name))),
        secret(context, &namespace, Some(names::signing_secret(&name))),
        secret(context, &namespace, given.map(str::to_owned)),
        materials::read(context, &namespace, &server.spec.authentication),
    )?;
    Ok(Observed {
        deployment: find(&children.deployments, &namespace, &names::workload(&name)),
        children,
        endpoint_secret,
        internal_secret,
        signing_secret,
        referred: Referred { given_secret, materials },
    })
}

async fn secret(
    context: &Context,
    namespace: &str,
    name: Option<String>,
) -> Result<Option<Secret>, Transient> {
    let Some(name) = name else { return Ok(None) };
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let read = api.get_opt(&name).await;
    read.map_err(|error| Transient::apply(format!("failed to read Secret {name:?}: {}", text(&error))))
}

/// Whether an `McpServer` is the owner of an object, so that it may be deleted as a child.
pub(in crate::controller) fn is_owned<K: Resource>(child: &K) -> bool {
    child.owner_references().iter().any(|owner| {
        owner.kind == "McpServer"
            && owner.controller == Some(true)
            && owner.api_version.starts_with(crate::api::GROUP)
    })
}

/// Whether this very server is the owner of an object: not one that had its name before, nor another.
pub(super) fn is_owned_by<K: Resource>(child: &K, uid: &str) -> bool {
    is_owned(child) && child.owner_references().iter().any(|owner| owner.uid == uid)
}

/// Deletes the Secrets of every server of a namespace that the operator leaves.
///
/// # Errors
/// [`Transient`] when a Secret cannot be read or deleted.
pub(in crate::controller) async fn remove_secrets_of_namespace(
    context: &Context,
    namespace: &str,
) -> Result<(), Transient> {
    let servers =
        context.cluster.servers.state_filter(|server| server.namespace().as_deref() == Some(namespace));
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    for server in servers {
        let name = server.name_any();
        let ours = [names::tls_secret, names::internal_secret, names::signing_secret, names::imported_secret];
        for secret_name in ours.map(|name_of| name_of(&name)) {
            if let Some(found) = secret(context, namespace, Some(secret_name)).await?
                && is_owned_by(&found, &server.uid().unwrap_or_default())
            {
                context.applier.delete(&api, &found).await.map_err(Transient::apply)?;
            }
        }
    }
    Ok(())
}
