//! Writing the children of a server, side by side where their order does not matter.
//!
//! The ServiceAccount comes first: rights are bound to its name, so it must be ours. The pods come last: what they
//! mount and what fences them in is there when they start.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;

use crate::api::names;
use crate::authz::Role;
use crate::controller::Context;
use crate::k8s::watch::find;

use super::desired::{Desired, keep_restart, keep_secrets};
use super::observe::{Observed, is_owned_by};
use super::validate::ValidatedServer;
use super::{Problem, rights};

/// Makes every child as it should be. Gives the Deployment as it is then.
///
/// # Errors
/// [`Problem::Transient`] names the child at fault.
pub(super) async fn apply(
    context: &Context,
    server: &ValidatedServer<'_>,
    observed: &Observed,
    desired: Desired,
    roles: &[Role],
) -> Result<Deployment, Problem> {
    let (namespace, name) = (server.namespace, names::workload(server.name));
    let (client, applier, live) = (&context.client, &context.applier, &observed.children);
    let Desired {
        mut service_account,
        service,
        network_policy,
        disruption_budget,
        mut deployment,
        endpoint_secret,
        internal_secret,
    } = desired;

    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let service_accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    let live_account = observed.account.clone();
    if let Some(live) = &live_account {
        keep_secrets(&mut service_account, live);
    }
    tokio::try_join!(
        applier.ensure(&service_accounts, live_account, &service_account),
        applier.ensure(&services, find(&live.services, namespace, &name), &service),
        applier.ensure(&policies, find(&live.network_policies, namespace, &name), &network_policy),
        applier.ensure(&budgets, find(&live.disruption_budgets, namespace, &name), &disruption_budget),
        applier.ensure(&secrets, observed.internal_secret.clone(), &internal_secret),
        endpoint(context, server, &secrets, observed, endpoint_secret),
    )?;

    if let Some(live) = &observed.deployment {
        keep_restart(&mut deployment, live);
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    // Neither waits for the other to succeed: rights must follow the roles even when the pods cannot be changed.
    let (deployment, granted) = tokio::join!(
        applier.ensure(&deployments, observed.deployment.clone(), &deployment),
        rights::apply(context, server, roles),
    );
    granted?;
    Ok(deployment?)
}

/// Keeps the certificate of the endpoint, or removes ours where somebody else's is used.
async fn endpoint(
    context: &Context,
    server: &ValidatedServer<'_>,
    secrets: &Api<Secret>,
    observed: &Observed,
    desired: Option<Secret>,
) -> Result<(), crate::k8s::apply::Error> {
    let live = observed.endpoint_secret.clone();
    match (desired, live) {
        (Some(desired), live) => context.applier.ensure(secrets, live, &desired).await.map(|_| ()),
        (None, Some(live))
            if is_owned_by(&live, server.uid) && server.tls_secret != names::tls_secret(server.name) =>
        {
            context.applier.delete(secrets, &live).await
        }
        (None, _) => Ok(()),
    }
}
