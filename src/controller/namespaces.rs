//! The namespaces in which the operator works: it binds a role to itself there, watches children there, and leaves
//! again when the label goes or the last of our objects does.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::runtime::reflector::Store;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::names;
use crate::index::snapshot::{admits_cluster_roles, admits_servers};
use crate::k8s::apply::text;
use crate::k8s::watch::{Guarded, Mirror, find, follow};

use super::Context;
use super::cluster::MANAGED;
use super::engine::{Outcome, Transient};
use super::mcp_server;

/// How long a new binding may take until it is effective. It takes some milliseconds.
const EFFECTIVE_WITHIN: Duration = Duration::from_secs(3);

/// Copies of the children in one namespace.
pub(super) struct Children {
    pub(super) deployments: Store<Guarded<Deployment>>,
    pub(super) services: Store<Guarded<Service>>,
    pub(super) service_accounts: Store<Guarded<ServiceAccount>>,
    pub(super) network_policies: Store<Guarded<NetworkPolicy>>,
    pub(super) disruption_budgets: Store<Guarded<PodDisruptionBudget>>,
}

/// The namespaces in which the operator works.
pub(super) struct Namespaces {
    rooms: std::sync::Mutex<BTreeMap<String, Arc<Room>>>,
    /// Watches that [`watch_children`] is to run. One slot is enough: it takes them at once.
    start: mpsc::Sender<BoxFuture<'static, ()>>,
    started: Mutex<mpsc::Receiver<BoxFuture<'static, ()>>>,
}

/// One namespace: many may work in it at once, and nobody while the operator leaves it.
#[derive(Default)]
pub(super) struct Room {
    work: RwLock<()>,
    active: Mutex<Option<Active>>,
}

struct Active {
    children: Arc<Children>,
    stop: CancellationToken,
}

impl Room {
    /// Keeps the operator from leaving for as long as the answer is held.
    pub(super) async fn work(&self) -> RwLockReadGuard<'_, ()> {
        self.work.read().await
    }

    async fn stop_watching(&self) {
        if let Some(active) = self.active.lock().await.take() {
            active.stop.cancel();
        }
    }
}

impl Namespaces {
    /// The room of a namespace.
    pub(super) fn room(&self, namespace: &str) -> Arc<Room> {
        let mut rooms = self.rooms.lock().expect("no holder panics");
        rooms.entry(namespace.to_owned()).or_default().clone()
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        let (start, started) = mpsc::channel(1);
        Self { rooms: std::sync::Mutex::default(), start, started: Mutex::new(started) }
    }
}

/// What to tell the owner of an object in a namespace that is not opted in.
pub(super) fn opt_in_message(namespace: &str) -> String {
    let label = names::NAMESPACE_LABEL;
    format!(
        "namespace {namespace:?} does not carry the label {label}; an administrator can run: kubectl label namespace {namespace} {label}=local"
    )
}

/// Runs the watches of children for as long as it is polled.
pub(super) async fn watch_children(context: &Arc<Context>) {
    let mut started = context.namespaces.started.lock().await;
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(watch) = started.recv() => running.push(watch),
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
}

/// Makes sure that the operator may work in the namespace and watches the children there.
///
/// # Errors
/// [`Transient`] when its rights there cannot be had.
pub(super) async fn enter(context: &Arc<Context>, namespace: &str) -> Result<Arc<Children>, Transient> {
    let room = context.namespaces.room(namespace);
    let mut active = room.active.lock().await;
    bind_itself(context, namespace, &WORK).await?;
    let labels = find(&context.cluster.namespaces, "", namespace).map(|found| found.metadata.labels);
    if labels.flatten().as_ref().is_some_and(admits_cluster_roles) {
        bind_itself(context, namespace, &REACH).await?;
    }
    if let Some(active) = active.as_ref() {
        return Ok(active.children.clone());
    }
    let stop = CancellationToken::new();
    let (children, watch) = watch_namespace(context, namespace, &stop);
    // Nobody receives any more only when this process no longer leads, and then this future is dropped, too.
    let _ = context.namespaces.start.send(watch).await;
    *active = Some(Active { children: children.clone(), stop });
    drop(active);
    let ready = async {
        let _ = tokio::join!(
            children.deployments.wait_until_ready(),
            children.services.wait_until_ready(),
            children.service_accounts.wait_until_ready(),
            children.network_policies.wait_until_ready(),
            children.disruption_budgets.wait_until_ready(),
        );
    };
    // Without the copies the children are asked for one by one: slower, not wrong.
    let _ = tokio::time::timeout(EFFECTIVE_WITHIN, ready).await;
    Ok(children)
}

/// A role that the operator binds to itself in a namespace.
struct Own {
    binding: &'static str,
    role: &'static str,
    /// Group, resource and verb that it may use once the role is in force.
    shown_by: [&'static str; 3],
}

/// Lets it work in the namespace.
const WORK: Own = Own {
    binding: names::OPERATOR_BINDING,
    role: names::OPERATOR_NAMESPACE_ROLE,
    shown_by: ["apps", "deployments", "create"],
};

/// Lets it give servers of the namespace rights elsewhere: the admission policies ask for it, since they see the
/// labels of no other namespace than that in which something is written.
const REACH: Own = Own {
    binding: names::OPERATOR_REACH_BINDING,
    role: names::OPERATOR_REACH_ROLE,
    shown_by: ["portcullis.dev", "mcpservers", "reach"],
};

/// Makes sure that the operator has a role of its own in a namespace, and that a new one is in force.
async fn bind_itself(context: &Context, namespace: &str, own: &Own) -> Result<(), Transient> {
    let live = find(&context.cluster.role_bindings, namespace, own.binding);
    let is_new = live.is_none();
    let api = Api::namespaced(context.client.clone(), namespace);
    let binding = self_binding(namespace, own, &context.config.namespace, &context.config.service_account);
    context.applier.ensure(&api, live, &binding).await.map_err(Transient::apply)?;
    if is_new { await_effect(context, namespace, own).await } else { Ok(()) }
}

fn self_binding(namespace: &str, own: &Own, operator_namespace: &str, service_account: &str) -> RoleBinding {
    RoleBinding {
        metadata: ObjectMeta {
            name: Some(own.binding.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                names::FIELD_MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: own.role.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: service_account.to_owned(),
            namespace: Some(operator_namespace.to_owned()),
            api_group: None,
        }]),
    }
}

/// Waits until the API server's authorizer has seen the new binding.
async fn await_effect(context: &Context, namespace: &str, own: &Own) -> Result<(), Transient> {
    let [group, resource, verb] = own.shown_by.map(|word| Some(word.to_owned()));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group,
                resource,
                verb,
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api = Api::<SelfSubjectAccessReview>::all(context.client.clone());
    let ask = async {
        loop {
            let answer = api.create(&PostParams::default(), &review).await;
            let answer = answer.map_err(|error| {
                Transient::apply(format!("failed to ask for own rights: {}", text(&error)))
            })?;
            if answer.status.is_some_and(|status| status.allowed) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(EFFECTIVE_WITHIN, ask).await.unwrap_or_else(|_| {
        Err(Transient::apply(format!(
            "RoleBinding {:?} in namespace {namespace:?} has no effect",
            own.binding
        )))
    })
}

fn watch_namespace(
    context: &Arc<Context>,
    namespace: &str,
    stop: &CancellationToken,
) -> (Arc<Children>, BoxFuture<'static, ()>) {
    let (deployments, services, service_accounts) = (Mirror::new(), Mirror::new(), Mirror::new());
    let (network_policies, disruption_budgets) = (Mirror::new(), Mirror::new());
    let children = Arc::new(Children {
        deployments: deployments.store.clone(),
        services: services.store.clone(),
        service_accounts: service_accounts.store.clone(),
        network_policies: network_policies.store.clone(),
        disruption_budgets: disruption_budgets.store.clone(),
    });
    let watches = futures::future::join5(
        watch(context, namespace, deployments, stop),
        watch(context, namespace, services, stop),
        watch(context, namespace, service_accounts, stop),
        watch(context, namespace, network_policies, stop),
        watch(context, namespace, disruption_budgets, stop),
    );
    (children, watches.map(|_| ()).boxed())
}

fn watch<K>(
    context: &Arc<Context>,
    namespace: &str,
    mirror: Mirror<K>,
    stop: &CancellationToken,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let api = Api::namespaced(context.client.clone(), namespace);
    let cluster = context.cluster.clone();
    let namespace = namespace.to_owned();
    follow(api, MANAGED, mirror, stop.clone(), move |change| {
        if let Some(server) = change.object().labels().get(names::SERVER_LABEL) {
            cluster.queues.servers.push(&namespace, server);
        }
    })
    .boxed()
}

/// Reconciles a namespace: works there, or cleans up and leaves.
pub(super) async fn reconcile(
    context: Arc<Context>,
    object: Arc<Guarded<Namespace>>,
) -> Result<Outcome, Transient> {
    forget_deleted(&context).await;
    let namespace = object.name_any();
    let room = context.namespaces.room(&namespace);
    let lives = object.meta().deletion_timestamp.is_none();
    let find_own = |own: &Own| find(&context.cluster.role_bindings, &namespace, own.binding);
    let api = Api::<RoleBinding>::namespaced(context.client.clone(), &namespace);
    if lives && admits_servers(object.labels()) && holds_objects(&context, &namespace) {
        let _working = room.work().await;
        enter(&context, &namespace).await?;
        if let Some(reach) = find_own(&REACH)
            && !admits_cluster_roles(object.labels())
        {
            mcp_server::remove_bindings_outside(&context, &namespace).await?;
            context.applier.delete(&api, &reach).await.map_err(Transient::apply)?;
        }
        return Ok(Outcome::Settled(None));
    }
    let _leaving = room.work.write().await;
    let (work, reach) = (find_own(&WORK), find_own(&REACH));
    // A namespace that is going away takes everything in it along.
    if lives && work.is_some() {
        remove_children(&context, &namespace).await?;
    }
    if work.is_some() || reach.is_some() {
        mcp_server::remove_bindings_of_namespace(&context, &namespace).await?;
    }
    room.stop_watching().await;
    for binding in reach.iter().chain(&work) {
        context.applier.delete(&api, binding).await.map_err(Transient::apply)?;
    }
    Ok(Outcome::Settled(None))
}

/// Whether one of our objects, readable or not, stands in the namespace.
fn holds_objects(context: &Context, namespace: &str) -> bool {
    let here = |found: Option<String>| found.as_deref() == Some(namespace);
    context.cluster.servers.find(|server| here(server.namespace())).is_some()
        || context.cluster.keys.find(|key| here(key.namespace())).is_some()
}

/// Stops watching in namespaces that no longer exist.
async fn forget_deleted(context: &Context) {
    let gone: Vec<Arc<Room>> = {
        let mut rooms = context.namespaces.rooms.lock().expect("no holder panics");
        let exists = |name: &String| find(&context.cluster.namespaces, "", name).is_some();
        let gone = rooms.iter().filter(|(name, _)| !exists(name)).map(|(_, room)| room.clone()).collect();
        rooms.retain(|name, _| exists(name));
        gone
    };
    for room in gone {
        room.stop_watching().await;
    }
}

/// Deletes every child in a namespace that the operator leaves. Secrets of API keys stay: they belong to their owners.
async fn remove_children(context: &Context, namespace: &str) -> Result<(), Transient> {
    tokio::try_join!(
        remove_all::<Deployment>(context, namespace),
        remove_all::<Service>(context, namespace),
        remove_all::<ServiceAccount>(context, namespace),
        remove_all::<NetworkPolicy>(context, namespace),
        remove_all::<PodDisruptionBudget>(context, namespace),
        mcp_server::remove_secrets_of_namespace(context, namespace),
    )?;
    Ok(())
}

async fn remove_all<K>(context: &Context, namespace: &str) -> Result<(), Transient>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api = Api::<K>::namespaced(context.client.clone(), namespace);
    let selector = format!("{MANAGED},{}", names::SERVER_LABEL);
    let found = api.list(&ListParams::default().labels(&selector)).await.map_err(|error| {
        Transient::apply(format!("failed to list {} in {namespace:?}: {}", K::plural(&()), text(&error)))
    })?;
    for child in found.items.iter().filter(|child| mcp_server::is_owned(*child)) {
        context.applier.delete(&api, child).await.map_err(Transient::apply)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_command_that_lets_servers_in() {
        assert!(
            opt_in_message("agents").ends_with("kubectl label namespace agents portcullis.dev/servers=local")
        );
    }
}
