//! The decision a second time, written from the text of the design alone, for the tests to compare with.
//!
//! Nothing of the real decision is used: a role means two sets of words, the permissions that it names and the
//! namespaces in which it counts; roles add; what is in no role is denied. Slow and plain on purpose. Every name of
//! a namespace that can matter stands in a [`World`], so that a set can hold them.

use std::collections::BTreeSet;

/// What there is to be named.
pub(super) struct World {
    /// Every permission: resource, group (empty: the core group, or none) and verb.
    pub(super) catalogue: Vec<[String; 3]>,
    /// Namespaces of the questions.
    pub(super) namespaces: Vec<&'static str>,
    /// The namespace that the operator runs in.
    pub(super) operator_namespace: &'static str,
}

/// A role as somebody writes it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// `spec.permissions`.
    pub(super) permissions: Vec<String>,
    /// Its kind and what that kind says about namespaces.
    pub(super) place: Place,
    /// `spec.servers`, by namespace and name; of an `McpRole` the namespace is its own.
    pub(super) servers: Vec<(String, String)>,
}

/// Kind of a role, and where it counts.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// An `McpRole` of this namespace.
    Own(String),
    /// A `ClusterMcpRole` with these `namespaces` and `allNamespaces`.
    Cluster(Vec<String>, bool),
}

/// What an accepted role means.
#[derive(Debug)]
pub(super) struct Meaning {
    /// Permissions by their whole names.
    permissions: BTreeSet<String>,
    /// Namespaces of the world, and examples of those that its globs match.
    namespaces: BTreeSet<String>,
    /// Whether it counts in every namespace there is.
    pub(super) everywhere: bool,
    own_namespace: Option<String>,
    servers: Vec<(String, String)>,
}

impl Meaning {
    /// What the role means. None: it is not accepted, and grants nothing.
    pub(super) fn of(role: &Written, world: &World) -> Option<Self> {
        let mut permissions = BTreeSet::new();
        for pattern in &role.permissions {
            let named = stood_for(pattern, world);
            if named.is_empty() {
                return None;
            }
            permissions.extend(named);
        }
        let (names, everywhere, own_namespace) = match &role.place {
            Place::Own(own) => (vec![own.clone()], false, Some(own.clone())),
            Place::Cluster(names, everywhere) => (names.clone(), *everywhere, None),
        };
        let two_answers = everywhere && !names.is_empty();
        let no_server = own_namespace.is_none() && role.servers.is_empty();
        if permissions.is_empty() || two_answers || no_server {
            return None;
        }
        let examples = names.iter().flat_map(|name| [name.replace('*', "x"), name.replace('*', "xx")]);
        let conceivable = world.namespaces.iter().map(|name| (*name).to_owned()).chain(examples);
        let namespaces: BTreeSet<String> = conceivable
            .filter(|namespace| everywhere || names.iter().any(|name| is_meant(name, namespace, world)))
            .collect();
        // A pattern that can match nothing is a slip.
        let matches_nothing = |name: &String| name.contains('*') && name.starts_with("kube-");
        if names.iter().any(matches_nothing) {
            return None;
        }
        Some(Self { permissions, namespaces, everywhere, own_namespace, servers: role.servers.clone() })
    }

    /// Whether the permission is among the role's, wherever it counts.
    pub(super) fn names(&self, permission: &str) -> bool {
        self.permissions.contains(permission)
    }

    /// Whether the role grants the permission in a namespace of the world.
    pub(super) fn grants(&self, permission: &str, namespace: &str) -> bool {
        self.names(permission) && self.namespaces.contains(namespace)
    }

    /// Whether there can be a namespace in which the role grants the permission.
    pub(super) fn grants_somewhere(&self, permission: &str) -> bool {
        self.names(permission) && !self.namespaces.is_empty()
    }

    /// Whether the role counts for a server.
    pub(super) fn selects(&self, namespace: &str, server: &str) -> bool {
        match &self.own_namespace {
            Some(own) if self.servers.is_empty() => own == namespace,
            _ => self.servers.contains(&(namespace.to_owned(), server.to_owned())),
        }
    }
}

/// Every permission of the catalogue that a pattern stands for.
pub(super) fn stood_for(pattern: &str, world: &World) -> Vec<String> {
    let pattern: Vec<&str> = pattern.split(':').collect();
    let mut found = Vec::new();
    for [resource, group, verb] in &world.catalogue {
        let with_group = format!("{resource}.{group}");
        let bare = stands_for(&pattern, &["k8s", resource, verb]);
        if bare || !group.is_empty() && stands_for(&pattern, &["k8s", &with_group, verb]) {
            found.push(format!("k8s:{resource}:{verb}"));
        }
    }
    found
}

/// `*` stands for one whole segment or, at the end, for all that follows.
fn stands_for(pattern: &[&str], permission: &[&str]) -> bool {
    match (pattern, permission) {
        ([], []) | (["*"], [_, ..]) => true,
        ([one, pattern @ ..], [word, permission @ ..]) => {
            (one == word || *one == "*") && stands_for(pattern, permission)
        }
        _ => false,
    }
}

/// Whether a name or glob means a namespace. A glob never means `kube-*` or the operator's own: only the literal name
/// does.
fn is_meant(name: &str, namespace: &str, world: &World) -> bool {
    let protected = namespace.starts_with("kube-") || namespace == world.operator_namespace;
    name == namespace && !name.contains('*')
        || name.contains('*') && !protected && glob(name.as_bytes(), namespace.as_bytes())
}

/// `*` stands for any run of characters: every length is tried.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        [byte, rest @ ..] => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
