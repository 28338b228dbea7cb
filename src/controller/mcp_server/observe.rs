//! What there is of a server: its account, its Deployment and its Secrets. Secrets are read by name, never listed or watched.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Resource, ResourceExt};

use crate::api::{McpServer, TlsMode, names};
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::controller::namespaces::Children;
use crate::k8s::apply::text;
use crate::k8s::watch::{Guarded, find};

use super::materials;
use super::validate::Referred;

/// What there is of a server.
pub(super) struct Observed {
    /// Copies of the children in its namespace.
    pub(super) children: Arc<Children>,
    /// The `ServiceAccount` that its pods would run as, whoever made it.
    pub(super) account: Option<ServiceAccount>,
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
        self.account.as_ref().is_some_and(|account| is_foreign(account, server))
    }
}

fn is_foreign(account: &ServiceAccount, server: &impl Resource) -> bool {
    !account.owner_references().iter().any(|owner| Some(&owner.uid) == server.meta().uid.as_ref())
}

/// As [`Observed::account_is_foreign`], of a server of which nothing else can be looked at.
///
/// # Errors
/// [`Transient`] when the account cannot be read.
pub(super) async fn account_is_foreign(
    context: &Context,
    server: &Guarded<McpServer>,
) -> Result<bool, Transient> {
    let account = account(context, &server.namespace().unwrap_or_default(), &server.name_any()).await?;
    Ok(account.is_some_and(|account| is_foreign(&account, server)))
}

/// Looks at what there is.
///
/// # Errors
/// [`Transient`] when the account or a Secret cannot be read.
pub(super) async fn observe(
    context: &Context,
    server: &McpServer,
    children: Arc<Children>,
) -> Result<Observed, Transient> {
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    let given = server.spec.tls.secret_name.as_deref().filter(|_| server.spec.tls.mode == TlsMode::Secret);
    let copied = find(&children.service_accounts, &namespace, &names::workload(&name));
    // The copy has only what carries our label, and what somebody else made need not.
    let account = async {
        match copied {
            Some(account) => Ok(Some(account)),
            None => account(context, &namespace, &name).await,
        }
    };
    let (account, endpoint_secret, internal_secret, signing_secret, given_secret, materials) = tokio::try_join!(
        account,
        secret(context, &namespace, Some(names::tls_secret(&name))),
        secret(context, &namespace, Some(names::internal_secret(&name))),
        secret(context, &namespace, Some(names::signing_secret(&name))),
        secret(context, &namespace, given.map(str::to_owned)),
        materials::read(context, &namespace, &server.spec.authentication),
    )?;
    Ok(Observed {
        deployment: find(&children.deployments, &namespace, &names::workload(&name)),
        children,
        account,
        endpoint_secret,
        internal_secret,
        signing_secret,
        referred: Referred { given_secret, materials },
    })
}

/// The `ServiceAccount` that a server's pods would run as.
async fn account(
    context: &Context,
    namespace: &str,
    server: &str,
) -> Result<Option<ServiceAccount>, Transient> {
    let name = names::workload(server);
    let read = Api::<ServiceAccount>::namespaced(context.client.clone(), namespace).get_opt(&name).await;
    read.map_err(|error| {
        Transient::apply(format!("failed to read ServiceAccount {name:?}: {}", text(&error)))
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::fixture::{Fixture, children, guarded, namespace, ours};
    use crate::controller::mcp_server;

    const PATH: &str = "/api/v1/namespaces/agents/serviceaccounts/ops-mcp";

    fn account(owner: Option<&str>) -> Value {
        let owners: Vec<Value> = owner
            .iter()
            .map(|uid| json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "ops", "uid": uid}))
            .collect();
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "ops-mcp", "namespace": "agents", "ownerReferences": owners}})
    }

    /// Whether the account is foreign, and how often the API server was asked for it.
    async fn look(copied: &[Value], served: &[(&str, Value)]) -> (bool, usize) {
        let fixture = Fixture::new(&[], served);
        let server = serde_json::from_value(ours("McpServer", "ops", &json!({}))).expect("a server");
        let observed = observe(&fixture.context, &server, children(copied)).await.expect("it answers");
        let asked = fixture.requests().iter().filter(|request| request.ends_with(PATH)).count();
        (observed.account_is_foreign(&server), asked)
    }

    /// Requests by which a look at an unreadable server takes bindings away.
    async fn taken_away(served: &[(&str, Value)]) -> Vec<String> {
        let server = ours("McpServer", "ops", &json!("text"));
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "portcullis:agents:ops:baseline", "namespace": "agents", "labels": {
                "portcullis.dev/server-namespace": "agents", "portcullis.dev/server": "ops"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "portcullis:server"}});
        let mut served = served.to_vec();
        served.push(("/apis/portcullis.dev/v1alpha1/namespaces/agents/mcpservers/ops", server.clone()));
        let fixture = Fixture::new(&[namespace("agents", "local"), server.clone(), binding], &served);
        mcp_server::reconcile(fixture.context.clone(), guarded(&server)).await.expect("it answers");
        fixture.requests().into_iter().filter(|request| request.starts_with("DELETE")).collect()
    }

    #[tokio::test]
    async fn an_account_of_somebody_else_keeps_nothing_of_an_unreadable_server() {
        assert_eq!(taken_away(&[(PATH, account(Some("McpServer-ops")))]).await, [""; 0]);
        assert_eq!(taken_away(&[]).await, [""; 0], "there is none");
        assert_eq!(
            taken_away(&[(PATH, account(None))]).await,
            [
                "DELETE /apis/rbac.authorization.k8s.io/v1/namespaces/agents/rolebindings/portcullis:agents:ops:baseline"
            ]
        );
    }

    #[tokio::test]
    async fn an_account_in_the_copy_is_not_asked_for() {
        assert_eq!(look(&[account(Some("McpServer-ops"))], &[]).await, (false, 0));
        assert_eq!(look(&[account(Some("another"))], &[]).await, (true, 0));
    }

    #[tokio::test]
    async fn an_account_without_our_label_is_seen_and_foreign_unless_the_server_owns_it() {
        assert_eq!(look(&[], &[]).await, (false, 1), "there is none");
        assert_eq!(look(&[], &[(PATH, account(None))]).await, (true, 1));
        assert_eq!(look(&[], &[(PATH, account(Some("McpServer-ops")))]).await, (false, 1));
    }
}
