//! Copies of the objects of the whole cluster that decide what is to be done, and who has to look when one changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, join_all};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::api::{ClusterMcpRole, McpApiKey, McpRole, McpServer, RoleKind, names};
use crate::authz::{NamespaceLabels, Parent};
use crate::index::snapshot::admits_servers;
use crate::k8s::queue::Queue;
use crate::k8s::watch::{Change, Guarded, Mirror, find, follow};

/// Label selector of everything that the operator makes.
pub(super) const MANAGED: &str = "app.kubernetes.io/managed-by=portcullis";

/// Copies of every kind that is watched in the whole cluster.
pub(super) struct Cluster {
    pub(super) servers: Store<Guarded<McpServer>>,
    pub(super) roles: Store<Guarded<McpRole>>,
    pub(super) cluster_roles: Store<Guarded<ClusterMcpRole>>,
    pub(super) keys: Store<Guarded<McpApiKey>>,
    pub(super) namespaces: Store<Guarded<Namespace>>,
    pub(super) role_bindings: Store<Guarded<RoleBinding>>,
    pub(super) cluster_role_bindings: Store<Guarded<ClusterRoleBinding>>,
    /// Objects that wait to be looked at.
    pub(super) queues: Queues,
}

/// One queue per kind that is reconciled.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) servers: Queue,
    pub(super) roles: Queue,
    pub(super) cluster_roles: Queue,
    pub(super) keys: Queue,
    pub(super) namespaces: Queue,
}

impl Cluster {
    /// Makes the copies, and the future that keeps them current until told to stop.
    pub(super) fn start(client: &Client, stop: &CancellationToken) -> (Arc<Self>, BoxFuture<'static, ()>) {
        let (servers, roles, cluster_roles) = (Mirror::new(), Mirror::new(), Mirror::new());
        let (keys, namespaces) = (Mirror::new(), Mirror::new());
        let (role_bindings, cluster_role_bindings) = (Mirror::new(), Mirror::new());
        let cluster = Arc::new(Self {
            servers: servers.store.clone(),
            roles: roles.store.clone(),
            cluster_roles: cluster_roles.store.clone(),
            keys: keys.store.clone(),
            namespaces: namespaces.store.clone(),
            role_bindings: role_bindings.store.clone(),
            cluster_role_bindings: cluster_role_bindings.store.clone(),
            queues: Queues::default(),
        });
        let start = Start { client, stop, cluster: &cluster };
        let watches: Vec<BoxFuture<'static, ()>> = vec![
            start.watch("", servers, Cluster::server_changed),
            start.watch("", roles, Cluster::role_changed),
            start.watch("", cluster_roles, Cluster::cluster_role_changed),
            start.watch("", keys, Cluster::key_changed),
            start.watch("", namespaces, Cluster::namespace_changed),
            start.watch(MANAGED, role_bindings, |cluster, change| cluster.binding_changed(change.object())),
            start.watch(MANAGED, cluster_role_bindings, |cluster, change| {
                cluster.binding_changed(change.object());
            }),
        ];
        (cluster, join_all(watches).map(|_| ()).boxed())
    }

    /// Waits until every copy is complete.
    pub(super) async fn wait_until_ready(&self) {
        // A store only fails when its watch was dropped, and then nobody is left to care.
        let _ = tokio::join!(
            self.servers.wait_until_ready(),
            self.roles.wait_until_ready(),
            self.cluster_roles.wait_until_ready(),
            self.keys.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.role_bindings.wait_until_ready(),
            self.cluster_role_bindings.wait_until_ready(),
        );
    }

    fn server_changed(&self, change: &Change<McpServer>) {
        let server = change.object();
        let namespace = server.namespace().unwrap_or_default();
        if change.is_more_than_status() {
            self.queues.servers.push(&namespace, server.name_any());
            self.look_at_roles_with_subjects(&namespace, &server.name_any());
        }
        if change.before.is_none() || change.after.is_none() {
            self.queues.namespaces.push("", namespace);
        }
    }

    fn key_changed(&self, change: &Change<McpApiKey>) {
        let key = change.object();
        let namespace = key.namespace().unwrap_or_default();
        if change.is_more_than_status() {
            self.queues.keys.push(&namespace, key.name_any());
        }
        if change.before.is_none() || change.after.is_none() {
            self.queues.namespaces.push("", namespace);
        }
    }

    fn role_changed(&self, change: &Change<McpRole>) {
        if !change.is_more_than_status() {
            return;
        }
        let (namespace, name) = (change.object().namespace().unwrap_or_default(), change.object().name_any());
        self.queues.roles.push(&namespace, &name);
        let inheriting = self.roles.state_filter(|role| {
            role.namespace().as_deref() == Some(&namespace) && inherits(role, |role| &role.spec.inherits)
        });
        inheriting.iter().for_each(|role| self.queues.roles.push(&namespace, role.name_any()));
        self.look_at_servers(|server| server.namespace().as_deref() == Some(&namespace));
        self.look_at_keys(|key| {
            key.namespace().as_deref() == Some(&namespace) && refers_to(key, RoleKind::McpRole, &name)
        });
    }

    fn cluster_role_changed(&self, change: &Change<ClusterMcpRole>) {
        if !change.is_more_than_status() {
            return;
        }
        let name = change.object().name_any();
        self.queues.cluster_roles.push("", &name);
        let inheriting = self.cluster_roles.state_filter(|role| inherits(role, |role| &role.spec.inherits));
        inheriting.iter().for_each(|role| self.queues.cluster_roles.push("", role.name_any()));
        let changed = [&change.before, &change.after].into_iter().flatten();
        self.look_at_servers_of(changed.chain(&inheriting));
        self.look_at_keys(|key| refers_to(key, RoleKind::ClusterMcpRole, &name));
    }

    fn namespace_changed(&self, change: &Change<Namespace>) {
        if !change.is_more_than_status() {
            return;
        }
        let name = change.object().name_any();
        self.queues.namespaces.push("", &name);
        let exists = change.before.is_some() && change.after.is_some();
        // A namespace that comes or goes may be in the scope of any role; a label counts only for what is inside.
        self.look_at_servers(|server| !exists || server.namespace().as_deref() == Some(&name));
        // Unless a role chooses its namespaces by their labels.
        let selecting = self.cluster_roles.state_filter(|role| {
            exists && role.0.as_ref().is_ok_and(|role| role.spec.namespace_selector.is_some())
        });
        self.look_at_servers_of(&selecting);
        // A role says so when none of its servers may have rights elsewhere.
        let for_servers_here = self.cluster_roles.state_filter(|role| {
            role.0.as_ref().is_ok_and(|role| role.spec.servers.iter().any(|server| server.namespace == name))
        });
        for_servers_here.iter().for_each(|role| self.queues.cluster_roles.push("", role.name_any()));
        self.look_at_keys(|key| key.namespace().as_deref() == Some(&name));
    }

    fn binding_changed<K: Resource>(&self, binding: &Guarded<K>) {
        let labels = binding.labels();
        if let (Some(namespace), Some(server)) =
            (labels.get(names::SERVER_NAMESPACE_LABEL), labels.get(names::SERVER_LABEL))
        {
            self.queues.servers.push(namespace, server);
        } else if [names::OPERATOR_BINDING, names::OPERATOR_REACH_BINDING].contains(&&*binding.name_any()) {
            let namespace = binding.namespace().unwrap_or_default();
            self.look_at_servers(|server| server.namespace().as_deref() == Some(&namespace));
            self.queues.namespaces.push("", namespace);
        }
    }

    /// Asks for a look at some servers.
    pub(super) fn look_at_servers(&self, which: impl Fn(&Guarded<McpServer>) -> bool) {
        for server in self.servers.state_filter(|server| which(server)) {
            self.queues.servers.push(server.namespace().unwrap_or_default(), server.name_any());
        }
    }

    /// Asks for a look at the servers for which some of these roles count.
    fn look_at_servers_of<'a>(&self, roles: impl IntoIterator<Item = &'a Arc<Guarded<ClusterMcpRole>>>) {
        let named: BTreeSet<(String, String)> = roles
            .into_iter()
            .filter_map(|role| role.0.as_ref().ok())
            .flat_map(|role| role.spec.servers.iter().map(|s| (s.namespace.clone(), s.name.clone())))
            .collect();
        self.look_at_servers(|server| {
            named.contains(&(server.namespace().unwrap_or_default(), server.name_any()))
        });
    }

    /// Whose subjects can come in at all depends on the servers that the role counts for.
    fn look_at_roles_with_subjects(&self, namespace: &str, server: &str) {
        let local = self.roles.state_filter(|role| {
            role.namespace().as_deref() == Some(namespace)
                && role.0.as_ref().is_ok_and(|role| !role.spec.subjects.is_empty())
        });
        local.iter().for_each(|role| self.queues.roles.push(namespace, role.name_any()));
        let wide = self.cluster_roles.state_filter(|role| {
            role.0.as_ref().is_ok_and(|role| {
                let selects =
                    || role.spec.servers.iter().any(|s| s.namespace == namespace && s.name == server);
                !role.spec.subjects.is_empty() && selects()
            })
        });
        wide.iter().for_each(|role| self.queues.cluster_roles.push("", role.name_any()));
    }

    fn look_at_keys(&self, which: impl Fn(&Guarded<McpApiKey>) -> bool) {
        for key in self.keys.state_filter(|key| which(key)) {
            self.queues.keys.push(key.namespace().unwrap_or_default(), key.name_any());
        }
    }

    /// Labels of every namespace, by name.
    pub(super) fn namespace_labels(&self) -> NamespaceLabels {
        let all = self.namespaces.state();
        all.iter().map(|namespace| (namespace.name_any(), namespace.labels().clone())).collect()
    }

    /// What others inherit from an `McpRole`, if there is one of this name.
    pub(super) fn role_parent(&self, namespace: &str, name: &str) -> Option<Parent> {
        let found = find(&self.roles, namespace, name)?;
        found.metadata.deletion_timestamp.is_none().then(|| Parent::from(&found))
    }

    /// What others inherit from a `ClusterMcpRole`, if there is one of this name.
    pub(super) fn cluster_role_parent(&self, name: &str) -> Option<Parent> {
        let found = find(&self.cluster_roles, "", name)?;
        found.metadata.deletion_timestamp.is_none().then(|| Parent::from(&found))
    }

    /// Names of the servers that may have bindings, by namespace: those that an administrator let in, readable or not.
    pub(super) fn admitted_servers(&self) -> HashMap<String, HashSet<String>> {
        let namespaces = self.namespaces.state_filter(|namespace| admits_servers(namespace.labels()));
        let mut servers: HashMap<String, HashSet<String>> =
            namespaces.iter().map(|namespace| (namespace.name_any(), HashSet::new())).collect();
        for server in self.servers.state() {
            if let Some(names) = servers.get_mut(&server.namespace().unwrap_or_default()) {
                names.insert(server.name_any());
            }
        }
        servers
    }

    /// Whether there is a server of this name, readable or not.
    pub(super) fn has_server(&self, namespace: &str, name: &str) -> bool {
        self.servers.get(&ObjectRef::new(name).within(namespace)).is_some()
    }

    /// Names of the namespaces in which something can be made: those that are going away are left out.
    pub(super) fn namespace_names(&self) -> BTreeSet<String> {
        let lives = |namespace: &Guarded<Namespace>| namespace.meta().deletion_timestamp.is_none();
        self.namespaces.state_filter(|namespace| lives(namespace)).iter().map(|ns| ns.name_any()).collect()
    }
}

fn inherits<K: Resource>(role: &Guarded<K>, parents: impl Fn(&K) -> &Vec<String>) -> bool {
    role.0.as_ref().is_ok_and(|role| !parents(role).is_empty())
}

fn refers_to(key: &Guarded<McpApiKey>, kind: RoleKind, name: &str) -> bool {
    key.0.as_ref().is_ok_and(|key| key.spec.roles.iter().any(|role| role.kind == kind && role.name == name))
}

/// What starting a watch needs.
struct Start<'a> {
    client: &'a Client,
    stop: &'a CancellationToken,
    cluster: &'a Arc<Cluster>,
}

impl Start<'_> {
    fn watch<K>(
        &self,
        selector: &'static str,
        mirror: Mirror<K>,
        changed: fn(&Cluster, &Change<K>),
    ) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let cluster = self.cluster.clone();
        let tell = move |change: &Change<K>| changed(&cluster, change);
        follow(Api::all(self.client.clone()), selector, mirror, self.stop.clone(), tell).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt;
    use serde_json::json;

    use super::*;
    use crate::controller::fixture::{Fixture, guarded, namespace, ours};

    #[tokio::test]
    async fn a_namespace_with_another_label_asks_for_a_look_at_the_cluster_roles_for_its_servers() {
        let role = |name: &str, of: &str| {
            let servers =
                json!([{"namespace": "elsewhere", "name": "ops"}, {"namespace": of, "name": "ops"}]);
            ours("ClusterMcpRole", name, &json!({"permissions": ["k8s:pods:list"], "servers": servers}))
        };
        let fixture = Fixture::new(&[role("theirs", "agents"), role("others", "default")], &[]);
        let cluster = &fixture.context.cluster;
        let change = Change {
            before: Some(guarded(&namespace("agents", "local"))),
            after: Some(guarded(&namespace("agents", "cluster"))),
        };
        cluster.namespace_changed(&change);
        let mut keys = pin!(cluster.queues.cluster_roles.keys());
        let asked = keys.next().now_or_never().flatten();
        assert_eq!(asked, Some((String::new(), "theirs".to_owned())));
        let more = keys.next().now_or_never();
        assert_eq!(more, None, "nothing changes for the others");
    }
}
