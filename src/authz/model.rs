//! The decision a second time, written from the text of the design alone, for the tests to compare with.
//!
//! Nothing of the real decision is used: a role means two sets of words, the permissions that it names and the
//! namespaces in which it counts; roles add; a tenant takes away; what is in no role is denied. Slow and plain on
//! purpose. Every name of a namespace that can matter stands in a [`World`], so that a set can hold them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// What there is to be named.
pub(super) struct World {
    /// Every permission.
    pub(super) catalogue: Vec<Named>,
    /// Permissions on what stands in no namespace, by their whole names.
    pub(super) unplaced: BTreeSet<String>,
    /// Namespaces of the questions, by name.
    pub(super) namespaces: BTreeMap<String, Namespace>,
    /// The namespace that the operator runs in.
    pub(super) operator_namespace: &'static str,
}

/// A permission by the parts of its name.
pub(super) struct Named {
    /// `k8s`, `mcp`.
    pub(super) family: String,
    /// What it is about.
    pub(super) resource: String,
    /// API group of that; empty: the core group, or none.
    pub(super) group: String,
    /// What is done to it.
    pub(super) verb: String,
    /// Whether an administrator added it, and it is not about Secrets.
    pub(super) added: bool,
}

/// A namespace of the questions. None: somebody asks about it, and it is not there.
pub(super) type Namespace = Option<BTreeMap<String, String>>;

/// A role as somebody writes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    /// `spec.permissions`.
    pub(super) permissions: Vec<String>,
    /// `spec.inherits`.
    pub(super) inherits: Vec<String>,
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
    /// A `ClusterMcpRole` with these `namespaces`, `namespaceSelector` and `allNamespaces`.
    Cluster(Vec<String>, Option<LabelSelector>, bool),
}

impl Default for Place {
    fn default() -> Self {
        Place::Cluster(Vec::new(), None, false)
    }
}

impl Place {
    /// A `ClusterMcpRole` with these names and globs.
    pub(super) fn named(namespaces: &[&str]) -> Self {
        Place::Cluster(namespaces.iter().map(|name| (*name).to_owned()).collect(), None, false)
    }

    /// A `ClusterMcpRole` with a selector.
    pub(super) fn selected(selector: &LabelSelector) -> Self {
        Place::Cluster(Vec::new(), Some(selector.clone()), false)
    }

    /// A `ClusterMcpRole` for all namespaces.
    pub(super) fn everywhere() -> Self {
        Place::Cluster(Vec::new(), None, true)
    }
}

/// The other roles of the same kind and place that a role can inherit from.
pub(super) type Others = BTreeMap<String, Written>;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Caller {
    /// The tenant that it belongs to; an empty one is none.
    pub(super) tenant: Option<String>,
    /// Whether the server lets in only who belongs to one.
    pub(super) must_belong: bool,
}

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// Whether there is a namespace at all.
    Anywhere,
    /// All of them at once.
    Everywhere,
    /// This one.
    In(&'a str),
}

/// What an accepted role means.
#[derive(Debug)]
pub(super) struct Meaning {
    /// Permissions by their whole names.
    pub(super) permissions: BTreeSet<String>,
    /// Namespaces of the world, and examples of those that its globs match.
    pub(super) namespaces: BTreeSet<String>,
    /// Whether it counts in every namespace there is.
    pub(super) everywhere: bool,
    own_namespace: Option<String>,
    servers: Vec<(String, String)>,
}

impl Meaning {
    /// What the role of this name means. None: it is not accepted, and grants nothing.
    pub(super) fn of(role: &Written, name: &str, others: &Others, world: &World) -> Option<Self> {
        let mut permissions = BTreeSet::new();
        for pattern in all_patterns(role, name, others)? {
            let named = stood_for(&pattern, world);
            if named.is_empty() {
                return None;
            }
            permissions.extend(named);
        }
        let nothing = (None, false);
        let (names, (selector, everywhere), own_namespace) = match &role.place {
            Place::Own(own) => (vec![own.clone()], nothing, Some(own.clone())),
            Place::Cluster(names, selector, everywhere) => {
                (names.clone(), (selector.as_ref(), *everywhere), None)
            }
        };
        let answers = [everywhere, own_namespace.is_none() && !names.is_empty(), selector.is_some()];
        let several_answers = answers.into_iter().filter(|said| *said).count() > 1;
        let no_server = own_namespace.is_none() && role.servers.is_empty();
        // A pattern that can match nothing is a slip.
        let matches_nothing = |name: &String| name.contains('*') && name.starts_with("kube-");
        let is_slip = names.iter().any(matches_nothing) || selector.is_some_and(|s| !is_selector(s));
        if permissions.is_empty() || several_answers || no_server || is_slip {
            return None;
        }
        let examples = names.iter().flat_map(|name| [name.replace('*', "x"), name.replace('*', "xx")]);
        let conceivable = world.namespaces.keys().cloned().chain(examples);
        let covered = |namespace: &String| {
            everywhere
                || names.iter().any(|name| is_meant(name, namespace, world))
                || selector.is_some_and(|selector| is_selected(selector, namespace, world))
        };
        let namespaces = conceivable.filter(covered).collect();
        let servers = role.servers.clone();
        Some(Self { permissions, namespaces, everywhere, own_namespace, servers })
    }

    /// Whether the role lets the caller do it.
    pub(super) fn grants(&self, permission: &str, asked: Asked<'_>, caller: &Caller, world: &World) -> bool {
        if !self.permissions.contains(permission) || !caller.may_enter_at_all() {
            return false;
        }
        if is_for_the_endpoint(permission) {
            return !self.namespaces.is_empty();
        }
        if world.unplaced.contains(permission) {
            return self.everywhere && caller.tenant().is_none();
        }
        match asked {
            Asked::Everywhere => self.everywhere && caller.tenant().is_none(),
            Asked::In(namespace) => self.namespaces.contains(namespace) && caller.may_enter(namespace, world),
            Asked::Anywhere => self.namespaces.iter().any(|namespace| caller.may_enter(namespace, world)),
        }
    }

    /// Whether the role counts for a server.
    pub(super) fn selects(&self, namespace: &str, server: &str) -> bool {
        match &self.own_namespace {
            Some(own) if self.servers.is_empty() => own == namespace,
            _ => self.servers.contains(&(namespace.to_owned(), server.to_owned())),
        }
    }
}

impl Caller {
    /// The tenant that it belongs to.
    pub(super) fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref().filter(|tenant| !tenant.is_empty())
    }

    /// Whether it may do anything.
    pub(super) fn may_enter_at_all(&self) -> bool {
        self.tenant().is_some() || !self.must_belong
    }

    /// Whether its tenant lets it act in the namespace.
    pub(super) fn may_enter(&self, namespace: &str, world: &World) -> bool {
        match self.tenant() {
            Some(tenant) => tenant_of(namespace, world) == Some(tenant),
            None => !self.must_belong,
        }
    }

    /// Whether asking this is trying to cross the border of a tenant.
    pub(super) fn crosses(&self, permission: &str, asked: Asked<'_>, world: &World) -> bool {
        !self.may_enter_at_all()
            || !is_for_the_endpoint(permission)
                && match asked {
                    _ if world.unplaced.contains(permission) => self.tenant().is_some(),
                    Asked::Anywhere => false,
                    Asked::Everywhere => self.tenant().is_some(),
                    Asked::In(namespace) => !self.may_enter(namespace, world),
                }
    }
}

/// The tenant that a namespace belongs to, by its label.
pub(super) fn tenant_of<'w>(namespace: &str, world: &'w World) -> Option<&'w str> {
    let labels = world.namespaces.get(namespace)?.as_ref()?;
    labels.get("portcullis.dev/tenant").map(String::as_str).filter(|tenant| !tenant.is_empty())
}

/// Whether a permission is used on the endpoint itself and in no namespace.
pub(super) fn is_for_the_endpoint(permission: &str) -> bool {
    permission.starts_with("mcp:")
}

/// The patterns of a role and of all that it inherits from. None: it cannot inherit that.
fn all_patterns(role: &Written, name: &str, others: &Others) -> Option<Vec<String>> {
    let ancestors = reached(&role.inherits, others);
    let leads_back = |ancestor: &String| match others.get(ancestor) {
        Some(other) => reached(&other.inherits, others).contains(ancestor),
        None => false,
    };
    if ancestors.contains(name) || ancestors.len() > 64 || ancestors.iter().any(leads_back) {
        return None;
    }
    let mut patterns = role.permissions.clone();
    for ancestor in &ancestors {
        let other = others.get(ancestor)?;
        if other.permissions.is_empty() && other.inherits.is_empty() {
            return None;
        }
        patterns.extend(other.permissions.iter().cloned());
    }
    Some(patterns)
}

/// Every name that can be reached from these: names are added until none is new.
fn reached(from: &[String], others: &Others) -> BTreeSet<String> {
    let mut reached: BTreeSet<String> = from.iter().cloned().collect();
    loop {
        let next = reached.iter().filter_map(|name| others.get(name)).flat_map(|other| &other.inherits);
        let larger: BTreeSet<String> = reached.iter().chain(next).cloned().collect();
        if larger.len() == reached.len() {
            return reached;
        }
        reached = larger;
    }
}

/// Every permission of the catalogue that a pattern stands for.
pub(super) fn stood_for(pattern: &str, world: &World) -> Vec<String> {
    let pattern: Vec<&str> = pattern.split(':').collect();
    let mut found = Vec::new();
    for Named { family, resource, group, verb, added } in &world.catalogue {
        let with_group = format!("{resource}.{group}");
        let bare = stands_for(&pattern, &[family, resource, verb]);
        // What was added has its group in its name already.
        let can_have_group = !group.is_empty() && !resource.contains('.');
        let grouped = can_have_group && stands_for(&pattern, &[family, &with_group, verb]);
        if bare || grouped || *added && stands_for(&pattern, &[family, "resources", verb]) {
            found.push(format!("{family}:{resource}:{verb}"));
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

/// Whether only its literal name means the namespace: `kube-*` and the operator's own.
fn is_protected(namespace: &str, world: &World) -> bool {
    namespace.starts_with("kube-") || namespace == world.operator_namespace
}

/// Whether a name or glob means a namespace.
fn is_meant(name: &str, namespace: &str, world: &World) -> bool {
    match name.contains('*') {
        true => !is_protected(namespace, world) && glob(name.as_bytes(), namespace.as_bytes()),
        false => name == namespace,
    }
}

/// `*` stands for any run of characters: every length is tried.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        [byte, rest @ ..] => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

/// Whether it requires something, and nothing that Kubernetes would refuse.
fn is_selector(selector: &LabelSelector) -> bool {
    let labels = selector.match_labels.clone().unwrap_or_default();
    let expressions = selector.match_expressions.clone().unwrap_or_default();
    let is_sound = |expression: &LabelSelectorRequirement| {
        let values = expression.values.clone().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" => !values.is_empty(),
            "Exists" | "DoesNotExist" => values.is_empty(),
            _ => false,
        }
    };
    !(labels.is_empty() && expressions.is_empty()) && expressions.iter().all(is_sound)
}

/// Whether a namespace is there and has what the selector requires.
fn is_selected(selector: &LabelSelector, namespace: &str, world: &World) -> bool {
    let Some(Some(labels)) = world.namespaces.get(namespace) else { return false };
    let label = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    let expression = |required: &LabelSelectorRequirement| {
        let value = labels.get(&required.key);
        let is_among = value.is_some_and(|value| required.values.iter().flatten().any(|one| one == value));
        match required.operator.as_str() {
            "In" => is_among,
            "NotIn" => !is_among,
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    };
    !is_protected(namespace, world)
        && selector.match_labels.iter().flatten().all(label)
        && selector.match_expressions.iter().flatten().all(expression)
}

#[cfg(all(test, feature = "bench"))]
mod cedar;
#[cfg(test)]
mod comparison;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod random;
#[cfg(test)]
mod small;
#[cfg(test)]
mod tests;
