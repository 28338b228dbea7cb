//! Many roles, keys and namespaces, and the decisions of a server that has them: its own, and the same put into Cedar's
//! words.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use serde_json::Value;

use crate::api::{
    ClusterMcpRole, ClusterMcpRoleSpec, KeyGeneration, KeyState, McpApiKey, McpApiKeySpec, McpApiKeyStatus,
    RoleKind, RoleReference, ServerReference, names,
};
use crate::authz::{Permission, Target, authorize, cedar};
use crate::index::snapshot::{Objects, Snapshot};

const OPERATOR_NAMESPACE: &str = "portcullis-system";
/// Namespace and name of the server.
const SERVER: (&str, &str) = ("agents", "ops");
/// Numbers of roles that the first keys hold; every other key holds up to twenty.
const HELD: [usize; 3] = [1, 20, 1_000];

/// A cluster with many objects, and a server there.
pub struct Policy {
    objects: Objects,
    snapshot: Snapshot,
}

/// A question of the holder of one key.
pub struct Question {
    /// The key's id.
    pub caller: String,
    /// Name of the permission.
    pub permission: String,
    /// The namespace.
    pub namespace: String,
    asked: Permission,
}

impl Policy {
    /// Makes so many roles, keys and namespaces. One role in four names a namespace, one has a glob that ends in `*`,
    /// one a glob that begins with it, and one a selector.
    #[must_use]
    pub fn new(roles: usize, keys: usize, namespaces: usize) -> Self {
        let named = |i: usize| {
            let name = if i.is_multiple_of(2) { format!("app-{}", i / 2) } else { format!("team-{i}-prod") };
            (name, BTreeMap::from([("team".to_owned(), (i % 50).to_string())]))
        };
        let mut objects = Objects { namespaces: (0..namespaces).map(named).collect(), ..Objects::default() };
        let admitted = (names::NAMESPACE_LABEL.to_owned(), names::NAMESPACE_CLUSTER.to_owned());
        objects.namespaces.insert(SERVER.0.to_owned(), BTreeMap::from([admitted]));
        objects.namespaces.insert("kube-system".to_owned(), BTreeMap::new());
        objects.cluster_roles = (0..roles).map(|i| (role_name(i), Arc::new(role(i)))).collect();
        objects.keys = (0..keys).map(|i| (key_name(i), Arc::new(key(i, roles)))).collect();
        let snapshot = build(&objects);
        Self { objects, snapshot }
    }

    /// Builds what requests use from all objects, as every change of one does, and says how many keys it has.
    #[must_use]
    pub fn build(&self) -> usize {
        build(&self.objects).keys.len()
    }

    /// Compiles the roles alone, and says how many there are.
    #[must_use]
    pub fn compile(&self) -> usize {
        let roles = self.snapshot.roles.iter().cloned().collect();
        crate::authz::Roles::compile(roles, &self.objects.namespaces).len()
    }

    /// A question of the holder of so many roles: 1, 20 or 1,000.
    #[must_use]
    pub fn question(&self, roles: usize, permission: &str, namespace: &str) -> Option<Question> {
        let caller = key_name(HELD.iter().position(|held| *held == roles)?);
        let asked = Permission::all().find(|one| one.to_string() == permission)?;
        Some(Question { caller, permission: permission.to_owned(), namespace: namespace.to_owned(), asked })
    }

    /// Finds what the caller holds and decides.
    #[must_use]
    pub fn decide(&self, question: &Question) -> bool {
        let Some(grants) = self.snapshot.grants_of_key(&question.caller) else { return false };
        authorize(&grants, question.asked, Target::Namespace(&question.namespace)).is_ok()
    }

    /// The same roles, keys and namespaces as policies and entities of Cedar, and namespaces that are asked about and
    /// are not there.
    #[must_use]
    pub fn cedar(&self, absent: &[&str]) -> (String, Value) {
        let caller = |key: &Arc<McpApiKey>| cedar::Caller {
            name: key.metadata.name.clone().unwrap_or_default(),
            roles: key.spec.roles.iter().map(|role| format!("ClusterMcpRole {}", role.name)).collect(),
            tenant: None,
        };
        let written = cedar::Written {
            cluster_roles: self.objects.cluster_roles.values().map(|role| (**role).clone()).collect(),
            callers: self.objects.keys.values().map(caller).collect(),
            namespaces: self.objects.namespaces.clone(),
            absent: absent.iter().map(|name| (*name).to_owned()).collect(),
            operator_namespace: OPERATOR_NAMESPACE.to_owned(),
            ..cedar::Written::default()
        };
        (written.policies(), written.entities())
    }
}

fn build(objects: &Objects) -> Snapshot {
    Snapshot::build(objects, SERVER.0, SERVER.1, OPERATOR_NAMESPACE)
}

fn role_name(i: usize) -> String {
    format!("role-{i:04}")
}

fn key_name(i: usize) -> String {
    format!("key-{i}")
}

fn role(i: usize) -> ClusterMcpRole {
    let mut spec = ClusterMcpRoleSpec {
        permissions: ["k8s:pods:get", "k8s:pods:list", "k8s:services:*"].map(str::to_owned).to_vec(),
        servers: vec![ServerReference { namespace: SERVER.0.to_owned(), name: SERVER.1.to_owned() }],
        ..ClusterMcpRoleSpec::default()
    };
    match i % 4 {
        0 => spec.namespaces = vec![format!("app-{}", i / 4)],
        1 => spec.namespaces = vec![format!("team-{i}-*")],
        2 => spec.namespaces = vec![format!("*-of-{i}")],
        _ => {
            let team = BTreeMap::from([("team".to_owned(), (i % 50).to_string())]);
            spec.namespace_selector =
                Some(LabelSelector { match_labels: Some(team), ..LabelSelector::default() });
        }
    }
    ClusterMcpRole::new(&role_name(i), spec)
}

fn key(i: usize, roles: usize) -> McpApiKey {
    let held = |n: usize| RoleReference { kind: RoleKind::ClusterMcpRole, name: role_name(n % roles) };
    let held = match HELD.get(i) {
        Some(count) => (0..*count).map(held).collect(),
        None => (0..=i % 20).map(|n| held(i * 7 + n)).collect(),
    };
    let spec = McpApiKeySpec {
        identity: key_name(i),
        servers: vec![SERVER.1.to_owned()],
        roles: held,
        enabled: true,
        expires_at: None,
        allowed_cidrs: Vec::new(),
        tenant: None,
        rate_limit: None,
        import: None,
        rotation: None,
    };
    let mut key = McpApiKey::new(&key_name(i), spec);
    let generation = KeyGeneration {
        id: key_name(i),
        digest: format!("sha256:{i:064x}"),
        created_at: Time(jiff::Timestamp::UNIX_EPOCH),
        not_after: None,
        state: KeyState::Active,
    };
    key.status = Some(McpApiKeyStatus { keys: vec![generation], ..McpApiKeyStatus::default() });
    key
}
