//! The pure half: from objects to what a request needs, by the conversions that the conditions use too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use ipnet::IpNet;
use kube::ResourceExt;

use super::admission::Holders;
use crate::api::{ClusterMcpRole, KeyGeneration, KeyState, McpApiKey, McpRole, McpServer, RoleKind, names};
use crate::authn::{KeyRecord, Verifier, api_key};
use crate::authz::role::InvalidRole;
use crate::authz::{Confinement, Grants, NamespaceLabels, Parent, Role, Roles};

/// The objects that a server sees, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    /// The server's own object.
    pub(crate) server: Option<Arc<McpServer>>,
    /// `McpRole`s of the server's namespace.
    pub(crate) roles: BTreeMap<String, Arc<McpRole>>,
    /// Every `ClusterMcpRole`.
    pub(crate) cluster_roles: BTreeMap<String, Arc<ClusterMcpRole>>,
    /// `McpApiKey`s of the server's namespace.
    pub(crate) keys: BTreeMap<String, Arc<McpApiKey>>,
    /// Labels of every namespace, by name.
    pub(crate) namespaces: NamespaceLabels,
}

/// What one request needs to know, immutable.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The server's own object.
    pub(crate) server: Option<Arc<McpServer>>,
    /// Generations of keys by id, each with the roles of its key.
    pub(crate) keys: HashMap<String, Key>,
    /// Names of every namespace, sorted.
    pub(crate) namespaces: Arc<[String]>,
    /// Every role that counts for the server, compiled.
    pub(crate) roles: Arc<Roles>,
    /// Who holds which role by proving who they are.
    pub(super) holders: Holders,
}

/// One generation of a key and what its holder may do.
#[derive(Debug)]
pub(crate) struct Key {
    /// What proves it.
    pub(crate) record: KeyRecord,
    /// The roles that it names and that count, by their positions.
    pub(crate) held: Arc<FixedBitSet>,
}

impl Snapshot {
    /// Builds the snapshot of one server.
    pub(crate) fn build(objects: &Objects, namespace: &str, server: &str, operator_namespace: &str) -> Self {
        let roles = roles(objects, namespace, server, operator_namespace);
        let roles = Arc::new(Roles::compile(roles, &objects.namespaces));
        // Without the label no administrator has let servers into the namespace, and the operator says so in the
        // conditions of the server and its keys.
        let admitted = objects.namespaces.get(namespace).is_some_and(admits_servers);
        let keys = objects.keys.values().filter(|key| admitted && is_staying(&***key));
        let positions = positions(&roles);
        let keys = keys.flat_map(|key| generations(key, server, &roles, &positions)).collect();
        Self {
            server: objects.server.clone(),
            keys,
            namespaces: objects.namespaces.keys().cloned().collect(),
            holders: if admitted { Holders::of(&roles) } else { Holders::default() },
            roles,
        }
    }

    /// What the holder of a generation of a key holds, if there is one of this id.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn grants_of_key(&self, id: &str) -> Option<Grants> {
        let key = self.keys.get(id)?;
        Some(self.grants(key.held.clone(), key.record.tenant.as_deref()))
    }

    /// The roles at these positions, for a caller of this tenant.
    pub(super) fn grants(&self, held: Arc<FixedBitSet>, tenant: Option<&str>) -> Grants {
        let tenancy =
            self.server.as_ref().map(|server| server.spec.authorization.tenancy).unwrap_or_default();
        Grants::new(self.roles.clone(), held, Confinement::of(tenant, tenancy))
    }
}

/// Whether there may be servers in a namespace with these labels.
pub(crate) fn admits_servers(labels: &BTreeMap<String, String>) -> bool {
    labels
        .get(names::NAMESPACE_LABEL)
        .is_some_and(|value| value == names::NAMESPACE_LOCAL || value == names::NAMESPACE_CLUSTER)
}

/// Whether nobody has asked for the object to be deleted. One that only waits for its finalizers grants nothing.
pub(crate) fn is_staying(object: &impl ResourceExt) -> bool {
    object.meta().deletion_timestamp.is_none()
}

/// Whether `ClusterMcpRole`s count for servers of a namespace with these labels.
pub(crate) fn admits_cluster_roles(labels: &BTreeMap<String, String>) -> bool {
    labels.get(names::NAMESPACE_LABEL).is_some_and(|value| value == names::NAMESPACE_CLUSTER)
}

/// Roles that are valid and count for the server. One that does not convert grants nothing.
fn roles(objects: &Objects, namespace: &str, server: &str, operator_namespace: &str) -> Vec<Arc<Role>> {
    let admitted = objects.namespaces.get(namespace).is_some_and(admits_cluster_roles);
    let cluster = admitted.then(|| objects.converted_cluster_roles(operator_namespace));
    let all = objects.converted_roles().chain(cluster.into_iter().flatten());
    let valid = all.filter_map(|(_, converted)| converted.ok());
    valid.filter(|role| role.selects(namespace, server)).map(Arc::new).collect()
}

impl Objects {
    /// Each `McpRole` by name as the decision uses it, or why it grants nothing. One that is being deleted is not there.
    pub(super) fn converted_roles(&self) -> impl Iterator<Item = (&str, Result<Role, InvalidRole>)> {
        let staying = |role: &&Arc<McpRole>| is_staying(&***role);
        let parent = move |name: &str| self.roles.get(name).filter(staying).map(|role| Parent::from(&**role));
        let roles = self.roles.iter().filter(move |(_, role)| staying(role));
        roles.map(move |(name, role)| (name.as_str(), Role::from_role(role, &parent)))
    }

    /// The same of each `ClusterMcpRole`.
    pub(super) fn converted_cluster_roles(
        &self,
        operator_namespace: &str,
    ) -> impl Iterator<Item = (&str, Result<Role, InvalidRole>)> {
        let staying = |role: &&Arc<ClusterMcpRole>| is_staying(&***role);
        let parent =
            move |name: &str| self.cluster_roles.get(name).filter(staying).map(|role| Parent::from(&**role));
        let roles = self.cluster_roles.iter().filter(move |(_, role)| staying(role));
        roles.map(move |(name, role)| {
            let converted = Role::from_cluster_role(role, operator_namespace, &self.namespaces, &parent);
            (name.as_str(), converted)
        })
    }
}

/// Positions of roles by what keys call them.
type Positions<'a> = HashMap<(RoleKind, &'a str), usize>;

/// A key names `McpRole`s of its own namespace, which are the only ones there.
fn positions(roles: &Roles) -> Positions<'_> {
    roles.iter().enumerate().map(|(position, role)| ((role.id().kind, &*role.id().name), position)).collect()
}

fn generations(key: &McpApiKey, server: &str, roles: &Roles, named: &Positions<'_>) -> Vec<(String, Key)> {
    // A network that is not one lets nobody in: the operator says so in the key's condition.
    let Ok(allowed) =
        key.spec.allowed_cidrs.iter().map(|text| text.parse()).collect::<Result<Vec<IpNet>, _>>()
    else {
        return Vec::new();
    };
    let mut held = FixedBitSet::with_capacity(roles.len());
    let positions = key.spec.roles.iter().filter_map(|role| named.get(&(role.kind, role.name.as_str())));
    positions.for_each(|position| held.insert(*position));
    let held = Arc::new(held);
    let Some(status) = key.status.as_ref() else { return Vec::new() };
    // Asked for and not yet carried out: it counts all the same, so that nobody has to wait for the operator.
    let all_revoked = asks_to_revoke(key.annotations(), status.handled_revoke.as_deref());
    let record = |generation: &KeyGeneration| {
        let ends = [key.spec.expires_at.as_ref(), generation.not_after.as_ref()];
        Some(KeyRecord {
            verifier: verifier(&generation.digest)?,
            name: key.name_any(),
            identity: key.spec.identity.clone(),
            tenant: key.spec.tenant.clone(),
            enabled: key.spec.enabled,
            revoked: all_revoked || generation.state == KeyState::Revoked,
            expires_at: ends.into_iter().flatten().map(|time| time.0).min(),
            opens_server: key.spec.servers.iter().any(|name| name == server),
            allowed: allowed.clone(),
            rate_limit: key.spec.rate_limit,
        })
    };
    let living = status.keys.iter().filter(|generation| generation.state != KeyState::Expired);
    living
        .filter_map(|generation| {
            Some((generation.id.clone(), Key { record: record(generation)?, held: held.clone() }))
        })
        .collect()
}

fn verifier(digest: &str) -> Option<Verifier> {
    match digest.strip_prefix("argon2id:") {
        Some(hex) => api_key::parse_digest(&format!("sha256:{hex}")).map(Verifier::Imported),
        None => api_key::parse_digest(digest).map(Verifier::Sha256),
    }
}

/// Whether the annotation asks for a revocation that was not carried out yet.
pub(super) fn asks_to_revoke(annotations: &BTreeMap<String, String>, handled: Option<&str>) -> bool {
    let asked = annotations.get(names::REVOKE_ANNOTATION).map(String::as_str);
    asked.is_some() && asked != handled
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::authz::{Permission, Target, authorize};

    const LIST: Permission = Permission::of("pods", "list");

    fn objects(namespace_label: &str) -> Objects {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let key = json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey",
            "metadata": {"name": "ci", "namespace": "agents"},
            "spec": {"identity": "ci-bot", "servers": ["ops"], "roles": [
                {"kind": "McpRole", "name": "viewer"}, {"kind": "ClusterMcpRole", "name": "fleet"},
                {"kind": "McpRole", "name": "broken"}, {"kind": "McpRole", "name": "absent"}]},
            "status": {"keys": [{"id": "k1", "digest": digest, "createdAt": "2026-01-01T00:00:00Z", "state": "Active"}]},
        });
        let role = |name: &str, permission: &str| {
            json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
                "metadata": {"name": name, "namespace": "agents"}, "spec": {"permissions": [permission]}})
        };
        let fleet = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
            "metadata": {"name": "fleet"},
            "spec": {"permissions": ["k8s:pods:list"], "namespaces": ["team-*"],
                "servers": [{"namespace": "agents", "name": "ops"}]}});
        let parse_role = |value| Arc::new(serde_json::from_value::<McpRole>(value).expect("a role"));
        let labels = BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), namespace_label.to_owned())]);
        Objects {
            server: None,
            roles: BTreeMap::from([
                ("viewer".to_owned(), parse_role(role("viewer", "k8s:pods:list"))),
                ("broken".to_owned(), parse_role(role("broken", "k8s:pods:lost"))),
            ]),
            cluster_roles: BTreeMap::from([(
                "fleet".to_owned(),
                Arc::new(serde_json::from_value(fleet).expect("a role")),
            )]),
            keys: BTreeMap::from([("ci".to_owned(), Arc::new(serde_json::from_value(key).expect("a key")))]),
            namespaces: BTreeMap::from([
                ("agents".to_owned(), labels),
                ("team-a".to_owned(), BTreeMap::new()),
            ]),
        }
    }

    fn may_list(label: &str, namespace: &str) -> bool {
        let snapshot = Snapshot::build(&objects(label), "agents", "ops", "portcullis-system");
        let grants = snapshot.grants_of_key("k1").expect("there is a key");
        authorize(&grants, LIST, Target::Namespace(namespace)).is_ok()
    }

    #[test]
    fn a_key_holds_the_valid_roles_that_it_names() {
        assert!(may_list("local", "agents"));
        assert!(may_list("cluster", "agents"));
    }

    #[test]
    fn cluster_roles_count_only_in_namespaces_that_an_administrator_labelled_for_them() {
        assert!(!may_list("local", "team-a"));
        assert!(may_list("cluster", "team-a"));
    }

    #[test]
    fn a_namespace_that_no_administrator_labelled_has_no_keys() {
        let mut objects = objects("local");
        let built =
            |objects: &Objects| Snapshot::build(objects, "agents", "ops", "portcullis-system").keys.len();
        assert_eq!(built(&objects), 1);
        for labels in
            [BTreeMap::new(), BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), "other".to_owned())])]
        {
            objects.namespaces.insert("agents".to_owned(), labels);
            assert_eq!(built(&objects), 0);
        }
        objects.namespaces.remove("agents");
        assert_eq!(built(&objects), 0);
    }

    #[test]
    fn what_is_being_deleted_grants_nothing() {
        let time = || Some(Time(jiff::Timestamp::UNIX_EPOCH));
        let mut without_role = objects("local");
        let role = without_role.roles.get_mut("viewer").expect("it is there");
        Arc::make_mut(role).metadata.deletion_timestamp = time();
        let snapshot = Snapshot::build(&without_role, "agents", "ops", "portcullis-system");
        assert!(snapshot.keys["k1"].held.is_clear());
        let mut without_fleet = objects("cluster");
        let role = without_fleet.cluster_roles.get_mut("fleet").expect("it is there");
        Arc::make_mut(role).metadata.deletion_timestamp = time();
        let snapshot = Snapshot::build(&without_fleet, "agents", "ops", "portcullis-system");
        assert_eq!(snapshot.keys["k1"].held.count_ones(..), 1);
        let mut without_key = objects("cluster");
        let key = without_key.keys.get_mut("ci").expect("it is there");
        Arc::make_mut(key).metadata.deletion_timestamp = time();
        assert!(Snapshot::build(&without_key, "agents", "ops", "portcullis-system").keys.is_empty());
    }

    #[test]
    fn a_role_that_selects_by_label_follows_the_labels_of_the_namespaces() {
        let mut objects = objects("cluster");
        let fleet = objects.cluster_roles.get_mut("fleet").expect("it is there");
        let spec = &mut Arc::make_mut(fleet).spec;
        spec.namespaces.clear();
        spec.namespace_selector = serde_json::from_value(json!({"matchLabels": {"team": "a"}})).expect("one");
        let may_list = |objects: &Objects| {
            let snapshot = Snapshot::build(objects, "agents", "ops", "portcullis-system");
            let grants = snapshot.grants_of_key("k1").expect("there is a key");
            authorize(&grants, LIST, Target::Namespace("team-a")).is_ok()
        };
        assert!(!may_list(&objects));
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        objects.namespaces.insert("team-a".to_owned(), labels);
        assert!(may_list(&objects));
        objects.namespaces.remove("team-a");
        assert!(!may_list(&objects));
    }

    #[test]
    fn a_role_whose_parent_is_being_deleted_grants_nothing() {
        let mut objects = objects("local");
        let parent = Arc::make_mut(objects.roles.get_mut("broken").expect("it is there"));
        parent.spec.permissions = vec!["k8s:pods:logs".to_owned()];
        let viewer = Arc::make_mut(objects.roles.get_mut("viewer").expect("it is there"));
        viewer.spec.inherits = vec!["broken".to_owned()];
        let held = |objects: &Objects| {
            let snapshot = Snapshot::build(objects, "agents", "ops", "portcullis-system");
            snapshot.keys["k1"].held.count_ones(..)
        };
        assert_eq!(held(&objects), 2);
        let parent = Arc::make_mut(objects.roles.get_mut("broken").expect("it is there"));
        parent.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(held(&objects), 0);
    }

    #[test]
    fn a_key_of_another_server_opens_nothing_here() {
        let snapshot = Snapshot::build(&objects("local"), "agents", "other", "portcullis-system");
        assert!(!snapshot.keys["k1"].record.opens_server);
    }

    #[test]
    fn only_the_two_values_of_the_label_let_servers_in() {
        let labelled = |value: &str| {
            admits_servers(&BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), value.to_owned())]))
        };
        assert!(labelled("local") && labelled("cluster"));
        assert!(!labelled("") && !labelled("true") && !admits_servers(&BTreeMap::new()));
    }
}
