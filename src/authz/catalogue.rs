//! The catalogue: every permission there is, what it means to the API server, and how dangerous it is.
//!
//! The chart's ClusterRoles, the operator's bindings, the admission policies and the tools are made from this one
//! table, which an administrator may extend (see [`super::extension`]). What is not in it cannot be granted: `k8s:*`
//! expands over the table and is never a literal wildcard.

use std::fmt;

use serde::{Serialize, Serializer};

use super::extension;

/// What a call can do to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// Reads what is not secret.
    Read,
    /// Reads what may hold secrets, such as logs.
    Sensitive,
    /// Changes something that can be changed back.
    Write,
    /// Destroys something.
    Destructive,
}

impl Class {
    /// Whether a call of this class must be in the audit before it happens.
    pub(crate) fn records_intent(self) -> bool {
        self != Class::Read
    }

    /// Whether a call of this class leaves everything as it was.
    pub(crate) fn is_read_only(self) -> bool {
        matches!(self, Class::Read | Class::Sensitive)
    }
}

/// One rule of RBAC, as a permission needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// API group; empty is the core group.
    pub(crate) group: &'static str,
    /// Resource in the plural, with its subresource: `pods/log`.
    pub(crate) resource: &'static str,
    /// Verbs of the API server.
    pub(crate) verbs: &'static [&'static str],
}

/// Where a permission can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In namespaces: the role must cover the one that is asked for.
    Namespaces,
    /// On objects without a namespace: only a role that counts in every namespace grants it, and no tenant has it.
    Cluster,
    /// On the endpoint itself: wherever a role counts, it grants it.
    Endpoint,
}

/// One row of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First segment of the permission's name: `k8s` for rights on the cluster, `mcp` for rights on the endpoint.
    pub(crate) family: &'static str,
    /// Where it can be used.
    pub(crate) place: Place,
    /// Resource in the permission's name.
    pub(crate) resource: &'static str,
    /// Verb in the permission's name.
    pub(crate) verb: &'static str,
    /// How dangerous it is.
    pub(crate) class: Class,
    /// What the API server must allow. Empty: the server's baseline suffices.
    pub(crate) rules: &'static [Rule],
}

impl Entry {
    /// Whether an administrator added it as a resource like any other. Secrets are not like any other.
    pub(crate) fn is_extra(&self) -> bool {
        self.resource != SECRETS && Permission::built_in(self.family, self.resource, self.verb).is_none()
    }
}

/// Objects of the API server that permissions are about, for tools that read any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Resource as permissions write it: `deployments`, `certificates.cert-manager.io`.
    pub(crate) name: &'static str,
    /// Resource with its group, as RBAC writes it: `deployments.apps`.
    pub(crate) qualified: &'static str,
    /// API group; empty is the core group.
    pub(crate) group: &'static str,
    /// Version of the group.
    pub(crate) version: &'static str,
    /// Resource in the plural, without its group.
    pub(crate) plural: &'static str,
    /// Kind of one object.
    pub(crate) kind: &'static str,
    /// Whether they stand in namespaces.
    pub(crate) place: Place,
}

impl Object {
    /// Every one there is.
    pub(crate) fn all() -> impl Iterator<Item = &'static Object> {
        OBJECTS.iter().chain(extension::objects())
    }

    /// The one that permissions or RBAC write so.
    pub(crate) fn find(resource: &str) -> Option<&'static Object> {
        Object::all().find(|object| object.name == resource || object.qualified == resource)
    }

    /// A built-in one, for names in the source: an unknown one does not compile in a constant.
    pub(crate) const fn of(name: &str) -> &'static Object {
        let mut i = 0;
        while i < OBJECTS.len() {
            if same(OBJECTS[i].name, name) {
                return &OBJECTS[i];
            }
            i += 1;
        }
        panic!("no such object in the catalogue")
    }

    /// Path of the list of them, in one namespace or in all.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let Self { group, version, plural, .. } = self;
        let root =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{plural}"),
        }
    }
}

/// A permission of the catalogue, by its place there. It can only be had from the table, so an unknown one cannot exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Permission(u16);

impl Permission {
    /// The row behind it.
    pub(crate) fn entry(self) -> &'static Entry {
        let index = self.index();
        CATALOGUE.get(index).unwrap_or_else(|| &extension::entries()[index - CATALOGUE.len()])
    }

    /// Its position in the table.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// How dangerous it is.
    pub(crate) fn class(self) -> Class {
        self.entry().class
    }

    /// Name of the ClusterRole of the chart that carries it.
    pub(crate) fn cluster_role(self) -> String {
        crate::api::names::catalogue_role(self.entry().resource, self.entry().verb)
    }

    /// Finds `k8s:<resource>:<verb>`.
    pub(crate) fn named(resource: &str, verb: &str) -> Option<Permission> {
        let mut all = Permission::all();
        all.find(|permission| {
            let entry = permission.entry();
            (entry.family, entry.resource, entry.verb) == (KUBERNETES, resource, verb)
        })
    }

    /// Finds a row that is there whatever an administrator adds.
    pub(super) const fn built_in(family: &str, resource: &str, verb: &str) -> Option<Permission> {
        let mut i = 0;
        while i < CATALOGUE.len() {
            let entry = &CATALOGUE[i];
            if same(entry.family, family) && same(entry.resource, resource) && same(entry.verb, verb) {
                return Some(Permission(i as u16));
            }
            i += 1;
        }
        None
    }

    /// As [`Permission::named`], for names in the source: an unknown one does not compile in a constant.
    pub(crate) const fn of(resource: &str, verb: &str) -> Permission {
        match Permission::built_in(KUBERNETES, resource, verb) {
            Some(permission) => permission,
            None => panic!("no such permission in the catalogue"),
        }
    }

    /// The permission `mcp:tools:<name>`, for names in the source: an unknown one does not compile in a constant.
    pub(crate) const fn tool(name: &str) -> Permission {
        match Permission::built_in(ENDPOINT, "tools", name) {
            Some(permission) => permission,
            None => panic!("no such permission in the catalogue"),
        }
    }

    /// Every permission there is, in the order of the table: first the built-in ones.
    pub(crate) fn all() -> impl Iterator<Item = Permission> + Clone {
        (0..CATALOGUE.len() + extension::entries().len()).map(|index| Permission(index as u16))
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

impl PartialOrd for Permission {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Permission {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let names = |permission: &Permission| {
            let Entry { family, resource, verb, .. } = permission.entry();
            (*family, *resource, *verb)
        };
        names(self).cmp(&names(other))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { family, resource, verb, .. } = self.entry();
        write!(f, "{family}:{resource}:{verb}")
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Permission {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Family of the rights on the cluster.
pub(super) const KUBERNETES: &str = "k8s";
/// Family of the rights on the endpoint itself.
const ENDPOINT: &str = "mcp";
/// The resource that nobody can be granted unless an administrator says so.
pub(crate) const SECRETS: &str = "secrets";
const CORE: &str = "";
const APPS: &str = "apps";

/// A row with one rule.
macro_rules! entry {
    ($resource:literal, $verb:literal, $class:ident, $group:expr, $real:literal, $verbs:expr) => {
        Entry {
            family: KUBERNETES,
            place: Place::Namespaces,
            resource: $resource,
            verb: $verb,
            class: Class::$class,
            rules: &[Rule { group: $group, resource: $real, verbs: &$verbs }],
        }
    };
}

/// An object of the table below.
macro_rules! object {
    ($plural:literal, $qualified:literal, $group:expr, $kind:literal) => {
        Object {
            name: $plural,
            qualified: $qualified,
            group: $group,
            version: "v1",
            plural: $plural,
            kind: $kind,
            place: Place::Namespaces,
        }
    };
}

/// The objects behind the table.
pub(crate) static OBJECTS: [Object; 5] = [
    object!("pods", "pods", CORE, "Pod"),
    object!("services", "services", CORE, "Service"),
    object!("events", "events", CORE, "Event"),
    object!("deployments", "deployments.apps", APPS, "Deployment"),
    object!("replicasets", "replicasets.apps", APPS, "ReplicaSet"),
];

/// The built-in part of the table. Permissions on Secrets are not in it: a role cannot grant them.
pub(crate) static CATALOGUE: [Entry; 18] = [
    // The list of namespaces shows those in which the caller may do anything; watching namespaces is in the baseline.
    Entry {
        family: KUBERNETES,
        place: Place::Namespaces,
        resource: "namespaces",
        verb: "list",
        class: Class::Read,
        rules: &[],
    },
    entry!("pods", "get", Read, CORE, "pods", ["get"]),
    entry!("pods", "list", Read, CORE, "pods", ["list"]),
    entry!("pods", "watch", Read, CORE, "pods", ["watch"]),
    // What a program writes to its log is its own affair, secrets included.
    entry!("pods", "logs", Sensitive, CORE, "pods/log", ["get"]),
    // A Pod is restarted by deleting it; whether a controller owns it is read first.
    entry!("pods", "restart", Destructive, CORE, "pods", ["get", "delete"]),
    entry!("pods", "delete", Destructive, CORE, "pods", ["delete"]),
    entry!("services", "get", Read, CORE, "services", ["get"]),
    entry!("services", "list", Read, CORE, "services", ["list"]),
    entry!("events", "get", Read, CORE, "events", ["get"]),
    entry!("events", "list", Read, CORE, "events", ["list"]),
    entry!("deployments", "get", Read, APPS, "deployments", ["get"]),
    entry!("deployments", "list", Read, APPS, "deployments", ["list"]),
    entry!("deployments", "scale", Write, APPS, "deployments/scale", ["get", "update", "patch"]),
    // RBAC cannot narrow a patch to the restart annotation; the tool does.
    entry!("deployments", "restart", Write, APPS, "deployments", ["get", "patch"]),
    entry!("replicasets", "get", Read, APPS, "replicasets", ["get"]),
    entry!("replicasets", "list", Read, APPS, "replicasets", ["list"]),
    // Who the caller is and what it may do, as the endpoint sees it.
    Entry {
        family: ENDPOINT,
        place: Place::Endpoint,
        resource: "tools",
        verb: "access_whoami",
        class: Class::Read,
        rules: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permission_is_found_by_its_name_and_only_once() {
        for permission in Permission::all() {
            let entry = permission.entry();
            assert_eq!(Permission::built_in(entry.family, entry.resource, entry.verb), Some(permission));
            let same = Permission::all().filter(|other| *other == permission).count();
            assert_eq!(same, 1, "{permission} is in the table twice");
        }
    }

    #[test]
    fn nothing_in_the_catalogue_reaches_secrets_or_runs_programs() {
        for rule in Permission::all().flat_map(|p| p.entry().rules) {
            assert!(!rule.resource.starts_with("secrets"), "{rule:?}");
            for subresource in ["exec", "attach", "portforward", "proxy", "ephemeralcontainers"] {
                assert!(!rule.resource.ends_with(&format!("/{subresource}")), "{rule:?}");
            }
            assert!(!rule.resource.contains('*') && !rule.verbs.contains(&"*"), "{rule:?}");
        }
    }
}
