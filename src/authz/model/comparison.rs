//! What the tests of the model share: the same role for the decision and for the model, and one question to both.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fixedbitset::FixedBitSet;

use super::super::catalogue::Place as UsedIn;
use super::super::{
    Cause, Confinement, Grants, NamespaceLabels, Parent, Permission, Role, Roles, Target, authorize,
};
use super::*;
use crate::api::{ClusterMcpRole, ClusterMcpRoleSpec, McpRole, McpRoleSpec, ServerReference, Tenancy};

pub(super) const OPERATOR_NAMESPACE: &str = "portcullis-system";

/// What the tests in processes of their own add to the catalogue.
pub(super) const EXTENSION: &str = r#"{
    "extra": [
        {"group": "example.com", "resource": "widgets", "kind": "Widget", "version": "v1", "scope": "Namespaced",
         "verbs": ["get", "list", "create"]},
        {"group": "example.com", "resource": "fleets", "kind": "Fleet", "version": "v1", "scope": "Cluster",
         "verbs": ["get", "list"]},
        {"resource": "nodes", "kind": "Node", "version": "v1", "scope": "Cluster", "verbs": ["list"]}
    ],
    "secrets": {"read": true}
}"#;
/// The permissions of that, without those on Secrets.
const ADDED: [&str; 6] = [
    "k8s:widgets.example.com:get",
    "k8s:widgets.example.com:list",
    "k8s:widgets.example.com:create",
    "k8s:fleets.example.com:get",
    "k8s:fleets.example.com:list",
    "k8s:nodes:list",
];

/// A role as the decision has it and as the model has it.
pub(super) struct Both {
    pub(super) real: Arc<Role>,
    pub(super) meaning: Meaning,
}

/// A permission of the catalogue and its name.
pub(super) type Question = (Permission, String);

/// A world with these namespaces.
pub(super) fn world(namespaces: impl IntoIterator<Item = (String, Namespace)>) -> World {
    let mut unplaced = BTreeSet::new();
    let row = |permission: Permission| {
        let entry = permission.entry();
        let name = permission.to_string();
        if entry.place == UsedIn::Cluster {
            unplaced.insert(name.clone());
        }
        let named = Named {
            family: entry.family.to_owned(),
            resource: entry.resource.to_owned(),
            group: entry.rules.first().map_or("", |rule| rule.group).to_owned(),
            verb: entry.verb.to_owned(),
            added: ADDED.contains(&name.as_str()),
        };
        let for_endpoint = is_for_the_endpoint(&name);
        assert_eq!(entry.place == UsedIn::Endpoint, for_endpoint, "{permission}");
        named
    };
    World {
        catalogue: Permission::all().map(row).collect(),
        unplaced,
        namespaces: namespaces.into_iter().collect(),
        operator_namespace: OPERATOR_NAMESPACE,
    }
}

/// A world with these namespaces, without labels.
pub(super) fn unlabelled(namespaces: &[&str]) -> World {
    world(namespaces.iter().map(|name| ((*name).to_owned(), Some(BTreeMap::new()))))
}

/// Labels of a namespace.
pub(super) fn labels(labels: &[(&str, &str)]) -> Namespace {
    Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

/// The namespaces that are there.
pub(super) fn existing(world: &World) -> NamespaceLabels {
    let is_there = |(name, namespace): (&String, &Namespace)| Some((name.clone(), namespace.clone()?));
    world.namespaces.iter().filter_map(is_there).collect()
}

/// Every permission of the catalogue.
pub(super) fn questions() -> Vec<Question> {
    Permission::all().map(|permission| (permission, permission.to_string())).collect()
}

/// What can be asked about a permission in a world.
pub(super) fn targets(world: &World) -> Vec<Asked<'_>> {
    let named = world.namespaces.keys().map(|name| Asked::In(name));
    named.chain([Asked::Anywhere, Asked::Everywhere]).collect()
}

/// The `McpRole` or `ClusterMcpRole` that was written.
pub(super) enum Object {
    Own(McpRole),
    Cluster(ClusterMcpRole),
}

/// The role as an object.
pub(super) fn object(role: &Written, name: &str) -> Object {
    let (permissions, inherits) = (role.permissions.clone(), role.inherits.clone());
    match &role.place {
        Place::Own(namespace) => {
            let servers = role.servers.iter().map(|(_, name)| name.clone()).collect();
            let spec = McpRoleSpec { permissions, inherits, servers, ..McpRoleSpec::default() };
            let mut object = McpRole::new(name, spec);
            object.metadata.namespace = Some(namespace.clone());
            Object::Own(object)
        }
        Place::Cluster(namespaces, selector, all_namespaces) => {
            let reference = |(namespace, name): &(String, String)| ServerReference {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            let spec = ClusterMcpRoleSpec {
                permissions,
                inherits,
                namespaces: namespaces.clone(),
                namespace_selector: selector.clone(),
                all_namespaces: *all_namespaces,
                servers: role.servers.iter().map(reference).collect(),
                ..ClusterMcpRoleSpec::default()
            };
            Object::Cluster(ClusterMcpRole::new(name, spec))
        }
    }
}

/// The role through the conversion that everything else uses.
fn converted(role: &Written, name: &str, others: &Others, namespaces: &NamespaceLabels) -> Option<Role> {
    let parent = |name: &str| {
        let other = others.get(name)?;
        Some(Parent { permissions: other.permissions.clone(), inherits: other.inherits.clone() })
    };
    match object(role, name) {
        Object::Own(role) => Role::from_role(&role, &parent).ok(),
        Object::Cluster(role) => Role::from_cluster_role(&role, OPERATOR_NAMESPACE, namespaces, &parent).ok(),
    }
}

/// Both views of a role, if it is accepted; they must agree about that.
pub(super) fn inheriting(role: &Written, name: &str, others: &Others, world: &World) -> Option<Both> {
    let real = converted(role, name, others, &existing(world));
    let meaning = Meaning::of(role, name, others, world);
    assert_eq!(real.is_some(), meaning.is_some(), "accepted or not? {role:?} among {others:?}");
    Some(Both { real: Arc::new(real?), meaning: meaning? })
}

/// Both views of a role that has no others to inherit from.
pub(super) fn both(role: &Written, name: &str, world: &World) -> Option<Both> {
    inheriting(role, name, &Others::new(), world)
}

/// Every one of these roles, compiled for the namespaces of the world that are there.
pub(super) fn compiled(roles: &[&Both], world: &World) -> Arc<Roles> {
    Arc::new(Roles::compile(roles.iter().map(|role| role.real.clone()).collect(), &existing(world)))
}

/// A caller who holds some of the roles.
pub(super) fn held(all: &Arc<Roles>, roles: &[&Both], caller: &Caller) -> Grants {
    let mut held = FixedBitSet::with_capacity(all.len());
    let positions = roles.iter().map(|role| all.position(role.real.id()).expect("compiled"));
    positions.for_each(|position| held.insert(position));
    let tenancy = if caller.must_belong { Tenancy::Required } else { Tenancy::IfGiven };
    Grants::new(all.clone(), held.into(), Confinement::of(caller.tenant.as_deref(), tenancy))
}

/// One caller with some roles in a world.
pub(super) struct Case<'a> {
    pub(super) world: &'a World,
    pub(super) roles: &'a [&'a Both],
    pub(super) caller: &'a Caller,
    pub(super) grants: Grants,
}

impl<'a> Case<'a> {
    /// A caller who holds some of the compiled roles.
    pub(super) fn new(all: &Arc<Roles>, roles: &'a [&'a Both], caller: &'a Caller, world: &'a World) -> Self {
        Self { world, roles, caller, grants: held(all, roles, caller) }
    }

    /// Whether the model lets one of the roles do it.
    fn expects(&self, name: &str, asked: Asked<'_>) -> bool {
        self.roles.iter().any(|role| role.meaning.grants(name, asked, self.caller, self.world))
    }

    /// Asks one question of both and compares everything that the answer says. Returns whether it was yes.
    pub(super) fn agree(&self, question: &Question, asked: Asked<'_>, probes: &[&str]) -> bool {
        let (permission, name) = (question.0, question.1.as_str());
        let target = match asked {
            Asked::Anywhere => Target::Anywhere,
            Asked::Everywhere => Target::Namespace(""),
            Asked::In(namespace) => Target::Namespace(namespace),
        };
        let expected = self.expects(name, asked);
        let about = || format!("{name} {asked:?} by {:?} with {:?}", self.caller, self.grants);
        match authorize(&self.grants, permission, target) {
            Ok(permit) => {
                assert!(expected, "a permit that the model refuses: {}", about());
                let decided = self.roles.iter().find(|role| role.real.id() == permit.role());
                let grants = |role: &Both| role.meaning.grants(name, asked, self.caller, self.world);
                assert!(decided.is_some_and(|role| grants(role)), "the role that decided: {}", about());
                assert!(!permit.rule().is_empty(), "{}", about());
                let unplaced = self.world.unplaced.contains(name);
                let nowhere = is_for_the_endpoint(name) || unplaced;
                for probe in probes {
                    let covered = match asked {
                        _ if nowhere => false,
                        Asked::In(namespace) => namespace == *probe,
                        _ => self.expects(name, Asked::In(probe)),
                    };
                    assert_eq!(permit.covers(probe), covered, "in {probe}: {}", about());
                }
                let all = !matches!(asked, Asked::In(_)) && !nowhere && self.expects(name, Asked::Everywhere);
                assert_eq!(
                    (permit.is_cluster_wide(), permit.covers("")),
                    (all || unplaced, all),
                    "{}",
                    about()
                );
            }
            Err(denial) => {
                assert!(!expected, "a denial where the model permits: {}", about());
                assert_eq!((denial.permission, denial.roles), (permission, self.grants.count()));
                let namespace = denial.namespace.as_deref();
                assert_eq!(namespace.map_or(Target::Anywhere, Target::Namespace), target);
                let crossed = self.caller.crosses(name, asked, self.world);
                assert_eq!(denial.cause.is_tenancy(), crossed, "{denial}: {}", about());
                if let Cause::OtherTenant { tenant, owner } = &denial.cause {
                    let unplaced = self.world.unplaced.contains(name);
                    let namespace = denial.namespace.as_deref().filter(|_| !unplaced);
                    let expected = namespace.and_then(|name| tenant_of(name, self.world));
                    assert_eq!((Some(tenant.as_str()), owner.as_deref()), (self.caller.tenant(), expected));
                }
            }
        }
        expected
    }

    /// Asks every question about every namespace, about anywhere and about everywhere. Returns how often it was yes.
    pub(super) fn agree_on_all(&self, questions: &[Question]) -> usize {
        let probes: Vec<&str> = self.world.namespaces.keys().map(String::as_str).collect();
        let every = |question| {
            let yes = |asked: &Asked<'_>| self.agree(question, *asked, &probes);
            targets(self.world).into_iter().filter(yes).count()
        };
        questions.iter().map(every).sum()
    }
}

/// Asks everything of somebody without a tenant who holds these roles. Returns how often the answer was yes.
pub(super) fn agree_on_all(roles: &[&Both], questions: &[Question], world: &World) -> usize {
    Case::new(&compiled(roles, world), roles, &Caller::default(), world).agree_on_all(questions)
}

/// Does the work with every number up to a limit, on all cores.
pub(super) fn spread(limit: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// The members of a set by the bits of a number.
pub(super) fn subset<T: Clone>(of: &[T], bits: usize) -> Vec<T> {
    of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, item)| item.clone()).collect()
}
