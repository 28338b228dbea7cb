//! Roles of the file `configs/rbac-policies.yaml` that others write, as objects of ours. Pure: text in, objects out.
//!
//! A role without namespaces counts in every one there, and so it does in the objects, where that is said. Nothing is
//! widened: a wildcard means what it means there, and what our catalogue does not have is reported and left out.

use std::collections::BTreeSet;
use std::fmt;

use kube::CustomResourceExt;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use crate::api::{ClusterMcpRole, ClusterMcpRoleSpec, McpRole, McpRoleSpec, ServerReference};
use crate::authz::permission::Pattern;
use crate::authz::{NamespaceLabels, Role, suggestion};
use crate::index::files::check_schema;

/// Bytes of the largest file.
pub(crate) const MAX: usize = 1 << 20;
/// Roles of the largest file.
const MAX_ROLES: usize = 1024;

/// Which objects are made.
#[derive(Debug)]
pub(crate) enum Target {
    /// `ClusterMcpRole`s, for these servers.
    Cluster(Vec<ServerReference>),
    /// `McpRole`s of this namespace, of the roles that name it and no other.
    Namespace(String),
}

/// What came of a file.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    /// The objects, in the order of the file.
    pub(crate) objects: Vec<Object>,
    /// Permissions that are left out.
    pub(crate) unknown: Vec<UnknownPermission>,
    /// What people should know.
    pub(crate) notes: Vec<String>,
}

/// An object that was made.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    /// A role of a namespace.
    Role(McpRole),
    /// A role of several namespaces.
    ClusterRole(ClusterMcpRole),
}

/// A permission that cannot be granted.
#[derive(Debug)]
pub(crate) struct UnknownPermission {
    role: String,
    index: usize,
    line: u64,
    text: String,
    problem: String,
}

impl fmt::Display for UnknownPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, index, line, text, problem } = self;
        write!(f, "line {line}: role {role:?}, permissions[{index}]: {text:?} {problem}")
    }
}

/// Why a file cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImportPolicy {
    /// It is not YAML, or not a list of roles.
    #[error("{0}")]
    Read(String),
    /// It is larger than any policy.
    #[error("has more than {MAX} bytes or {MAX_ROLES} roles")]
    TooLarge,
    /// A name that no object can have.
    #[error(
        "line {line}: role {name:?}: the name of an object has lower-case letters, digits, '-' and '.' only"
    )]
    Name {
        /// Where it stands.
        line: u64,
        /// What stands there.
        name: String,
    },
    /// Two roles of one name.
    #[error("line {line}: role {name:?} is there twice")]
    Twice {
        /// Where the second stands.
        line: u64,
        /// Its name.
        name: String,
    },
    /// The API server or the operator would refuse the object.
    #[error("line {line}: role {name:?}: {problem}")]
    Refused {
        /// Where the role stands.
        line: u64,
        /// Its name.
        name: String,
        /// The field and what is wrong with it.
        problem: String,
    },
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    roles: Vec<Entry>,
}

/// One role of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(default)]
    description: Option<String>,
    permissions: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    namespaces: Option<Vec<String>>,
}

/// Makes objects of the roles of a file.
///
/// # Errors
/// [`ImportPolicy`] names line, role and field. Permissions that the catalogue does not have are no error here.
pub(crate) fn import(text: &str, target: &Target) -> Result<Imported, ImportPolicy> {
    if text.len() > MAX {
        return Err(ImportPolicy::TooLarge);
    }
    let file: File =
        serde_saphyr::from_str(text).map_err(|error| ImportPolicy::Read(first_line(&error.to_string())))?;
    if file.roles.len() > MAX_ROLES {
        return Err(ImportPolicy::TooLarge);
    }
    let mut imported = Imported::default();
    let mut names = BTreeSet::new();
    for entry in file.roles {
        let (name, line) = (entry.name.value.clone(), entry.name.referenced.line());
        if !is_object_name(&name) {
            return Err(ImportPolicy::Name { line, name });
        }
        if !names.insert(name.clone()) {
            return Err(ImportPolicy::Twice { line, name });
        }
        let permissions = permissions(&entry, &mut imported.unknown);
        if permissions.is_empty() {
            imported.notes.push(format!("role {name:?} grants nothing and is left out"));
            continue;
        }
        let object = match target {
            Target::Cluster(servers) => cluster_role(&entry, permissions, servers, &mut imported.notes),
            Target::Namespace(namespace) => role(&entry, permissions, namespace, &mut imported.notes),
        };
        let Some(object) = object else { continue };
        check(&object).map_err(|problem| ImportPolicy::Refused { line, name, problem })?;
        imported.objects.push(object);
    }
    Ok(imported)
}

/// The permissions of a role that can be granted, each once.
fn permissions(entry: &Entry, unknown: &mut Vec<UnknownPermission>) -> Vec<String> {
    let mut known: Vec<String> = Vec::new();
    for (index, permission) in entry.permissions.iter().flatten().enumerate() {
        let text = &permission.value;
        match judge(text) {
            Ok(()) if known.contains(text) => {}
            Ok(()) => known.push(text.clone()),
            Err(problem) => unknown.push(UnknownPermission {
                role: entry.name.value.clone(),
                index,
                line: permission.referenced.line(),
                text: text.clone(),
                problem,
            }),
        }
    }
    known
}

/// Whether a permission can be granted and means no more here than there, where `*` stands for what follows at the end
/// and for itself elsewhere.
fn judge(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("k8s:").unwrap_or(text);
    if rest.strip_suffix(":*").unwrap_or(rest).contains('*') && rest != "*" {
        return Err(
            "has a wildcard elsewhere than at the end, which grants nothing there; name each resource"
                .to_owned(),
        );
    }
    Pattern::parse(text).map(|_| ()).map_err(|error| format!("{error}{}", suggestion(text)))
}

/// The namespaces of a role, each once. None: every one.
fn namespaces(entry: &Entry) -> Option<Vec<String>> {
    let mut named: Vec<String> = Vec::new();
    for namespace in entry.namespaces.iter().flatten() {
        if namespace == "*" {
            return None;
        }
        if !named.contains(namespace) {
            named.push(namespace.clone());
        }
    }
    Some(named).filter(|named| !named.is_empty())
}

fn cluster_role(
    entry: &Entry,
    permissions: Vec<String>,
    servers: &[ServerReference],
    notes: &mut Vec<String>,
) -> Option<Object> {
    let name = &entry.name.value;
    let named = namespaces(entry);
    if named.is_none() {
        notes.push(format!("role {name:?} counts in every namespace: allNamespaces is true"));
    }
    let spec = ClusterMcpRoleSpec {
        description: entry.description.clone().unwrap_or_default(),
        permissions,
        all_namespaces: named.is_none(),
        namespaces: named.unwrap_or_default(),
        servers: servers.to_vec(),
        ..ClusterMcpRoleSpec::default()
    };
    Some(Object::ClusterRole(ClusterMcpRole::new(name, spec)))
}

/// A role that names this namespace and no other.
fn role(entry: &Entry, permissions: Vec<String>, namespace: &str, notes: &mut Vec<String>) -> Option<Object> {
    let name = &entry.name.value;
    let named = namespaces(entry);
    if named.as_deref() != Some(&[namespace.to_owned()]) {
        let counts = named.map_or("every namespace".to_owned(), |named| named.join(", "));
        notes.push(format!("role {name:?} is for {counts} and is left out: an McpRole counts in one namespace; import it with --server"));
        return None;
    }
    let spec = McpRoleSpec {
        description: entry.description.clone().unwrap_or_default(),
        permissions,
        ..McpRoleSpec::default()
    };
    let mut role = McpRole::new(name, spec);
    role.metadata.namespace = Some(namespace.to_owned());
    Some(Object::Role(role))
}

/// Holds an object against the schema and against the conversion that makes roles count.
fn check(object: &Object) -> Result<(), String> {
    let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
    match object {
        Object::Role(role) => {
            check_schema(&McpRole::crd(), &value)?;
            Role::from_role(role, &|_| None).map(|_| ()).map_err(|error| error.to_string())
        }
        Object::ClusterRole(role) => {
            check_schema(&ClusterMcpRole::crd(), &value)?;
            Role::from_cluster_role(role, "", &NamespaceLabels::new(), &|_| None)
                .map(|_| ())
                .map_err(|error| error.to_string())
        }
    }
}

/// Whether an object can have the name (RFC 1123, with dots).
fn is_object_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "import_policy_tests.rs"]
mod tests;
