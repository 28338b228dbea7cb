//! Writing and removing the bindings of a server. What the labels show and nobody wants is deleted.
//!
//! New rights come before old ones go, so a role that moves a right from one binding to another interrupts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::api::ListParams;
use kube::runtime::reflector::Store;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::conditions::REASON_TOO_MANY_BINDINGS;
use crate::api::names;
use crate::authz::{NamespaceLabels, Role};
use crate::controller::Context;
use crate::controller::cluster::{Cluster, MANAGED};
use crate::controller::engine::Transient;
use crate::index::snapshot::{admits_cluster_roles, is_staying};
use crate::k8s::apply::text;
use crate::k8s::watch::{Guarded, find};

use super::desired::{bindings, owner};
use super::validate::ValidatedServer;
use super::{Problem, desired};

/// Bindings of one server that are written at the same time.
const CONCURRENCY: usize = 8;
/// Most bindings of all servers together. Every authorizer of the cluster holds them in memory, and a pattern that
/// matches thousands of namespaces must not fill the cluster's store.
const MOST_BINDINGS: usize = 20_000;
/// Bindings that a sweep looks at before others have their turn.
const STEP: usize = 1_000;

/// Roles that are valid and count for the server, bound to somebody or not, in a fixed order. One that is being deleted
/// does not count, whatever it still waits for: to the endpoint it is gone, too.
pub(super) fn roles(context: &Context, namespace: &str, server: &str) -> Vec<Role> {
    let cluster = &context.cluster;
    let local =
        cluster.roles.state_filter(|role| role.namespace().as_deref() == Some(namespace) && is_staying(role));
    let parent = |name: &str| cluster.role_parent(namespace, name);
    let local = local.iter().filter_map(|role| Role::from_role(role.0.as_ref().ok()?, &parent).ok());
    let admitted =
        find(&cluster.namespaces, "", namespace).is_some_and(|found| admits_cluster_roles(found.labels()));
    let wide = cluster.cluster_roles.state_filter(|role| admitted && is_staying(role));
    let labels = if wide.is_empty() { NamespaceLabels::new() } else { cluster.namespace_labels() };
    let parent = |name: &str| cluster.cluster_role_parent(name);
    let wide = wide.iter().filter_map(|role| {
        Role::from_cluster_role(role.0.as_ref().ok()?, &context.config.namespace, &labels, &parent).ok()
    });
    let mut roles: Vec<Role> = local.chain(wide).filter(|role| role.selects(namespace, server)).collect();
    roles.sort_by(|a, b| a.id().cmp(b.id()));
    roles
}

/// Takes away what no role grants any more, and gives nothing. An account of somebody else keeps nothing: a server that
/// had the name before may have left bindings to it.
///
/// # Errors
/// [`Transient`] names the binding at fault.
pub(super) async fn narrow(
    context: &Context,
    namespace: &str,
    server: &str,
    account_is_foreign: bool,
) -> Result<(), Transient> {
    let wanted = if account_is_foreign {
        Vec::new()
    } else {
        let roles = roles(context, namespace, server);
        bindings(namespace, server, &roles, &context.cluster.namespace_names())
    };
    prune(context, namespace, Some(server), &wanted).await.map_err(transient)
}

/// Makes the bindings of a server exactly the union of what its roles grant.
///
/// # Errors
/// [`Problem::Transient`] names the binding at fault.
pub(super) async fn apply(
    context: &Context,
    server: &ValidatedServer<'_>,
    roles: &[Role],
) -> Result<(), Problem> {
    let (namespace, name) = (server.namespace, server.name);
    let wanted = bindings(namespace, name, roles, &context.cluster.namespace_names());
    within_bounds(wanted.len(), bindings_of_others(context, namespace, name))?;
    let local: Vec<RoleBinding> =
        wanted.iter().filter_map(|binding| binding.role_binding(namespace, name, owner(server))).collect();
    let wide: Vec<ClusterRoleBinding> =
        wanted.iter().filter_map(|binding| binding.cluster_role_binding(namespace, name)).collect();
    let wide: Vec<_> = wide.iter().map(|binding| ensure_wide(context, binding)).collect();
    let wide = run_all(wide).await;
    let local: Vec<_> = local.iter().map(|binding| ensure_local(context, binding)).collect();
    let local = run_all(local).await;
    let pruned = prune(context, namespace, Some(name), &wanted).await;
    wide.and(local).and(pruned)
}

/// Number of bindings of every other server. What others labelled as if it were ours must not keep rights from
/// anybody, so a binding counts only if its server's own look keeps it or takes it away.
fn bindings_of_others(context: &Context, namespace: &str, server: &str) -> usize {
    let servers = context.cluster.admitted_servers();
    let is_other = |of: Option<(&str, &str)>| {
        of.is_some_and(|(its_namespace, its_name)| {
            (its_namespace, its_name) != (namespace, server)
                && servers.get(its_namespace).is_some_and(|names| names.contains(its_name))
        })
    };
    let local = context.cluster.role_bindings.state_filter(|binding| is_other(server_of(binding)));
    let wide = context.cluster.cluster_role_bindings.state_filter(|binding| is_other(server_of(binding)));
    local.len() + wide.len()
}

/// Whether so many bindings may be kept. If not, no right is given; those that no role grants are still taken away.
fn within_bounds(wanted: usize, others: usize) -> Result<(), Transient> {
    if wanted.saturating_add(others) <= MOST_BINDINGS {
        return Ok(());
    }
    Err(Transient {
        reason: REASON_TOO_MANY_BINDINGS,
        message: format!(
            "the roles of this server need {wanted} bindings; with {others} of other servers these are more than {MOST_BINDINGS}: narrow spec.namespaces of its ClusterMcpRoles, or set spec.allNamespaces"
        ),
    })
}

/// Does everything, some of it side by side, and then tells the first failure: one binding at fault holds up no other.
async fn run_all<E>(work: Vec<impl Future<Output = Result<(), E>>>) -> Result<(), E> {
    let results: Vec<Result<(), E>> = stream::iter(work).buffer_unordered(CONCURRENCY).collect().await;
    results.into_iter().collect()
}

/// Whether a binding is named as we name those of the server. Labels are anybody's to write, and what others made
/// must not be deleted.
fn is_named_for(name: &str, namespace: &str, server: &str) -> bool {
    name.strip_prefix(&names::binding(namespace, server, "")).is_some_and(|what| {
        !what.is_empty() && what.split(':').count() <= 2 && what.split(':').all(|part| !part.is_empty())
    })
}

/// Namespace and name of the server that a binding belongs to by its labels and by its name.
fn server_of<K: Resource>(binding: &Guarded<K>) -> Option<(&str, &str)> {
    let labels = binding.labels();
    let namespace = labels.get(names::SERVER_NAMESPACE_LABEL)?;
    let server = labels.get(names::SERVER_LABEL)?;
    let name = binding.meta().name.as_deref()?;
    is_named_for(name, namespace, server).then_some((namespace, server))
}

async fn ensure_local(context: &Context, desired: &RoleBinding) -> Result<(), Problem> {
    let namespace = desired.namespace().unwrap_or_default();
    let api = Api::<RoleBinding>::namespaced(context.client.clone(), &namespace);
    let live = find(&context.cluster.role_bindings, &namespace, &desired.name_any());
    let other_role = live.as_ref().is_some_and(|live| live.role_ref != desired.role_ref);
    ensure(context, &api, live, desired, other_role).await
}

async fn ensure_wide(context: &Context, desired: &ClusterRoleBinding) -> Result<(), Problem> {
    let api = Api::<ClusterRoleBinding>::all(context.client.clone());
    let live = find(&context.cluster.cluster_role_bindings, "", &desired.name_any());
    let other_role = live.as_ref().is_some_and(|live| live.role_ref != desired.role_ref);
    ensure(context, &api, live, desired, other_role).await
}

/// A binding cannot be given another role, so one that has another is replaced by a new one.
async fn ensure<K>(
    context: &Context,
    api: &Api<K>,
    live: Option<K>,
    desired: &K,
    other_role: bool,
) -> Result<(), Problem>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
{
    let live = match live {
        Some(live) if other_role => {
            context.applier.delete(api, &live).await?;
            None
        }
        live => live,
    };
    context.applier.ensure(api, live, desired).await?;
    Ok(())
}

/// Deletes bindings of a server, or of every server of a namespace, that are not wanted.
async fn prune(
    context: &Context,
    namespace: &str,
    server: Option<&str>,
    wanted: &[desired::Binding],
) -> Result<(), Problem> {
    let wanted: BTreeSet<(String, String)> = wanted
        .iter()
        .map(|binding| (binding.namespace.clone().unwrap_or_default(), binding.name.clone()))
        .collect();
    remove(context, namespace, |of, scope, name| {
        server.is_none_or(|server| server == of) && !wanted.contains(&(scope.to_owned(), name.to_owned()))
    })
    .await
}

/// Deletes those bindings of the servers of a namespace that are chosen by server, namespace (none for everywhere) and
/// name.
async fn remove(
    context: &Context,
    namespace: &str,
    which: impl Fn(&str, &str, &str) -> bool,
) -> Result<(), Problem> {
    let is_chosen = |labels: &BTreeMap<String, String>, scope: &str, name: &str| {
        labels.get(names::SERVER_NAMESPACE_LABEL).is_some_and(|value| value == namespace)
            && labels
                .get(names::SERVER_LABEL)
                .is_some_and(|server| is_named_for(name, namespace, server) && which(server, scope, name))
    };
    let local = context.cluster.role_bindings.state_filter(|binding| {
        is_chosen(binding.labels(), &binding.namespace().unwrap_or_default(), &binding.name_any())
    });
    let wide = context
        .cluster
        .cluster_role_bindings
        .state_filter(|binding| is_chosen(binding.labels(), "", &binding.name_any()));
    let local: Vec<_> = local.iter().map(|binding| delete_local(context, binding)).collect();
    let wide: Vec<_> = wide.iter().map(|binding| delete_wide(context, binding)).collect();
    let (local, wide) = (run_all(local).await, run_all(wide).await);
    local.and(wide)
}

async fn delete_local(context: &Context, binding: &Guarded<RoleBinding>) -> Result<(), Problem> {
    let Ok(binding) = &binding.0 else { return Ok(()) };
    let namespace = binding.namespace().unwrap_or_default();
    let api = Api::<RoleBinding>::namespaced(context.client.clone(), &namespace);
    Ok(context.applier.delete(&api, binding).await?)
}

async fn delete_wide(context: &Context, binding: &Guarded<ClusterRoleBinding>) -> Result<(), Problem> {
    let Ok(binding) = &binding.0 else { return Ok(()) };
    let api = Api::<ClusterRoleBinding>::all(context.client.clone());
    Ok(context.applier.delete(&api, binding).await?)
}

fn transient(problem: Problem) -> Transient {
    match problem {
        Problem::Transient(error) => error,
        Problem::Invalid(invalid) => Transient { reason: invalid.reason, message: invalid.message },
    }
}

/// Deletes every binding of a server. The API server is asked, not the copy: what was made just now must go, too.
///
/// # Errors
/// [`Transient`] when a binding cannot be listed or deleted.
pub(super) async fn remove_all(context: &Context, namespace: &str, name: &str) -> Result<(), Transient> {
    let selector =
        format!("{MANAGED},{}={namespace},{}={name}", names::SERVER_NAMESPACE_LABEL, names::SERVER_LABEL);
    let parameters = ListParams::default().labels(&selector);
    let (local, wide) = (
        Api::<RoleBinding>::all(context.client.clone()),
        Api::<ClusterRoleBinding>::all(context.client.clone()),
    );
    let failed = |error: kube::Error| {
        Transient::apply(format!("failed to list the bindings of the server: {}", text(&error)))
    };
    let (local, wide) = tokio::try_join!(local.list(&parameters), wide.list(&parameters)).map_err(failed)?;
    let is_ours = |binding: &str| is_named_for(binding, namespace, name);
    let guarded = |binding| kube::core::DeserializeGuard(Ok(binding));
    let local: Vec<Guarded<RoleBinding>> =
        local.items.into_iter().filter(|binding| is_ours(&binding.name_any())).map(guarded).collect();
    let guarded = |binding| kube::core::DeserializeGuard(Ok(binding));
    let wide: Vec<Guarded<ClusterRoleBinding>> =
        wide.items.into_iter().filter(|binding| is_ours(&binding.name_any())).map(guarded).collect();
    let local: Vec<_> = local.iter().map(|binding| delete_local(context, binding)).collect();
    let wide: Vec<_> = wide.iter().map(|binding| delete_wide(context, binding)).collect();
    let (local, wide) = (run_all(local).await, run_all(wide).await);
    local.and(wide).map_err(transient)
}

/// Deletes every binding of every server of a namespace that the operator leaves.
///
/// # Errors
/// [`Transient`] when a binding cannot be deleted.
pub(in crate::controller) async fn remove_bindings_of_namespace(
    context: &Context,
    namespace: &str,
) -> Result<(), Transient> {
    prune(context, namespace, None, &[]).await.map_err(transient)
}

/// Deletes what the servers of a namespace have outside it, but for what every server has.
///
/// # Errors
/// [`Transient`] when a binding cannot be deleted.
pub(in crate::controller) async fn remove_bindings_outside(
    context: &Context,
    namespace: &str,
) -> Result<(), Transient> {
    remove(context, namespace, |server, scope, name| is_outside(namespace, server, scope, name))
        .await
        .map_err(transient)
}

/// Whether a binding gives a server more outside its namespace than its baseline.
fn is_outside(namespace: &str, server: &str, scope: &str, name: &str) -> bool {
    let is_baseline = scope.is_empty() && name == names::binding(namespace, server, "baseline");
    scope != namespace && !is_baseline
}

/// Deletes bindings whose server is gone although its finalizer should have removed them first.
pub(in crate::controller) async fn remove_orphaned_bindings(context: &Context) {
    let cluster = &context.cluster;
    let local = orphans(cluster, &cluster.role_bindings).await;
    let wide = orphans(cluster, &cluster.cluster_role_bindings).await;
    // By the time of its turn there may be a server of that name.
    let local = local.iter().map(async |binding| {
        if is_orphan(cluster, binding) { delete_local(context, binding).await } else { Ok(()) }
    });
    let wide = wide.iter().map(async |binding| {
        if is_orphan(cluster, binding) { delete_wide(context, binding).await } else { Ok(()) }
    });
    let (local, wide) = (run_all(local.collect()).await, run_all(wide.collect()).await);
    if let Err(problem) = local.and(wide) {
        tracing::warn!(error = problem.message(), "Orphaned binding not deleted");
    }
}

/// Bindings of servers that are gone. There may be any number of bindings that others made, so others have their turn
/// now and then, and who gave the sweep a limit can end it.
async fn orphans<K>(cluster: &Cluster, bindings: &Store<Guarded<K>>) -> Vec<Arc<Guarded<K>>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut orphans = Vec::new();
    for some in bindings.state().chunks(STEP) {
        orphans.extend(some.iter().filter(|binding| is_orphan(cluster, binding)).cloned());
        tokio::task::yield_now().await;
    }
    orphans
}

/// Whether a binding is named for a server that is not there at all: one that cannot be read exists.
fn is_orphan<K: Resource>(cluster: &Cluster, binding: &Guarded<K>) -> bool {
    server_of(binding).is_some_and(|(namespace, server)| !cluster.has_server(namespace, server))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::fixture::{Fixture, namespace, ours};

    #[tokio::test]
    async fn a_role_that_is_being_deleted_gives_no_rights() {
        let going = |kind: &str, name: &str, spec: &Value| {
            let mut role = ours(kind, name, spec);
            role["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            role["metadata"]["finalizers"] = json!(["example.com/hold"]);
            role
        };
        let local = json!({"permissions": ["k8s:pods:list"]});
        let wide = json!({"permissions": ["k8s:pods:logs"], "allNamespaces": true,
            "servers": [{"namespace": "agents", "name": "ops"}]});
        let fixture = Fixture::new(
            &[
                namespace("agents", "cluster"),
                ours("McpRole", "stays", &local),
                going("McpRole", "goes", &local),
                ours("ClusterMcpRole", "stays", &wide),
                going("ClusterMcpRole", "goes", &wide),
            ],
            &[],
        );
        let found = roles(&fixture.context, "agents", "ops");
        let found: Vec<String> = found.iter().map(|role| role.id().to_string()).collect();
        assert_eq!(found, ["McpRole agents/stays", "ClusterMcpRole stays"]);
    }

    /// A binding in the namespace `default` that says that it belongs to a server of `agents`.
    fn binding(server: &str, name: &str) -> Value {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": "default", "labels": {
                "portcullis.dev/server-namespace": "agents", "portcullis.dev/server": server}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}})
    }

    #[tokio::test]
    async fn only_bindings_that_are_named_for_a_server_that_is_let_in_count_against_the_bound() {
        let unreadable = ours("McpServer", "unreadable", &json!("text"));
        let mut everywhere = binding("other", "portcullis:agents:other:baseline");
        everywhere["kind"] = json!("ClusterRoleBinding");
        everywhere["metadata"]["namespace"] = Value::Null;
        let mut not_let_in = ours("McpServer", "ops", &json!({}));
        not_let_in["metadata"]["namespace"] = json!("closed");
        let mut closed = binding("ops", "portcullis:closed:ops:pods:list");
        closed["metadata"]["labels"]["portcullis.dev/server-namespace"] = json!("closed");
        let fixture = Fixture::new(
            &[
                namespace("agents", "local"),
                namespace("closed", "no"),
                ours("McpServer", "ops", &json!({})),
                ours("McpServer", "other", &json!({})),
                unreadable,
                not_let_in,
                binding("ops", "portcullis:agents:ops:pods:list"),
                binding("other", "portcullis:agents:other:pods:list"),
                everywhere,
                binding("unreadable", "portcullis:agents:unreadable:pods:list"),
                binding("other", "forged"),
                binding("other", "portcullis:agents:ops:pods:get"),
                binding("nobody", "portcullis:agents:nobody:pods:list"),
                closed,
            ],
            &[],
        );
        assert_eq!(bindings_of_others(&fixture.context, "agents", "ops"), 3);
    }

    #[tokio::test]
    async fn bindings_of_a_server_that_is_gone_are_deleted_and_no_others() {
        let fixture = Fixture::new(
            &[
                ours("McpServer", "ops", &json!({})),
                ours("McpServer", "unreadable", &json!("text")),
                binding("ops", "portcullis:agents:ops:pods:list"),
                binding("unreadable", "portcullis:agents:unreadable:pods:list"),
                binding("gone", "portcullis:agents:gone:pods:list"),
                binding("gone", "portcullis:agents:gone:pods:get"),
                binding("gone", "theirs"),
                binding("lost", "portcullis:agents:lost:baseline"),
            ],
            &[],
        );
        remove_orphaned_bindings(&fixture.context).await;
        let path =
            "DELETE /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/portcullis:agents";
        let expected = ["gone:pods:get", "gone:pods:list", "lost:baseline"];
        assert_eq!(fixture.requests(), expected.map(|name| format!("{path}:{name}")));
    }

    #[tokio::test]
    async fn a_sweep_of_many_bindings_can_be_interrupted() {
        let forged = (0..3 * STEP).map(|number| binding(&format!("s{number}"), &format!("forged-{number}")));
        let fixture = Fixture::new(&forged.collect::<Vec<_>>(), &[]);
        let mut sweep = std::pin::pin!(remove_orphaned_bindings(&fixture.context));
        for _ in 0..3 {
            assert!(futures::poll!(&mut sweep).is_pending());
        }
        sweep.await;
        assert_eq!(fixture.requests(), [""; 0]);
    }

    #[test]
    fn only_what_is_named_as_we_name_it_is_a_binding_of_the_server() {
        let is_ours = |name: &str| is_named_for(name, "agents", "ops");
        assert!(is_ours("portcullis:agents:ops:baseline"));
        assert!(is_ours("portcullis:agents:ops:pods:list"));
        for foreign in [
            "admins",
            "portcullis:agents:ops:",
            "portcullis:agents:ops::list",
            "portcullis:agents:ops:pods:",
            "portcullis:agents:ops:pods:list:more",
            "portcullis:agents:other:baseline",
            "portcullis:other:ops:baseline",
        ] {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_baseline_everywhere_is_not_a_right_outside() {
        let is_outside = |scope: &str, what: &str| {
            is_outside("agents", "ops", scope, &format!("portcullis:agents:ops:{what}"))
        };
        assert!(!is_outside("", "baseline") && !is_outside("agents", "baseline"));
        assert!(!is_outside("agents", "pods:list"));
        assert!(is_outside("", "pods:list") && is_outside("default", "pods:list"));
        assert!(is_outside("default", "baseline"), "the baseline of a namespace does not belong elsewhere");
    }

    #[test]
    fn more_bindings_than_the_cluster_should_hold_are_refused_and_the_message_says_what_to_do() {
        assert!(within_bounds(MOST_BINDINGS - 5, 5).is_ok());
        let refused = within_bounds(MOST_BINDINGS - 4, 5).expect_err("one too many");
        assert_eq!(refused.reason, "TooManyBindings");
        assert!(refused.message.starts_with("the roles of this server need 19996 bindings; with 5 of other"));
        assert!(within_bounds(usize::MAX, 1).is_err());
    }

    #[tokio::test]
    async fn one_failure_stops_nothing_else_and_is_told() {
        let done = std::cell::RefCell::new(Vec::new());
        let step = async |number: usize| {
            done.borrow_mut().push(number);
            if number == 3 { Err(number) } else { Ok(()) }
        };
        let work: Vec<_> = (0..20).map(step).collect();
        assert_eq!(run_all(work).await, Err(3));
        assert_eq!(done.borrow().len(), 20);
    }
}
