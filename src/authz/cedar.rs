//! Roles as policies in Cedar, an engine that others wrote, for the tests and benchmarks to compare with.
//!
//! Only texts are made here: who reads them has the engine. One `permit` stands for each role, taken from what was
//! written and not from what the decision made of it; wildcards and inheritance are groups of actions, globs are
//! `like`, and tenants are a `forbid`. It is asked about roles that are accepted only.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::{Value, json};

use crate::api::{ClusterMcpRole, McpRole, Tenancy, names};

use super::catalogue::{Entry, Permission, Place};
use super::scope::NamespaceLabels;

/// What is put into Cedar's words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// Every `McpRole`.
    pub(crate) roles: Vec<McpRole>,
    /// Every `ClusterMcpRole`.
    pub(crate) cluster_roles: Vec<ClusterMcpRole>,
    /// Everybody who asks.
    pub(crate) callers: Vec<Caller>,
    /// Namespaces that are there.
    pub(crate) namespaces: NamespaceLabels,
    /// Namespaces that are asked about and are not there.
    pub(crate) absent: Vec<String>,
    /// The namespace that the operator runs in.
    pub(crate) operator_namespace: String,
    /// The rule of the server.
    pub(crate) tenancy: Tenancy,
}

/// Somebody who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The name in the questions.
    pub(crate) name: String,
    /// The roles that it holds, as [`super::RoleId`] writes them.
    pub(crate) roles: Vec<String>,
    /// The tenant that it belongs to.
    pub(crate) tenant: Option<String>,
}

/// The resource that stands for every namespace at once: `Cluster::"all"`.
#[cfg(test)]
pub(crate) const EVERYWHERE: &str = "all";
/// The group of actions on the endpoint itself.
const OF_ENDPOINT: &str = "of the endpoint";

impl Written {
    /// Every policy.
    pub(crate) fn policies(&self) -> String {
        let own = self.roles.iter().map(|role| {
            let namespace = role.metadata.namespace.as_deref().unwrap_or_default();
            permit(&name_of(role), &format!("resource is Namespace && resource.name == {namespace:?}"))
        });
        let cluster = self.cluster_roles.iter().map(|role| {
            let spec = &role.spec;
            let place = match (&spec.namespace_selector, spec.all_namespaces) {
                (_, true) => "true".to_owned(),
                (Some(selector), false) => self.selected(selector),
                (None, false) => self.named(&spec.namespaces),
            };
            permit(&name_of_cluster(role), &place)
        });
        let confined = format!(
            "forbid(principal, action, resource) when {{ principal has tenant && !(action in Action::{OF_ENDPOINT:?}) }}
            unless {{ resource has tenant && resource.tenant == principal.tenant }};"
        );
        let belongs = "forbid(principal, action, resource) unless { principal has tenant };";
        let tenants = [Some(confined), (self.tenancy == Tenancy::Required).then(|| belongs.to_owned())];
        own.chain(cluster).chain(tenants.into_iter().flatten()).collect::<Vec<_>>().join("\n")
    }

    /// Everything that the policies are about.
    pub(crate) fn entities(&self) -> Value {
        let entity = |kind: &str, id: &str, attributes: Value, tags: Value, parents: Vec<Value>| json!({"uid": uid(kind, id), "attrs": attributes, "tags": tags, "parents": parents});
        let actions = self.groups().into_iter().map(|(action, groups)| {
            let groups = groups.iter().map(|group| uid("Action", group)).collect();
            entity("Action", &action, json!({}), json!({}), groups)
        });
        let callers = self.callers.iter().map(|caller| {
            let roles = caller.roles.iter().map(|role| uid("Role", role)).collect();
            entity("Caller", &caller.name, tenant(caller.tenant.as_ref()), json!({}), roles)
        });
        let namespaces = self.namespaces.iter().map(|(name, labels)| {
            let mut attributes = tenant(labels.get(names::TENANT_LABEL));
            attributes["name"] = json!(name);
            attributes["exists"] = json!(true);
            entity("Namespace", name, attributes, json!(labels), Vec::new())
        });
        let absent = self.absent.iter().map(|name| {
            entity("Namespace", name, json!({"name": name, "exists": false}), json!({}), Vec::new())
        });
        actions.chain(callers).chain(namespaces).chain(absent).collect()
    }

    /// Names and globs.
    fn named(&self, names: &[String]) -> String {
        let one = |name: &String| match name.contains('*') {
            true => format!("resource.name like {name:?} && {}", self.unprotected()),
            false => format!("resource.name == {name:?}"),
        };
        let any: Vec<String> = names.iter().map(|name| format!("({})", one(name))).collect();
        match any.is_empty() {
            true => "false".to_owned(),
            false => format!("resource is Namespace && ({})", any.join(" || ")),
        }
    }

    /// A selector, over namespaces that are there.
    fn selected(&self, selector: &LabelSelector) -> String {
        let label = |(key, value): (&String, &String)| {
            format!("resource.hasTag({key:?}) && resource.getTag({key:?}) == {value:?}")
        };
        let labels = selector.match_labels.iter().flatten().map(label);
        let expressions = selector.match_expressions.iter().flatten().map(required);
        let all: Vec<String> = labels.chain(expressions).collect();
        format!("resource is Namespace && resource.exists && {} && {}", self.unprotected(), all.join(" && "))
    }

    fn unprotected(&self) -> String {
        format!("!(resource.name like \"kube-*\") && resource.name != {:?}", self.operator_namespace)
    }

    /// Every action and every group of them, with the groups that it is in: a permission is in every pattern that
    /// stands for it, a pattern in every role that has it, and a role in every role that inherits from it.
    fn groups(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for permission in Permission::all() {
            let entry = permission.entry();
            let of = groups.entry(permission.to_string()).or_default();
            of.extend(patterns(entry));
            if entry.place == Place::Endpoint {
                of.insert(OF_ENDPOINT.to_owned());
            }
        }
        let own = self.roles.iter().map(|role| {
            let namespace = role.metadata.namespace.as_deref().unwrap_or_default();
            let parent = |name: &String| format!("McpRole {namespace}/{name}");
            (name_of(role), &role.spec.permissions, role.spec.inherits.iter().map(parent).collect::<Vec<_>>())
        });
        let cluster = self.cluster_roles.iter().map(|role| {
            let parent = |name: &String| format!("ClusterMcpRole {name}");
            let parents = role.spec.inherits.iter().map(parent).collect();
            (name_of_cluster(role), &role.spec.permissions, parents)
        });
        for (role, permissions, parents) in own.chain(cluster) {
            for group in permissions.iter().chain(&parents) {
                groups.entry(group.clone()).or_default().insert(role.clone());
            }
            groups.entry(role).or_default();
        }
        groups
    }
}

/// A permission as every pattern that stands for it.
fn patterns(entry: &Entry) -> BTreeSet<String> {
    let mut resources = vec![entry.resource.to_owned()];
    let groups = entry.rules.iter().map(|rule| rule.group).filter(|group| !group.is_empty());
    resources.extend(groups.map(|group| format!("{}.{group}", entry.resource)));
    resources.push("*".to_owned());
    let mut patterns = BTreeSet::from(["*".to_owned()]);
    for family in [entry.family, "*"] {
        patterns.insert(format!("{family}:*"));
        for resource in &resources {
            patterns.extend([entry.verb, "*"].map(|verb| format!("{family}:{resource}:{verb}")));
        }
    }
    patterns.remove(&format!("{}:{}:{}", entry.family, entry.resource, entry.verb));
    patterns
}

fn required(requirement: &LabelSelectorRequirement) -> String {
    let key = &requirement.key;
    let values: Vec<String> = requirement.values.iter().flatten().map(|value| format!("{value:?}")).collect();
    let among =
        format!("(resource.hasTag({key:?}) && [{}].contains(resource.getTag({key:?})))", values.join(", "));
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => format!("!{among}"),
        "Exists" => format!("resource.hasTag({key:?})"),
        _ => format!("!resource.hasTag({key:?})"),
    }
}

/// The policy of one role.
fn permit(role: &str, place: &str) -> String {
    format!("permit(principal in Role::{role:?}, action in Action::{role:?}, resource) when {{ {place} }};")
}

fn name_of(role: &McpRole) -> String {
    let (namespace, name) = (role.metadata.namespace.as_deref(), role.metadata.name.as_deref());
    format!("McpRole {}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

fn name_of_cluster(role: &ClusterMcpRole) -> String {
    format!("ClusterMcpRole {}", role.metadata.name.as_deref().unwrap_or_default())
}

fn tenant(tenant: Option<&String>) -> Value {
    match tenant.filter(|tenant| !tenant.is_empty()) {
        Some(tenant) => json!({"tenant": tenant}),
        None => json!({}),
    }
}

fn uid(kind: &str, id: &str) -> Value {
    json!({"type": kind, "id": id})
}
